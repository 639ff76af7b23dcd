"""Who keeps what in a store, counted: what nobody keeps is garbage."""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

from pybuild_embedded.sessions import Part

Node = tuple[Part, str]
"""A part of the store and its name: a key, chain id, digest, diff id or folder's ident."""
_PARTS = frozenset(part.value for part in Part)


class References:
    """The store at one moment, read in a transaction that lasts as long as it is used.

    ``entries`` are what is kept for its own sake until it is dropped, and when each was last
    used (seconds since 1970): steps, images, settled folders, cache mounts. They keep
    chains, blobs and indexes, and so do the pins of the `live` sessions.
    """

    def __init__(self, connection: sqlite3.Connection, live: Collection[str]) -> None:
        self.entries: dict[Node, int] = {}
        self.pinned: set[Node] = set()
        self._keeps: defaultdict[Node, list[Node]] = defaultdict(list)
        self._holders: Counter[Node] = Counter()
        self._read_chains(connection)
        self._read_entries(connection)
        for session, part, ident in connection.execute("SELECT session, part, ident FROM pins"):
            if session in live and part in _PARTS:
                self.pinned.add((Part(part), ident))
        query = "SELECT ident, session FROM folders WHERE session IS NOT NULL"
        for ident, session in connection.execute(query):
            if session in live:
                self.pinned.add((Part.FOLDER, ident))
        self._hold([*self.entries, *self.pinned])

    def keeps(self, node: Node) -> bool:
        """Whether anybody keeps it."""
        return self._holders[node] > 0

    def drop(self, entry: Node) -> list[Node]:
        """Take an entry away; what nobody keeps any more then, itself included."""
        gone: list[Node] = []
        waiting = [entry]
        while waiting:
            node = waiting.pop()
            self._holders[node] -= 1
            if self._holders[node] == 0:
                gone.append(node)
                waiting += self._keeps[node]
        return gone

    def below(self, nodes: Iterable[Node]) -> set[Node]:
        """All that these keep, themselves included."""
        found: set[Node] = set()
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting += self._keeps[node]
        return found

    def _hold(self, waiting: list[Node]) -> None:
        while waiting:
            node = waiting.pop()
            self._holders[node] += 1
            if self._holders[node] == 1:
                waiting += self._keeps[node]

    def _read_chains(self, connection: sqlite3.Connection) -> None:
        query = "SELECT chain, parent, digest, diff_id FROM chains"
        for chain, parent, digest, diff_id in connection.execute(query):
            kept = self._keeps[Part.CHAIN, chain]
            kept += [(Part.BLOB, digest), (Part.INDEX, diff_id)]
            if parent:
                kept.append((Part.CHAIN, parent))

    def _read_entries(self, connection: sqlite3.Connection) -> None:
        for key, chain, used in connection.execute("SELECT key, chain, used FROM steps"):
            self.entries[Part.STEP, key] = used
            self._keeps[Part.STEP, key].append((Part.CHAIN, chain))
        for digest, used in connection.execute("SELECT digest, used FROM images"):
            self.entries[Part.IMAGE, digest] = used
        query = "SELECT image, digest, diff_id FROM image_blobs"
        for image, digest, diff_id in connection.execute(query):
            kept = self._keeps[Part.IMAGE, image]
            kept.append((Part.BLOB, digest))
            if diff_id:
                kept.append((Part.INDEX, diff_id))
        query = "SELECT ident, used FROM folders WHERE session IS NULL"
        for ident, used in connection.execute(query):
            self.entries[Part.FOLDER, ident] = used
        for ident, used in connection.execute("SELECT ident, used FROM caches"):
            self.entries[Part.CACHE, ident] = used
