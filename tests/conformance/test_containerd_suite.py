"""The containerd backend under the suite of every backend, in each of its ways to work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pybuild.backend import Backend
from pybuild.errors import BackendUnavailable
from pybuild.sandbox.mapping import Kind, Mapping
from pybuild.testkit.baseimages import BUSYBOX, busybox_layout
from pybuild.testkit.containerd import PrivateContainerd, check_nothing_left
from pybuild.testkit.layouts import import_into_containerd
from pybuild.testkit.suite import BackendSuite
from pybuild.testkit.suite_runs import RunSuite
from pybuild_containerd import backend as containerd_backend
from pybuild_containerd.backend import open_backend
from sandboxing import usable_runtime

pytestmark = [pytest.mark.root, pytest.mark.containerd]


class _ContainerdSuite(BackendSuite):
    namespace: str
    snapshotter = "overlayfs"
    runner = "task"

    @pytest.fixture(scope="class")
    @classmethod
    def daemon(
        cls, containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory
    ) -> PrivateContainerd:
        layout = busybox_layout(tmp_path_factory.mktemp("layout") / "busybox", BUSYBOX)
        import_into_containerd(layout, containerd.address, cls.namespace)
        return containerd

    @pytest.fixture
    def backend(self, daemon: PrivateContainerd, tmp_path: Path) -> Iterator[Backend]:
        options = {
            "address": daemon.address,
            "namespace": self.namespace,
            "snapshotter": self.snapshotter,
            "runner": self.runner,
            "cache_dir": tmp_path,
        }
        with open_backend(options) as backend:
            yield backend
        check_nothing_left(daemon.address, self.namespace, daemon.folder)


class TestOverlay(_ContainerdSuite):
    """As root: the upper folder of a snapshot is read."""

    namespace = "suite-overlay"


class TestSandbox(_ContainerdSuite):
    """As root on the snapshots of this machine: processes run in a sandbox of our own."""

    namespace = "suite-sandbox"
    runner = "sandbox"


class TestRunc(RunSuite):
    """Processes started by runc in a sandbox of our own."""

    @pytest.fixture
    def backend(self, containerd: PrivateContainerd, tmp_path: Path) -> Iterator[Backend]:
        namespace = "suite-runc"
        layout = busybox_layout(tmp_path / "busybox", BUSYBOX)
        import_into_containerd(layout, containerd.address, namespace)
        options = {"address": containerd.address, "namespace": namespace, "runner": "runc"}
        with open_backend(options | {"cache_dir": tmp_path / "cache"}) as backend:
            yield backend
        check_nothing_left(containerd.address, namespace, containerd.folder)


def test_crun_is_refused_at_once(containerd: PrivateContainerd) -> None:
    usable_runtime("crun", Mapping(Kind.IDENTITY))
    with pytest.raises(BackendUnavailable, match="crun can't run steps without a user namespace"):
        open_backend({"address": containerd.address, "runner": "crun"})


class TestDiffService(_ContainerdSuite):
    """As a user who can only open the socket: containerd compares snapshots."""

    namespace = "suite-diff"

    @pytest.fixture(autouse=True)
    def ordinary(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(containerd_backend, "_is_root", lambda: False)


class TestNative(_ContainerdSuite):
    """On a snapshotter that copies: mount points are made in the layer and left out of it."""

    namespace = "suite-native"
    snapshotter = "native"
