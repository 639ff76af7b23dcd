"""pybuild three ways: embedded as root, embedded as an ordinary user, and on a containerd."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from builder import Build
from controlgroups import ControlGroup
from measuring import Command, Daemons, call, environment
from workfolder import remove

from pybuild.testkit.containerd import private_containerd

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from sandboxing import USER, as_user, python_of_everyone

_START_SECONDS = 10.0


@dataclass(frozen=True)
class Embedded:
    """``python -m pybuild``, which `program` starts as some user whose folder is `place`."""

    name: str
    program: Sequence[str]
    environ: Mapping[str, str]
    place: Path
    keeps_steps: bool = True
    daemons: Daemons = ()

    def command(self, build: Build) -> Command:
        return Command((*self.program, *_words(build)), self.environ)

    def forget(self, tag: str) -> None:
        call(Command((*self.program, "rm", tag), self.environ))

    def empty(self) -> None:
        for path in self.place.iterdir():
            remove(path)


@contextmanager
def embedded_as_root(folder: Path) -> Iterator[Embedded]:
    environ = environment(**_places(folder), PYBUILD_BACKEND="embedded")
    yield Embedded("embedded", (sys.executable, "-m", "pybuild"), environ, folder)


@contextmanager
def embedded_as_user(folder: Path) -> Iterator[Embedded]:
    """A user with a range of ids, which the files in a mount namespace of its own give it."""
    place = folder / "own"
    place.mkdir()
    os.chown(place, USER, USER)
    waiting = as_user(folder, ["sleep", "infinity"], subordinate=True)
    holder = subprocess.Popen(waiting)
    try:
        _wait_for_user(holder)
        numbers = ("--reuid", str(USER), "--regid", str(USER), "--clear-groups", "--inh-caps=-all")
        inside = ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "setpriv", *numbers)
        environ = {
            **_places(place),
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONDONTWRITEBYTECODE": "1",  # root's is there, and only root may
            "PYBUILD_BACKEND": "embedded",
        }
        program = (*inside, python_of_everyone(), "-P", "-m", "pybuild")
        yield Embedded("embedded-user", program, environ, place)
    finally:
        holder.kill()
        holder.wait()


@dataclass
class OnContainerd:
    """A containerd of its own, and a new one whenever the store shall be empty."""

    folder: Path
    group: ControlGroup
    name: str = "containerd"
    keeps_steps: bool = True
    _address: str = ""
    _running: ExitStack = field(default_factory=ExitStack)

    @property
    def daemons(self) -> Daemons:
        return (self.group,)

    def __enter__(self) -> Self:
        daemon = self._running.enter_context(private_containerd(parent=self.folder))
        self.group.add(daemon.pid)
        self._address = daemon.address
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def command(self, build: Build) -> Command:
        return self._pybuild(*_words(build))

    def forget(self, tag: str) -> None:
        # its own name for it, as containerd's tools have no short ones
        name = f"docker.io/library/{tag}"
        call(Command(("ctr", "--address", self._address, "images", "rm", "--sync", name)))

    def empty(self) -> None:
        self._running.close()
        remove(self.folder / "cache")
        self.__enter__()

    def _pybuild(self, *words: str) -> Command:
        more = {"PYBUILD_BACKEND": "containerd", "CONTAINERD_ADDRESS": self._address}
        environ = environment(**_places(self.folder), **more)
        return Command((sys.executable, "-m", "pybuild", *words), environ)


def _words(build: Build) -> tuple[str, ...]:
    fresh = ("--no-cache",) if build.no_cache else ()
    return ("-q", *fresh, "-t", build.tag, "-f", str(build.dockerfile), str(build.context))


def _places(folder: Path) -> dict[str, str]:
    return {
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYBUILD_ROOT": str(folder / "store"),
    }


def _wait_for_user(holder: subprocess.Popen[bytes]) -> None:
    """Until the holder has mounted what it mounts and is the user."""
    deadline = time.monotonic() + _START_SECONDS
    while Path(f"/proc/{holder.pid}/comm").read_text().strip() != "sleep":
        if holder.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("no process could be made a user's with a range of ids")
        time.sleep(0.01)
