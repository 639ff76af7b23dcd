"""What workers are asked to do, and the form in which it goes to them and back."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pybuild.errors import (
    BackendFailed,
    ContextError,
    CopyFailed,
    InvalidImage,
    PybuildError,
    StepFailed,
)
from pybuild.files.upperdir import OverlayNotPlain
from pybuild.oci.compression import Compression
from pybuild.oci.descriptor import Descriptor, LayerDiff
from pybuild.values import dataclass

_LENGTH = struct.Struct("<Q")
_ERRORS: dict[str, type[PybuildError]] = {
    kind.__name__: kind
    for kind in (
        BackendFailed,
        ContextError,
        CopyFailed,
        InvalidImage,
        OverlayNotPlain,
        StepFailed,
    )
}


@dataclass(frozen=True, slots=True)
class Unpack:
    """Make a layer's files, as a layer folder of overlayfs, in the empty folder `target`.

    `index` is the file of the layer's LayerIndex, read from this very `blob`; `parents` are
    those of the layers below and `lowers` their folders, both bottom first; the lowest folder
    may show several layers. The folders must be complete only if the layer has hard links to
    files of theirs. With `userxattr` the
    marks are ``user.overlay.*``, else ``trusted.overlay.*``; without `owners` all belongs to
    the one user that there is. `plain` is the same layer uncompressed and checked.
    """

    blob: Path
    diff_id: str
    index: Path
    parents: tuple[Path, ...]
    lowers: tuple[Path, ...]
    target: Path
    userxattr: bool
    owners: bool
    plain: Path | None = None


@dataclass(frozen=True, slots=True)
class Apply:
    """Change the folder `target`, which shows `parents`, so that it shows one layer more.

    It is a plain folder without marks, empty for no `parents`. `stage` is an empty folder on
    its file system. With `devices`, not to make one is an error. The other fields are those
    of :class:`Unpack`.
    """

    blob: Path
    diff_id: str
    index: Path
    parents: tuple[Path, ...]
    target: Path
    stage: Path
    devices: bool
    owners: bool


@dataclass(frozen=True, slots=True)
class MakePoints:
    """Make empty files and folders in `folder`, parents first, to mount something on.

    ``points`` are paths without links, and whether each is a folder. The answer has two
    numbers for each, by which it is known again; zeros for one that is there already.
    """

    folder: Path
    points: tuple[tuple[bytes, bool], ...]


@dataclass(frozen=True, slots=True)
class RemovePoints:
    """Remove what :class:`MakePoints` made, unless something was done to it.

    ``known`` is its answer. Raises StepFailed if one isn't where it was made.
    """

    folder: Path
    points: tuple[tuple[bytes, bool], ...]
    known: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """Write to the new file `file` what is in `folder`, for :class:`Pack` to compare with."""

    folder: Path
    file: Path


@dataclass(frozen=True, slots=True)
class Pack:
    """Write what is in the folder `upper` of an overlay over `parents` as a layer.

    `blob` and `index`, which must not exist, become its files. `newest`, `owners` and `fuse`
    are those of :func:`pybuild.files.upperdir.upper_entries`. With a `record`, `upper` is a
    plain folder that showed `parents` when that file was written.
    """

    upper: Path
    parents: tuple[Path, ...]
    blob: Path
    index: Path
    newest: int | None
    owners: bool
    compression: Compression
    fuse: bool = False
    record: Path | None = None


@dataclass(frozen=True, slots=True)
class Packed:
    """A layer that was written. ``size`` is what an upper folder takes on disk, in bytes."""

    diff: LayerDiff
    size: int


@dataclass(frozen=True, slots=True)
class Merge:
    """Copy the union of a whole chain, bottom first, to the empty folder `target`, unmarked.

    The lowest of `folders` may show several of the layers.
    """

    indexes: tuple[Path, ...]
    folders: tuple[Path, ...]
    target: Path
    owners: bool


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove what is at these paths, of any depth. What isn't there is no error."""

    folders: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Measure:
    """How many bytes on disk each of these folders takes."""

    folders: tuple[Path, ...]


Request = Unpack | Apply | MakePoints | RemovePoints | Record | Pack | Merge | Remove | Measure


class Shown:
    """The layers that the last request on this connection was about: most go on from there.

    Both sides keep one, and so a request on a thousand layers is no longer than on one.
    """

    def __init__(self) -> None:
        self._paths: tuple[Path, ...] = ()

    def shortened(self, paths: tuple[Path, ...]) -> list[object]:
        """`paths` as how many of the last are the same, and the others."""
        count = len(self._paths)
        if paths[:count] != self._paths:
            count = 0
        self._paths = paths
        return [count, _texts(paths[count:])]

    def restored(self, shortened: list[Any]) -> tuple[Path, ...]:
        """What the other side's `shortened` was given."""
        count, texts = shortened
        self._paths = (*self._paths[:count], *_paths(texts))
        return self._paths


def encode(request: Request, shown: Shown) -> bytes:
    """The request as bytes."""
    fields: list[object]
    match request:
        case Unpack():
            fields = [
                *_texts([request.blob, request.index, request.target]),
                request.diff_id,
                shown.shortened(request.parents),
                _texts(request.lowers),
                request.userxattr,
                request.owners,
                request.plain and os.fspath(request.plain),
            ]
        case Apply():
            fields = [
                *_texts([request.blob, request.index, request.target, request.stage]),
                request.diff_id,
                _texts(request.parents),
                request.devices,
                request.owners,
            ]
        case MakePoints(folder=folder, points=points):
            fields = [os.fspath(folder), _named(points)]
        case RemovePoints(folder=folder, points=points, known=known):
            fields = [os.fspath(folder), _named(points), known]
        case Record(folder=folder, file=file):
            fields = [*_texts([folder, file])]
        case Pack():
            fields = [
                *_texts([request.upper, request.blob, request.index]),
                shown.shortened(request.parents),
                request.newest,
                request.owners,
                request.compression.value,
                request.fuse,
                request.record and os.fspath(request.record),
            ]
        case Merge():
            fields = [
                shown.shortened(request.indexes),
                _texts(request.folders),
                os.fspath(request.target),
                request.owners,
            ]
        case Remove(folders=folders) | Measure(folders=folders):
            fields = [_texts(folders)]
    return json.dumps([type(request).__name__, *fields]).encode()


def decode(data: bytes, shown: Shown) -> Request:
    """The request that the other side's `encode` was given."""
    name, *fields = json.loads(data)
    match name:
        case "Apply":
            blob, index, target, stage, diff_id, parents, devices, owners = fields
            return Apply(
                Path(blob),
                diff_id,
                Path(index),
                _paths(parents),
                Path(target),
                Path(stage),
                devices,
                owners,
            )
        case "MakePoints":
            return MakePoints(Path(fields[0]), _points(fields[1]))
        case "RemovePoints":
            return RemovePoints(Path(fields[0]), _points(fields[1]), tuple(fields[2]))
        case "Record":
            return Record(*_paths(fields))
        case "Unpack":
            blob, index, target, diff_id, parents, lowers, userxattr, owners, plain = fields
            return Unpack(
                Path(blob),
                diff_id,
                Path(index),
                shown.restored(parents),
                _paths(lowers),
                Path(target),
                userxattr,
                owners,
                plain and Path(plain),
            )
        case "Pack":
            upper, blob, index, parents, newest, owners, compression, fuse, record = fields
            return Pack(
                Path(upper),
                shown.restored(parents),
                Path(blob),
                Path(index),
                newest,
                owners,
                Compression(compression),
                fuse,
                record and Path(record),
            )
        case "Merge":
            indexes, folders, target, owners = fields
            return Merge(shown.restored(indexes), _paths(folders), Path(target), owners)
        case "Remove":
            return Remove(_paths(fields[0]))
        case "Measure":
            return Measure(_paths(fields[0]))
        case _:
            raise ValueError(f"no request: {name}")


def encode_answer(value: int | list[int] | Packed | None) -> bytes:
    """What a request gave."""
    if isinstance(value, Packed):
        blob = value.diff.blob
        fields = [value.diff.diff_id, blob.media_type, blob.digest, blob.size, value.size]
        return json.dumps(["packed", fields]).encode()
    return json.dumps(["done", value]).encode()


def encode_error(error: PybuildError) -> bytes:
    """That a request failed, and how."""
    kind = type(error).__name__
    return json.dumps(["failed", [kind, error.message, error.hint]]).encode()


def encode_bug(trace: str) -> bytes:
    """That the worker has a fault."""
    return json.dumps(["bug", trace]).encode()


def decode_answer(data: bytes) -> Any:
    """What the request gave, in the type that it gives. Raises the error that it failed with."""
    outcome, value = json.loads(data)
    match outcome:
        case "done":
            return value
        case "packed":
            diff_id, media_type, digest, size, on_disk = value
            return Packed(LayerDiff(diff_id, Descriptor(media_type, digest, size)), on_disk)
        case "failed":
            kind, message, hint = value
            raise _ERRORS[kind](message, hint=hint)
        case _:
            raise RuntimeError(f"a worker of the sandbox failed:\n{value}")


def send(connection: socket.socket, data: bytes) -> None:
    """Send `data` as one message."""
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket) -> bytes | None:
    """The next message; None if the other side has gone."""
    head = _exactly(connection, _LENGTH.size)
    return None if head is None else _exactly(connection, *_LENGTH.unpack(head))


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    pieces = []
    while size:
        piece = connection.recv(min(size, 1 << 20))
        if not piece:
            return None
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _texts(paths: Sequence[Path]) -> list[str]:
    return [os.fspath(path) for path in paths]


def _paths(texts: list[str]) -> tuple[Path, ...]:
    return tuple(map(Path, texts))


def _named(points: Sequence[tuple[bytes, bool]]) -> list[tuple[str, bool]]:
    return [(os.fsdecode(path), is_folder) for path, is_folder in points]


def _points(named: list[tuple[str, bool]]) -> tuple[tuple[bytes, bool], ...]:
    return tuple((os.fsencode(path), is_folder) for path, is_folder in named)
