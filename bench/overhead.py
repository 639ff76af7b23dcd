"""What one more step costs: `RUN true` and a COPY of one file, on a base of 10,000 files.

Each workload is built with 1 and with N+1 such steps, in turn with the peers that are
installed; the difference divided by N is the cost of a step, without what a build costs
anyway. Medians of several rounds; the first round warms up. Needs root and containerd::

    .venv/bin/python bench/overhead.py [--tiny] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bases import serve
from builder import Build
from measuring import call
from peers.buildah import Buildah, buildah, has_buildah
from workfolder import work_folder

import pybuild
from pybuild.backends import open_backend
from pybuild.testkit.baseimages import LARGE_FILES, busybox_layout
from pybuild.testkit.containerd import private_containerd
from pybuild.testkit.registry import Registry


@dataclass(frozen=True)
class Workload:
    """One kind of step; ``target`` is the milliseconds that it may cost pybuild."""

    name: str
    step: Callable[[int], str]
    target: float | None

    def dockerfile(self, base: str, steps: int) -> str:
        lines = [f"FROM {base}", *(self.step(number) for number in range(steps))]
        return "\n".join(lines) + "\n"


WORKLOADS = (
    Workload("RUN true", lambda _: "RUN true", 200),
    Workload("RUN echo > file", lambda number: f"RUN echo {number} > /made-{number}", None),
    Workload("COPY of one file", lambda number: f"COPY file-{number} /copied-{number}", 60),
)
Builds = Callable[[Path, Path], object]
"""With a context and a Dockerfile, nothing taken from a cache."""
Results = dict[str, dict[str, list[float]]]


@contextmanager
def pybuild_on_containerd(cache: Path) -> Iterator[Builds]:
    """pybuild's API on a private containerd, connected once."""
    with private_containerd() as daemon:
        options = {"address": daemon.address, "cache_dir": cache}

        with open_backend("containerd", options) as backend:

            def build(context: Path, dockerfile: Path) -> None:
                text = dockerfile.read_bytes()
                pybuild.build(context, dockerfile=text, backend=backend, no_cache=True)

            yield build


def build_with(peer: Buildah, context: Path, dockerfile: Path) -> None:
    call(peer.command(Build(context, dockerfile, "made-by-bench", no_cache=True)))


def measure(
    builders: dict[str, Builds], folder: Path, base: str, *, steps: int, rounds: int
) -> Results:
    """Milliseconds a step by workload and builder, a value for each round but the first."""
    results: Results = {}
    dockerfiles = {number: folder / f"Dockerfile-{number}" for number in (1, steps + 1)}
    for workload in WORKLOADS:
        for number, path in dockerfiles.items():
            path.write_text(workload.dockerfile(base, number))
        for turn in range(rounds + 1):
            for name, build in builders.items():
                few, many = (seconds(build, folder / "context", d) for d in dockerfiles.values())
                if turn:
                    cost = (many - few) / steps * 1000
                    results.setdefault(workload.name, {}).setdefault(name, []).append(cost)
    return results


def seconds(build: Builds, context: Path, dockerfile: Path) -> float:
    start = time.perf_counter()
    build(context, dockerfile)
    return time.perf_counter() - start


def report(results: Results) -> bool:
    """Print medians; whether pybuild keeps its targets."""
    kept = True
    print(f"{'milliseconds a step (median)':<32}{'pybuild':>10}{'buildah':>10}{'target':>10}")
    for workload in WORKLOADS:
        medians = {name: statistics.median(c) for name, c in results[workload.name].items()}
        shown = [f"{medians[n]:.0f}" if n in medians else "-" for n in ("pybuild", "buildah")]
        target = "-" if workload.target is None else f"{workload.target:.0f}"
        print(f"{workload.name:<32}{shown[0]:>10}{shown[1]:>10}{target:>10}")
        kept = kept and (workload.target is None or medians["pybuild"] <= workload.target)
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a smoke test: few files and steps")
    parser.add_argument("--json", type=Path, help="write all single values to this file")
    parser.add_argument("--strict", action="store_true", help="fail if a target isn't kept")
    given = parser.parse_args()
    files, steps, rounds = (100, 2, 1) if given.tiny else (LARGE_FILES, 10, 7)
    with ExitStack() as stack:
        folder = stack.enter_context(work_folder())
        registry = stack.enter_context(Registry())
        serve(registry, busybox_layout(folder / "layout", extra_files=files))
        (folder / "context").mkdir()
        for number in range(steps + 1):
            (folder / "context" / f"file-{number}").write_text(f"{number}\n")
        builders = {"pybuild": stack.enter_context(pybuild_on_containerd(folder / "cache"))}
        if has_buildah():
            peer = stack.enter_context(buildah(folder / "buildah"))
            builders["buildah"] = partial(build_with, peer)
        base = f"{registry.address}/busybox:latest"
        results = measure(builders, folder, base, steps=steps, rounds=rounds)
    kept = report(results)
    if given.json:
        machine = {"cpus": os.cpu_count(), "load": os.getloadavg()}
        given.json.write_text(json.dumps({"machine": machine, "milliseconds": results}, indent=1))
    return 1 if given.strict and not kept else 0


if __name__ == "__main__":
    raise SystemExit(main())
