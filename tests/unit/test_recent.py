"""What is remembered for a while: the values used last, and locks while they are wanted."""

from __future__ import annotations

import threading

from pybuild.files.keyedlocks import KeyedLocks
from pybuild.files.recent import Recent


def test_what_was_used_longest_ago_is_forgotten_first() -> None:
    recent: Recent[str, int] = Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert recent.get("b") is None
    assert (recent.get("a"), recent.get("c"), len(recent)) == (1, 3, 2)


def test_a_key_that_gets_another_value_takes_no_more_room() -> None:
    recent: Recent[str, int] = Recent(2)
    for number in range(5):
        recent.put("a", number)
    recent.put("b", 5)
    assert (recent.get("a"), recent.get("b"), len(recent)) == (4, 5, 2)


def test_one_holds_the_lock_of_a_key_and_others_those_of_other_keys() -> None:
    locks = KeyedLocks()
    inside: list[str] = []
    may_end = threading.Event()

    def hold(key: str) -> None:
        with locks.holding(key):
            inside.append(key)
            assert may_end.wait(10)

    threads = [threading.Thread(target=hold, args=(key,)) for key in "aaab"]
    for thread in threads:
        thread.start()
    while len(inside) < 2:
        may_end.wait(0.01)
    assert sorted(inside) == ["a", "b"]
    may_end.set()
    for thread in threads:
        thread.join(10)
    assert sorted(inside) == ["a", "a", "a", "b"]


def test_a_lock_that_nobody_wants_is_not_kept() -> None:
    locks = KeyedLocks()
    for number in range(100):
        with locks.holding(number), locks.holding("other"):
            assert len(vars(locks)["_locks"]) == 2
    assert not vars(locks)["_locks"]
