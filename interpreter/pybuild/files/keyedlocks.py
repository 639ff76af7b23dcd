"""One lock for each key, for work that two threads shouldn't do twice."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Iterator


class KeyedLocks:
    """Locks that are there while somebody holds or wants them."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[Hashable, _Lock] = {}

    @contextlib.contextmanager
    def holding(self, key: Hashable) -> Iterator[None]:
        """Hold the lock of `key`; another key's isn't waited for."""
        with self._guard:
            lock = self._locks.setdefault(key, _Lock())
            lock.users += 1
        try:
            with lock.lock:
                yield
        finally:
            with self._guard:
                lock.users -= 1
                if not lock.users:
                    del self._locks[key]


class _Lock:
    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
