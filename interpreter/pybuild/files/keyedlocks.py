"""One lock for each key, for work that two threads shouldn't do twice."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Hashable, Iterator


class KeyedLocks:
    """Locks that are made when they are first asked for."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: defaultdict[Hashable, threading.Lock] = defaultdict(threading.Lock)

    @contextlib.contextmanager
    def holding(self, key: Hashable) -> Iterator[None]:
        """Hold the lock of `key`; another key's isn't waited for."""
        with self._guard:
            lock = self._locks[key]
        with lock:
            yield
