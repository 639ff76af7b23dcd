"""Steps in a sandbox on a root file system of busybox, and other users to run them as."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pybuild.sandbox.client import InsideProcess, Sandbox
from pybuild.sandbox.mapping import Mapping, system_program
from pybuild.sandbox.modes import probe
from pybuild.sandbox.runtimes import RUNTIMES, Runtime, find_runtime
from pybuild.sandbox.spec import FuseOverlay, Overlay, Plain, RunSpec

ROOT = Path(__file__).resolve().parents[1]
USER = 4242
FIRST_SUBORDINATE = 700000
PROGRAMS = """
    sh cat chmod chown dd echo env false grep head hostname id ifconfig kill ln ls mkdir mknod
    mount pwd readlink rm rmdir seq sleep stat sync touch true umask umount uname unshare wc yes
""".split()  # noqa: SIM905 - a line for each would hide the rest
ENV = (("PATH", "/bin"),)


@dataclass
class Ran:
    code: int
    out: str
    err: str
    upper: Path

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    def changed(self) -> list[str]:
        """What the step left in its upper folder, relative and sorted."""
        return sorted(str(path.relative_to(self.upper)) for path in self.upper.rglob("*"))


@dataclass
class Steps:
    """A sandbox, a base, and a folder where each step gets one of its own."""

    sandbox: Sandbox
    base: Path
    folder: Path
    count: int = field(default=0)
    root: type[Overlay | FuseOverlay] = Overlay

    @property
    def server(self) -> int:
        """The process that all steps are children of."""
        assert self.sandbox._zygote is not None
        [server] = children_of(self.sandbox._zygote.pid)
        return server

    def spec(self, *args: str, lowers: Sequence[Path] | None = None, **fields: Any) -> RunSpec:
        self.count += 1
        place = self.folder / str(self.count)
        for name in ("upper", "work"):
            (place / name).mkdir(parents=True)
        layers = tuple(map(os.fsencode, (self.base,) if lowers is None else lowers))
        root = self.root(layers, os.fsencode(place / "upper"), os.fsencode(place / "work"))
        return RunSpec(fields.pop("root", root), args, **({"env": ENV} | fields))

    def run(self, script: str, *, on_cancel: Any = None, **fields: Any) -> Ran:
        """Run a script of busybox's shell and keep what it writes."""
        return self.run_spec(self.spec("sh", "-c", script, **fields), on_cancel)

    def run_spec(self, spec: RunSpec, on_cancel: Any = None) -> Ran:
        written = {1: bytearray(), 2: bytearray()}

        def keep(stream: int, piece: bytes) -> None:
            written[stream] += piece

        code = self.sandbox.run(spec, keep, on_cancel)
        upper = Path(os.fsdecode(spec.root.upper)) if not isinstance(spec.root, Plain) else Path()
        return Ran(code, written[1].decode(), written[2].decode(), upper)

    def layer(self, name: str) -> Path:
        """A new empty folder to be filled and used as a layer."""
        folder = self.folder / f"layer-{name}"
        folder.mkdir()
        return folder


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def busybox_root(folder: Path) -> Path:
    """A root file system with busybox under its names, and /tmp."""
    busybox = shutil.which("busybox", path="/bin:/usr/bin")
    if busybox is None:
        pytest.skip("needs busybox")
    (folder / "bin").mkdir(parents=True)
    shutil.copy(busybox, folder / "bin/busybox")
    for name in PROGRAMS:
        (folder / "bin" / name).hardlink_to(folder / "bin/busybox")
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)
    return folder


def best_mapping(folder: Path, *, namespace_for_root: bool = True) -> Mapping:
    found = probe(folder, namespace_for_root=namespace_for_root)
    if found.mapping is None:
        pytest.skip(f"needs a sandbox: {found.reason}")
    return found.mapping


WAYS = ("overlay", "fuse", *RUNTIMES)
"""How steps are run: on a kind of root, or by a runtime on the kernel's overlay."""


@contextmanager
def steps_in(folder: Path, mapping: Mapping | None = None, way: str = "overlay") -> Iterator[Steps]:
    """Steps under the best mapping of this user. The folder is emptied at the end."""
    mapping = mapping or best_mapping(folder)
    runtime = usable_runtime(way, mapping) if way in RUNTIMES else None
    if way == "fuse":
        need_fuse()
    places = folder / "steps"
    places.mkdir()
    try:
        with Sandbox(mapping, runtime=runtime) as sandbox:
            root = FuseOverlay if way == "fuse" else Overlay
            yield Steps(sandbox, busybox_root(folder / "base"), places, root=root)
    finally:
        empty(mapping, folder)


def need_fuse() -> None:
    if system_program("fuse-overlayfs") is None:
        pytest.skip("needs fuse-overlayfs")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("inherent: this user may not open /dev/fuse")


def usable_runtime(name: str, mapping: Mapping) -> Runtime:
    if system_program(name) is None:
        pytest.skip(f"needs {name}")
    return find_runtime(name, mapping)


def empty(mapping: Mapping, folder: Path) -> None:
    """Remove what a user may not remove outside: files of mapped ids, overlayfs's own folders."""
    removing = [b"/bin/rm", b"-rf", *map(os.fsencode, folder.iterdir())]
    with Sandbox(mapping) as sandbox, executed_inside(sandbox, removing) as process:
        assert process.wait() == 0


@contextmanager
def executed_inside(
    sandbox: Sandbox, words: Sequence[bytes], streams: tuple[int, int, int] | None = None
) -> Iterator[InsideProcess]:
    """A program that is root in the sandbox's user namespace, outside of any step."""
    with Path(os.devnull).open("r+b") as null, tempfile.TemporaryFile() as command:
        command.write(b"\0".join(words))
        command.flush()
        fds = [*(streams or [null.fileno()] * 3), command.fileno()]
        with sandbox.spawn_inside(Path(__file__).parent, "executing", fds) as process:
            yield process


def alive(mark: str) -> list[int]:
    """Processes with `mark` among their arguments."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if mark.encode() in words:
            found.append(int(process.name))
    return found


def holding(folder: Path, program: str = "") -> list[int]:
    """Other processes, of this program, that have something below a folder open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if program not in (process / "comm").read_text():
                continue
            paths = [str(fd.readlink()) for fd in (process / "fd").iterdir()]
        except OSError:
            continue
        if int(process.name) != os.getpid() and any(p.startswith(f"{folder}/") for p in paths):
            found.append(int(process.name))
    return found


def state_of_runtimes() -> set[Path]:
    """What runtimes keep of our containers where they usually do, and control groups."""
    usual = [Path("/run"), Path(f"/run/user/{os.getuid()}"), Path("/sys/fs/cgroup")]
    return {each for folder in usual for each in folder.glob("**/pybuild-step")}


def as_user(folder: Path, command: list[str], *, subordinate: bool) -> list[str]:
    """The command for USER, with a range of ids or none. Root's; changes nothing outside.

    `folder` gets copies of the files that name users, and a /dev/fuse for everybody as
    machines usually have it, mounted over the machine's.
    """
    passwd = Path("/etc/passwd").read_text() + f"builder:x:{USER}:{USER}::/:/bin/sh\n"
    ids = f"builder:{FIRST_SUBORDINATE}:65536\n" if subordinate else ""
    mounts = []
    for name, text in (("passwd", passwd), ("subuid", ids), ("subgid", ids)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o644)
        mounts.append(f"mount --bind {folder / name} /etc/{name} && ")
    fuse = Path("/dev/fuse")
    if fuse.exists():
        os.mknod(folder / "fuse", fuse.stat().st_mode, fuse.stat().st_rdev)
        (folder / "fuse").chmod(0o666)
        mounts.append(f"mount --bind {folder / 'fuse'} {fuse} && ")
    numbers = ["--reuid", str(USER), "--regid", str(USER), "--clear-groups", "--inh-caps=-all"]
    script = "".join(mounts) + 'exec "$@"'
    return ["unshare", "-m", "sh", "-c", script, "sh", "setpriv", *numbers, *command]


def python_of_everyone() -> str:
    """A Python like this one that other users may execute."""
    # setpriv itself still has capabilities when it executes
    script = ["sh", "-c", 'exec "$@"', "sh", sys.executable, "-c", ""]
    probe_it = ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups", *script]
    if subprocess.run(probe_it, check=False, capture_output=True).returncode == 0:
        return sys.executable
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    other = shutil.which(f"python{version}", path="/usr/local/bin:/usr/bin:/bin")
    if other is None:
        pytest.skip(f"needs a Python {version} that other users may execute")
    return other


def run_python_as_user(
    folder: Path, arguments: Sequence[str], *, subordinate: bool
) -> subprocess.CompletedProcess[str]:
    """Run Python with our packages as USER, whose own folder is ``folder/own``."""
    folder.chmod(0o711)
    for parent in folder.parents:
        if parent.stat().st_uid == os.getuid() and parent.name.startswith(("pytest-", "popen-")):
            parent.chmod(parent.stat().st_mode | 0o011)
    own = folder / "own"
    own.mkdir()
    os.chown(own, USER, USER)
    ours = (str(ROOT / "interpreter"), str(ROOT / "backend_"))
    paths = [path for path in sys.path if path.startswith(ours) or "site-packages" in path]
    command = [python_of_everyone(), *arguments]
    return subprocess.run(
        as_user(folder, command, subordinate=subordinate),
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(own),
            "HOME": str(own),
        },
    )


def run_tests_as_user(folder: Path, files: Sequence[str], *, subordinate: bool) -> None:
    """Run these test files, but what needs root, as USER; they pass."""
    options = ["-q", "-p", "no:cacheprovider", "-m", "not root"]
    base = f"--basetemp={folder}/own/t"
    done = run_python_as_user(
        folder, ["-m", "pytest", *options, base, *files], subordinate=subordinate
    )
    shutil.rmtree(folder / "own")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
