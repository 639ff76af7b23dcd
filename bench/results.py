"""What a run found, and its JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from measuring import Cost, Memory


@dataclass(frozen=True)
class Series:
    """One builder on one workload: a cost for each round, and the memory of one more."""

    costs: tuple[Cost, ...]
    memory: Memory

    @property
    def wall(self) -> float:
        """The median of the seconds."""
        return statistics.median(cost.wall for cost in self.costs)

    @property
    def cpu(self) -> float:
        """The median of the processor's seconds, without daemons."""
        return statistics.median(cost.cpu for cost in self.costs)

    @property
    def daemons_cpu(self) -> float | None:
        """The same of daemons; None if it isn't known."""
        known = [cost.daemons for cost in self.costs if cost.daemons is not None]
        return statistics.median(known) if known else None


Found = Mapping[str, Mapping[str, Series]]
"""By the workload's name, by the builder's."""


@dataclass(frozen=True)
class Results:
    """``about`` says when, where and of which versions."""

    about: Mapping[str, str]
    found: Found

    @property
    def builders(self) -> list[str]:
        """Those that built anything, in order."""
        return list(dict.fromkeys(name for row in self.found.values() for name in row))


def as_json(results: Results) -> str:
    found = {
        workload: {name: asdict(series) for name, series in row.items()}
        for workload, row in results.found.items()
    }
    return json.dumps({"about": dict(results.about), "found": found}, indent=1) + "\n"


def from_json(text: str) -> Results:
    """The reverse of `as_json`."""
    read = json.loads(text)
    found = {
        workload: {
            name: Series(
                tuple(Cost(**cost) for cost in series["costs"]), Memory(**series["memory"])
            )
            for name, series in row.items()
        }
        for workload, row in read["found"].items()
    }
    return Results(read["about"], found)
