"""The suite that every backend passes.

A backend's author subclasses it and writes one fixture::

    class TestMine(BackendSuite):
        base_reference = "docker.io/library/busybox:latest"

        @pytest.fixture
        def backend(self) -> Iterator[Backend]:
            with MyBackend(...) as backend:
                yield backend

Tests skip by what the backend declares that it can do, never by its name.
"""

from __future__ import annotations

from pybuild.testkit.suite_exchange import ExchangeSuite
from pybuild.testkit.suite_images import ImageSuite
from pybuild.testkit.suite_layers import LayerSuite
from pybuild.testkit.suite_lending import LendingSuite
from pybuild.testkit.suite_mounts import MountSuite
from pybuild.testkit.suite_runs import RunSuite


class BackendSuite(ImageSuite, LayerSuite, RunSuite, MountSuite, LendingSuite, ExchangeSuite):
    """All tests of the contract in :mod:`pybuild.backend`."""
