"""What one more step costs the embedded backend: as root, with a range of ids, with one id.

Each workload is built with 1 and with N+1 steps, nothing cached, on one open store; the
difference divided by N is the cost of a step, its process included. Medians of several
rounds; the first warms up. As root, all three ways are measured::

    .venv/bin/python bench/embedded.py [--tiny] [--strict] [--runner=crun|runc]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pybuild import Backend, build
from pybuild.backends import open_backend
from pybuild.oci.image_config import serialize_config
from pybuild.oci.layerwriter import write_layer
from pybuild.sandbox.runtimes import RUNTIMES
from pybuild.testkit.baseimages import LARGE_FILES, busybox_config, busybox_entries
from pybuild.testkit.registry import Registry

Medians = dict[str, float]
"""Milliseconds a step, by workload."""


@dataclass(frozen=True)
class Workload:
    """One kind of step on a base with this many files more; ``target`` is in milliseconds."""

    name: str
    extra_files: int
    step: Callable[[int], str]
    target: float | None


WORKLOADS = (
    Workload("RUN true", 0, lambda _: "RUN true", 25),
    Workload("RUN true, 10,000 files", LARGE_FILES, lambda _: "RUN true", 25),
    Workload("RUN echo > file", LARGE_FILES, lambda n: f"RUN echo {n} > /made-{n}", None),
    Workload("COPY of one file", LARGE_FILES, lambda n: f"COPY file-{n} /copied-{n}", None),
)


@contextmanager
def bases(workloads: tuple[Workload, ...]) -> Iterator[Registry]:
    """A registry with a busybox image ``base:N`` of each number of files."""
    with Registry() as registry:
        for files in {workload.extra_files for workload in workloads}:
            parts: list[bytes] = []
            layer = write_layer(busybox_entries(extra_files=files), parts.append).diff
            config = replace(busybox_config(), diff_ids=(layer.diff_id,))
            registry.add_image(f"base:{files}", serialize_config(config), [b"".join(parts)])
        yield registry


def seconds(backend: Backend, context: Path, base: str, steps: list[str]) -> float:
    text = "\n".join((f"FROM {base}", *steps, ""))
    start = time.perf_counter()
    build(context, dockerfile=text.encode(), backend=backend, no_cache=True)
    return time.perf_counter() - start


def measure(
    folder: Path, runner: str, *, steps: int, rounds: int, workloads: tuple[Workload, ...]
) -> Medians:
    """For the user who runs this."""
    context = folder / "context"
    context.mkdir()
    for number in range(steps + 1):
        (context / f"file-{number}").write_text(f"{number}\n")
    found = {}
    options = {"root": folder / "store", "runner": runner}
    with bases(workloads) as registry, open_backend("embedded", options) as backend:
        for workload in workloads:
            base = f"{registry.address}/base:{workload.extra_files}"
            lines = [workload.step(number) for number in range(steps + 1)]
            costs = []
            for _ in range(rounds + 1):
                few = seconds(backend, context, base, lines[:1])
                costs.append((seconds(backend, context, base, lines) - few) / steps * 1000)
            found[workload.name] = statistics.median(costs[1:])
    return found


def measure_others(folder: Path, further: list[str]) -> dict[str, Medians]:
    """For a user with a range of ids, and for one without."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    from sandboxing import run_python_as_user  # noqa: PLC0415 - found only now

    found = {}
    for kind in ("range", "single"):
        own = folder / kind
        own.mkdir()
        arguments = [__file__, "--json", *further]
        done = run_python_as_user(own, arguments, subordinate=kind == "range")
        if done.returncode:
            raise SystemExit(done.stderr)
        found[kind] = json.loads(done.stdout)
    return found


def report(results: dict[str, Medians], workloads: tuple[Workload, ...]) -> bool:
    """Print them; whether the targets are kept."""
    kept = True
    heads = "".join(f"{kind:>10}" for kind in results)
    print(f"{'milliseconds a step (median)':<32}{heads}{'target':>10}")
    for workload in workloads:
        costs = [medians[workload.name] for medians in results.values()]
        target = "-" if workload.target is None else f"{workload.target:.0f}"
        print(f"{workload.name:<32}{''.join(f'{cost:>10.1f}' for cost in costs)}{target:>10}")
        kept = kept and (workload.target is None or max(costs) <= workload.target)
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a smoke test: few steps, once")
    parser.add_argument("--strict", action="store_true", help="fail if a target isn't kept")
    parser.add_argument("--json", action="store_true", help="this user alone, as JSON")
    parser.add_argument(
        "--runner", default="sandbox", choices=("sandbox", *RUNTIMES), help="what starts processes"
    )
    given = parser.parse_args()
    steps, rounds = (2, 1) if given.tiny else (20, 7)
    with tempfile.TemporaryDirectory(prefix="bench-") as text:
        folder = Path(text)
        folder.chmod(0o711)
        mine = measure(folder, given.runner, steps=steps, rounds=rounds, workloads=WORKLOADS)
        if given.json:
            print(json.dumps(mine))
            return 0
        results = {"root" if os.geteuid() == 0 else "user": mine}
        if os.geteuid() == 0:
            further = ["--tiny"] if given.tiny else []
            results |= measure_others(folder, [*further, f"--runner={given.runner}"])
            # what belongs to other ids is root's to remove
            subprocess.run(["rm", "-rf", *folder.iterdir()], check=True)
    kept = report(results, WORKLOADS)
    return 1 if given.strict and not kept else 0


if __name__ == "__main__":
    raise SystemExit(main())
