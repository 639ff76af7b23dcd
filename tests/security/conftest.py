"""Whole builds on the real containerd, and a host that they must not touch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from threatening import NAMESPACE, Builds, host_state

from pybuild.testkit.containerd import PrivateContainerd, check_nothing_left
from pybuild_containerd.backend import ContainerdBackend, open_backend


@pytest.fixture(scope="module")
def runner() -> str:
    """How a RUN is run; a module may say otherwise."""
    return "auto"


@pytest.fixture(scope="module")
def builds(
    containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory, runner: str
) -> Iterator[Builds]:
    options = {
        "address": containerd.address,
        "namespace": NAMESPACE,
        "cache_dir": tmp_path_factory.mktemp("cache"),
        "unpack": False,
        "runner": runner,
    }
    with open_backend(options) as backend:
        assert isinstance(backend, ContainerdBackend)
        made = Builds(backend, containerd)
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
