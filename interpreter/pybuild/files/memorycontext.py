"""A build context whose files the caller has in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from typing import BinaryIO

from pybuild.errors import ContextError, UsageError
from pybuild.files.context import ContextTree
from pybuild.files.trees import MemoryTree, NewEntry, parent_of, shown
from pybuild.oci.layerindex import NO_NAMES, Entry, Kind
from pybuild.values import dataclass

MTIME = 315_532_800
"""1 January 1980, in seconds since 1970: equal files make equal layers. A zip takes no older ones."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a context, with its permission bits. Text becomes UTF-8."""

    content: bytes | str
    mode: int = 0o644


FilesInMemory = Mapping[str, bytes | str | File]
"""Files by their paths in the context, relative and with slashes: ``{"src/app.py": b"…"}``."""


class MemoryContext(ContextTree):
    """`files` as a context; folders come of their paths, and all is root's and of :data:`MTIME`.

    What `files` holds now counts. Raises ContextError for a path that leads out of the
    context or through a file, UsageError for what is no file.
    """

    def __init__(self, files: FilesInMemory) -> None:
        entries = list(_entries(dict(files)))
        taken = {new.entry.path for new in entries}
        folders = set[bytes]()
        for path in taken:
            while (path := parent_of(path)) not in folders and path:
                if path in taken:
                    raise ContextError(f"the build context has {shown(path)} as file and folder")
                folders.add(path)
        made = [NewEntry(Entry(path, Kind.DIRECTORY, 0o755, mtime=MTIME)) for path in folders]
        self._tree = MemoryTree([*made, *entries])

    def close(self) -> None:
        """There is nothing to close."""

    def get(self, path: bytes) -> Entry | None:
        return self._tree.get(path)

    def children(self, path: bytes) -> Sequence[bytes]:
        return self._tree.children(path)

    def open(self, path: bytes) -> BinaryIO:
        return self._tree.open(path)


def _entries(files: dict[str, bytes | str | File]) -> Iterator[NewEntry]:
    for name, given in files.items():
        path = _path(name)
        file = given if isinstance(given, File) else File(given)
        content = file.content.encode() if isinstance(file.content, str) else file.content
        if not isinstance(content, bytes):
            kind = type(content).__name__
            raise UsageError(f'the content of "{name}" is of type {kind}, not bytes or str')
        if not 0 <= file.mode <= 0o7777:
            raise UsageError(f'the mode of "{name}" is {file.mode:#o}, not 0 to 0o7777')
        entry = Entry(path, Kind.FILE, file.mode, size=len(content), mtime=MTIME)
        yield NewEntry(entry, partial(BytesIO, content))


def _path(name: str) -> bytes:
    try:
        path = name.encode("utf-8", "surrogateescape")
    except (UnicodeEncodeError, AttributeError):
        raise ContextError(f"{name!r} can't be the path of a file in the build context") from None
    if b"\0" in path or not NO_NAMES.isdisjoint(path.split(b"/")):
        raise ContextError(
            f"{shown(path) if path else 'the empty path'} can't be in the build context",
            hint="a path is relative, as src/app.py, without .. in it",
        )
    return path
