"""What went into the key of each step, noted while a build runs; when one misses, why it did.

What explains is loaded, and earlier builds are read, for the first step that misses.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from pybuild.errors import BuildCancelled, CacheMissed, PybuildError
from pybuild.oci.layerindex import Entry
from pybuild.plan.steps import Plan, PlannedStage, Step
from pybuild.run.activity import StepActivity
from pybuild.values import dataclass

if TYPE_CHECKING:
    from pybuild.run.explaining.explainer import Explainer
    from pybuild.run.explaining.projects import Project
    from pybuild.run.miss import Miss

_MOST_FILES = 500_000  # which a step may make a build remember to its end

KeyFiles = Mapping[str, tuple[Sequence[Entry], Sequence[bytes | None]]]
"""Files that a key counts by mount target, those of COPY and ADD under an empty one, each with
the path that it was copied from.
"""


def remembered(files: KeyFiles) -> Callable[[], KeyFiles]:
    """Gives `files` again; none of them if they are more than a build should keep in mind."""
    few = sum(len(entries) for entries, _ in files.values()) <= _MOST_FILES
    return (lambda: files) if few else dict


State = Literal["cached", "made", "empty", "failed", "cancelled", "refused"]
"""The values of :class:`~pybuild.run.explaining.recorded.StepState`."""


@dataclass(slots=True)
class StepNotes:
    """What is known of one step. ``key`` is empty where no results are kept."""

    stage: PlannedStage
    step: Step
    parent_key: str
    state: State = "failed"
    key: str = ""
    miss: Miss | None = None
    _files: Callable[[], KeyFiles] = dict

    def keyed(self, key: str, files: Callable[[], KeyFiles]) -> None:
        """The content key is known, and how to find out what files it counts."""
        self.key = key
        self._files = files

    def files(self) -> KeyFiles:
        """The files that the key counts; none where they can't be told any more, or are too many."""
        with suppress(PybuildError):
            return remembered(self._files())()
        return {}

    def done(self, *, cached: bool, empty: bool) -> None:
        """The step went well, here or in another stage that has it as well."""
        self.state = "cached" if cached else "empty" if empty else "made"


class Misses:
    """Notes the steps of one build, from the scheduler's threads; a context manager around them.

    When it ends, whatever became of the build, what was noted is kept if a step missed.
    """

    def __init__(
        self,
        plan: Plan,
        project: Callable[[], Project],
        began: datetime,
        refused: Collection[int] = (),
    ) -> None:
        """`refused` are the indexes of the stages in which no step may miss."""
        self._plan = plan
        self._project = project
        self._began = began
        self._refused = refused
        self._lock = threading.Lock()
        self._begun: dict[int, list[StepNotes]] = {}
        self._explainer: Explainer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._explainer is not None:
            cancelled = isinstance(error, BuildCancelled | KeyboardInterrupt)
            outcome = "cancelled" if cancelled else "failed" if error else "succeeded"
            self._explainer.keep(self._begun, self._began, outcome)

    @contextmanager
    def step(self, stage: PlannedStage, step: Step, parent_key: str) -> Iterator[StepNotes]:
        """Note a step of `stage` on what got the key `parent_key`, until it ends."""
        notes = StepNotes(stage, step, parent_key)
        with self._lock:
            self._begun.setdefault(stage.index, []).append(notes)
        try:
            yield notes
        except BuildCancelled:
            notes.state = "cancelled"
            raise
        except CacheMissed:
            notes.state = "refused"
            raise

    def may_miss(self, stage: PlannedStage) -> bool:
        """Whether steps of `stage` that aren't in the cache are done."""
        return stage.index not in self._refused

    def missed(self, notes: StepNotes, activity: StepActivity, *, fresh: bool) -> None:
        """Find out why the step has to run, and tell it if it is its stage's first.

        A `fresh` one wasn't sought. Raises CacheMissed where it must not miss.
        """
        begun = self._begun[notes.stage.index]
        with self._lock:
            if self._explainer is None:
                from pybuild.run.explaining.explainer import Explainer  # noqa: PLC0415  (nothing missed so far)

                self._explainer = Explainer(self._plan, self._project)
            notes.miss = miss = self._explainer.explain(begun, fresh=fresh)
        if any(each.miss is not None for each in begun[:-1]):
            return
        activity.missed(miss)
        if not self.may_miss(notes.stage):
            raise CacheMissed(
                f"the step is not in the cache: {miss}",
                miss=miss,
                where=notes.step.where,
                hint="--fail-on-miss lets no step run; pybuild explain shows all that differs",
            )
