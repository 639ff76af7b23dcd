"""The embedded backend with a runtime: the contract's part on RUN, and what is said of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding import Stores
from pybuild.backend import Backend, Capability
from pybuild.errors import BackendUnavailable
from pybuild.sandbox import runtimes
from pybuild.sandbox.runtimes import RUNTIMES
from pybuild.testkit.suite_runs import RunSuite
from sandboxing import best_mapping, run_tests_as_user, usable_runtime


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return Stores(tmp_path_factory.mktemp("stores"))


class TestCrun(RunSuite):
    """As whoever runs the tests."""

    @pytest.fixture
    def backend(self, stores: Stores, tmp_path: Path) -> Iterator[Backend]:
        usable_runtime("crun", best_mapping(tmp_path))
        with stores.opened(runner="crun") as backend:
            yield backend


@pytest.mark.root
def test_the_same_holds_for_a_user_with_a_range_of_ids(tmp_path: Path) -> None:
    run_tests_as_user(tmp_path, [__file__], subordinate=True)


def test_a_missing_runtime_is_told_before_anything_runs_and_copies_build(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, "system_program", lambda _name: None)
    with stores.opened(runner="runc") as backend:
        with pytest.raises(BackendUnavailable, match="runc isn't installed"):
            backend.require(frozenset({Capability.RUN}))
        backend.require(frozenset())
        told = dict(backend.describe())
        assert told["processes are started by"] == "nothing: runc isn't installed"


def test_each_build_is_refused_with_an_error_of_its_own(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, "system_program", lambda _name: None)
    with stores.opened(runner="runc") as backend:
        with pytest.raises(BackendUnavailable) as first:
            backend.require(frozenset({Capability.RUN}))
        with pytest.raises(BackendUnavailable) as second:
            backend.require(frozenset({Capability.RUN}))
    assert first.value is not second.value
    assert (first.value.message, first.value.hint) == (second.value.message, second.value.hint)


@pytest.mark.parametrize("name", ["sandbox", *RUNTIMES])
def test_the_doctor_says_what_starts_processes(tmp_path: Path, name: str) -> None:
    if name in RUNTIMES:
        usable_runtime(name, best_mapping(tmp_path))
    command = [sys.executable, "-m", "pybuild", "doctor", "--backend=embedded"]
    done = subprocess.run(
        [*command, f"--root={tmp_path}/store", f"--runner={name}"],
        check=True,
        capture_output=True,
        text=True,
    )
    found = re.search(r"backend embedded: processes are started by +(.*)", done.stdout)
    assert found is not None
    assert re.fullmatch("pybuild" if name == "sandbox" else rf"{name} \d[\w.+~-]*", found[1])
    shutil.rmtree(tmp_path / "store")
