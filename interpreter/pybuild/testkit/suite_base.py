"""What the parts of the backend suite share: hooks for the subclass, and fixtures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pybuild.backend import Backend, Capability, ROLayer
from pybuild.testkit.workbench import Workbench


class SuiteBase:
    """``backend`` is for the subclass to write; the rest may stay as it is."""

    base_reference: str = "docker.io/library/busybox:latest"
    """An image that the backend can resolve: busybox as /bin/sh, /etc/passwd, /tmp."""

    simulated: bool = False
    """Whether processes are only simulated: what needs a kernel is skipped then."""

    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        """A new backend for each test, closed afterwards."""
        raise NotImplementedError

    @pytest.fixture
    def bench(self, backend: Backend) -> Iterator[Workbench]:
        with Workbench(backend, self.base_reference) as bench:
            yield bench

    @pytest.fixture
    def base(self, bench: Workbench) -> ROLayer:
        """The base image, checked out."""
        return bench.base()

    @pytest.fixture
    def running(self, backend: Backend) -> None:
        """Skip unless the backend runs processes."""
        needs(backend, Capability.RUN)

    @pytest.fixture
    def kernel(self, backend: Backend) -> None:
        """Skip unless the backend runs real processes."""
        needs(backend, Capability.RUN)
        if self.simulated:
            pytest.skip("inherent: processes are simulated")


def needs(backend: Backend, capability: Capability) -> None:
    """Skip the test unless the backend declares `capability`."""
    if capability not in backend.capabilities:
        pytest.skip(f"inherent: the backend doesn't declare {capability}")
