"""The same Dockerfile gives the same bytes: on both backends, for every user, each time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from digests import digests, embedded_digests

from embedding import serve_layout
from pybuild.sandbox.runtimes import RUNTIMES
from pybuild.testkit.baseimages import BUSYBOX, DEBIAN_NAMES, busybox_layout
from pybuild.testkit.containerd import PrivateContainerd
from pybuild.testkit.registry import Registry
from pybuild_containerd.backend import open_backend
from sandboxing import best_mapping, run_python_as_user, usable_runtime

pytestmark = [pytest.mark.root, pytest.mark.containerd]

_ROOT = Path(__file__).resolve().parents[2]
_CASES = sorted((_ROOT / "tests/differential/cases").glob("*.Dockerfile"))
_SAMPLES = sorted((_ROOT / "samples").glob("*/Dockerfile"))
_NEED_DEBIAN = {"gcc-scratch", "python-web"}


@dataclass(frozen=True)
class Builders:
    """The same base images for everyone who builds."""

    daemon: PrivateContainerd
    registry: Registry
    bases: Sequence[str]
    folder: Path

    def root(self, dockerfiles: Sequence[Path], workers: int) -> dict[str, str]:
        folder = self.folder / f"root-{workers}"
        folder.mkdir()
        address = self.registry.address
        return embedded_digests(folder, address, self.bases, dockerfiles, workers)

    def user(self, dockerfiles: Sequence[Path]) -> dict[str, str]:
        """A user with a range of ids."""
        work = {"bases": list(self.bases), "dockerfiles": list(map(str, dockerfiles))}
        program = str(Path(__file__).with_name("digests.py"))
        arguments = [program, str(self.folder / "own"), self.registry.address, json.dumps(work)]
        done = run_python_as_user(self.folder, arguments, subordinate=True)
        assert done.returncode == 0, done.stderr
        found: dict[str, str] = json.loads(done.stdout)
        return found

    def containerd(self, dockerfiles: Sequence[Path]) -> dict[str, str]:
        options = {"address": self.daemon.address, "cache_dir": self.folder / "cache"}
        with open_backend(options) as backend:
            return digests(backend, self.folder, dockerfiles, 8)


def _check_same(builders: Builders, dockerfiles: Sequence[Path]) -> None:
    expected = builders.root(dockerfiles, 8)
    assert len(expected) == len(dockerfiles)
    assert builders.user(dockerfiles) == expected
    assert builders.containerd(dockerfiles) == expected


def test_every_builder_makes_the_same_images(
    base_images: PrivateContainerd, registry: Registry, tmp_path: Path
) -> None:
    dockerfiles = [*_CASES, *(x for x in _SAMPLES if x.parent.name not in _NEED_DEBIAN)]
    assert len(dockerfiles) >= 42
    serve_layout(registry, busybox_layout(tmp_path / "layout"))
    builders = Builders(base_images, registry, [BUSYBOX], tmp_path)
    _check_same(builders, dockerfiles)
    # again, one step after the other
    assert builders.root(dockerfiles, 1) == builders.containerd(dockerfiles)


@pytest.mark.parametrize("runner", RUNTIMES)
def test_a_runtime_makes_the_same_images(registry: Registry, tmp_path: Path, runner: str) -> None:
    usable_runtime(runner, best_mapping(tmp_path))
    dockerfiles = [path for path in _CASES if path.name.startswith(("run-", "user", "shell"))]
    assert len(dockerfiles) >= 9
    serve_layout(registry, busybox_layout(tmp_path / "layout"))
    found = []
    for name in ("sandbox", runner):
        folder = tmp_path / name
        folder.mkdir()
        bases, address = [BUSYBOX], registry.address
        found.append(embedded_digests(folder, address, bases, dockerfiles, 2, runner=name))
    assert found[0] == found[1]


@pytest.mark.debootstrap
def test_every_builder_makes_the_same_images_on_debian(
    debian_image: PrivateContainerd, debian: Path, registry: Registry, tmp_path: Path
) -> None:
    serve_layout(registry, debian)
    builders = Builders(debian_image, registry, DEBIAN_NAMES, tmp_path)
    _check_same(builders, [x for x in _SAMPLES if x.parent.name in _NEED_DEBIAN])
