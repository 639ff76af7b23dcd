"""Whole builds beside buildah: many small files, one large file, a RUN that writes, many steps.

The builders take turns; medians of several rounds, of which the first warms up. What was
built is removed after each. Needs root, containerd and buildah::

    .venv/bin/python bench/workloads.py [--tiny] [--rounds N] [NAME ...]
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from builders import BASE, Builder, Cost, buildah, has_buildah, pybuild_on_containerd

from pybuild.testkit.baseimages import BUSYBOX_LARGE, busybox_layout

_MIB = 1024 * 1024


@dataclass(frozen=True)
class Workload:
    """``context`` fills the build context; its second argument is the size, 0 to 1."""

    name: str
    title: str
    context: Callable[[Path, float], None]
    dockerfile: Callable[[float], str]


def many_files(folder: Path, size: float) -> None:
    """20,000 files of 1 to 8 KiB, half of it compressible, in 200 folders."""
    chance = random.Random(1)  # noqa: S311  (the same files each time)
    for number in range(round(200 * size)):
        inner = folder / f"folder-{number:03}"
        inner.mkdir()
        for name in range(100):
            data = chance.randbytes(chance.randint(512, 4096))
            (inner / f"file-{name:03}.txt").write_bytes(data.hex().encode())


def one_file(folder: Path, size: float) -> None:
    """512 MiB, half of them random."""
    chance = random.Random(1)  # noqa: S311  (the same files each time)
    with (folder / "large").open("wb") as file:
        for _ in range(round(256 * size)):
            file.write(chance.randbytes(_MIB))
            file.write(bytes(_MIB))


def nothing(folder: Path, size: float) -> None:
    del folder, size


def _written_by_run(size: float) -> str:
    folders, files = round(100 * size), 200
    return (
        f"FROM {BASE}\nRUN for d in $(seq {folders}); do mkdir -p /made/$d; "
        f"for f in $(seq {files}); do echo $d $f > /made/$d/$f; done; done\n"
    )


def _many_runs(size: float) -> str:
    lines = (f"RUN : step {number}" for number in range(round(20 * size)))
    return "\n".join((f"FROM {BASE}", *lines, ""))


WORKLOADS = (
    Workload("W1", "20 x RUN", nothing, _many_runs),
    Workload("W3", "COPY of 20,000 files", many_files, lambda _: f"FROM {BASE}\nCOPY . /made/\n"),
    Workload("W4", "COPY of a 512 MiB file", one_file, lambda _: f"FROM {BASE}\nCOPY . /made/\n"),
    Workload("W5", "RUN that writes 20,000 files", nothing, _written_by_run),
)


@contextmanager
def builders(folder: Path) -> Iterator[dict[str, Builder]]:
    with ExitStack() as stack:
        layout = busybox_layout(folder / "layout", BUSYBOX_LARGE, extra_files=100)
        pybuild = pybuild_on_containerd(layout, folder / "cache")
        found = {"pybuild": stack.enter_context(pybuild)}
        if has_buildah():
            found["buildah"] = stack.enter_context(buildah(layout, folder / "buildah"))
        yield found


def measure(
    workload: Workload, found: dict[str, Builder], folder: Path, *, size: float, rounds: int
) -> dict[str, list[Cost]]:
    context = folder / workload.name
    context.mkdir()
    workload.context(context, size)
    dockerfile = workload.dockerfile(size)
    costs: dict[str, list[Cost]] = {name: [] for name in found}
    for turn in range(rounds + 1):
        for name, builder in found.items():
            cost = builder.build(context, dockerfile)
            builder.forget()
            if turn or not rounds:
                costs[name].append(cost)
    shutil.rmtree(context)
    return costs


def report(workload: Workload, costs: dict[str, list[Cost]]) -> None:
    line = f"{workload.name}  {workload.title:<30}"
    for name in ("pybuild", "buildah"):
        if name not in costs:
            line += f"{'-':>10}{'-':>10}"
            continue
        wall = statistics.median(cost.wall for cost in costs[name])
        cpu = statistics.median(cost.cpu for cost in costs[name])
        line += f"{wall:>10.2f}{cpu:>10.2f}"
    print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="W1, W3, W4, W5 (default: all)")
    parser.add_argument("--tiny", action="store_true", help="a smoke test: a twentieth, once")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(argv)
    size, rounds = (0.05, 0) if given.tiny else (1.0, given.rounds)
    print(f"{'seconds (median)':<34}{'pybuild':>10}{'(cpu)':>10}{'buildah':>10}{'(cpu)':>10}")
    with tempfile.TemporaryDirectory(prefix="bench-") as text, builders(Path(text)) as found:
        for workload in WORKLOADS:
            if not given.names or workload.name in given.names:
                costs = measure(workload, found, Path(text), size=size, rounds=rounds)
                report(workload, costs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
