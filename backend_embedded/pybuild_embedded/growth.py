"""How large a store is, as far as that can be told without looking at all of it.

Whoever looks at everything remembers what it found; sessions add what they made. A session
that died may have made more than it could say, so its death makes the size unknown.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from pybuild_embedded.database import Database
from pybuild_embedded.sessions import Part
from pybuild_embedded.usage import OnDisk

_STORE = ("store", "")
_BLOCK = 4096


class Growth:
    """What one session adds to a store. Safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._size = 0
        self._caches: set[str] = set()

    def add(self, size: int) -> None:
        """A file of `size` bytes was added, or a folder that takes up so much."""
        with self._lock:
            self._size += -(-size // _BLOCK) * _BLOCK

    def use_cache(self, ident: str) -> None:
        """Processes write to this cache mount."""
        with self._lock:
            self._caches.add(ident)

    @property
    def is_nothing(self) -> bool:
        """Whether the session has added nothing, and let no process write to a cache mount."""
        return not self._size and not self._caches

    @property
    def size(self) -> int:
        """In bytes, but for cache mounts."""
        return self._size

    @property
    def caches(self) -> tuple[str, ...]:
        """The cache mounts that were used."""
        return tuple(self._caches)


def remember(database: Database, found: OnDisk) -> None:
    """Keep what was found when all of the store was looked at."""
    caches = {ident: size for (part, ident), size in found.parts.items() if part is Part.CACHE}
    rows = [(Part.CACHE, ident, size) for ident, size in caches.items()]
    with database.writing() as connection:
        connection.execute("DELETE FROM sizes")
        connection.execute("INSERT INTO sizes VALUES (?, ?, ?)", (*_STORE, found.total))
        connection.executemany("INSERT INTO sizes VALUES (?, ?, ?)", rows)


def grown(database: Database, size: int, caches: Mapping[str, int]) -> int | None:
    """What the store takes up after it got `size` more bytes; None where that isn't known.

    `caches` are what cache mounts take up now.
    """
    with database.writing() as connection:
        query = "SELECT ident, size FROM sizes WHERE part=?"
        known: dict[str, int] = dict(connection.execute(query, (Part.CACHE,)).fetchall())
        more = size + sum(now - known.get(ident, 0) for ident, now in caches.items())
        rows = [(Part.CACHE, ident, now) for ident, now in caches.items()]
        connection.executemany("INSERT OR REPLACE INTO sizes VALUES (?, ?, ?)", rows)
        statement = "UPDATE sizes SET size=size+? WHERE part=? AND ident=?"
        connection.execute(statement, (more, *_STORE))
        query = "SELECT size FROM sizes WHERE part=? AND ident=?"
        row = connection.execute(query, _STORE).fetchone()
    return None if row is None else int(row[0])
