"""Builds the same images with pybuild and with every peer that is installed, in turn.

Each workload is built in several rounds, in which the builders take turns, in each in another
order; a first round warms up and is watched for memory instead of being timed. Needs root,
containerd, runc, busybox-static, and debootstrap::

    .venv/bin/python bench/suite.py [--tiny] [--rounds N] [--builders NAMES] [WORKLOAD ...]
    .venv/bin/python bench/suite.py --publish       # into bench/README.md and beside it
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random
from typing import NoReturn

from bases import served_bases
from builder import Build, Builder
from builders import Given, opened, versions
from contexts import change_one_file
from controlgroups import ControlGroup, own_group
from measuring import TRUSTED_AFTER, Cost, Memory, call, timed, watched
from plotting import as_svg
from reporting import WORKLOADS, as_markdown, line, missed
from results import Results, Series, as_json, from_json
from workfolder import remove, work_folder
from workloads import GROUPS, Base, Group, Start, Workload

_HERE = Path(__file__).resolve().parent
_BEGIN, _END = "<!-- result: made by suite.py --publish -->\n", "<!-- end of result -->\n"
_TINY = 0.02
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Plan:
    """How much is built: the rounds that are timed, the size of all, the workloads.

    Without a round, the one that watches memory is timed too, for what that is worth.
    """

    rounds: int
    size: float
    names: Sequence[str]

    def of(self, group: Group) -> tuple[Workload, ...]:
        wanted = self.names or [workload.name for workload in WORKLOADS]
        return tuple(workload for workload in group.workloads if workload.name in wanted)


@dataclass(frozen=True)
class Bench:
    """Where it happens: `group` is that of this process. ``built`` tells who built what before."""

    plan: Plan
    folder: Path
    bases: Mapping[Base, str]
    builders: Sequence[Builder]
    group: ControlGroup
    built: set[tuple[str, str]] = field(default_factory=set)

    def run(self) -> Iterator[tuple[Workload, dict[str, Series]]]:
        """Each workload as it is finished."""
        for group in GROUPS:
            workloads = self.plan.of(group)
            if not workloads:
                continue
            context = self.folder / "context"
            context.mkdir()
            group.context(context, self.plan.size)
            for workload in workloads:
                yield workload, self._measure(workload, context)
            for builder in self.builders:
                builder.empty()
            self.built.clear()
            remove(context)

    def _measure(self, workload: Workload, context: Path) -> dict[str, Series]:
        text = workload.dockerfile(self.bases[workload.base], self.plan.size)
        dockerfile = self._dockerfile(workload.name, text)
        again = workload.start in {Start.BUILT, Start.ONE_FILE_CHANGED}
        found = [builder for builder in self.builders if builder.keeps_steps or not again]
        tag = workload.name.lower()
        builds = {
            builder.name: Build(context, dockerfile, f"made-by-{builder.name}:{tag}", not again)
            for builder in found
        }
        for builder in found:
            if workload.start is Start.BASE:
                self._warm(builder, workload.base)
            elif again:
                self._build_once(builder, builds[builder.name])
        if again and self.plan.rounds:
            time.sleep(TRUSTED_AFTER)
        memories: dict[str, Memory] = {}
        costs: dict[str, list[Cost]] = {builder.name: [] for builder in found}
        for turn in range(self.plan.rounds + 1):
            if workload.start is Start.ONE_FILE_CHANGED:
                change_one_file(context, turn)
            # whoever comes after another has what that leaves: daemons at work, memory to be found
            for builder in Random(turn).sample(found, len(found)):  # noqa: S311 - no secret
                if workload.start is Start.NOTHING:
                    builder.empty()
                    self.built.clear()
                    self._warm(builder, Base.BUSYBOX)
                command = builder.command(builds[builder.name])
                if turn == 0:
                    cost, memory = watched(command, builder.daemons, self.group)
                    memories[builder.name] = memory
                else:
                    cost = timed(command, builder.daemons)
                if turn or not self.plan.rounds:
                    costs[builder.name].append(cost)
                if not again:
                    builder.forget(builds[builder.name].tag)
        return {name: Series(tuple(costs[name]), memories[name]) for name in builds}

    def _warm(self, builder: Builder, base: Base) -> None:
        """Have it pull a base, unpack it, and run something on it."""
        dockerfile = self._dockerfile("warm", f"FROM {self.bases[base]}\nRUN echo warm\n")
        context = self.folder / "empty"
        context.mkdir(exist_ok=True)
        self._build_once(builder, Build(context, dockerfile, f"warmed-{builder.name}:{base.value}"))

    def _build_once(self, builder: Builder, build: Build) -> None:
        """Build, with the builder's cache, what it hasn't built since it was emptied."""
        key = builder.name, build.dockerfile.read_text()
        if key not in self.built:
            call(builder.command(build))
            self.built.add(key)

    def _dockerfile(self, name: str, text: str) -> Path:
        place = self.folder / f"dockerfile-{name}"
        place.mkdir(exist_ok=True)
        (place / "Dockerfile").write_text(text)
        return place / "Dockerfile"


def run(plan: Plan, given: Given, keep: Callable[[Results], object], *, tiny: bool) -> Results:
    """Everything from nothing, and nothing is left. `keep` gets what there is so far."""
    results = Results(_about(plan), {})
    with (
        work_folder() as folder,
        own_group() as group,
        served_bases(folder, tiny=tiny) as bases,
        opened(folder, group, given) as builders,
    ):
        place = folder / "bench"
        place.mkdir()
        place.chmod(0o755)
        for workload, row in Bench(plan, place, bases, builders, group).run():
            results = replace(results, found={**results.found, workload.name: row})
            keep(results)
            print(line(workload, row), flush=True)
    load = f"{results.about['load']}, {os.getloadavg()[2]:.1f} in the end"
    return replace(results, about={**results.about, "load": load})


def _about(plan: Plan) -> dict[str, str]:
    revision = ["git", "-C", str(_HERE), "describe", "--always", "--dirty", "--exclude=*"]
    said = subprocess.run(revision, check=False, capture_output=True, text=True).stdout.strip()
    return {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "pybuild": said or "unknown revision",
        "machine": f"{os.cpu_count()} processors, {platform.machine()}, Linux {platform.release()},"
        f" Python {platform.python_version()}",
        "stores": f"on {_file_system()}",
        "load": f"averages of 15 minutes: {os.getloadavg()[2]:.1f} before",
        "rounds": str(plan.rounds),
        **versions(),
    }


def _file_system() -> str:
    """The kind of that which all builders' stores are on."""
    asked = ["stat", "-f", "-c", "%T", tempfile.gettempdir()]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


def publish(results: Results) -> None:
    """Write the JSON and the picture beside this file, and the tables into README.md."""
    (_HERE / "result.json").write_text(as_json(results))
    (_HERE / "result.svg").write_text(as_svg(results))
    readme = _HERE / "README.md"
    before, _, rest = readme.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    tables = f"\n{as_markdown(results)}\n\n![the same as bars](result.svg)\n\n"
    readme.write_text(f"{before}{_BEGIN}{tables}{_END}{after}")


def _keep(file: Path | None, results: Results) -> None:
    if file:
        file.write_text(as_json(results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = ", ".join(workload.name for workload in WORKLOADS)
    parser.add_argument("names", nargs="*", metavar="WORKLOAD", help=f"of {names}")
    parser.add_argument("--tiny", action="store_true", help="a smoke test: a fiftieth, once")
    parser.add_argument("--rounds", type=int, default=5, help="how many are timed (5)")
    parser.add_argument("--builders", default="", help="these alone, with commas between")
    parser.add_argument(
        "--buildkitd", metavar="ADDRESS", help="a buildkitd to measure; it is emptied"
    )
    parser.add_argument("--kaniko", metavar="PATH", type=Path, help="kaniko's executor")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all single values there")
    parser.add_argument("--svg", metavar="FILE", type=Path, help="draw the medians there")
    parser.add_argument("--publish", action="store_true", help="write the result into README.md")
    parser.add_argument("--strict", action="store_true", help="fail if a goal is missed")
    parser.add_argument(
        "--shown", metavar="FILE", type=Path, help="measure nothing, show this JSON"
    )
    given = parser.parse_args()
    unknown = set(given.names) - {workload.name for workload in WORKLOADS}
    if unknown:
        parser.error(f"there is no workload {', '.join(sorted(unknown))}; there are {names}")
    if given.rounds < 1:
        parser.error("at least one round is needed")
    return given


def _stop(number: int, frame: object) -> NoReturn:
    """End in order, which takes its time and isn't to be stopped again."""
    del number, frame
    for other in _STOPPING:
        signal.signal(other, signal.SIG_IGN)
    sys.exit("stopped; removing what was made")


def main() -> int:
    given = _arguments()
    for number in _STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, _stop)
    plan = Plan(given.rounds, 1, given.names)
    if given.tiny:
        plan = replace(plan, rounds=0, size=_TINY)
    if given.shown:
        results = from_json(given.shown.read_text())
    else:
        only = tuple(filter(None, given.builders.split(",")))
        peers = Given(given.buildkitd, given.kaniko, only)
        results = run(plan, peers, partial(_keep, given.json), tiny=given.tiny)
    _keep(given.json, results)
    if not given.tiny:  # the ratios of small builds mean nothing
        print(as_markdown(results))
    if given.svg:
        given.svg.write_text(as_svg(results))
    if given.publish:
        publish(results)
    if given.strict and not given.tiny:
        for text in missed(results):
            print(f"missed: {text}")
        return 1 if missed(results) else 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
