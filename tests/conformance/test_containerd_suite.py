"""The containerd backend under the suite of every backend, in each of its ways to work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybuild.backend import Backend
from pybuild.testkit.baseimages import BUSYBOX, busybox_config, busybox_entries
from pybuild.testkit.containerd import (
    PrivateContainerd,
    check_nothing_left,
    private_containerd,
)
from pybuild.testkit.suite import BackendSuite
from pybuild.testkit.workbench import Workbench
from pybuild_containerd import backend as containerd_backend
from pybuild_containerd.backend import open_backend

pytestmark = [pytest.mark.root, pytest.mark.containerd]


def _check_prerequisites() -> None:
    missing = [name for name in ("containerd", "runc", "busybox") if shutil.which(name) is None]
    if os.geteuid() == 0 and not missing:
        return
    reason = f"needs root and {', '.join(missing) or 'nothing else'}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateContainerd]:
    _check_prerequisites()
    with private_containerd() as daemon:
        yield daemon


def _opened(daemon: PrivateContainerd, cache: Path, **options: object) -> Iterator[Backend]:
    """A backend on a store with busybox, and the proof that it leaves nothing."""
    given = {"address": daemon.address, "cache_dir": cache, **options}
    namespace = str(options["namespace"])
    with open_backend(given) as maker, Workbench(maker, BUSYBOX) as bench:
        layer = bench.put(bench.scratch(), *busybox_entries())
        config = busybox_config()
        bench.create(layer, BUSYBOX, env=config.env, cmd=config.cmd)
    with open_backend(given) as backend:
        yield backend
    check_nothing_left(daemon.address, namespace, daemon.folder)


class TestOverlay(BackendSuite):
    """As root: the upper folder of a snapshot is read."""

    @pytest.fixture
    def backend(self, daemon: PrivateContainerd, tmp_path: Path) -> Iterator[Backend]:
        yield from _opened(daemon, tmp_path, namespace="overlay")


class TestDiffService(BackendSuite):
    """As a user who can only open the socket: containerd compares snapshots."""

    @pytest.fixture
    def backend(
        self, daemon: PrivateContainerd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Backend]:
        monkeypatch.setattr(containerd_backend, "_is_root", lambda: False)
        yield from _opened(daemon, tmp_path, namespace="diff")


class TestNative(BackendSuite):
    """On a snapshotter that copies: mount points are made in the layer and left out of it."""

    @pytest.fixture
    def backend(self, daemon: PrivateContainerd, tmp_path: Path) -> Iterator[Backend]:
        yield from _opened(daemon, tmp_path, namespace="native", snapshotter="native")
