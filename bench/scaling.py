"""Whether a step costs more after many steps, and a file more among many files.

A Dockerfile of 1,000 steps, whose last hundred may cost 1.5 times what the first hundred do;
and a COPY of up to 200,000 files, of which each may cost 1.25 times what it does among an
eighth of them; the memory is shown too. Both on the embedded backend, in processor time,
which others on the machine disturb least. Needs root and busybox-static::

    .venv/bin/python bench/scaling.py [--tiny] [--strict]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from controlgroups import ControlGroup, own_group
from measuring import TRUSTED_AFTER, Command, Cost, Memory, environment, timed, watched
from workfolder import remove, work_folder

_TESTS = Path(__file__).resolve().parents[1] / "tests"
_FILES = 200_000
_PER_FOLDER = 200
_STEPS_GROW, _FILES_GROW = 1.5, 1.25


@dataclass(frozen=True)
class Copied:
    """A COPY of so many files: built first, and again with nothing new."""

    files: int
    first: Cost
    again: Cost
    memory: Memory


def steps_grow(folder: Path) -> float:
    """The last hundred's cost, divided by that of the first."""
    program = [sys.executable, str(_TESTS / "e2e" / "many_steps.py"), str(folder)]
    environ = {**os.environ, "PYTHONPATH": str(_TESTS)}
    done = subprocess.run(program, check=True, stdout=subprocess.PIPE, env=environ)
    found: dict[str, float] = json.loads(done.stdout)
    first, last = found["first"] * 1000, found["last"] * 1000
    print(f"1,000 steps: {first:.1f} ms of CPU a step at first, {last:.1f} in the end")
    print(f"             {found['mebibytes']} MiB, its helpers {found['mebibytes of others']}")
    return last / first


def copied(folder: Path, files: int, group: ControlGroup) -> Copied:
    """What a COPY of `files` files costs on an empty store."""
    context, dockerfile = folder / "context", folder / "Dockerfile"
    dockerfile.write_text("FROM scratch\nCOPY . /\n")
    for number in range(files):
        inner = context / f"{number // _PER_FOLDER:04}"
        if number % _PER_FOLDER == 0:
            inner.mkdir(parents=True)
        (inner / f"file-{number}").write_bytes(b"%08d" % number * 8)
    environ = environment(PYBUILD_ROOT=str(folder / "store"), XDG_CACHE_HOME=str(folder / "cache"))
    words = ("-q", "-t", "many:1", "-f", str(dockerfile), str(context))
    command = Command((sys.executable, "-m", "pybuild", *words), environ)
    time.sleep(TRUSTED_AFTER)
    first, memory = watched(command, (), group)
    again = timed(command, ())
    for path in folder.iterdir():
        remove(path)
    return Copied(files, first, again, memory)


def files_grow(folder: Path, most: int) -> float:
    """The cost of one file among `most`, divided by that among an eighth of them."""
    with own_group() as group:
        found = [copied(folder, files, group) for files in _counts(most)]
    print(
        f"{'files':>9}{'first, s':>10}{'µs a file':>11}{'again, s':>10}{'µs a file':>11}{'MiB':>6}"
    )
    for one in found:
        print(
            f"{one.files:>9,}{one.first.cpu:>10.2f}{one.first.cpu / one.files * 1e6:>11.0f}"
            f"{one.again.cpu:>10.2f}{one.again.cpu / one.files * 1e6:>11.0f}"
            f"{one.memory.program:>6.0f}"
        )
    # differences, so that what a build costs anyway isn't divided among the files
    few, many = (
        (b.first.cpu - a.first.cpu + b.again.cpu - a.again.cpu) / (b.files - a.files)
        for a, b in (found[:2], found[-2:])
    )
    return many / few


def _counts(most: int) -> Iterator[int]:
    return (most // part for part in (8, 4, 2, 1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a smoke test: 4,000 files, no steps")
    parser.add_argument("--strict", action="store_true", help="fail if a cost grows too much")
    given = parser.parse_args()
    kept = True
    with work_folder() as folder:
        if not given.tiny:
            (folder / "steps").mkdir()
            kept = steps_grow(folder / "steps") <= _STEPS_GROW
        (folder / "files").mkdir()
        growth = files_grow(folder / "files", 4_000 if given.tiny else _FILES)
        if not given.tiny:
            print(f"a file more among many costs {growth:.2f} times one among few")
            kept = kept and growth <= _FILES_GROW
    return 1 if given.strict and not kept else 0


if __name__ == "__main__":
    raise SystemExit(main())
