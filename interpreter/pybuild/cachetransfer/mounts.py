"""What cache mounts held on another machine, for those that begin here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import BinaryIO, Self

from pybuild.backend import Activity, CacheMount
from pybuild.cacheexchange import BlobSource
from pybuild.errors import BackendFailed, BuildCancelled, InvalidImage, PybuildError
from pybuild.files.latertree import LaterTree
from pybuild.files.layerfiles import LayerFiles
from pybuild.files.mountsource import TOP
from pybuild.files.trees import MemoryTree, NewEntry, Tree
from pybuild.oci import http
from pybuild.oci.descriptor import LayerDiff
from pybuild.oci.layerindex import Entry, Kind
from pybuild.run.execute import PreparedRun
from pybuild.values import dataclass, replace

Offer = tuple[BlobSource, Mapping[str, LayerDiff]]
"""Where a cache's blobs are, and its cache mounts by their ids."""


@dataclass(frozen=True, slots=True)
class OfferedMount:
    """A cache mount in a cache; ``open`` fetches its blob, and gives the bytes."""

    layer: LayerDiff
    open: Callable[[http.Activity], BinaryIO]


class MountSeeds:
    """Fetches cache mounts into a temporary folder, each when its files are asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder: TemporaryDirectory[str] | None = None
        self._trees: dict[str, Tree] = {}

    def close(self) -> None:
        """Remove what was fetched. Idempotent."""
        with self._lock:
            folder, self._folder = self._folder, None
        if folder is not None:
            folder.cleanup()

    def concerns(self, prepared: PreparedRun) -> bool:
        """Whether the process has cache mounts that may begin with something."""
        return any(_begins_empty(mount) for mount in prepared.mounts)

    def seeded(
        self, prepared: PreparedRun, offers: Sequence[Offer], activity: Activity
    ) -> PreparedRun:
        """The same process, whose cache mounts begin with what the first of `offers` has."""
        mounts = tuple(
            self._seeded(mount, offers, activity)
            if isinstance(mount, CacheMount) and _begins_empty(mount)
            else mount
            for mount in prepared.mounts
        )
        return replace(prepared, mounts=mounts)

    def offered(self, ident: str, offers: Sequence[Offer]) -> OfferedMount | None:
        """The first of `offers` for this cache mount."""
        for source, mounts in offers:
            layer = mounts.get(ident)
            if layer is not None:
                return OfferedMount(layer, partial(self._open, layer, source))
        return None

    def _open(self, layer: LayerDiff, source: BlobSource, activity: http.Activity) -> BinaryIO:
        with self._lock:
            return self._fetched(layer, source, activity).open("rb")

    def _seeded(self, mount: CacheMount, offers: Sequence[Offer], activity: Activity) -> CacheMount:
        for source, mounts in offers:
            layer = mounts.get(mount.ident)
            if layer is not None:
                tree = LaterTree(partial(self._tree, mount, layer, source, activity))
                return replace(mount, tree=tree, path=TOP)
        return mount

    def _tree(
        self, mount: CacheMount, layer: LayerDiff, source: BlobSource, activity: Activity
    ) -> Tree:
        """The files, verified; an empty folder, and a warning, where they can't be had."""
        with self._lock:
            found = self._trees.get(layer.diff_id)
            if found is None:
                try:
                    found = self._read(layer, self._fetched(layer, source, activity))
                except BuildCancelled:
                    raise
                except PybuildError as error:
                    activity.warn(
                        f"the cache mount at {mount.target} begins empty: {error.message}",
                        error.hint,
                    )
                    top = Entry(TOP, Kind.DIRECTORY, mount.mode, mount.uid, mount.gid)
                    found = MemoryTree([NewEntry(top)])
                self._trees[layer.diff_id] = found
        return found

    def _fetched(self, layer: LayerDiff, source: BlobSource, activity: http.Activity) -> Path:
        """The file with the blob."""
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="pybuild-mounts-")
        file = Path(self._folder.name) / layer.blob.digest.replace(":", "-")
        if not file.exists():
            source.fetch([layer.blob], lambda _: _FileSink(file), activity)
        return file

    @staticmethod
    def _read(layer: LayerDiff, file: Path) -> Tree:
        tree = LayerFiles(lambda _: file.open("rb"), None, file.parent).tree([layer])
        top = tree.get(TOP)
        if top is None or top.kind is not Kind.DIRECTORY:
            raise InvalidImage(f"{layer.blob.digest} holds no cache mount")
        return tree


def _begins_empty(mount: object) -> bool:
    return isinstance(mount, CacheMount) and mount.tree is None


class _FileSink:
    """A blob on its way into a new file, which has its name once it is complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unfinished = path.with_suffix(".new")

    def __enter__(self) -> Self:
        self._file = self._unfinished.open("wb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, piece: bytes, /) -> None:
        try:
            self._file.write(piece)
        except OSError as error:
            reason = error.strerror or error
            raise BackendFailed(f"can't keep a cache mount for this build: {reason}") from error

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()

    def commit(self) -> None:
        self._file.close()
        self._unfinished.rename(self._path)
