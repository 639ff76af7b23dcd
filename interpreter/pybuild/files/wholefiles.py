"""Small files that are there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

NEW = ".new-"
"""What the names of files begin with that aren't finished."""


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
