"""Finished layers: blobs with an index first, folders when a process must run on them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from pybuild.backend import Activity, ROLayer, RWLayer
from pybuild.files.latertree import LaterTree
from pybuild.files.trees import Tree
from pybuild.oci.descriptor import LayerDiff
from pybuild.oci.layerindex import LayerIndex
from pybuild.sandbox.mapping import RootKind
from pybuild_embedded.folders import LayerFolder
from pybuild_embedded.layerchain import LayerChain
from pybuild_embedded.space import Space

if TYPE_CHECKING:
    from pybuild_embedded.copies import Handover
    from pybuild_embedded.pending import PendingLayer
    from pybuild_embedded.stepfiles import StepFiles


class EmbeddedROLayer(ROLayer):
    """A chain of layers, of which the top one may still be being packed."""

    def __init__(
        self,
        space: Space,
        chain: LayerChain | None,
        own: LayerDiff | None = None,
        *,
        pending: PendingLayer | None = None,
        handover: Handover | None = None,
        made: datetime | None = None,
        fetch: Callable[[], None] | None = None,
    ) -> None:
        """Either the `chain` is known, or there is a `pending` layer.

        `fetch` is called before files are looked at. `handover` may have a folder that shows a beginning of all this.
        """
        self._made = made
        self._fetch = fetch
        self._space = space
        self._chain = chain
        self._own = own
        self._pending = pending
        self.handover = handover
        self._tree: Tree | None = None
        self._folders: tuple[LayerFolder, ...] | None = None
        self._released = False

    @property
    def diff(self) -> LayerDiff | None:
        self.chain()
        return self._own

    @property
    def diffs(self) -> tuple[LayerDiff, ...]:
        return self.chain().layers

    @property
    def made(self) -> datetime | None:
        return self._made

    def chain(self) -> LayerChain:
        """All layers; waits for the one that is being packed. Raises what went wrong there."""
        if self._chain is None:
            assert self._pending is not None  # noqa: S101 - see __init__
            self._own = self._pending.settled()
            self._chain = self._pending.chain()
        return self._chain

    def when_known(self, callback: Callable[[], object]) -> None:
        """Call it once :meth:`chain` doesn't wait, at once if that is so already."""
        if self._chain is None and self._pending is not None:
            self._pending.when_settled(callback)
        else:
            callback()

    @property
    def behind(self) -> int:
        """How many of the layers aren't packed yet."""
        return self._pending.behind if self._chain is None and self._pending is not None else 0

    def finish(self) -> None:
        """Wait until all layers are kept for later builds, unless the build was cancelled."""
        if self._pending is not None:
            self._pending.finish()

    def contents(self) -> tuple[LayerIndex | None, ...]:
        return tuple(map(self._space.files.known, self.diffs))

    def begin(self, *, runs: bool, newest: int | None = None) -> RWLayer:
        if self._released:
            raise RuntimeError("a layer was begun on a released one")
        if runs:
            self._space.machine.launch()
        from pybuild_embedded.newlayers import EmbeddedRWLayer  # noqa: PLC0415 - not for what is kept

        return EmbeddedRWLayer(self._space, self, runs=runs, newest=newest)

    def tree(self) -> Tree:
        # two threads may both make one, which costs time only
        if self._tree is None:
            if self._chain is None and self._pending is not None:
                return self._pending.tree(self._known_tree)
            if self._fetch is not None:
                return LaterTree(self._known_tree)
            self._tree = self._known_tree()
        return self._tree

    def _known_tree(self) -> Tree:
        if self._fetch is not None:
            self._fetch()
            self._fetch = None
        return self._space.files.tree(self.chain().layers)

    def folders(self, activity: Activity) -> tuple[LayerFolder, ...]:
        """What to mount over each other to see this layer, bottom first."""
        if self._folders is None:
            self._folders = self._find_folders(activity)
        return self._folders

    def _find_folders(self, activity: Activity) -> tuple[LayerFolder, ...]:
        from pybuild_embedded.unpacked import (  # noqa: PLC0415 - for a RUN
            MOST_LOWERS,
            merged,
            unpacked,
        )

        if self._pending is None:
            found = unpacked(self._space, self.chain(), activity)
        else:
            found = self._pending.folders()
        if len(found) > MOST_LOWERS:
            chain = self.chain()
            found = (merged(self._space, chain, found, activity),)
        return found

    def files(self, activity: Activity) -> StepFiles:
        """The same file system for the processes of one step."""
        if self._space.machine.root_kind() is RootKind.OVERLAY:
            from pybuild_embedded.stepfiles import OverlayFiles  # noqa: PLC0415 - for a RUN

            return OverlayFiles(self._space, self.folders(activity))
        from pybuild_embedded.copies import CopiedFiles, lay_out  # noqa: PLC0415 - without overlays

        return CopiedFiles(self._space, lay_out(self._space, self.chain(), self.handover, activity))

    def release(self) -> None:
        # the session's pins keep blobs and folders: layers made from this one need them
        self._released = True
