"""The embedded backend keeps the contract: as root, with a range of ids, and with one id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding import Stores
from pybuild.backend import Backend
from pybuild.testkit.suite import BackendSuite
from sandboxing import run_tests_as_user


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return Stores(tmp_path_factory.mktemp("stores"))


class TestEmbedded(BackendSuite):
    """As whoever runs the tests."""

    @pytest.fixture
    def backend(self, stores: Stores) -> Iterator[Backend]:
        with stores.opened() as backend:
            yield backend


@pytest.mark.root
@pytest.mark.parametrize("kind", ["range", "single"])
def test_the_same_holds_for_other_users(tmp_path: Path, kind: str) -> None:
    run_tests_as_user(tmp_path, [__file__], subordinate=kind == "range")
