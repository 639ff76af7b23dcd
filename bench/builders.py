"""The builders that are compared, as programs: pybuild on a private containerd, and buildah."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pybuild.testkit.containerd import private_containerd
from pybuild.testkit.layouts import import_into_containerd

BASE = "docker.io/library/busybox:large"
_MADE = "docker.io/library/made-by-bench:latest"


@dataclass(frozen=True)
class Cost:
    """Seconds. ``cpu`` is that of the program and its children, not of containerd."""

    wall: float
    cpu: float


class Builder(Protocol):
    """A program that builds images."""

    def build(self, context: Path, dockerfile: str) -> Cost:
        """Build, with nothing taken from a cache."""
        ...

    def forget(self) -> None:
        """Remove what was built last."""
        ...


class PybuildOnContainerd:
    """``python -m pybuild``."""

    def __init__(self, address: str, cache: Path) -> None:
        self._address = address
        self._environ = {
            **os.environ,
            "PYBUILD_BACKEND": "containerd",
            "CONTAINERD_ADDRESS": address,
            "XDG_CACHE_HOME": str(cache),
        }

    def build(self, context: Path, dockerfile: str) -> Cost:
        command = [sys.executable, "-m", "pybuild", "-q", "-t", _MADE, "-f", "-", str(context)]
        return _run(command, dockerfile, self._environ)

    def forget(self) -> None:
        command = ["ctr", "--address", self._address, "images", "rm", "--sync", _MADE]
        _call(command)


class Buildah:
    """buildah with runc and a layer for each step."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)

    def build(self, context: Path, dockerfile: str) -> Cost:
        options = ["--runtime=runc", "--layers", "--no-cache", "--pull=never", "-q"]
        command = [*self._command, "build", *options, "-t", _MADE, "-f", "-", str(context)]
        return _run(command, dockerfile)

    def cached(self, context: Path, name: str) -> list[str]:
        """The command of a build that takes from the cache what it can."""
        options = ["--runtime=runc", "--layers", "--pull=never", "-q"]
        return [*self._command, "build", *options, "-t", name, str(context)]

    def forget(self) -> None:
        for arguments in (["rmi", _MADE], ["rmi", "--prune"]):
            _call([*self._command, *arguments])


@contextmanager
def pybuild_on_containerd(layout: Path, cache: Path) -> Iterator[Builder]:
    """pybuild with the image in `layout` as :data:`BASE`."""
    with private_containerd() as daemon:
        import_into_containerd(layout, daemon.address)
        yield PybuildOnContainerd(daemon.address, cache)


@contextmanager
def buildah(layout: Path, storage: Path) -> Iterator[Buildah]:
    """buildah on a storage of its own, with the image in `layout` as :data:`BASE`."""
    command = ["buildah", "--root", str(storage / "root"), "--runroot", str(storage / "run")]
    # by its name alone, as buildah makes a reference of the path, and few paths can be one
    image = _call([*command, "pull", "-q", f"oci:{layout.name}:large"], cwd=layout.parent).strip()
    _call([*command, "tag", image, BASE])
    try:
        yield Buildah(command)
    finally:
        _call([*command, "rmi", "--all", "--force"])


def has_buildah() -> bool:
    return shutil.which("buildah") is not None


def _run(command: Sequence[str], text: str, environ: dict[str, str] | None = None) -> Cost:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    _call(command, text, environ)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu)


def _call(
    command: Sequence[str],
    text: str | None = None,
    environ: dict[str, str] | None = None,
    *,
    cwd: Path | None = None,
) -> str:
    done = subprocess.run(
        command, input=text, env=environ, cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout
