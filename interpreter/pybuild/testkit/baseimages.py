"""Base images made without a registry: of busybox-static, or of this machine's Debian packages.

``busybox`` needs no network. ``debian`` is made by debootstrap, as root, from where this
machine's apt gets its packages, and stands in for the images ``gcc`` and ``python`` too.
They are OCI image layouts; from a shell, straight into a containerd::

    python -m pybuild.testkit.baseimages busybox --address /run/containerd/containerd.sock
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path

from pybuild.errors import BackendUnavailable
from pybuild.files.trees import NewEntry
from pybuild.oci.descriptor import LayerDiff
from pybuild.oci.image_config import HistoryEntry, ImageConfig
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.layerwriter import write_layer
from pybuild.oci.platform import host_platform
from pybuild.testkit.layouts import LayoutWriter, import_into_containerd

BUSYBOX = "docker.io/library/busybox:latest"
BUSYBOX_USRMERGE = "docker.io/library/busybox:usrmerge"
BUSYBOX_LARGE = "docker.io/library/busybox:large"
LARGE_FILES = 10_000
DEBIAN_NAMES = (
    "docker.io/library/debian:stable-slim",
    "docker.io/library/gcc:latest",
    "docker.io/library/python:3-slim",
)
DEBIAN_PACKAGES = ("gcc", "libc6-dev", "python3-minimal", "libpython3-stdlib")

_CREATED = "2024-01-01T00:00:00Z"
_MTIME = 1704067200
_PATH = (("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),)
_BUSYBOXES = ("/bin/busybox", "/usr/bin/busybox")
_FOLDERS = "dev etc home mnt opt proc run sys usr usr/bin usr/lib usr/sbin var var/spool var/www"
_SPECIAL_FOLDERS = {"root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777}
_PASSWD = b"""\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
sync:x:4:100:sync:/bin:/bin/sync
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
_GROUP = b"""\
root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
mail:x:8:
wheel:x:10:root
audio:x:29:
www-data:x:33:
utmp:x:43:
staff:x:50:
users:x:100:
nobody:x:65534:
"""
_OS_RELEASE = b'NAME="busybox"\nID=busybox\nPRETTY_NAME="busybox"\n'
_NOT_KEPT = ("./dev/*", "./var/cache/apt/*", "./var/lib/apt/lists/*", "./var/log/*")


def busybox_config() -> ImageConfig:
    """The config of the busybox images: Docker's own has the same Cmd and PATH."""
    history = (HistoryEntry(created_by="busybox-static", created=_CREATED),)
    return ImageConfig(host_platform(), env=_PATH, cmd=("sh",), created=_CREATED, history=history)


def busybox_entries(*, usrmerge: bool = False, extra_files: int = 0) -> list[NewEntry]:
    """A file system with busybox under each of its names, users, and the usual folders.

    With `usrmerge` /bin, /sbin and /lib are links into /usr, as on Debian. `extra_files`
    small files are added below /srv in folders of 100. Raises BackendUnavailable without a
    static busybox on this machine.
    """
    program, applets = _busybox()
    folders = dict.fromkeys(_FOLDERS.split(), 0o755) | _SPECIAL_FOLDERS
    entries = [_entry(path.encode(), Kind.DIRECTORY, mode) for path, mode in folders.items()]
    for name in (b"bin", b"sbin", b"lib"):
        if usrmerge:
            entries.append(_entry(name, Kind.SYMLINK, 0o777, b"usr/" + name))
        else:
            entries.append(_entry(name, Kind.DIRECTORY, 0o755))
    place = b"usr/bin/" if usrmerge else b"bin/"
    busybox = _file(place + b"busybox", program, 0o755)
    names = [place + applet for applet in applets]
    if not usrmerge:
        names.append(b"usr/bin/env")  # where scripts' first lines look for it
    linked = replace(busybox.entry, link=busybox.entry.path)
    entries += [busybox, *(NewEntry(replace(linked, path=name)) for name in names)]
    entries += [
        _file(b"etc/passwd", _PASSWD),
        _file(b"etc/group", _GROUP),
        _file(b"etc/shadow", b"root:*:::::::\n", 0o640),
        _file(b"etc/os-release", _OS_RELEASE),
    ]
    return entries + _extra_files(extra_files)


def _busybox() -> tuple[bytes, list[bytes]]:
    """The program and the names of its applets."""
    for path in map(Path, _BUSYBOXES):
        if not path.exists():
            continue
        program = path.read_bytes()
        if b"/ld-linux" in program or b"/ld-musl" in program:
            continue
        listed = subprocess.run([path, "--list"], check=True, capture_output=True)
        names = set(listed.stdout.split()) - {b"busybox", b"init", b"linuxrc"}
        return program, sorted(names)
    raise BackendUnavailable(
        "there is no static busybox on this machine", hint="install busybox-static"
    )


def _extra_files(count: int) -> list[NewEntry]:
    entries = [_entry(b"srv", Kind.DIRECTORY, 0o755)] if count else []
    for number in range(count):
        folder = b"srv/%03d" % (number // 100)
        if number % 100 == 0:
            entries.append(_entry(folder, Kind.DIRECTORY, 0o755))
        entries.append(_file(b"%s/%05d" % (folder, number), b"file %d\n" % number))
    return entries


def _entry(path: bytes, kind: Kind, mode: int, link: bytes = b"") -> NewEntry:
    return NewEntry(Entry(path, kind, mode, mtime=_MTIME, link=link))


def _file(path: bytes, content: bytes, mode: int = 0o644) -> NewEntry:
    entry = Entry(path, Kind.FILE, mode, size=len(content), mtime=_MTIME)
    return NewEntry(entry, partial(BytesIO, content))


def busybox_layout(
    folder: Path, name: str = BUSYBOX, *, usrmerge: bool = False, extra_files: int = 0
) -> Path:
    """Write a busybox image into `folder`, which doesn't exist yet or is empty."""
    writer = LayoutWriter(folder)
    parts: list[bytes] = []
    entries = busybox_entries(usrmerge=usrmerge, extra_files=extra_files)
    layer = write_layer(entries, parts.append).diff
    writer.add_blob(b"".join(parts), layer.blob.media_type)
    return _finish(writer, (name,), busybox_config(), layer)


def debian_layout(
    cache: Path,
    names: Sequence[str] = DEBIAN_NAMES,
    packages: Sequence[str] = DEBIAN_PACKAGES,
) -> Path:
    """A Debian image with `packages`, under all of `names`, below the folder `cache`.

    Made once, which takes a minute or two, root, debootstrap and the mirror that apt uses.
    Raises BackendUnavailable without them.
    """
    source, suite = _apt_source()
    key = sha256("\n".join([suite, *names, "", *packages]).encode()).hexdigest()[:16]
    layout = cache / f"debian-{suite}-{key}"
    if layout.exists():
        return layout
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        raise BackendUnavailable(
            "a Debian image needs root and debootstrap", hint="install debootstrap, run as root"
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="debian-", dir=cache) as temporary:
        work = Path(temporary)
        tar = _debootstrap(work / "root", source, suite, packages)
        writer = LayoutWriter(work / "layout")
        config = ImageConfig(
            host_platform(),
            env=_PATH,
            cmd=("bash",),
            history=(HistoryEntry(created_by="debootstrap"),),
        )
        _finish(writer, names, config, writer.add_tar(tar))
        (work / "layout").rename(layout)
    return layout


def _debootstrap(root: Path, source: str, suite: str, packages: Sequence[str]) -> Path:
    """Install a minimal Debian with `packages` in `root`, and return a tar of it."""
    command = ["debootstrap", "--variant=minbase"]
    if packages:
        command.append(f"--include={','.join(packages)}")
    _run([*command, suite, str(root), source], {"DEBIAN_FRONTEND": "noninteractive"} | _proxy())
    tar = root.with_name("root.tar")
    options = ["--numeric-owner", "--sort=name", *(f"--exclude={path}" for path in _NOT_KEPT)]
    _run(["tar", *options, "-C", str(root), "-cf", str(tar), "."], {})
    shutil.rmtree(root)
    return tar


def _apt_source() -> tuple[str, str]:
    """Where this machine's apt gets Debian itself: the address and the suite's code name."""
    fields = "$(REPO_URI) $(CODENAME) $(COMPONENT) $(LABEL)"
    listed = ""
    if shutil.which("apt-get") is not None:
        listed = _run(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"], {})
    for line in listed.splitlines():
        match line.split():
            case [address, suite, "main", "Debian"] if "-" not in suite:
                return address, suite
    raise BackendUnavailable(
        "apt knows no source of Debian's packages", hint="run apt-get update, on Debian"
    )


def _proxy() -> dict[str, str]:
    """The proxy that apt uses, as debootstrap's environment."""
    said = _run(["apt-config", "shell", "proxy", "Acquire::http::Proxy"], {})
    _, equals, value = said.strip().partition("=")
    return {"http_proxy": shlex.split(value)[0]} if equals and value != "''" else {}


def _run(command: Sequence[str], env: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **env},
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise BackendUnavailable(f"{command[0]} failed: {said}")
    return done.stdout


def _finish(
    writer: LayoutWriter, names: Sequence[str], config: ImageConfig, layer: LayerDiff
) -> Path:
    writer.add_image(names, replace(config, diff_ids=(layer.diff_id,)), [layer])
    return writer.finish()


def main(arguments: Sequence[str] | None = None) -> None:
    """Make an image and import it into a containerd, or leave it as a layout."""
    parser = argparse.ArgumentParser(prog="python -m pybuild.testkit.baseimages")
    parser.add_argument("image", choices=["busybox", "debian"])
    parser.add_argument("--address", help="the socket of the containerd to import into")
    parser.add_argument("--namespace", default="default", help="containerd's namespace")
    parser.add_argument("--layout", type=Path, help="the new folder to write a layout into")
    parser.add_argument("--cache", type=Path, help="where a made debian is kept")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="baseimage-") as temporary:
        folder = given.layout or Path(temporary) / "layout"
        if given.image == "busybox":
            layout = busybox_layout(folder)
        else:
            layout = debian_layout(given.cache or Path(temporary))
        if given.address:
            import_into_containerd(layout, given.address, given.namespace)


if __name__ == "__main__":
    main()
