"""buildah, with a layer for each step as the others make them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from builder import Build
from measuring import Command, Daemons, call

_OPTIONS = ("--layers", "--jobs=4", "--network=host", "--pull=missing", "--tls-verify=false", "-q")


@dataclass(frozen=True)
class Buildah:
    """`program` is buildah with the place of its store, `runtime` its option for steps."""

    program: Sequence[str]
    runtime: Sequence[str]
    name: str = "buildah"
    keeps_steps: bool = True
    daemons: Daemons = ()

    def command(self, build: Build) -> Command:
        fresh = ("--no-cache",) if build.no_cache else ()
        files = ("-t", build.tag, "-f", str(build.dockerfile), str(build.context))
        return Command((*self.program, "build", *_OPTIONS, *self.runtime, *fresh, *files))

    def forget(self, tag: str) -> None:
        call(Command((*self.program, "rmi", tag)))

    def empty(self) -> None:
        call(Command((*self.program, "rmi", "--all", "--force")))


@contextmanager
def buildah(folder: Path) -> Iterator[Buildah]:
    """On a store in `folder`."""
    places = ("--root", str(folder / "root"), "--runroot", str(folder / "run"))
    # crun, Debian's first choice, refuses machines that mix both kinds of cgroups
    runtime = ("--runtime=runc",) if shutil.which("runc") else ()
    yield Buildah(("buildah", *places), runtime)


def has_buildah() -> bool:
    return shutil.which("buildah") is not None
