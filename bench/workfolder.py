"""A folder for everything that a run makes, of which nothing stays: no mount and no file."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ESCAPED = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


@contextmanager
def work_folder() -> Iterator[Path]:
    """A new folder below TMPDIR that every user may pass through."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        folder.chmod(0o711)
        yield folder
    finally:
        remove(folder)


def remove(folder: Path) -> None:
    """Remove a folder, and first what is mounted below it."""
    for point in reversed(_mounts_below(folder)):
        subprocess.run(["umount", "--lazy", point], check=False, stderr=subprocess.DEVNULL)
    # rm also removes folders whose owner may not, and never follows a link
    subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


def _mounts_below(folder: Path) -> list[str]:
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        point = line.split()[1]
        for escaped, character in _ESCAPED.items():
            point = point.replace(escaped, character)
        if point == str(folder) or point.startswith(f"{folder}{os.sep}"):
            found.append(point)
    return found
