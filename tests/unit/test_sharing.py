"""Work is cut into even shares, and what copies of a process do comes back, errors too."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybuild.errors import BackendFailed, InvalidImage

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

if sys.platform == "linux":
    from pybuild_embedded.inside.sharing import cut, share
    from sandboxing import children_of


def processors(patch: pytest.MonkeyPatch, count: int) -> None:
    patch.setattr(os, "sched_getaffinity", lambda _pid: set(range(count)))


@given(st.lists(st.integers(1, 100)), st.integers(1, 200), st.integers(1, 9))
def test_shares_are_all_items_in_their_order(costs: list[int], least: int, count: int) -> None:
    items = list(range(len(costs)))
    with pytest.MonkeyPatch.context() as patch:
        processors(patch, count)
        shares = cut(items, costs, least)
    assert [item for one in shares for item in one] == items
    assert len(shares) <= min(count, 4)
    assert len(shares) <= max(1, sum(costs) // least)
    # even, but for the one item that is over
    even = sum(costs) / max(1, len(shares)) + max(costs, default=0)
    assert all(sum(costs[item] for item in one) <= even for one in shares)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (3, 3), (64, 4)])
def test_there_are_as_many_shares_as_processors(
    monkeypatch: pytest.MonkeyPatch, count: int, expected: int
) -> None:
    processors(monkeypatch, count)
    shares = cut(range(1200), [1] * 1200, 10)
    assert [len(one) for one in shares] == [1200 // expected] * expected


@pytest.fixture(autouse=True)
def no_child_left() -> Iterator[None]:
    """Other tests' processes may be there, so what counts are the ones that are new."""
    before = set(children_of(os.getpid()))
    yield
    assert set(children_of(os.getpid())) <= before


def test_each_number_is_done_by_a_process_of_its_own() -> None:
    parent = os.getpid()
    first, *others = share(lambda _number: os.getpid(), 4)
    assert first == parent
    assert len({parent, *others}) == 4
    assert share(lambda number: number * number, 3) == [0, 1, 4]


def test_an_error_of_a_copy_is_raised_here() -> None:
    def work(number: int) -> int:
        if number == 2:
            raise InvalidImage("it can't be made here", hint="another image")
        return number

    with pytest.raises(InvalidImage, match="it can't be made here") as caught:
        share(work, 4)
    assert caught.value.hint == "another image"


@pytest.mark.parametrize("number", [0, 1])
def test_when_one_fails_the_others_end(number: int, tmp_path: Path) -> None:
    def work(own: int) -> int:
        if own == number:
            raise InvalidImage("no")
        if own:
            signal.pause()
        return own

    with pytest.raises(InvalidImage, match="no"):
        share(work, 3)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda number: os.kill(os.getpid(), signal.SIGKILL) if number else 0, "in the middle"),
        (lambda number: 1 // (1 - number), "ZeroDivisionError"),
    ],
)
def test_a_copy_that_breaks_is_told(work: Callable[[int], int], said: str) -> None:
    with pytest.raises((BackendFailed, RuntimeError), match=said):
        share(work, 2)


def test_where_no_process_can_be_started_this_one_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    fork = os.fork
    left = [1]

    def failing() -> int:
        if not left:
            raise OSError(11, "Resource temporarily unavailable")
        left.pop()
        return fork()

    monkeypatch.setattr(os, "fork", failing)
    pids = share(lambda _number: os.getpid(), 4)
    assert [pid == os.getpid() for pid in pids] == [True, False, True, True]
