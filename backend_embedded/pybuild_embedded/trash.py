"""What nobody refers to any more, until it is removed from the disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pybuild_embedded.rootfolder import failing

RemoveTrees = Callable[[Sequence[Path]], None]
"""Removes folders with all in them, whoever owns it; what isn't there is fine."""


class Trash:
    """A folder to which others are moved in one step, however large they are."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "trash"

    def put(self, path: Path) -> None:
        """Take a file or folder of the store out of sight; one that isn't there is fine."""
        with failing(path), suppress(FileNotFoundError):
            path.rename(self._folder / os.urandom(16).hex())

    def empty(self, remove: RemoveTrees) -> None:
        """Remove all that is there; `remove` gets the folders."""
        folders = []
        with failing(self._folder):
            for entry in os.scandir(self._folder):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                else:
                    Path(entry.path).unlink(missing_ok=True)
        if folders:
            remove(folders)
