"""What people put into RUN, on a real Debian in the embedded backend: as root, and as others."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from embedding import add_layout
from pybuild.testkit.layouts import LayoutReader
from pybuild.testkit.registry import Registry
from sandboxing import run_python_as_user

pytestmark = [pytest.mark.root, pytest.mark.debootstrap]

# VFS_CAP_REVISION_2 with the flag "effective": net_bind_service and net_raw permitted
CAPABILITY = bytes.fromhex("0100000200240000000000000000000000000000")
# among them dbus, whose scripts make a system user and a setuid program of its group
INSTALL = """\
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update && apt-get install -y --no-install-recommends dbus libcap2-bin {more} \\
 && dpkg --audit && getent passwd messagebus && cp -L /usr/bin/python3 /srv/python
"""
LANGUAGES = """\
COPY small-1.0-py3-none-any.whl small-1.0.0.tgz /srv/
RUN pip install --break-system-packages --no-index /srv/small-1.0-py3-none-any.whl \\
 && small-says && mkdir /app && cd /app && npm install --offline /srv/small-1.0.0.tgz \\
 && node -e 'require("small")()'
"""
OWNERS = """\
RUN useradd --create-home --uid 1500 web && usermod --append --groups audio web \\
 && install -o web -g web -m 600 /etc/hostname /srv/own && chown -R web:games /home/web \\
 && setcap cap_net_bind_service,cap_net_raw=ep /srv/python && getcap /srv/python
"""
SUDO = """\
RUN echo 'web ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/web
USER web
RUN echo "$(id -u) $(sudo id -u) $(sudo -u messagebus id -un) $(sudo -u web id -Gn)"
RUN --network=none /srv/python -c 'import socket; socket.socket().bind(("127.0.0.1", 81))'
"""


@pytest.fixture(scope="module")
def registry(debian: Path) -> Iterator[Registry]:
    with Registry() as registry:
        add_layout(registry, debian, "debian:1")
        yield registry


def make_context(folder: Path, dockerfile: str) -> Path:
    """A context with a wheel and a package of npm."""
    folder.mkdir()
    (folder / "Dockerfile").write_text(dockerfile)
    (folder / "small-1.0-py3-none-any.whl").write_bytes(wheel())
    (folder / "small-1.0.0.tgz").write_bytes(node_package())
    return folder


def wheel() -> bytes:
    info = "small-1.0.dist-info"
    files = {
        "small.py": "def main():\n    print('pip has installed me')\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nsmall-says = small:main\n",
        f"{info}/RECORD": "",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def node_package() -> bytes:
    about = {"name": "small", "version": "1.0.0", "main": "i.js", "scripts": {"install": "node i"}}
    program = "module.exports = () => console.log('npm has installed me')\n"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in (("package.json", json.dumps(about)), ("i.js", program)):
            member = tarfile.TarInfo(f"package/{name}")
            member.size, member.mode = len(text), 0o644
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def build(folder: Path, dockerfile: str, kind: str) -> tuple[str, dict[str, tarfile.TarInfo]]:
    """Build as root, as a user with a `kind` of ids; what was said, and the image's members."""
    context = make_context(folder / "context", dockerfile)
    own = folder / "own"
    output = f"--output=type=oci,dest={own}/image.tar"
    options = ["--backend=embedded", f"--root={own}/store", "--progress=plain", output]
    words = ["-m", "pybuild", *options, str(context)]
    if kind == "root":
        own.mkdir()
        command = [sys.executable, *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    else:
        done = run_python_as_user(folder, words, subordinate=kind == "range")
    try:
        assert done.returncode == 0, done.stderr[-6000:]
        return done.stderr, members(own / "image.tar")
    finally:
        shutil.rmtree(own)


def members(archive: Path) -> dict[str, tarfile.TarInfo]:
    """What the layers on the base of an image in an OCI archive hold, the topmost of each."""
    layout = LayoutReader(archive)
    (image,) = layout.images().values()
    manifest = json.loads(layout.open_blob(image.manifest.digest).read())
    found: dict[str, tarfile.TarInfo] = {}
    for layer in manifest["layers"][1:]:
        with tarfile.open(fileobj=layout.open_blob(layer["digest"])) as tar:
            found |= {member.name.removeprefix("./"): member for member in tar}
    return found


def owners(found: dict[str, tarfile.TarInfo], paths: Sequence[str]) -> list[tuple[int, int]]:
    return [(found[path].uid, found[path].gid) for path in paths]


def xattr(member: tarfile.TarInfo) -> bytes:
    value = member.pax_headers["SCHILY.xattr.security.capability"]
    return value.encode("utf-8", "surrogateescape")


HELPER = "usr/lib/dbus-1.0/dbus-daemon-launch-helper"
CHOWNED = ("srv/own", "home/web/.profile", HELPER)


@pytest.mark.parametrize("kind", ["root", "range"])
def test_packages_users_and_rights_in_run(tmp_path: Path, registry: Registry, kind: str) -> None:
    install = INSTALL.format(more="sudo python3-pip npm")
    text = f"FROM {registry.address}/debian:1\n{install}{LANGUAGES}{OWNERS}{SUDO}"
    said, found = build(tmp_path, text, kind)
    assert "pip has installed me" in said
    assert "npm has installed me" in said
    assert " 1500 0 messagebus web audio\n" in said
    assert "single user id" not in said
    assert owners(found, CHOWNED) == [(1500, 1500), (1500, 60), (0, 101)]
    assert found[HELPER].mode & 0o7777 == 0o4754
    assert xattr(found["srv/python"]) == CAPABILITY


def test_with_one_id_packages_are_installed_and_a_warning_says_what_is_lost(
    tmp_path: Path, registry: Registry
) -> None:
    install = INSTALL.format(more="")
    text = f"FROM {registry.address}/debian:1\n{install}{OWNERS}"
    said, found = build(tmp_path, text, "single")
    assert owners(found, CHOWNED) == [(0, 0)] * 3
    assert xattr(found["srv/python"]) == CAPABILITY
    assert said.count("RUN has a single user id here") == 1
    assert "usermod --add-subuids" in said
    # what makes apt content is seen by processes alone
    assert not [path for path in found if "pybuild" in path]
