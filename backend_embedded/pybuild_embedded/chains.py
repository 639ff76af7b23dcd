"""Chains of layers, and the steps that made them.

A chain is named by its chain id, a hash of its parent's and its top layer's diff id, so a
row that says something wrong doesn't fit its name and counts as not there.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Container, Sequence
from datetime import UTC, datetime

from pybuild.files.recent import Recent
from pybuild.oci.descriptor import Descriptor, LayerDiff, chain_id
from pybuild.oci.manifest import LAYER_TYPES
from pybuild.values import dataclass
from pybuild_embedded.blobs import Blobs
from pybuild_embedded.database import DamagedDatabase, Database
from pybuild_embedded.sessions import Part, Session

_MOST_KNOWN = 128

Layers = tuple[LayerDiff, ...]


@dataclass(frozen=True, slots=True)
class CachedStep:
    """What a step left: a chain, its layers bottom first, and whether the top one is its own.

    ``made`` is when, in seconds since 1970.
    """

    chain: str
    layers: Layers
    own: bool
    made: float

    @property
    def made_at(self) -> datetime:
        return datetime.fromtimestamp(self.made, UTC)


class _Chain:
    """A chain that this session has pinned: one layer more than `parent`, or scratch."""

    __slots__ = ("complete", "ident", "layers", "parent")

    def __init__(self, ident: str, parent: _Chain | None, layers: Layers) -> None:
        self.ident = ident
        self.parent = parent
        self.layers = layers
        self.complete = parent is None
        """Whether all its blobs are known to be here."""

    def extended(self, ident: str, layer: LayerDiff) -> _Chain:
        return _Chain(ident, self, (*self.layers, layer))


_SCRATCH = _Chain("", None, ())


class Chains:
    """The chains of a store and its step cache. Safe in threads.

    Those used last are remembered, with all their beginnings, so that one more layer costs
    the same on the thousandth as on the first.
    """

    def __init__(self, database: Database, blobs: Blobs, session: Session) -> None:
        self._database = database
        self._blobs = blobs
        self._session = session
        self._chains: Recent[str, _Chain] = Recent(_MOST_KNOWN)
        self._by_top: Recent[tuple[int, str], _Chain] = Recent(_MOST_KNOWN)

    def record(self, layers: Sequence[LayerDiff]) -> str:
        """Remember `layers` and all their beginnings; the chain id, pinned.

        A chain that is known keeps its blob as long as that is here.
        """
        given = tuple(layers)
        count = len(given)
        while (chain := self._known(given[:count])) is None:
            count -= 1
        if count == len(given):
            return chain.ident
        new: list[_Chain] = []
        with self._database.writing() as connection:
            for layer in given[count:]:
                parent, chain = chain, chain.extended(_child(chain.ident, layer.diff_id), layer)
                self._insert(connection, chain.ident, parent.ident, layer)
                new.append(chain)
            self._session.pin(connection, Part.CHAIN, chain.ident)
        self._remember(new)
        return chain.ident

    def layers(self, chain: str) -> Layers | None:
        """The layers of a recorded chain, bottom first; it is pinned. None if it isn't known."""
        if (known := self._find(chain)) is not None:
            return known.layers
        with self._database.writing() as connection:
            found = self._load(connection, chain)
            if not found:
                return None
            self._session.pin(connection, Part.CHAIN, chain)
        self._remember(found)
        return found[-1].layers

    def record_step(self, key: str, chain: str, *, own: bool, made: float | None) -> None:
        """From now on the step with this cache key has this result, made then or now."""
        with self._database.writing() as connection:
            self._session.pin(connection, Part.STEP, key)
            now = time.time()
            row = (key, chain, own, now if made is None else made, int(now))
            connection.execute("INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?, ?)", row)

    def step(self, key: str, elsewhere: Container[str] = ()) -> CachedStep | None:
        """The step's result, pinned with all its blobs; None if anything of it is missing.

        A blob whose digest is in `elsewhere` can be had when it is needed.
        """
        try:
            with self._database.writing() as connection:
                query = "SELECT chain, own, made FROM steps WHERE key=?"
                row = connection.execute(query, (key,)).fetchone()
                if row is None:
                    return None
                ident, own, made = row
                found = self._load(connection, ident)
                if not found:
                    return None
                self._session.pin(connection, Part.STEP, key)
                self._remember(found)
                chain = found[-1]
                incomplete = self._incomplete(chain, elsewhere)
                if incomplete is None:
                    return None
                connection.execute("UPDATE steps SET used=? WHERE key=?", (int(time.time()), key))
        except DamagedDatabase:
            return None  # a failing cache is a miss
        for each in incomplete:
            each.complete = True
        return CachedStep(ident, chain.layers, bool(own), made)

    def _find(self, ident: str) -> _Chain | None:
        return self._chains.get(ident) if ident else _SCRATCH

    def _known(self, layers: Layers) -> _Chain | None:
        """The chain of exactly these layers and blobs, if it is remembered."""
        if not layers:
            return _SCRATCH
        chain = self._by_top.get((len(layers), layers[-1].diff_id))
        return chain if chain and chain.layers == layers else None

    def _insert(
        self, connection: sqlite3.Connection, chain: str, parent: str, layer: LayerDiff
    ) -> None:
        known = connection.execute("SELECT digest FROM chains WHERE chain=?", (chain,)).fetchone()
        blob = layer.blob
        if known is None or (known[0] != blob.digest and self._blobs.size(known[0]) is None):
            row = (chain, parent, layer.diff_id, blob.media_type, blob.digest, blob.size)
            connection.execute("INSERT OR REPLACE INTO chains VALUES (?, ?, ?, ?, ?, ?)", row)

    def _load(self, connection: sqlite3.Connection, ident: str) -> list[_Chain]:
        """The chain, at the end, and those of its beginnings that weren't remembered.

        Empty if it isn't recorded.
        """
        links: list[tuple[str, LayerDiff]] = []
        while (chain := self._find(ident)) is None:
            query = "SELECT parent, diff_id, media_type, digest, size FROM chains WHERE chain=?"
            row = connection.execute(query, (ident,)).fetchone()
            # a chain can't lead to itself: its name is a hash of its parent's
            if row is None or row[2] not in LAYER_TYPES or _child(row[0], row[1]) != ident:
                return []
            links.append((ident, LayerDiff(row[1], Descriptor(*row[2:]))))
            ident = row[0]
        found = [chain]
        for above, layer in reversed(links):
            found.append(found[-1].extended(above, layer))
        return found

    def _remember(self, chains: Sequence[_Chain]) -> None:
        for chain in chains:
            if chain.layers:
                self._chains.put(chain.ident, chain)
                self._by_top.put((len(chain.layers), chain.layers[-1].diff_id), chain)

    def _incomplete(self, chain: _Chain, elsewhere: Container[str]) -> list[_Chain] | None:
        """The chains up to this one whose blobs can all be had after all; None if one can't."""
        found = []
        place: _Chain | None = chain
        while place is not None and not place.complete:
            blob = place.layers[-1].blob
            if blob.digest not in elsewhere and self._blobs.size(blob.digest) != blob.size:
                return None
            found.append(place)
            place = place.parent
        return found


def _child(parent: str, diff_id: str) -> str:
    # the rule for two layers is the rule for a chain and one more
    return chain_id((parent, diff_id)) if parent else diff_id
