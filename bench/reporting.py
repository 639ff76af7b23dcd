"""Results as Markdown tables: seconds, ratios beside their goals, memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from baselines import bridged
from results import Results, Series
from workloads import BUILDKIT, GROUPS, Workload

OURS = ("embedded", "embedded-user", "containerd")
WORKLOADS = tuple(workload for group in GROUPS for workload in group.workloads)

_RATIOS = """\
Ratios to the peer of each goal, and the goal; missed ones are bold. A `~` is before a peer that
isn't here: its time follows from that of those that are."""


@dataclass(frozen=True)
class Ratio:
    """Of pybuild's time to a peer's. ``bridged`` if that peer's time is a conclusion."""

    value: float
    goal: float
    peer: str
    bridged: bool

    @property
    def kept(self) -> bool:
        return self.value <= self.goal

    def __str__(self) -> str:
        mark = "" if self.kept else "**"
        about = "~" if self.bridged else ""
        return f"{mark}{self.value:.2f}{mark} ≤ {self.goal:.2f} {about}{self.peer}"


def ratio(workload: Workload, ours: str, row: Mapping[str, Series]) -> Ratio | None:
    """How `ours` does against the peer of its goal; None where there is no peer."""
    peers = {name: series.wall for name, series in row.items() if name not in OURS}
    if ours not in row or not peers:
        return None
    on_containerd = ours == "containerd"
    goal = workload.goal.containerd if on_containerd else workload.goal.embedded
    wanted = "buildkit-containerd" if on_containerd else "buildkit"
    guessed = bridged(workload.name, wanted, peers) if wanted not in peers else None
    known = peers if guessed is None else {**peers, wanted: guessed}
    if workload.goal.peer == BUILDKIT:
        peer = wanted if wanted in known else min(known, key=known.__getitem__)
    else:
        peer = min(known, key=known.__getitem__)
    return Ratio(row[ours].wall / known[peer], goal, peer, peer not in peers)


def missed(results: Results) -> list[str]:
    """The goals that weren't kept, a line for each."""
    found = []
    for workload, row in _rows(results):
        for ours in OURS:
            own = ratio(workload, ours, row)
            if own is not None and not own.kept:
                found.append(f"{workload.name} {ours}: {own}".replace("**", ""))
            if ours in row and row[ours].memory.program > workload.memory:
                found.append(
                    f"{workload.name} {ours}: {row[ours].memory.program:.0f} MiB"
                    f" ≤ {workload.memory}"
                )
    return found


def as_markdown(results: Results) -> str:
    """All tables, and what they are of."""
    return "\n\n".join(
        (
            "\n".join(f"- {name}: {text}" for name, text in results.about.items()),
            "Seconds, medians; the fastest is bold:",
            _table(("", *results.builders), _seconds(results)),
            _RATIOS,
            _table(("", *OURS), _ratios(results)),
            "Seconds of processor time, of the program with all below it + of its daemons:",
            _table(("", *results.builders), _processor(results)),
            "The most memory at once in MiB, of the program with all below it + of its daemons:",
            _table(("", *results.builders, "goal"), _memory(results)),
        )
    )


def line(workload: Workload, row: Mapping[str, Series]) -> str:
    """One workload's medians, for who waits."""
    costs = "  ".join(f"{name} {series.wall:.2f}" for name, series in row.items())
    return f"{workload.name:<6} {costs}"


def _rows(results: Results) -> Iterator[tuple[Workload, Mapping[str, Series]]]:
    for workload in WORKLOADS:
        if workload.name in results.found:
            yield workload, results.found[workload.name]


def _seconds(results: Results) -> Iterator[list[str]]:
    for workload, row in _rows(results):
        best = min(series.wall for series in row.values())
        cells = [f"{workload.name} {workload.title}"]
        for name in results.builders:
            cell = f"{row[name].wall:.2f}" if name in row else "-"
            cells.append(f"**{cell}**" if name in row and row[name].wall == best else cell)
        yield cells


def _ratios(results: Results) -> Iterator[list[str]]:
    for workload, row in _rows(results):
        yield [workload.name, *(str(ratio(workload, ours, row) or "-") for ours in OURS)]


def _processor(results: Results) -> Iterator[list[str]]:
    for workload, row in _rows(results):
        cells = [workload.name]
        for name in results.builders:
            if name not in row:
                cells.append("-")
                continue
            served = row[name].daemons_cpu
            more = "?" if served is None else f"{served:.2f}"
            cells.append(f"{row[name].cpu:.2f}" + (f" + {more}" if served != 0 else ""))
        yield cells


def _memory(results: Results) -> Iterator[list[str]]:
    for workload, row in _rows(results):
        cells = [workload.name]
        for name in results.builders:
            if name not in row:
                cells.append("-")
                continue
            memory = row[name].memory
            over = name in OURS and memory.program > workload.memory
            own = f"**{memory.program:.0f}**" if over else f"{memory.program:.0f}"
            cells.append(f"{own} + {memory.daemons:.0f}" if memory.daemons else own)
        yield [*cells, str(workload.memory)]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
