"""Layers as plain tars, kept from their arrival to their unpacking.

What indexes a layer while it arrives uncompresses it, so that nobody need do that again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Self

from pybuild.oci.descriptor import Descriptor, LayerDiff

_MOST_BYTES = 1 << 30
# times the size of a blob: for itself, its copy and its files, each with some more
_ROOM = 12


class PlainCopies:
    """Safe in threads. Copies that nobody took vanish with the session that they are in."""

    def __init__(self, new_file: Callable[[], Path], most: int = _MOST_BYTES) -> None:
        """`new_file` gives paths for files; they have `most` bytes in all."""
        self._new_file = new_file
        self._left = most
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], tuple[Path, int]] = {}
        self._removing: list[threading.Thread] = []

    def copy(self, blob: Descriptor) -> PlainCopy:
        """A copy, empty yet, of the layer that is in `blob`.

        None will come of it where the disk isn't large enough for the layer and its copy.
        """
        path = self._new_file()
        is_wanted = _free(path.parent) >= _ROOM * blob.size
        has_room = self._has_room if is_wanted else _has_none
        return PlainCopy(path, has_room, partial(self._keep, blob.digest))

    @contextmanager
    def taken(self, layer: LayerDiff) -> Iterator[Path | None]:
        """The copy of `layer`, which has its diff id; it is removed afterwards. None if there is none."""
        with self._lock:
            path, size = self._kept.pop((layer.blob.digest, layer.diff_id), (None, 0))
        try:
            yield path
        finally:
            if path is not None:
                # the larger it is, the longer that takes
                thread = threading.Thread(target=_remove, args=(path,), name="pybuild-remove")
                thread.start()
                with self._lock:
                    self._left += size
                    self._removing.append(thread)

    def close(self) -> None:
        """Wait until what was taken is removed. Idempotent."""
        with self._lock:
            removing, self._removing = self._removing, []
        for thread in removing:
            thread.join()

    def _has_room(self, size: int) -> bool:
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def _keep(self, digest: str, diff_id: str, path: Path, size: int) -> None:
        with self._lock:
            self._kept[digest, diff_id] = path, size


def _remove(path: Path) -> None:
    with suppress(OSError):  # it goes with the session at the latest
        path.unlink()


def _free(folder: Path) -> int:
    """The bytes that are left on a disk; 0 if that can't be told."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def _has_none(size: int) -> bool:
    return size <= 0


class PlainCopy:
    """A context manager: what isn't kept within leaves nothing behind.

    Where a copy can't be made, for lack of room or whatever, there will be none.
    """

    def __init__(
        self,
        path: Path,
        has_room: Callable[[int], bool],
        keep: Callable[[str, Path, int], object],
    ) -> None:
        self._path = path
        self._has_room = has_room
        self._keep = keep
        self._file: FileIO | None = None
        self._size = 0
        self._is_whole = True
        self._is_kept = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.restart()

    @property
    def on_file(self) -> None:
        """Files aren't wanted by themselves."""

    def write(self, piece: bytes, /) -> None:
        """Append `piece`."""
        if not self._is_whole or not self._has_room(len(piece)):
            self._is_whole = False
            return
        self._size += len(piece)
        left = memoryview(piece)
        try:
            if self._file is None:
                self._file = FileIO(self._path, "xb")
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._is_whole = False

    def restart(self) -> None:
        """Drop all that was written, but for what is kept."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if not self._is_kept:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._has_room(-self._size)
        self._size, self._is_whole = 0, True

    def keep(self, diff_id: str, /) -> None:
        """All was written, of a layer with this diff id. Called once, last."""
        if self._is_whole:
            self._is_kept = True
            self._keep(diff_id, self._path, self._size)
