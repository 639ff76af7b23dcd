"""The index of a layer, made while its blob arrives."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, cast

from pybuild.errors import InvalidImage
from pybuild.oci.layerindex import LayerIndex
from pybuild.oci.layertar import read_index
from pybuild.oci.tarformat import Limits


class ArrivingLayer:
    """Reads a layer from the file that its blob is being written to.

    Nothing in it is trusted before the blob has proved to be the one that was asked for.
    """

    def __init__(self, path: Path, size: int) -> None:
        """`size` is that of the blob in bytes, once it is complete."""
        self._path = path
        self._limits = Limits(compressed_size=size)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pybuild-index")
        self._file: _GrowingFile | None = None
        self._index: Future[tuple[str, LayerIndex]] | None = None

    def close(self) -> None:
        """End all that is going on."""
        self.restart()
        self._thread.shutdown()

    def grow(self, size: int) -> None:
        """The file has `size` bytes now."""
        if self._file is None:
            self._file = _GrowingFile(self._path)
            stream = cast("BinaryIO", self._file)
            self._index = self._thread.submit(read_index, stream, self._limits)
        self._file.grow(size)

    def restart(self) -> None:
        """Give up what was read: the file begins anew, or isn't wanted."""
        file, index, self._file, self._index = self._file, self._index, None, None
        if file is None or index is None:
            return
        file.give_up()
        index.exception()
        file.close()

    def finish(self) -> tuple[str, LayerIndex] | None:
        """The layer's diff id and index; the file is complete. None for one that is no layer."""
        if self._file is None or self._index is None:
            return None
        self._file.complete()
        try:
            return self._index.result()
        except InvalidImage:
            return None


class _GaveUpError(Exception):
    """Whoever writes the file doesn't go on."""


class _GrowingFile:
    """A file that somebody writes; to read it is to wait for them. For two threads."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._changed = threading.Condition()
        self._size = 0
        self._read = 0
        self._is_complete = False
        self._is_given_up = False

    def grow(self, size: int) -> None:
        with self._changed:
            self._size = size
            self._changed.notify()

    def complete(self) -> None:
        with self._changed:
            self._is_complete = True
            self._changed.notify()

    def give_up(self) -> None:
        with self._changed:
            self._is_given_up = True
            self._changed.notify()

    def close(self) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        with self._changed:
            while not (self._read < self._size or self._is_complete or self._is_given_up):
                self._changed.wait()
            if self._is_given_up:
                raise _GaveUpError
            room = min(size, self._size - self._read)
        piece = self._file.read(room)
        self._read += len(piece)
        return piece
