"""The embedded backend keeps the contract: as root, with a range of ids, and with one id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding import Stores
from pybuild.backend import Backend
from pybuild.testkit.baseimages import BUSYBOX
from pybuild.testkit.suite import BackendSuite
from pybuild.testkit.workbench import Workbench, content
from pybuild_embedded.machine import Machine
from pybuild_embedded.workers import Workers
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


def test_steps_that_change_nothing_need_no_worker(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = stores.new()
    with stores.opened(root) as backend, Workbench(backend, BUSYBOX) as bench:
        bench.run(bench.base(), "true")  # its layers are unpacked now
    monkeypatch.setattr(Machine, "workers", _no_workers)
    with stores.opened(root) as backend, Workbench(backend, BUSYBOX) as bench:
        first = bench.run(bench.base(), "cat /etc/passwd >/dev/null")
        second = bench.run(first.layer, "true")
        assert (first.code, second.code, second.layer.diff) == (0, 0, None)
    assert not [*(root / "trash").iterdir()]


def _no_workers(_: Machine) -> Workers:
    raise AssertionError("a worker was started")


def test_a_root_that_nobody_may_look_into_is_packed_by_a_worker(stores: Stores) -> None:
    with stores.opened() as backend, Workbench(backend, BUSYBOX) as bench:
        ran = bench.run(bench.base(), "chmod 0 /; chown 1:1 / || true")
        assert ran.layer.diff is None
        after = bench.run(ran.layer, "echo made >/file")
        assert content(after.layer, b"file") == b"made\n"
