"""Build contexts that the workloads copy; the same bytes each time. Everybody may read them."""

from __future__ import annotations

import random
from pathlib import Path

_MIB = 1024 * 1024
_PER_FOLDER = 100


def nothing(folder: Path, size: float) -> None:
    """An empty context."""
    del folder, size


def many_files(folder: Path, size: float) -> None:
    """20,000 files of 1 to 8 KiB, half of it compressible, in 200 folders."""
    small_files(folder, round(20_000 * size))


def small_files(folder: Path, count: int) -> None:
    """`count` files of 1 to 8 KiB, a hundred in each folder."""
    chance = random.Random(1)  # noqa: S311  (the same files each time)
    for number in range(count):
        inner = folder / f"folder-{number // _PER_FOLDER:04}"
        if number % _PER_FOLDER == 0:
            inner.mkdir()
        content = chance.randbytes(chance.randint(512, 4096)).hex()
        (inner / f"file-{number % _PER_FOLDER:03}.txt").write_bytes(content.encode())


def one_file(folder: Path, size: float) -> None:
    """One file of 512 MiB, half of them random."""
    chance = random.Random(1)  # noqa: S311  (the same file each time)
    with (folder / "large").open("wb") as file:
        for _ in range(round(256 * size)):
            file.write(chance.randbytes(_MIB))
            file.write(bytes(_MIB))


def change_one_file(folder: Path, turn: int) -> None:
    """Give one file in the middle of `many_files` a content it never had."""
    files = sorted(folder.glob("*/*"))
    files[len(files) // 2].write_text(f"changed in turn {turn}\n")
