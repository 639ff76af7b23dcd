"""The benchmarks' statistics and reports."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
MODULES = (
    *("baselines", "contexts", "controlgroups", "measuring", "plotting"),
    *("reporting", "results", "workloads"),
)


class Bench:
    """The modules of bench/, which aren't a package."""

    def __init__(self) -> None:
        import baselines  # noqa: PLC0415 - found only now
        import measuring  # noqa: PLC0415
        import plotting  # noqa: PLC0415
        import reporting  # noqa: PLC0415
        import results  # noqa: PLC0415

        self.baselines, self.measuring = baselines, measuring
        self.plotting, self.reporting, self.results = plotting, reporting, results

    def series(self, *walls: float, program: float = 20, daemons: float | None = 0.5) -> Any:
        costs = tuple(self.measuring.Cost(wall, wall / 2, daemons) for wall in walls)
        return self.results.Series(costs, self.measuring.Memory(program, 5))

    def found(self, **found: dict[str, Any]) -> Any:
        return self.results.Results({"machine": "a test's"}, found)

    def workload(self, name: str) -> Any:
        return next(one for one in self.reporting.WORKLOADS if one.name == name)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.syspath_prepend(str(BENCH))
    yield Bench()
    for name in MODULES:
        sys.modules.pop(name)


def test_a_series_is_told_by_its_median(bench: Bench) -> None:
    assert bench.series(9, 1, 2).wall == 2
    assert bench.series(4, 1, 2, 3).wall == 2.5
    assert bench.series(9, 1, 2).cpu == 1
    assert bench.series(9, 1, 2).daemons_cpu == 0.5
    assert bench.series(9, 1, 2, daemons=None).daemons_cpu is None


def test_results_survive_their_json(bench: Bench) -> None:
    results = bench.found(W1={"embedded": bench.series(1, 2), "buildah": bench.series(3)})
    assert bench.results.from_json(bench.results.as_json(results)) == results
    assert results.builders == ["embedded", "buildah"]


def test_a_goal_of_the_fastest_peer_is_taken_of_the_fastest(bench: Bench) -> None:
    row = {
        "embedded": bench.series(1),
        "embedded-user": bench.series(0.5),
        "buildkit": bench.series(10),
        "buildah": bench.series(8),
    }
    ratio = bench.reporting.ratio(bench.workload("W4"), "embedded", row)
    assert (ratio.value, ratio.goal, ratio.peer, ratio.bridged) == (1 / 8, 0.5, "buildah", False)
    assert ratio.kept


def test_a_missing_buildkit_is_concluded_from_the_peer_that_is_most_like_it(bench: Bench) -> None:
    row = {
        "embedded": bench.series(1),
        "containerd": bench.series(2),
        "docker-buildkit": bench.series(1.63 * 2),
        "buildah": bench.series(100),
    }
    embedded = bench.reporting.ratio(bench.workload("W1"), "embedded", row)
    assert embedded.value == pytest.approx(1 / (2.09 * 2))
    assert (embedded.peer, embedded.bridged, embedded.kept) == ("buildkit", True, False)
    containerd = bench.reporting.ratio(bench.workload("W1"), "containerd", row)
    assert containerd.value == pytest.approx(2 / (4.26 * 2))
    assert str(containerd) == "0.23 ≤ 0.45 ~buildkit-containerd"


def test_there_is_no_ratio_without_a_peer_or_without_us(bench: Bench) -> None:
    workload = bench.workload("W1")
    assert bench.reporting.ratio(workload, "embedded", {"embedded": bench.series(1)}) is None
    assert bench.reporting.ratio(workload, "embedded", {"buildah": bench.series(1)}) is None


def test_missed_goals_are_told_one_by_one(bench: Bench) -> None:
    row = {"embedded": bench.series(5, program=300), "buildkit": bench.series(10)}
    assert bench.reporting.missed(bench.found(W1=row, W7={"embedded": bench.series(1)})) == [
        "W1 embedded: 0.50 ≤ 0.20 buildkit",
        "W1 embedded: 300 MiB ≤ 150",
    ]


def test_tables_have_a_cell_for_each_builder_and_a_dash_for_what_it_did_not_build(
    bench: Bench,
) -> None:
    results = bench.found(
        W1={"embedded": bench.series(1, daemons=0), "kaniko": bench.series(2, daemons=None)},
        **{"W6-W1": {"embedded": bench.series(0.25)}},
    )
    lines = bench.reporting.as_markdown(results).splitlines()
    assert "- machine: a test's" in lines
    assert "|  | embedded | kaniko |" in lines
    assert "| W1 20 x RUN | **1.00** | 2.00 |" in lines
    assert "| W6-W1 W1 again, nothing new | **0.25** | - |" in lines
    assert "| W1 | 0.50 | 1.00 + ? |" in lines
    assert "| W6-W1 | 0.12 + 0.50 | - |" in lines
    assert "| W1 | 20 + 5 | 20 + 5 | 150 |" in lines


def test_the_picture_has_a_bar_for_each_series_and_no_name_breaks_it(bench: Bench) -> None:
    row = {"embedded": bench.series(1), "a<b&c": bench.series(4)}
    root = ET.fromstring(bench.plotting.as_svg(bench.found(W1=row, W4=row)))  # noqa: S314 - ours
    bars = [element for element in root.iter() if element.tag.endswith("rect")]
    assert len(bars) == 4
    assert float(bars[1].attrib["width"]) == pytest.approx(4 * float(bars[0].attrib["width"]), 0.01)
    assert "a<b&c" in [element.text for element in root.iter()]
    assert int(root.attrib["height"]) >= max(float(bar.attrib["y"]) for bar in bars) + 12


def test_every_workload_has_a_baseline_to_bridge_from(bench: Bench) -> None:
    for workload in bench.reporting.WORKLOADS:
        for wanted in ("buildkit", "buildkit-containerd"):
            assert bench.baselines.bridged(workload.name, wanted, {"buildah": 1.0})
    assert bench.baselines.bridged("W1", "buildkit", {"kaniko": 1.0}) is None
