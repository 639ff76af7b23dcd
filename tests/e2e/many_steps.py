"""Builds a Dockerfile of a thousand steps on an embedded store, and tells what they cost.

A program, so that its memory is its own. Costs are seconds of CPU, of this process and all
below it: how long others keep the processors doesn't count.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import defaultdict
from pathlib import Path

from embedding import Stores
from pybuild import build
from pybuild.run.events import Event, StepStarted

STEPS = 1000
WINDOW = 20
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu() -> float:
    """Seconds that this process and its living and dead descendants took."""
    below: defaultdict[int, list[int]] = defaultdict(list)
    ticks: dict[int, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        below[int(fields[1])].append(int(process.name))
        ticks[int(process.name)] = sum(map(int, fields[11:15]))
    total, waiting = 0, below[os.getpid()]
    while waiting:
        process_id = waiting.pop()
        total += ticks[process_id]
        waiting += below[process_id]
    return time.process_time() + total / _TICKS


def peak() -> int:
    """The most memory that this process has had, in KiB; getrusage counts what started it too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


class Meter:
    """Takes the cost at every WINDOW-th step."""

    def __init__(self) -> None:
        self.costs: list[float] = []
        self._count = 0

    def report(self, event: Event) -> None:
        if isinstance(event, StepStarted) and event.title.startswith(("RUN", "COPY")):
            if self._count % WINDOW == 0:
                self.costs.append(cpu())
            self._count += 1


def main(folder: Path) -> None:
    context = folder / "context"
    context.mkdir()
    (context / "file").write_text("content")
    lines = ["FROM busybox"]
    for number in range(STEPS // 2):
        lines += [f"RUN echo {number} > /run-{number}", f"COPY file /copied-{number}"]
    stores, meter = Stores(folder), Meter()
    root = stores.new()
    with stores.opened(root) as backend:
        built = build(
            context,
            dockerfile="\n".join(lines).encode(),
            tags=["many:1"],
            backend=backend,
            reporter=meter,
        )
    assert len(built.steps) == STEPS
    with stores.opened(root) as backend:
        # all are there, on a base with more layers than can be mounted
        count = "RUN ls -d /run-* /copied-* | wc -l > /count && grep -qx 1000 /count\n"
        build(None, dockerfile=f"FROM many:1\n{count}".encode(), backend=backend)
    costs = [after - before for before, after in zip(meter.costs, meter.costs[1:], strict=False)]
    hundred = 100 // WINDOW
    found = {
        "first": min(costs[:hundred]) / WINDOW,
        "last": min(costs[-hundred:]) / WINDOW,
        "mebibytes": peak() // 1024,
        "mebibytes of others": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
