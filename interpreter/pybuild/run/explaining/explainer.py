"""Explains the misses of one build by the records of earlier ones, and records the build."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from pybuild.plan.steps import Plan
from pybuild.run.explaining.comparing import explain
from pybuild.run.explaining.describing import Describer
from pybuild.run.explaining.projects import Project
from pybuild.run.explaining.recorded import RecordedBuild
from pybuild.run.explaining.records import Records
from pybuild.run.miss import Cause, CauseKind, Miss
from pybuild.run.misses import StepNotes


class Explainer:
    """Compares one build with earlier ones. Not safe in threads."""

    def __init__(self, plan: Plan, project: Callable[[], Project]) -> None:
        self._plan = plan
        self._describer = Describer(plan)
        self._project = project()
        self._records = Records.of(self._project.folder, self._project.identity)
        self._earlier: Sequence[RecordedBuild] | None = None

    def explain(self, begun: Sequence[StepNotes], *, fresh: bool) -> Miss:
        """Why the last of the steps that a stage has `begun` missed."""
        if fresh:
            return Miss((Cause(CauseKind.NO_CACHE_FILTER),))
        if self._earlier is None:
            self._earlier = self._records.newest()
        return explain(self._describer.stage(begun[-1].stage, begun), self._earlier)

    def keep(self, begun: Mapping[int, Sequence[StepNotes]], began: datetime, outcome: str) -> None:
        """Record the steps of all stages, by their index."""
        stages = tuple(
            self._describer.stage(stage, begun.get(stage.index, ())) for stage in self._plan.stages
        )
        project = self._project
        self._records.add(RecordedBuild(began, outcome, project.target, project.platforms, stages))
