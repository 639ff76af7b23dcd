"""Steps without an overlay: each runs on a plain folder that shows all layers.

The folder goes from a step to the next, so that a stage of many steps makes it once; the
files that a COPY puts between two of them are added to it. It is never kept for another
build, nor used twice: whoever comes second makes one from the layers' blobs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pybuild.backend import Activity
from pybuild.errors import PybuildError, StepFailed
from pybuild.files.trees import Tree, resolve
from pybuild.sandbox import spec
from pybuild_embedded.folders import LayerFolder
from pybuild_embedded.layerchain import LayerChain
from pybuild_embedded.pending import PendingLayer
from pybuild_embedded.space import Space
from pybuild_embedded.stepfiles import StepFiles
from pybuild_embedded.workers import Apply

_SYSTEM = tuple((name, True) for name in (b"proc", b"sys", b"dev"))


class Handover:
    """The folder that a step leaves for the first who wants to go on in it. Safe in threads."""

    def __init__(self, folder: LayerFolder, pending: PendingLayer) -> None:
        self._folder: LayerFolder | None = folder
        self._pending = pending
        self._lock = threading.Lock()

    def take(self) -> tuple[LayerFolder, LayerChain] | None:
        """The folder and what it shows, once its changes are packed; None if it is gone."""
        with self._lock:
            folder, self._folder = self._folder, None
        return None if folder is None else (folder, self._pending.chain())


class CopiedFiles(StepFiles):
    """A plain folder, which the processes change."""

    def __init__(self, space: Space, folder: LayerFolder) -> None:
        """Takes `folder` over, which shows what the step begins with."""
        self._space = space
        self.folder = folder

    @contextmanager
    def shown(self, mounts: Sequence[spec.Mount], tree: Tree) -> Iterator[spec.Root]:
        workers, place = self._space.machine.workers(), self.folder.fs
        remove_points = workers.make_points(place, mount_points(tree, mounts))
        if self.record is None:
            # with the mount points, which are no change then
            record = self._space.store.new_file()
            workers.record(place, record)
            self.record = record
        yield spec.Plain(os.fsencode(place))
        remove_points()


def lay_out(
    space: Space, chain: LayerChain, handover: Handover | None, activity: Activity
) -> LayerFolder:
    """A folder of this session's that shows `chain`, of which `handover` may have a beginning."""
    store, machine = space.store, space.machine
    taken = None if handover is None else handover.take()
    folder, done = taken or (store.new_folder(), LayerChain())
    try:
        missing = range(len(done.layers), len(chain.layers))
        space.fetch([chain.layers[place] for place in missing], activity)
        for place in missing:
            activity.raise_if_cancelled()
            layer = chain.layers[place]
            machine.workers().apply(
                Apply(
                    blob=store.blob_path(layer.blob.digest),
                    diff_id=layer.diff_id,
                    index=space.files.index_path(layer),
                    parents=space.files.index_paths(chain.layers[:place]),
                    target=folder.fs,
                    stage=folder.work,
                    devices=not machine.mapping().userxattr,
                    owners=machine.keeps_owners,
                )
            )
    except BaseException:
        store.discard(folder)
        raise
    return folder


def mount_points(tree: Tree, mounts: Sequence[spec.Mount]) -> list[tuple[bytes, bool]]:
    """What lacks in `tree` to mount these and the kernel's file systems on: parents first.

    Each is a path without links, and whether it is a folder. What lies in another mount is
    left to be made there. Raises StepFailed for a target that can't be.
    """
    places = [*_SYSTEM, *((_resolved(tree, mount.target), _is_folder(mount)) for mount in mounts)]
    covered = {path for path, _ in places}
    lacking: dict[bytes, bool] = {}
    for path, is_folder in places:
        names = path.split(b"/")
        above = [b"/".join(names[:count]) for count in range(1, len(names))]
        if not covered.isdisjoint(above):
            continue
        for folder in above:
            if tree.get(folder) is None:
                lacking[folder] = True
        if tree.get(path) is None:
            lacking.setdefault(path, is_folder)
    return list(lacking.items())


def _resolved(tree: Tree, target: str) -> bytes:
    try:
        return resolve(tree, os.fsencode(target))
    except PybuildError as error:
        raise StepFailed(f"the mount target {target} can't be resolved: {error.message}") from error


def _is_folder(mount: spec.Mount) -> bool:
    match mount:
        case spec.Bind(source=source):
            return os.path.isdir(source)  # noqa: PTH112 - bytes, or a descriptor
        case spec.SmallFile() | spec.Socket():
            return False
        case spec.Tmpfs() | spec.OverlayBind():
            return True
