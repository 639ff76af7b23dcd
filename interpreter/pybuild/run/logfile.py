"""A file with all that the process of one step prints."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO

_UNUSUAL = re.compile(r"[^\w.]+", re.ASCII)
_LONGEST_NAME = 40


class LogFile:
    """A new file in `folder`, named after the step's `title`; both are made by the first write.

    Where that can't be done, or the disk is full, `warn` is told once, and the rest is
    dropped: a build needs no log to go on.
    """

    def __init__(self, folder: Path, title: str, warn: Callable[[str], None]) -> None:
        self.path: Path | None = None
        self._folder = folder
        self._title = title
        self._warn = warn
        self._file: IO[bytes] | None = None
        self._broken = False
        self._stack = ExitStack()

    def write(self, data: bytes) -> None:
        """Append `data`, a piece of output as it came."""
        if self._broken:
            return
        try:
            if self._file is None:
                self._file = self._stack.enter_context(self._made())
            self._file.write(data)
        except OSError as error:
            self._broken = True
            self._warn(f"can't log to {self._folder}: {error.strerror or error}")

    def close(self, *, keep: bool) -> None:
        """Close the file, and remove it unless `keep` says otherwise."""
        try:
            self._stack.close()
        except OSError as error:  # what was still to be written
            self._warn(f"can't log to {self._folder}: {error.strerror or error}")
        if self.path is not None and not keep:
            self.path.unlink(missing_ok=True)

    def _made(self) -> IO[bytes]:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = _UNUSUAL.sub("-", self._title)[:_LONGEST_NAME].strip("-.")
        file = tempfile.NamedTemporaryFile(  # noqa: SIM115 - its owner closes it
            dir=self._folder, prefix=f"{name}-", suffix=".log", delete=False
        )
        self.path = Path(file.name)
        return file
