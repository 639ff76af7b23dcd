"""Files that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from pybuild.errors import ExportFailed
from pybuild.export.outputs import STANDARD_OUTPUT, Destination

Sink = Callable[[bytes], object]


@contextlib.contextmanager
def written(dest: Destination) -> Iterator[Sink]:
    """What writes to `dest`: a stream, a device, or a file that appears when the context ends.

    On an error an earlier file of that name stays as it was. Raises ExportFailed.
    """
    if not isinstance(dest, str):
        with translated("the stream"):
            yield _sink(dest.write, "the stream")
            dest.flush()
        return
    with translated(dest):
        path = Path(dest)
        try:
            existing = path.stat().st_mode
        except FileNotFoundError:
            existing = stat.S_IFREG
        if stat.S_ISDIR(existing):
            raise ExportFailed(f'can\'t write "{dest}": it is a folder')
        if not stat.S_ISREG(existing):  # perhaps /dev/stdout, which resolves to no path
            with path.open("wb", buffering=0) as device:
                yield _sink(device.write, dest)
            return
        with _replacing(path.resolve()) as write:
            yield _sink(write, dest)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Callable[[memoryview], int]]:
    temporary = path.with_name(f".pybuild-{os.urandom(8).hex()}")
    # Unbuffered: closing a full buffer on a full disk would fail once more.
    file = temporary.open("xb", buffering=0)
    try:
        with file:
            yield file.write
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_destination(dest: Destination, *, folder: bool) -> None:
    """Refuse early what could only fail once the image is built. Raises ExportFailed."""
    if not isinstance(dest, str):
        return
    if dest == STANDARD_OUTPUT:
        raise ExportFailed("an output to standard output needs the stream itself")
    path = Path(dest)
    with translated(dest):
        if folder:
            if path.exists() and not path.is_dir():
                raise ExportFailed(f'can\'t write to "{dest}": it is no folder')
            return
        if path.is_dir():
            raise ExportFailed(f'can\'t write "{dest}": it is a folder')
        if not path.exists() and not path.resolve().parent.is_dir():
            raise ExportFailed(f'can\'t write "{dest}": there is no folder "{path.parent}"')


@contextlib.contextmanager
def translated(dest: str) -> Iterator[None]:
    """Make an OSError the error of an output that can't be written."""
    try:
        yield
    except BrokenPipeError as error:
        raise ExportFailed(f'can\'t write "{dest}": nobody reads it any more') from error
    except OSError as error:
        reason = error.strerror or error
        raise ExportFailed(f'can\'t write "{dest}": {reason}') from error


def _sink(write: Callable[[memoryview], int | None], dest: str) -> Sink:
    """`write`, called until all is written. It may be called where other files are read."""

    def sink(piece: bytes) -> None:
        left = memoryview(piece)
        with translated(dest):
            while left:
                left = left[write(left) or 0 :]

    return sink
