"""A layer that is being packed while the build goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pybuild.backend import Activity
from pybuild.files.changedtree import ChangedTree
from pybuild.files.latertree import LaterTree
from pybuild.files.trees import Tree
from pybuild.oci.compression import Compression
from pybuild.oci.descriptor import LayerDiff
from pybuild.values import dataclass, field
from pybuild_embedded.folders import LayerFolder
from pybuild_embedded.layerchain import LayerChain
from pybuild_embedded.space import Space
from pybuild_embedded.workers import Pack, PendingPack

if TYPE_CHECKING:
    from pybuild_embedded.layers import EmbeddedROLayer

MOST_BEHIND = 8
"""How many layers on top of each other may wait to be packed."""


@dataclass(slots=True, eq=False)
class PendingLayer:
    """What a process left in `folder` on top of `below`.

    Without a `record`, it is a layer to be mounted over ``folders_below``; with one, which is
    that of :class:`.requests.Pack`, the folder has all files. `newest` is as in
    :meth:`pybuild.backend.ROLayer.begin`. With a ``key``, the step is kept in the cache once
    all is done, which ends its ``flight``. Safe in threads.
    """

    space: Space
    below: EmbeddedROLayer
    folders_below: tuple[LayerFolder, ...]
    folder: LayerFolder
    record: Path | None
    newest: int | None
    key: str | None
    flight: ExitStack
    activity: Activity
    made: datetime
    _outcome: Future[LayerDiff | None] = field(default_factory=Future)
    _tree: Tree | None = None

    def begin(self) -> None:
        """Have it packed when `below` is, which its index is needed for."""
        with self.space.lock:
            self.space.unfinished.append(self)
        self.below.when_known(self._pack)

    @property
    def behind(self) -> int:
        """How many layers aren't packed yet, this one and those below it."""
        return 0 if self._outcome.done() else self.below.behind + 1

    def settled(self) -> LayerDiff | None:
        """Wait for the layer to be packed and stored; None if nothing was changed.

        Raises what went wrong, to everyone who asks.
        """
        return self._outcome.result()

    def when_settled(self, callback: Callable[[], object]) -> None:
        """Call it once :meth:`settled` doesn't wait any more, at once if that is so already."""
        self._outcome.add_done_callback(lambda _: callback())

    def chain(self) -> LayerChain:
        """All layers, as :meth:`settled`."""
        own, below = self.settled(), self.below.chain()
        return below if own is None else below.extended(own)

    def tree(self, known: Callable[[], Tree]) -> Tree:
        """The layer's files, as `known` gives them when it has waited for the layer."""
        if self._tree is None:
            machine = self.space.machine
            owner = machine.mapping().inside if machine.keeps_owners else None
            self._tree = (
                LaterTree(known)
                if self.record is not None
                else ChangedTree(known, self.below.tree, self.folder.fs, owner=owner)
            )
        return self._tree

    def folders(self) -> tuple[LayerFolder, ...]:
        """What to mount over each other to see the layer, as far as it is known; bottom first."""
        if self.record is not None or self._is_empty():
            return self.folders_below
        return (*self.folders_below, self.folder)

    def finish(self) -> None:
        """Keep the layer for later builds, even if this one needs it no more."""
        with suppress(Exception):  # it is for whoever asks for the layer
            self.activity.raise_if_cancelled()
            self.settled()

    def _is_empty(self) -> bool:
        done = self._outcome
        return done.done() and done.exception() is None and done.result() is None

    def _pack(self) -> None:
        try:
            below = self.below.chain()
            request = Pack(
                upper=self.folder.fs,
                parents=self.space.files.index_paths(below.layers),
                blob=self.space.store.new_file(),
                index=self.space.store.new_file(),
                newest=self.newest,
                owners=self.space.machine.keeps_owners,
                compression=Compression.GZIP,
                record=self.record,
            )
            pack = self.space.machine.workers().pack(request)
        except Exception as error:  # noqa: BLE001 - it is for whoever asks for the layer
            self._end(error)
        else:
            pack.when_done(lambda: self._settle(below, request, pack))

    def _settle(self, below: LayerChain, request: Pack, pack: PendingPack) -> None:
        try:
            own = self._stored(below, request, pack)
        except Exception as error:  # noqa: BLE001 - as above
            self._end(error)
        else:
            self._end(own)

    def _end(self, outcome: LayerDiff | Exception | None) -> None:
        try:
            # others look the step up as soon as its flight has ended
            self.flight.close()
        finally:
            with self.space.lock:
                self.space.unfinished.remove(self)
            if isinstance(outcome, Exception):
                self._outcome.set_exception(outcome)
            else:
                self._outcome.set_result(outcome)

    def _stored(self, below: LayerChain, request: Pack, pack: PendingPack) -> LayerDiff | None:
        store = self.space.store
        packed = pack.result()
        if packed is None:
            self._record_step(below.id, own=False)
            return None
        diff = packed.diff
        store.adopt_blob(request.blob, diff.blob.digest, diff.blob.size)
        self.space.files.adopt(diff.diff_id, request.index)
        chain = below.extended(diff)
        store.record_layers(chain.layers)
        if self.record is None:
            store.settle(self.folder, chain.id, self.space.machine.flavour, size=packed.size)
        self._record_step(chain.id, own=True)
        return diff

    def _record_step(self, chain: str, *, own: bool) -> None:
        if self.key is not None:
            made = self.made.timestamp()
            self.space.store.record_step(self.key, chain, own=own, made=made)
