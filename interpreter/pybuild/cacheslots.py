"""Which folder of a cache mount a step gets, and who else may use it meanwhile.

A cache has slots, each a folder of its own; nearly always only slot 0 is used. As in
BuildKit, steps at the same time share one (``shared``), get the first that nobody uses
(``private``), or wait for it (``locked``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path

from pybuild.backend import Sharing

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.002, 0.1
_MOST_SLOTS = 64


class CacheSlots:
    """The slots of all caches. Safe in threads, and among the processes that share `folder`.

    The folder, which exists, holds lock files; the kernel drops the locks of a killed
    process.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def taken(
        self, wanted: Mapping[str, Sharing], while_waiting: Callable[[], object]
    ) -> Iterator[dict[str, int]]:
        """A slot's number for each cache of `wanted`, any texts, for as long as the context lasts.

        `while_waiting` is called many times a second; what it raises ends the waiting.
        """
        with ExitStack() as stack:
            # always in the same order, so that no two steps wait for each other
            yield {
                ident: stack.enter_context(self._one(ident, wanted[ident], while_waiting))
                for ident in sorted(wanted)
            }

    @contextmanager
    def _one(
        self, ident: str, sharing: Sharing, while_waiting: Callable[[], object]
    ) -> Iterator[int]:
        name = sha256(ident.encode("utf-8", "surrogateescape")).hexdigest()
        slots = range(1 if sharing is Sharing.LOCKED else _MOST_SLOTS)
        for attempt in count():
            for slot in slots:
                path = self._folder / f"cache-{name}-{slot}"
                lock = _try_lock(path, exclusive=sharing is not Sharing.SHARED)
                if lock is None:
                    continue
                try:
                    yield slot
                finally:
                    _unlock(path, lock)
                return
            while_waiting()
            time.sleep(min(_SHORTEST_PAUSE * 1.5 ** min(attempt, 20), _LONGEST_PAUSE))


def _try_lock(path: Path, *, exclusive: bool) -> int | None:
    """A descriptor that holds the lock; None if others hold it. The file exists only meanwhile."""
    import fcntl  # noqa: PLC0415 - only Unix has it

    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        if _is_at(lock, path):
            return lock
        os.close(lock)  # its last holder has removed it since it was opened


def _unlock(path: Path, lock: int) -> None:
    import fcntl  # noqa: PLC0415 - only Unix has it

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(lock, path):
            path.unlink()
    except BlockingIOError:
        pass  # others hold it, and the last of them removes it
    finally:
        os.close(lock)


def _is_at(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.lstat())
    except FileNotFoundError:
        return False
