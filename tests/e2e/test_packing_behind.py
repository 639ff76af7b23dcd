"""Steps go on while what those before them left is still being packed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pybuild
from embedding import Stores
from pybuild.errors import BackendFailed, RunFailed
from pybuild.testkit.baseimages import BUSYBOX
from pybuild.testkit.workbench import Workbench, content
from pybuild_embedded.pending import MOST_BEHIND
from pybuild_embedded.requests import Pack, Request
from pybuild_embedded.workers import Workers
from sandboxing import run_tests_as_user

_PATIENCE = 60


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return Stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def before_packing(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What is to be called before each layer of a RUN is packed, in the thread that does it."""
    calls: list[Callable[[], object]] = []
    serve: Callable[[Workers, Request], Any] = Workers._serve

    def served(workers: Workers, request: Request) -> Any:
        if isinstance(request, Pack):
            for call in calls:
                call()
        return serve(workers, request)

    monkeypatch.setattr(Workers, "_serve", served)
    return calls


def test_steps_dont_wait_for_those_before_them(
    stores: Stores, before_packing: list[Callable[[], object]]
) -> None:
    gate = threading.Event()
    before_packing.append(lambda: gate.wait(_PATIENCE))
    with stores.opened() as backend, Workbench(backend, BUSYBOX) as bench:
        layer, made = bench.base(), []
        try:
            for number in range(MOST_BEHIND):
                ran = bench.run(
                    layer,
                    f"cat /made-* >>/seen; echo {number} >/made-{number}; echo >/etc/{number}",
                )
                assert ran.code == 0
                layer = ran.layer
                made.append(layer)
                assert layer.tree().get(b"etc/passwd") is not None
        finally:
            gate.set()
        last = b"".join(b"%d\n" % number for number in range(MOST_BEHIND - 1))
        assert content(layer, b"seen").endswith(last)
        assert [len(each.diffs) - len(bench.base().diffs) for each in made] == [
            *range(1, MOST_BEHIND + 1)
        ]


def test_not_more_than_a_few_steps_are_ahead(
    stores: Stores, before_packing: list[Callable[[], object]]
) -> None:
    gate, done = threading.Event(), list[int]()
    before_packing.append(lambda: gate.wait(_PATIENCE))
    with stores.opened() as backend, Workbench(backend, BUSYBOX) as bench:

        def run() -> None:
            layer = bench.base()
            for number in range(MOST_BEHIND + 3):
                layer = bench.run(layer, f"echo >/made-{number}").layer
                done.append(number)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            deadline = time.monotonic() + _PATIENCE
            while len(done) < MOST_BEHIND and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.3)
            assert len(done) == MOST_BEHIND
        finally:
            gate.set()
            thread.join()
        assert len(done) == MOST_BEHIND + 3


def test_users_that_a_step_adds_are_known_to_the_next(
    stores: Stores, before_packing: list[Callable[[], object]]
) -> None:
    before_packing.append(lambda: time.sleep(0.2))
    dockerfile = f"""FROM {BUSYBOX}
        RUN echo me:x:77:78::/:/bin/sh >>/etc/passwd
        RUN touch /between
        USER me
        RUN test "$(id -u):$(id -g)" = 77:78
        """
    with stores.opened() as backend:
        pybuild.build(None, dockerfile=dockerfile.encode(), backend=backend)


def test_what_couldnt_be_packed_is_told_of_its_own_step(
    stores: Stores, before_packing: list[Callable[[], object]]
) -> None:
    def fail() -> None:
        raise BackendFailed("no room")

    before_packing.append(fail)
    dockerfile = f"FROM {BUSYBOX}\nRUN touch /one\nRUN touch /two\nRUN touch /three\n".encode()
    with stores.opened() as backend:
        with pytest.raises(BackendFailed, match="no room") as caught:
            pybuild.build(None, dockerfile=dockerfile, backend=backend)
        assert caught.value.where is not None
        assert caught.value.where.start_line == 2
        before_packing.clear()
        pybuild.build(None, dockerfile=dockerfile, backend=backend)  # nobody waits for the others


def test_steps_before_one_that_fails_are_kept(
    stores: Stores, before_packing: list[Callable[[], object]]
) -> None:
    before_packing.append(lambda: time.sleep(0.3))
    good = f"FROM {BUSYBOX}\nRUN touch /one\nRUN touch /two\n"
    root = stores.new()
    with stores.opened(root) as backend, pytest.raises(RunFailed):
        pybuild.build(None, dockerfile=f"{good}RUN false\n".encode(), backend=backend)
    with stores.opened(root) as backend:
        result = pybuild.build(None, dockerfile=good.encode(), backend=backend)
    assert [step.cached for step in result.steps] == [True, True]


@pytest.mark.root
@pytest.mark.parametrize("kind", ["range", "single"])
def test_the_same_holds_for_other_users(tmp_path: Path, kind: str) -> None:
    run_tests_as_user(tmp_path, [__file__], subordinate=kind == "range")
