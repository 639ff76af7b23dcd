"""A layer that is being packed while the build goes on."""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from datetime import datetime

from pybuild.backend import Activity
from pybuild.oci.descriptor import LayerDiff
from pybuild.values import dataclass, field
from pybuild_embedded.folders import LayerFolder
from pybuild_embedded.layerchain import LayerChain
from pybuild_embedded.space import Space
from pybuild_embedded.workers import Pack, PendingPack


@dataclass(slots=True, eq=False)
class PendingLayer:
    """What a process left in `folder` on top of `below`, which `folders_below` show.

    Without a ``folder``, there is none with the layer alone. ``pack`` is on its way, asked
    for by ``request``. With a ``key``, the step is kept in the cache once that is done, which
    ends its ``flight``. Safe in threads.
    """

    space: Space
    below: LayerChain
    folders_below: tuple[LayerFolder, ...]
    folder: LayerFolder | None
    pack: PendingPack
    request: Pack
    key: str | None
    flight: ExitStack
    activity: Activity
    made: datetime
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _outcome: tuple[LayerDiff | None] | Exception | None = None

    def settled(self) -> LayerDiff | None:
        """The layer, once it is packed and stored; None if nothing was changed.

        Raises what went wrong, to everyone who asks.
        """
        with self._lock:
            if self._outcome is None:
                with self.flight:
                    try:
                        self._outcome = (self._settle(),)
                    except Exception as error:  # noqa: BLE001 - whoever asks next gets it too
                        self._outcome = error
            if isinstance(self._outcome, Exception):
                raise self._outcome
            return self._outcome[0]

    def chain(self) -> LayerChain:
        """All layers, as :meth:`settled`."""
        own = self.settled()
        return self.below if own is None else self.below.extended(own)

    def folders(self) -> tuple[LayerFolder, ...]:
        """What to mount over each other to see the layer, as far as it is known; bottom first."""
        if self.folder is None or self._outcome == (None,):
            return self.folders_below
        return (*self.folders_below, self.folder)

    def finish(self) -> None:
        """Keep the layer for later builds, even if this one needs it no more."""
        try:
            self.activity.raise_if_cancelled()
            self.settled()
        except Exception:  # noqa: BLE001 - it is for whoever asks for the layer
            self.flight.close()
        with self.space.lock, suppress(ValueError):  # finished already
            self.space.unfinished.remove(self)

    def _settle(self) -> LayerDiff | None:
        store = self.space.store
        packed = self.pack.result()
        if packed is None:
            self._record_step(self.below.id, own=False)
            return None
        diff = packed.diff
        store.adopt_blob(self.request.blob, diff.blob.digest, diff.blob.size)
        self.space.files.adopt(diff.diff_id, self.request.index)
        chain = self.below.extended(diff)
        store.record_layers(chain.layers)
        if self.folder is not None:
            store.settle(self.folder, chain.id, self.space.machine.flavour, size=packed.size)
        self._record_step(chain.id, own=True)
        return diff

    def _record_step(self, chain: str, *, own: bool) -> None:
        if self.key is not None:
            made = self.made.timestamp()
            self.space.store.record_step(self.key, chain, own=own, made=made)
