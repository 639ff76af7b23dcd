"""The folder with the records of a project's builds: what it holds, and how much of it at most.

A record is a head and, behind it, the packed files of each step, which are read only when they
are compared. Whoever owns the folder is trusted; a record that is damaged is as if it weren't
there, and one that can't be written is not missed.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from pybuild.files.wholefiles import NEW, by_age, write_whole
from pybuild.run.explaining.documents import document_of, read_document
from pybuild.run.explaining.filerows import FileRows, unpack
from pybuild.run.explaining.recorded import RecordedBuild

FOLDER = "builds"
"""Where the projects' folders are, below :meth:`.Backend.notes_folder`."""
MOST_BUILDS = 16
"""Records of one project."""
MOST_PROJECTS = 64

_MAGIC = b"pybuild build record 1\n"
_FIXED = struct.Struct(f"<{len(_MAGIC)}s32sI")
_MOST_HEAD = 1024 * 1024
_MOST_UNPACKED = 16 * 1024 * 1024
# of one record, the packed files included
_MOST_BYTES = 4 * 1024 * 1024
_MOST_IN_ALL = 128 * 1024 * 1024


class Records:
    """The records of one project. Safe against other builds at the same time."""

    def __init__(self, folder: Path | None) -> None:
        """`folder` is the project's own; without one nothing is found and nothing kept."""
        self._folder = folder

    @classmethod
    def of(cls, notes: Path | None, identity: str) -> Records:
        """Those of the project with this `identity` below `notes`."""
        name = sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return cls(None if notes is None else notes / FOLDER / name)

    def newest(self) -> list[RecordedBuild]:
        """All that can be read, the newest first."""
        if self._folder is None:
            return []
        found = (_read(path) for path in reversed(_records(self._folder)))
        return [build for build in found if build is not None]

    def add(self, build: RecordedBuild) -> None:
        """Keep one more, at once or not at all, and forget the oldest beyond the bounds."""
        if self._folder is None:
            return
        content = _content(build)
        if content is None:
            return
        with suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            name = f"{time.time_ns():016x}{os.urandom(4).hex()}"
            write_whole(self._folder / name, content)
            _forget_oldest(self._folder)


def _records(folder: Path) -> list[Path]:
    """The oldest first."""
    with suppress(OSError):
        return sorted(path for path in folder.iterdir() if not path.name.startswith(NEW))
    return []


def _forget_oldest(folder: Path) -> None:
    """Keep to the bounds. What a killed build left half written goes in its turn, too."""
    for path in by_age(folder)[:-MOST_BUILDS]:
        path.unlink(missing_ok=True)
    projects = by_age(folder.parent)
    for project in projects[:-MOST_PROJECTS]:
        for path in project.iterdir():
            path.unlink(missing_ok=True)
        project.rmdir()
    size = 0
    for project in reversed(projects[-MOST_PROJECTS:]):
        for path in reversed(by_age(project)):
            size += path.stat().st_size
            if size > _MOST_IN_ALL:
                path.unlink(missing_ok=True)


def _content(build: RecordedBuild) -> bytes | None:
    """The bytes of a record; None if its head alone would be too large."""
    places: dict[str, tuple[int, int]] = {}
    packed: list[bytes] = []
    size = 0
    for files in (f for s in build.stages for step in s.steps for f in step.files.values()):
        if files.digest in places or (rows := files.rows()) is None:
            continue
        piece = rows.packed()
        if size + len(piece) <= _MOST_BYTES:
            places[files.digest] = size, len(piece)
            packed.append(piece)
            size += len(piece)
    head = zlib.compress(document_of(build, places), 1)
    if len(head) > _MOST_HEAD:
        return None
    return b"".join((_FIXED.pack(_MAGIC, sha256(head).digest(), len(head)), head, *packed))


def _read(path: Path) -> RecordedBuild | None:
    try:
        with path.open("rb") as file:
            magic, digest, size = _FIXED.unpack(file.read(_FIXED.size))
            if magic != _MAGIC or size > _MOST_HEAD:
                return None
            head = file.read(size)
        if sha256(head).digest() != digest:
            return None
        document = zlib.decompressobj().decompress(head, _MOST_UNPACKED)
        return read_document(
            document, lambda key, place: _Kept(path, key, place, _FIXED.size + size)
        )
    except (OSError, struct.error, zlib.error):
        return None


class _Kept:
    """The rows of files that a record holds at a place behind its head."""

    def __init__(self, path: Path, digest: str, place: tuple[int, int] | None, head: int) -> None:
        self._path = path
        self._digest = digest
        self._place = place
        self._head = head

    def __call__(self) -> FileRows | None:
        if self._place is None:
            return None
        start, size = self._place
        if size > _MOST_BYTES:
            return None
        try:
            with self._path.open("rb") as file:
                file.seek(self._head + start)
                return unpack(file.read(size), self._digest)
        except (OSError, OverflowError, ValueError):
            return None
