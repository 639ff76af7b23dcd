"""What no builder gets around: the system calls, hashes and compression of a build, in C.

Beside each the part of pybuild that does the same, in this process, and its ratio. Needs gcc,
libssl-dev, libisal-dev and busybox, and root for the processes of steps::

    .venv/bin/python bench/floors.py [--tiny]
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from contexts import many_files, one_file
from measuring import TRUSTED_AFTER
from workfolder import work_folder

from pybuild.files.context import open_context_directory
from pybuild.files.copying import CopyRequest, plan_copy
from pybuild.files.trees import MemoryTree
from pybuild.oci.layerwriter import write_layer
from pybuild.stepshell import find_busybox

_SOURCE = Path(__file__).with_name("floors.c")
_STEPS = 20
_PART = ("bin", "proc", "sys", "dev")


def compiled(folder: Path) -> Path:
    program = folder / "floors"
    libraries = ["-lcrypto", "-lisal", "-lpthread"]
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-o", program, _SOURCE, *libraries]
    subprocess.run(command, check=True)
    return program


def seconds(program: Path, *words: str | Path) -> float:
    """What the program says that it took."""
    done = subprocess.run([program, *words], check=True, capture_output=True, text=True)
    return float(done.stdout)


def wall(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def listed(context: Path) -> None:
    """What a rebuild with nothing new does with a large folder."""
    with open_context_directory(context) as tree:
        tree.stat_digest(b"")


def layer(context: Path) -> None:
    """What a COPY does."""
    with open_context_directory(context) as tree, io.FileIO(context.parent / "blob", "wb") as blob:
        entries = plan_copy(CopyRequest(("/",), "/"), tree, MemoryTree(()))
        write_layer(entries, blob.write)


def step_root(folder: Path) -> Path:
    """The folders of an overlay whose lowest layer has a shell."""
    for name in ("upper", "work", "merged", *(f"lower/{part}" for part in _PART)):
        (folder / name).mkdir(parents=True)
    busybox = find_busybox(os.environ["PATH"])
    if busybox is None:
        raise SystemExit("floors.py needs busybox-static")
    shutil.copy(busybox, folder / "lower" / "bin" / "sh")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a smoke test: a fiftieth, once")
    given = parser.parse_args()
    size, rounds = (0.02, 1) if given.tiny else (1.0, 7)
    gc.set_threshold(1_000_000)  # as the command line does
    with work_folder() as folder:
        program = compiled(folder)
        many, large = folder / "many", folder / "large"
        for context, fill in ((many, many_files), (large, one_file)):
            context.mkdir()
            fill(context, size)
        blob = folder / "blob-of-c"
        time.sleep(TRUSTED_AFTER)

        def unpacked() -> float:
            target = folder / "unpacked"
            target.mkdir()
            took = seconds(program, "unpack", blob, target)
            subprocess.run(["rm", "-r", target], check=True)
            return took

        python = [sys.executable, "-I", "-S", "-c", ""]
        cases: list[tuple[str, Callable[[], float], Callable[[], float] | None]] = [
            ("start Python", lambda: wall(lambda: subprocess.run(python, check=True)), None),
            (
                "list and lstat W3",
                lambda: seconds(program, "list", many),
                lambda: wall(lambda: listed(many)),
            ),
            (
                "layer of W3",
                lambda: seconds(program, "layer", many, blob),
                lambda: wall(lambda: layer(many)),
            ),
            ("unpack that", unpacked, None),
            (
                "layer of W4",
                lambda: seconds(program, "layer", large, folder / "x"),
                lambda: wall(lambda: layer(large)),
            ),
        ]
        if os.geteuid() == 0:
            root = step_root(folder / "step")
            cases.append(
                (
                    f"{_STEPS} steps of W1",
                    lambda: seconds(program, "steps", str(_STEPS), root),
                    None,
                )
            )
        times: dict[str, tuple[list[float], list[float]]] = {}
        for _ in range(rounds):
            for name, floor, ours in cases:
                found = times.setdefault(name, ([], []))
                found[0].append(floor())
                found[1].extend([ours()] if ours is not None else [])
    print(f"{'milliseconds (median)':<24}{'C':>8}{'pybuild':>10}{'ratio':>8}")
    for name, (floors, own) in times.items():
        least = statistics.median(floors)
        line = f"{name:<24}{least * 1000:>8.0f}"
        if own:
            line += f"{statistics.median(own) * 1000:>10.0f}{statistics.median(own) / least:>8.1f}"
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
