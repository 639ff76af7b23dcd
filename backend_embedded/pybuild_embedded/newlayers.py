"""Layers that are being made: entries that are put, or what processes leave."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime

from pybuild.backend import Activity, Mount, Process, ROLayer, RWLayer
from pybuild.files.trees import NewEntry, Tree
from pybuild.oci.descriptor import LayerDiff
from pybuild.sandbox.process import run_process, run_spec
from pybuild_embedded.folders import LayerFolder
from pybuild_embedded.layerchain import LayerChain
from pybuild_embedded.layers import EmbeddedROLayer
from pybuild_embedded.mounts import prepared_mounts
from pybuild_embedded.space import Space
from pybuild_embedded.stepfiles import LeftFiles, StepFiles


class EmbeddedRWLayer(RWLayer):
    """What one step changes: a blob after `put`, a folder after `run`."""

    def __init__(
        self, space: Space, below: EmbeddedROLayer, *, runs: bool, newest: int | None
    ) -> None:
        self._space = space
        self._below = below
        self._runs = runs
        self._newest = newest
        self._written: LayerDiff | None = None
        self._put = False
        self._files: StepFiles | None = None
        self._over = False

    def tree(self) -> Tree:
        return self._below.tree()

    def put(self, entries: Iterable[NewEntry], activity: Activity) -> None:
        if self._over or self._put or self._files is not None:
            raise RuntimeError("a layer takes entries once, and none after a process ran")
        self._put = True
        self._written = write_blob(self._space, entries, activity, newest=self._newest)

    def run(self, process: Process, mounts: Sequence[Mount], activity: Activity) -> int:
        if self._over or not self._runs or self._put:
            raise RuntimeError("a process was run on a layer begun without runs, or after put")
        activity.raise_if_cancelled()
        space = self._space
        sandbox = space.machine.step_sandbox()
        space.warn_of_one_id(activity)
        space.warn_of_copies(activity)
        if self._files is None:
            self._files = self._below.files(activity)
        tree = self.tree()
        with (
            prepared_mounts(space, process, mounts, tree, activity) as made,
            self._files.shown(made, tree) as root,
        ):
            code = run_process(sandbox, run_spec(process, root, made), activity)
        if code != 0:
            self._keep_below()
        return code

    def commit(self, key: str | None, activity: Activity) -> ROLayer:
        if self._over:
            raise RuntimeError("a layer was committed twice, or after its release")
        activity.raise_if_cancelled()
        if self._files is not None and not self._files.unchanged():
            self._over = True
            return self._commit_files(self._files, key, activity)
        below = self._below.chain()
        self._over = True
        self._discard_files()
        chain, own = below, self._written
        store = self._space.store
        if own is not None:
            chain = below.extended(own)
            store.record_layers(chain.layers)
        made = datetime.now(UTC)
        if key is not None:
            key = self._space.own_key(key)
            store.record_step(key, chain.id, own=own is not None, made=made.timestamp())
        return EmbeddedROLayer(self._space, chain, own, handover=self._below.handover, made=made)

    def _commit_files(self, files: StepFiles, key: str | None, activity: Activity) -> ROLayer:
        from pybuild_embedded.pending import MOST_BEHIND, PendingLayer  # noqa: PLC0415 - for what was changed

        space, below = self._space, self._below
        if below.behind >= MOST_BEHIND:
            below.chain()
        self._files = None
        is_layer = files.record is None
        pending = PendingLayer(
            space=space,
            below=below,
            folders_below=below.folders(activity) if is_layer else (),
            folder=files.folder,
            record=files.record,
            newest=self._newest,
            key=None if key is None else space.own_key(key),
            flight=ExitStack() if key is None else space.flights.taken_over(space.own_key(key)),
            activity=activity,
            made=datetime.now(UTC),
        )
        pending.begin()
        handover = None
        if not is_layer:
            from pybuild_embedded.copies import Handover  # noqa: PLC0415 - where there is no overlay

            handover = Handover(files.folder, pending)
        return EmbeddedROLayer(space, None, pending=pending, handover=handover, made=pending.made)

    def give_up_folder(self) -> tuple[LayerFolder, LayerChain] | None:
        """The folder of what processes left, the caller's from now on, and what it lies on.

        None if they left nothing, or not that alone.
        """
        files = self._files
        if self._over or files is None or files.record is not None or files.unchanged():
            return None
        below = self._below.chain()
        self._over, self._files = True, None
        return files.folder, below

    def commit_folder(self, folder: LayerFolder, key: str, activity: Activity) -> ROLayer:
        """Commit what such a folder holds."""
        self._files = LeftFiles(folder)
        return self.commit(key, activity)

    def release(self) -> None:
        if not self._over:
            self._keep_below()
        self._over = True
        self._discard_files()

    def _keep_below(self) -> None:
        """Wait for the steps before this one, which failed: it ends the build, and so all else."""
        self._below.finish()

    def _discard_files(self) -> None:
        files, self._files = self._files, None
        if files is not None:
            self._space.store.discard(files.folder)


def write_blob(
    space: Space, entries: Iterable[NewEntry], activity: Activity, *, newest: int | None = None
) -> LayerDiff | None:
    """Write a layer straight into the store; None if there are no entries."""
    wanted = tuple(entries)
    if not wanted:
        return None
    from pybuild.oci.layerblocks import DamagedPiece  # noqa: PLC0415 - not for a RUN
    from pybuild.oci.layerwriter import write_layer  # noqa: PLC0415 - as above

    with space.store.blob_writer(hashed=True) as writer:

        def sink(piece: bytes) -> None:
            activity.raise_if_cancelled()
            writer.write(piece)

        pieces = space.pieces()
        try:
            layer = write_layer(wanted, sink, newest=newest, find=pieces.find)
        except DamagedPiece:
            writer.restart()
            layer = write_layer(wanted, sink, newest=newest, find=lambda _: None)
        writer.commit(layer.diff.blob.digest, layer.diff.blob.size)
    space.files.remember(layer.diff.diff_id, layer.index)
    pieces.record(layer.diff.blob.digest, layer.pieces)
    return layer.diff
