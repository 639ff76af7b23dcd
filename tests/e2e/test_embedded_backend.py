"""The embedded backend keeps the contract: as root, with a range of ids, and with one id."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from embedding import Stores
from pybuild.backend import Backend
from pybuild.testkit.suite import BackendSuite


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return Stores(tmp_path_factory.mktemp("stores"))


class TestEmbedded(BackendSuite):
    """As whoever runs the tests; `test_embedded_users` runs it as other users."""

    @pytest.fixture
    def backend(self, stores: Stores) -> Iterator[Backend]:
        with stores.opened() as backend:
            yield backend
