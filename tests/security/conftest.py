"""Whole builds on the real backends, and a host that they must not touch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from threatening import NAMESPACE, Builds, host_state

from embedding import check_store, remove_store
from pybuild.testkit.containerd import PrivateContainerd, check_nothing_left
from pybuild_containerd.backend import open_backend as open_containerd
from pybuild_embedded.backend import open_backend as open_embedded


@pytest.fixture(scope="module", params=["auto", "embedded"])
def runner(request: pytest.FixtureRequest) -> str:
    """How a RUN is run: by the embedded backend, or in a way of containerd's."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def builds(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, runner: str
) -> Iterator[Builds]:
    if runner == "embedded":
        yield from _on_store(tmp_path_factory.mktemp("store") / "root")
    else:
        containerd = request.getfixturevalue("containerd")
        yield from _on_containerd(containerd, tmp_path_factory.mktemp("cache"), runner)


def _on_store(root: Path) -> Iterator[Builds]:
    try:
        with open_embedded({"root": root}) as backend:
            made = Builds(backend, ["--backend=embedded", f"--root={root}"], root)
            made.image("busybox")
            yield made
            made.close()
        check_store(root)
    finally:
        remove_store(root)


def _on_containerd(containerd: PrivateContainerd, cache: Path, runner: str) -> Iterator[Builds]:
    place = {"address": containerd.address, "namespace": NAMESPACE}
    options = [f"--containerd-{name}={value}" for name, value in place.items()]
    how = {"cache_dir": cache, "unpack": False, "runner": runner}
    with open_containerd(place | how) as backend:
        made = Builds(backend, options, containerd.folder / "root")
        made.image("busybox")
        yield made
        made.close()
    check_nothing_left(containerd.address, NAMESPACE, containerd.folder)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """A folder of the host with a secret in it; it, /etc and others must stay as they are."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o711)
    (outside / "secret").write_bytes(b"host secret\n")
    (outside / "secret").chmod(0o640)
    (outside / "empty").mkdir()
    before = host_state(outside)
    yield outside
    assert host_state(outside) == before
