"""What is in all files below a folder, while others may remove some of them."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path


def contents(*tops: Path, without: Container[str] = ()) -> Iterator[tuple[Path, bytes]]:
    """The regular files below `tops` with all that is in them, but for those that vanish.

    Folders with names in `without` are passed over.
    A garbage collection of containerd that a build's end began goes on after it.
    """
    # which passes over folders that vanish, other than Path.rglob
    for top, folders, names in (found for each in tops for found in os.walk(each)):
        folders[:] = [name for name in folders if name not in without]
        for path in (Path(top, name) for name in names):
            with suppress(FileNotFoundError):
                if path.is_file() and not path.is_symlink():
                    yield path, path.read_bytes()
