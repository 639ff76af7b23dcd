"""Makes a layer's files in a snapshot while its blob is written or read, so that this is done once."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self, cast

from pybuild.errors import BackendFailed, InvalidImage
from pybuild.files.foundentries import same_attributes
from pybuild.files.trees import NewEntry, parent_of
from pybuild.oci.layerindex import Entry, Kind
from pybuild.unpacking.contents import finish_layer, write_all
from pybuild.unpacking.failures import disk_full, is_full
from pybuild.unpacking.layerplan import LayerPlan
from pybuild.unpacking.making import Making
from pybuild.values import replace
from pybuild_containerd.filling import OPAQUE, NotFilled, Stacked, planned

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer  # typing.Buffer comes with Python 3.12


class FilesAlongside:
    """The files of one layer in the empty folder `upper` of a snapshot: a context manager.

    For one thread. What fails here doesn't fail the layer: `finish` says whether all files
    are there, and if not, the folder is of no use. But a full disk raises BackendFailed.
    """

    def __init__(self, upper: Path, newest: int | None) -> None:
        """`newest` is as in :meth:`pybuild.backend.ROLayer.begin`."""
        self.upper = upper
        self._newest = newest
        self._making = Making(upper, owners=True, devices=True)
        self._folders = {b""}
        self._files: dict[bytes, Entry] = {}
        # of the file that is being made: its descriptor, itself, and the bytes that lack
        self._unfinished = -1
        self._entry = Entry(b"", Kind.FILE)
        self._left = 0
        self._is_whole = True
        self._failing = _Failing(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Make nothing more. Idempotent."""
        if self._unfinished >= 0:
            os.close(self._unfinished)
            self._unfinished = -1
        self._making.close()

    def watched(self, entries: Iterable[NewEntry]) -> Iterator[NewEntry]:
        """The entries; what is read of their contents is written to the folder as well."""
        for new in entries:
            if new.content is None or not new.entry.size:
                yield new
            else:
                content = partial(self._open, new.entry, new.content)
                yield NewEntry(new.entry, content, new.source)

    def finish(self, stacked: Stacked) -> bool:
        """Make the rest of the layer, which is written now; whether all of it is there."""
        if not self._is_whole:
            return False
        with self._failing:
            plan = planned(stacked)
            self._make_names(plan)
            for folder in plan.folders:
                self._need(folder.path)
            if len(self._folders) != len(plan.folders) + 1:
                raise NotFilled
            finish_layer(plan, self._making, opaque=OPAQUE)
        return self._is_whole

    def _open(self, entry: Entry, content: Callable[[], BinaryIO]) -> BinaryIO:
        stream = content()
        if not self._is_whole:
            return stream
        if self._newest is not None and entry.mtime > self._newest:
            entry = replace(entry, mtime=self._newest)
        try:
            return self._teed(entry, stream)
        except BaseException:
            stream.close()
            raise

    def _teed(self, entry: Entry, stream: BinaryIO) -> BinaryIO:
        self.begin(entry)
        if not self._is_whole:
            return stream
        if isinstance(stream, io.BytesIO):  # it has all of a small file, and is read faster alone
            content = stream.getvalue()
            self.write(content)
            self.end()
            return stream
        return cast("BinaryIO", _Tee(stream, self))

    @property
    def is_whole(self) -> bool:
        """Whether nothing has failed yet."""
        return self._is_whole

    def give_up(self) -> None:
        """Make nothing more: the folder is of no use."""
        self._is_whole = False

    def begin(self, entry: Entry) -> None:
        """Make a file, which `write` and `end` go on with, before the next one is begun."""
        with self._failing:
            self._need(parent_of(entry.path))
            self._files[entry.path] = self._entry = entry
            self._left = entry.size
            self._unfinished = self._making.begin(entry)

    def write(self, data: bytes | memoryview) -> int:
        """Write a part of the file; the bytes that lack then."""
        self._left -= len(data)
        if self._is_whole:
            with self._failing:
                write_all(self._unfinished, data)
        return self._left

    def end(self) -> None:
        """No more of the file comes."""
        fd, self._unfinished = self._unfinished, -1
        if fd < 0:
            return  # it couldn't be begun
        with self._failing:
            self._making.end(fd, self._entry)
            if self._left:
                raise NotFilled

    def _make_names(self, plan: LayerPlan) -> None:
        """Make the hard links, and the empty files."""
        if plan.lower_files or len(self._files) > len(plan.files):
            raise NotFilled
        for _, entries in plan.files:
            made = [entry for entry in entries if entry.path in self._files]
            if made and not _is_same(made[0], self._files[made[0].path]):
                raise NotFilled
            if made:
                self._need_all(entries)
                others = [entry for entry in entries if entry is not made[0]]
                self._making.names(made[0].path, others)
            elif entries[0].size == 0:
                self._need_all(entries)
                self._making.file(entries, lambda _fd: None)
            if len(made) != (1 if entries[0].size else 0):
                raise NotFilled

    def _need_all(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._need(parent_of(entry.path))

    def _need(self, folder: bytes) -> None:
        missing = []
        while folder not in self._folders:
            missing.append(folder)
            folder = parent_of(folder)
        for path in reversed(missing):
            self._making.folder(path)
            self._folders.add(path)


def _is_same(entry: Entry, made: Entry) -> bool:
    """Whether a file of a layer has the attributes and the size that were given to it."""
    is_same_file = (entry.size, entry.mtime) == (made.size, made.mtime)
    return is_same_file and same_attributes(entry, made)


class _Failing:
    """A context manager: what is raised within makes the files useless; a full disk is raised.

    Many small files would feel the time that one made of a generator takes.
    """

    def __init__(self, files: FilesAlongside) -> None:
        self._files = files

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, (OSError, InvalidImage, BackendFailed, NotFilled)):
            return False
        self._files.give_up()
        if isinstance(error, OSError) and is_full(error):
            raise disk_full(error, self._files.upper) from error
        return True


class _Tee(io.RawIOBase):
    """What is read of a stream goes to a file, too."""

    def __init__(self, stream: BinaryIO, files: FilesAlongside) -> None:
        super().__init__()
        self._stream = stream
        self._files = files
        self.on_digest = getattr(stream, "on_digest", None)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer)
        count = self._read_into(view)
        self._files.write(view[:count])
        return count

    def _read_into(self, view: memoryview) -> int:
        read_into = cast(
            "Callable[[memoryview], int] | None", getattr(self._stream, "readinto", None)
        )
        if read_into is not None:
            return read_into(view)
        piece = self._stream.read(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._stream.close()
            self._files.end()
