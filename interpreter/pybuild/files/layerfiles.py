"""What is in the layers of this build: their indexes, and the bytes of their files."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from pybuild.errors import BackendFailed, ImageError, InvalidImage
from pybuild.files.keyedlocks import KeyedLocks
from pybuild.files.layertree import LayerTree
from pybuild.files.recent import Recent
from pybuild.oci.descriptor import LayerDiff
from pybuild.oci.layerindex import Entry, LayerIndex, OnIndex

if TYPE_CHECKING:
    from pybuild.files.smallfiles import SmallFiles

# containerd takes minutes to unpack a single file below 2,000 folders
_DEEPEST = 500
_MOST_TREES = 64
# more than any chain has
_MOST_FILED = 2048
_MOST_INDEXES = 128
_MOST_ENTRIES = 1 << 20
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)

Read = TypeVar("Read")
OpenBlob = Callable[[str], BinaryIO]
"""Opens the stored bytes of the blob with this digest."""


class LayerFiles:
    """Reads layers without unpacking them. Safe in threads.

    Indexes are kept in `cache` (a private folder, None for none) by diff id. Contents, but
    for those of a few small files, come from uncompressed copies of the layers, made in
    `folder` when they are needed; the caller removes them with the folder. `mend` is told of a layer whose blob
    can't be read, and whether that is another now. `kept` is told the size, in bytes, of each
    index that is written.
    """

    def __init__(
        self,
        open_blob: OpenBlob,
        cache: Path | None,
        folder: Path,
        mend: Callable[[LayerDiff], bool] = lambda _: False,
        kept: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._open_blob = open_blob
        self._mend = mend
        self._kept = kept
        self._cache = cache
        self._lock = threading.Lock()
        self._locks = KeyedLocks()
        # those used last; others are read again from where they are kept
        self._indexes: OrderedDict[str, LayerIndex] = OrderedDict()
        self._entries = 0
        # those that are known to be there and whole
        self._filed: Recent[str, Path] = Recent(_MOST_FILED)
        # by the number of their layers and the topmost diff id
        self._trees: Recent[tuple[int, str], tuple[Sequence[LayerDiff], LayerTree]] = Recent(
            _MOST_TREES
        )
        self._small: SmallFiles | None = None
        self._folder = folder

    def remember(self, diff_id: str, index: LayerIndex) -> None:
        """Take the index of a layer that was just written, and keep it for later builds."""
        self._hold(diff_id, index)
        self._store(diff_id, index)

    def on_arrival(self, layers: Iterable[LayerDiff]) -> OnIndex:
        """What remembers the indexes of these layers, made while their blobs arrived."""
        expected = {layer.blob.digest: layer.diff_id for layer in layers}

        def remember(digest: str, diff_id: str, index: LayerIndex) -> None:
            if expected.get(digest) == diff_id:  # else whoever needs the index gets the error
                self.remember(diff_id, index)

        return remember

    def _hold(self, diff_id: str, index: LayerIndex) -> None:
        with self._lock:
            self._entries += len(index) - len(self._indexes.pop(diff_id, ()))
            self._indexes[diff_id] = index
            while len(self._indexes) > _MOST_INDEXES or (
                self._entries > _MOST_ENTRIES and len(self._indexes) > 1
            ):
                self._entries -= len(self._indexes.popitem(last=False)[1])

    def tree(self, layers: Sequence[LayerDiff]) -> LayerTree:
        """The merged file system of `layers`, bottom first.

        One layer more than a tree that was used lately costs little. Raises InvalidImage for
        a blob whose content isn't what its diff id says.
        """

        def open_file(position: int, entry: Entry, offset: int) -> BinaryIO:
            return self._open_part(layers[position], entry, offset)

        layers = tuple(layers)
        count, tree = self._known_tree(layers)
        if tree is None:
            tree = LayerTree([self.index(layer) for layer in layers], open_file)
        for layer in layers[count:] if count else ():
            tree = tree.extended(self.index(layer), open_file)
        if layers:
            self._trees.put((len(layers), layers[-1].diff_id), (layers, tree))
        return tree

    def _known_tree(self, layers: Sequence[LayerDiff]) -> tuple[int, LayerTree | None]:
        """The tree used lately that has the most of `layers`, and how many it has."""
        for count in range(len(layers), 0, -1):
            found = self._trees.get((count, layers[count - 1].diff_id))
            if found is not None and found[0] == layers[:count]:
                return count, found[1]
        return 0, None

    def index(self, layer: LayerDiff) -> LayerIndex:
        """The index of one layer, read from its blob if no one knows it yet."""
        with self._locks.holding(layer.diff_id):
            index = self._indexes.get(layer.diff_id) or self._cached(layer.diff_id)
            if index is None:
                index = self._intact(self._read, layer)
                self._store(layer.diff_id, index)
            self._hold(layer.diff_id, index)
        return index

    def verify(self, layer: LayerDiff) -> None:
        """Read a layer's blob, whether its index is known or not, and keep that.

        Raises InvalidImage for a blob whose content isn't what the diff id says.
        """
        with self._locks.holding(layer.diff_id):
            index = self._read(layer)
            self._store(layer.diff_id, index)
            self._hold(layer.diff_id, index)

    def knows(self, layer: LayerDiff) -> bool:
        """Whether the index of one layer can be had without its blob."""
        return self.known(layer) is not None

    def known(self, layer: LayerDiff) -> LayerIndex | None:
        """The index of one layer, if it can be had without its blob."""
        with self._locks.holding(layer.diff_id):
            index = self._indexes.get(layer.diff_id) or self._cached(layer.diff_id)
            if index is not None:
                self._hold(layer.diff_id, index)
        return index

    def index_path(self, layer: LayerDiff) -> Path:
        """The file with the index of one layer, written now if it isn't there.

        It is there until the cache is emptied, and complete. Raises BackendFailed if it can't
        be written.
        """
        filed = self._filed.get(layer.diff_id)
        if filed is not None:
            return filed
        path = self._index_file(layer.diff_id)
        index = self.index(layer)
        with self._locks.holding(layer.diff_id):
            # what is there already may be damaged
            try:
                self._write(path, index)
            except OSError as error:
                reason = error.strerror or str(error)
                raise BackendFailed(f"can't keep the index of a layer: {reason}") from error
            self._filed.put(layer.diff_id, path)
        return path

    def index_paths(self, layers: Iterable[LayerDiff]) -> tuple[Path, ...]:
        """The files with the indexes of these layers, as :meth:`index_path` gives them."""
        filed = self._filed
        return tuple(filed.get(layer.diff_id) or self.index_path(layer) for layer in layers)

    def adopt(self, diff_id: str, path: Path) -> None:
        """Take over an index file that was just written, by renaming it to its place.

        It lies on the same file system. Raises OSError.
        """
        place = self._index_file(diff_id)
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locks.holding(diff_id):
            path.replace(place)
            self._filed.put(diff_id, place)
            self._kept(place.stat().st_size)

    def check(self, layer: LayerDiff) -> None:
        """Raise InvalidImage for a layer that no daemon should unpack."""
        if any(entry.path.count(b"/") > _DEEPEST for entry in self.index(layer)):
            raise InvalidImage(
                f"layer {layer.blob.digest} has folders more than {_DEEPEST} deep in each other"
            )

    def open(self, layer: LayerDiff, entry: Entry) -> BinaryIO:
        """The content of a FILE of one layer."""
        offset = self.index(layer).offset(entry.path)
        return self._open_part(layer, entry, offset)

    def _open_part(self, layer: LayerDiff, entry: Entry, offset: int) -> BinaryIO:
        copy = self._folder / _file_name(layer.diff_id)
        with self._locks.holding(layer.diff_id):
            if not copy.exists():
                small = self._small_files()
                content = self._intact(lambda layer: small.read(layer, entry, offset), layer)
                if content is not None:
                    return io.BytesIO(content)
                self._intact(functools.partial(self._uncompress, copy), layer)
        from pybuild.files.filepart import FilePart  # noqa: PLC0415 - for a layer's content

        return io.BufferedReader(FilePart(copy, offset, entry.size))

    def _small_files(self) -> SmallFiles:
        from pybuild.files.smallfiles import SmallFiles  # noqa: PLC0415 - for a layer's content

        with self._lock:
            if self._small is None:
                self._small = SmallFiles(self._open_blob)
            return self._small

    def _intact(self, read: Callable[[LayerDiff], Read], layer: LayerDiff) -> Read:
        try:
            return read(layer)
        except InvalidImage:
            if not self._mend(layer):
                raise
            return read(layer)

    def _uncompress(self, copy: Path, layer: LayerDiff) -> None:
        from pybuild.oci.compression import Decompressed  # noqa: PLC0415 - for a layer's content

        path = copy.with_name(f"{copy.name}.part")
        path.unlink(missing_ok=True)  # what a broken transfer left
        digest = sha256()
        with (
            self._open_blob(layer.blob.digest) as blob,
            Decompressed(blob) as plain,
            open(os.open(path, _NEW_FILE, 0o600), "wb") as file,  # noqa: PTH123 - a descriptor, not a path
        ):
            while piece := plain.read(1 << 20):
                digest.update(piece)
                file.write(piece)
        if f"sha256:{digest.hexdigest()}" != layer.diff_id:
            raise InvalidImage(
                f"layer {layer.blob.digest} doesn't hold {layer.diff_id}: it is damaged"
            )
        path.rename(copy)

    def _read(self, layer: LayerDiff) -> LayerIndex:
        from pybuild.oci.layertar import read_index  # noqa: PLC0415 - for a layer not yet indexed
        from pybuild.oci.tarformat import Limits  # noqa: PLC0415 - as above

        with self._open_blob(layer.blob.digest) as blob:
            diff_id, index = read_index(blob, Limits(compressed_size=layer.blob.size))
        if diff_id != layer.diff_id:
            raise InvalidImage(
                f"layer {layer.blob.digest} holds {diff_id}, "
                f"but the image's config says {layer.diff_id}"
            )
        return index

    def _index_file(self, diff_id: str) -> Path:
        if self._cache is None:
            return self._folder / f"{_file_name(diff_id)}.index"
        return self._cache / _file_name(diff_id)

    def _cached(self, diff_id: str) -> LayerIndex | None:
        path = self._index_file(diff_id)
        try:
            index = LayerIndex.from_bytes(path.read_bytes())
        except (OSError, ImageError):
            return None  # a failing cache is a miss
        self._filed.put(diff_id, path)
        return index

    def _store(self, diff_id: str, index: LayerIndex) -> None:
        if self._cache is None:
            return
        with contextlib.suppress(OSError):  # a failing cache is a miss next time
            path = self._index_file(diff_id)
            self._write(path, index)
            self._filed.put(diff_id, path)

    def _write(self, path: Path, index: LayerIndex) -> None:
        from tempfile import mkstemp  # noqa: PLC0415 - for a new layer

        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # complete or not there: another build may look at any moment
        descriptor, temporary = mkstemp(dir=path.parent, prefix=".new-")
        try:
            with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
                size = file.write(index.to_bytes())
            os.replace(temporary, path)  # noqa: PTH105 - pairs with mkstemp
            self._kept(size)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108 - pairs with mkstemp
            raise


def _file_name(diff_id: str) -> str:
    return diff_id.replace(":", "-")
