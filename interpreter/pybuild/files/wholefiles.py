"""Small files that are there as a whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

NEW = ".new-"
"""What the names of files begin with that aren't finished."""


def by_age(folder: Path) -> list[Path]:
    """What is in the folder, what was written first at the beginning. Raises OSError.

    What vanishes meanwhile is left out.
    """
    found = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found)]


def keep_newest(folder: Path, most: int) -> None:
    """Remove all of its files but the `most` that were written last. Raises OSError."""
    files = [path for path in by_age(folder) if path.is_file()]
    for path in files[:-most]:
        path.unlink(missing_ok=True)


def forget_oldest(folder: Path, most: int) -> None:
    """Remove the older ones of its files, once there are more than `most`. Raises OSError."""
    # to look at the age of each takes longer than to count them
    if sum(1 for _ in folder.iterdir()) > most:
        for path in by_age(folder)[: -(most // 2)]:
            path.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Put a file with `content` at `path`, in place of one that is there. Raises OSError."""
    new = path.with_name(f"{NEW}{os.urandom(16).hex()}")
    try:
        new.touch(0o600, exist_ok=False)
        new.write_bytes(content)
        new.chmod(mode)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
