"""What takes up room in a store, counted in the blocks that the file system gave to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from pybuild.imagestore import Usage, UsageKind
from pybuild.values import dataclass
from pybuild_embedded.database import Database
from pybuild_embedded.references import Node, References
from pybuild_embedded.rootfolder import NOTES, RESERVE
from pybuild_embedded.sessions import Part

MeasureTrees = Callable[[Sequence[Path]], list[int]]
"""What folders take up on the disk with all in them, in bytes, whoever owns it."""

# a block of st_blocks, whatever the file system's are (stat(2))
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class OnDisk:
    """Sizes in bytes of what lies in a store. ``parts`` is what something may refer to."""

    parts: dict[Node, int]
    trash: int
    unfinished: int
    other: int

    @property
    def total(self) -> int:
        return sum(self.parts.values()) + self.trash + self.unfinished + self.other


def look(root: Path, database: Database, measure: MeasureTrees) -> OnDisk:
    """Measure a store, while others may change it. Raises BackendFailed."""
    parts: dict[Node, int] = {}
    other = 0
    for path, size in _sizes(root / "blobs"):
        if path.is_dir():
            other += size
        else:
            parts[Part.BLOB, f"sha256:{path.name}"] = size
    for path, size in _sizes(root / "indexes", itself=False):
        parts[Part.INDEX, index_name(path)] = size
    parts.update(_folder_sizes(root, database, measure))
    caches = list(_children(root / "cachemounts"))
    for path, size in zip(caches, measure(caches), strict=True):
        parts[Part.CACHE, path.name] = size
    unfinished = sum(size for _, size in _sizes(root / "ingest", itself=False))
    trash = sum(measure(list(_children(root / "trash"))))
    tops = list(_children(root))
    other += allocated(root) + sum(map(allocated, tops)) - allocated(root / "blobs")
    for folder in ("sessions", "locks", RESERVE, NOTES):
        other += sum(size for _, size in _sizes(root / folder, itself=False))
    return OnDisk(parts, trash, unfinished, other)


def usage(found: OnDisk, references: References) -> list[Usage]:
    """What `prune` could remove, and what it couldn't, as lines for a reader."""
    images = [node for node in references.entries if node[0] is Part.IMAGE]
    of_images = references.below(images)
    pinned = references.below(references.pinned)
    lines = {kind: [0, 0, 0] for kind in UsageKind}
    for node, size in found.parts.items():
        line = lines[_kind(node, of_images, references)]
        line[0] += 1
        line[1] += size
        line[2] += 0 if node in pinned else size
    # their blobs aren't what is counted
    lines[UsageKind.IMAGES][0] = len(images)
    lines[UsageKind.STEPS][0] = sum(part is Part.STEP for part, _ in references.entries)
    work = lines[UsageKind.WORK]
    work[1] += found.trash + found.unfinished
    work[2] += found.trash
    lines[UsageKind.OTHER][1] = found.other
    return [Usage(kind, *line) for kind, line in lines.items()]


def measure_plainly(folders: Sequence[Path]) -> list[int]:
    """A :data:`MeasureTrees` that leaves out what this user may not look at."""
    return [sum(size for _, size in _sizes(folder)) for folder in folders]


def allocated(path: Path) -> int:
    """What a file or folder itself takes up; 0 if it isn't there."""
    try:
        return path.lstat().st_blocks * _BLOCK
    except OSError:
        return 0


def index_name(path: Path) -> str:
    """The diff id of an index file; what has another name is no diff id."""
    return path.name.replace("sha256-", "sha256:")


def _kind(node: Node, of_images: Collection[Node], references: References) -> UsageKind:
    match node[0]:
        case Part.INDEX:
            return UsageKind.INDEXES
        case Part.CACHE:
            return UsageKind.CACHE_MOUNTS
        case Part.FOLDER:
            return UsageKind.LAYERS if node in references.entries else UsageKind.WORK
        case _ if node in of_images:
            return UsageKind.IMAGES
        case _:
            return UsageKind.STEPS if references.keeps(node) else UsageKind.WORK


def _folder_sizes(root: Path, database: Database, measure: MeasureTrees) -> dict[Node, int]:
    with database.reading() as connection:
        query = "SELECT ident, size FROM folders WHERE session IS NULL AND size IS NOT NULL"
        known: dict[str, int] = dict(connection.execute(query).fetchall())
    sizes: dict[Node, int] = {}
    unknown = []
    for path in _children(root / "layers"):
        if path.name in known:
            work = sum(size for _, size in _sizes(path / "work"))
            sizes[Part.FOLDER, path.name] = known[path.name] + allocated(path) + work
        else:
            unknown.append(path)
    for path, size in zip(unknown, measure(unknown), strict=True):
        sizes[Part.FOLDER, path.name] = size
    return sizes


def _children(folder: Path) -> Iterator[Path]:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            yield Path(entry.path)


def _sizes(top: Path, *, itself: bool = True) -> Iterator[tuple[Path, int]]:
    """All files and folders below `top` with what each takes up; a hard link counts once."""
    linked: set[int] = set()
    if itself and (size := allocated(top)):
        yield top, size
    waiting = [top]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if status.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                        if status.st_ino in linked:
                            continue
                        linked.add(status.st_ino)
                    yield Path(entry.path), status.st_blocks * _BLOCK
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
