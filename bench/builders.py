"""All builders that this machine has, each with a folder and a store of its own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from builder import Builder
from controlgroups import ControlGroup
from ours import OnContainerd, embedded_as_root, embedded_as_user
from peers.buildah import buildah, has_buildah
from peers.buildkit import (
    Buildkit,
    buildkit,
    buildkit_on_containerd,
    has_buildctl,
    has_buildkitd,
)
from peers.docker import docker_builders, has_dockerd
from peers.kaniko import kaniko


@dataclass(frozen=True)
class Given:
    """Peers that PATH doesn't tell of, and the names of the builders wanted; none: all."""

    buildkitd: str | None = None
    executor: Path | None = None
    only: Sequence[str] = ()


@contextmanager
def opened(folder: Path, group: ControlGroup, given: Given) -> Iterator[list[Builder]]:
    """The builders, ours first. `group` is this process's, and gets one for each daemon."""
    with ExitStack() as stack:
        makers = _Makers(folder, group, stack, given)
        yield [*makers.ours(), *makers.peers()]


@dataclass(frozen=True)
class _Makers:
    folder: Path
    group: ControlGroup
    stack: ExitStack
    given: Given

    def ours(self) -> Iterator[Builder]:
        if self._wants("embedded"):
            yield self.stack.enter_context(embedded_as_root(self._place("root")))
        if self._wants("embedded-user"):
            yield self.stack.enter_context(embedded_as_user(self._place("user")))
        if self._wants("containerd"):
            place, group = self._place("ctd"), self._group("containerd")
            yield self.stack.enter_context(OnContainerd(place, group))

    def peers(self) -> Iterator[Builder]:
        if has_buildah() and self._wants("buildah"):
            yield self.stack.enter_context(buildah(self._place("buildah")))
        if has_dockerd() and self._wants("docker-classic", "docker-buildkit"):
            found = docker_builders(self._place("docker"), self._group("docker"))
            for docker in self.stack.enter_context(found):
                if self._wants(docker.name):
                    yield docker
        if self.given.buildkitd and has_buildctl() and self._wants("buildkit"):
            yield Buildkit("buildkit", self.given.buildkitd, None)
        elif has_buildkitd() and self._wants("buildkit"):
            maker = buildkit(self._place("bk"), self._group("buildkit"))
            yield self.stack.enter_context(maker)
        if has_buildkitd() and self._wants("buildkit-containerd"):
            maker = buildkit_on_containerd(self._place("bc"), self._group("buildkit-containerd"))
            yield self.stack.enter_context(maker)
        executor = self.given.executor or shutil.which("executor")
        if executor and self._wants("kaniko"):
            yield self.stack.enter_context(kaniko(self._place("kaniko"), Path(executor)))

    def _wants(self, *names: str) -> bool:
        return not self.given.only or any(name in self.given.only for name in names)

    def _place(self, name: str) -> Path:
        place = self.folder / name
        place.mkdir()
        place.chmod(0o711)
        return place

    def _group(self, name: str) -> ControlGroup:
        return self.stack.enter_context(self.group.below(name))


def versions() -> dict[str, str]:
    """What those say that are installed."""
    asked = {
        "buildah": ("buildah", "--version"),
        "dockerd": ("dockerd", "--version"),
        "buildkitd": ("buildkitd", "--version"),
        "containerd": ("containerd", "--version"),
        "runc": ("runc", "--version"),
    }
    found = {}
    for name, command in asked.items():
        if shutil.which(name):
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[name] = said.splitlines()[0]
    return found
