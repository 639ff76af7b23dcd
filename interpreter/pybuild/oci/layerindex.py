"""The index of a layer: every entry of its tar, so that files can be found without unpacking."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What an :class:`Entry` is."""

    FILE = "file"
    DIRECTORY = "dir"
    SYMLINK = "symlink"
    CHARACTER = "char"
    BLOCK = "block"
    FIFO = "fifo"
    SOCKET = "socket"  # seen in contexts only: a layer can't hold one
    WHITEOUT = "whiteout"  # `path` is removed from lower layers
    OPAQUE = "opaque"  # all that lower layers have below the folder `path` is removed


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, folder, link or removal in a layer or context.

    ``path`` is relative to the root, without a leading or trailing slash, in raw bytes;
    the root itself is ``b""``. ``mode`` holds the twelve permission bits. ``mtime`` is in
    whole seconds since 1970. ``link`` is a symlink's target as written, or, for a FILE that
    is a hard link, the path of the entry with the content. ``digest`` is the sha256 of a
    file's content, None where not yet known. ``xattrs`` are sorted (name, value) pairs.
    """

    path: bytes
    kind: Kind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, bytes], ...] = ()
    digest: str | None = None
