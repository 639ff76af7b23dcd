"""Small files that are there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

NEW = ".new-"
"""What the names of files begin with that aren't finished."""


def by_age(folder: Path) -> list[Path]:
    """What is in the folder, what was written first at the beginning. Raises OSError."""
    return sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)


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
