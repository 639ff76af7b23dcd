"""Chains of layers, and the steps that made them.

A chain is named by its chain id, a hash of its parent's and its top layer's diff id, so a
row that says something wrong doesn't fit its name and counts as not there.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Container, Iterable, Sequence
from datetime import UTC, datetime

from pybuild.oci.descriptor import Descriptor, LayerDiff, chain_id
from pybuild.oci.manifest import LAYER_TYPES
from pybuild.values import dataclass
from pybuild_embedded.blobs import Blobs
from pybuild_embedded.database import DamagedDatabase, Database
from pybuild_embedded.sessions import Part, Session

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


class Chains:
    """The chains of a store and its step cache. Safe in threads.

    What this session has pinned is remembered, with all its beginnings, so that one more
    layer costs the same on the thousandth as on the first.
    """

    def __init__(self, database: Database, blobs: Blobs, session: Session) -> None:
        self._database = database
        self._blobs = blobs
        self._session = session
        self._layers: dict[str, Layers] = {"": ()}
        self._parents: dict[str, str] = {}
        self._by_top: dict[tuple[int, str], str] = {}
        # those of which all blobs are here
        self._complete: set[str] = {""}

    def record(self, layers: Sequence[LayerDiff]) -> str:
        """Remember `layers` and all their beginnings; the chain id, pinned.

        A chain that is known keeps its blob as long as that is here.
        """
        given = tuple(layers)
        count = len(given)
        while (chain := self._known(given[:count])) is None:
            count -= 1
        if count == len(given):
            return chain
        links: list[tuple[str, LayerDiff]] = []
        with self._database.writing() as connection:
            for layer in given[count:]:
                parent, chain = chain, _child(chain, layer.diff_id)
                self._insert(connection, chain, parent, layer)
                links.append((chain, layer))
            self._session.pin(connection, Part.CHAIN, chain)
        self._remember(self._known(given[:count]) or "", links)
        return chain

    def layers(self, chain: str) -> Layers | None:
        """The layers of a recorded chain, bottom first; it is pinned. None if it isn't known."""
        if chain in self._layers:
            return self._layers[chain]
        with self._database.writing() as connection:
            found = self._load(connection, chain)
            if found is None:
                return None
            self._session.pin(connection, Part.CHAIN, chain)
        self._remember(*found)
        return self._layers[chain]

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
                chain, own, made = row
                found = self._load(connection, chain)
                if found is None:
                    return None
                self._session.pin(connection, Part.STEP, key)
                self._remember(*found)
                complete = self._completed(chain, elsewhere)
                if complete is None:
                    return None
                connection.execute("UPDATE steps SET used=? WHERE key=?", (int(time.time()), key))
        except DamagedDatabase:
            return None  # a failing cache is a miss
        self._complete.update(complete)
        return CachedStep(chain, self._layers[chain], bool(own), made)

    def _known(self, layers: Layers) -> str | None:
        """The chain id of exactly these layers and blobs, if they are remembered."""
        if not layers:
            return ""
        chain = self._by_top.get((len(layers), layers[-1].diff_id))
        return chain if chain and self._layers[chain] == layers else None

    def _insert(
        self, connection: sqlite3.Connection, chain: str, parent: str, layer: LayerDiff
    ) -> None:
        known = connection.execute("SELECT digest FROM chains WHERE chain=?", (chain,)).fetchone()
        blob = layer.blob
        if known is None or (known[0] != blob.digest and self._blobs.size(known[0]) is None):
            row = (chain, parent, layer.diff_id, blob.media_type, blob.digest, blob.size)
            connection.execute("INSERT OR REPLACE INTO chains VALUES (?, ?, ?, ?, ?, ?)", row)

    def _load(
        self, connection: sqlite3.Connection, chain: str
    ) -> tuple[str, list[tuple[str, LayerDiff]]] | None:
        """The remembered chain that this one begins with, and what follows; None if none does."""
        links: list[tuple[str, LayerDiff]] = []
        while chain not in self._layers:
            query = "SELECT parent, diff_id, media_type, digest, size FROM chains WHERE chain=?"
            row = connection.execute(query, (chain,)).fetchone()
            # a chain can't lead to itself: its name is a hash of its parent's
            if row is None or row[2] not in LAYER_TYPES or _child(row[0], row[1]) != chain:
                return None
            links.append((chain, LayerDiff(row[1], Descriptor(*row[2:]))))
            chain = row[0]
        return chain, links[::-1]

    def _remember(self, below: str, links: Iterable[tuple[str, LayerDiff]]) -> None:
        for chain, layer in links:
            layers = (*self._layers[below], layer)
            self._parents[chain] = below
            self._layers[chain] = layers
            self._by_top[len(layers), layer.diff_id] = chain
            below = chain

    def _completed(self, chain: str, elsewhere: Container[str]) -> list[str] | None:
        """The chains up to this one whose blobs can all be had; None if one can't."""
        complete = []
        while chain not in self._complete:
            blob = self._layers[chain][-1].blob
            if blob.digest not in elsewhere and self._blobs.size(blob.digest) != blob.size:
                return None
            complete.append(chain)
            chain = self._parents[chain]
        return complete


def _child(parent: str, diff_id: str) -> str:
    # the rule for two layers is the rule for a chain and one more
    return chain_id((parent, diff_id)) if parent else diff_id
