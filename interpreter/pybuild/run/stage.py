"""Runs whole stages: the FROM, each step on the layer before it, the history that results."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pybuild.backend import Backend, BaseImage, ROLayer
from pybuild.errors import located
from pybuild.oci.image_config import HistoryEntry, ImageConfig
from pybuild.plan.steps import (
    ContextSource,
    ImageSource,
    Plan,
    PlannedStage,
    RunStep,
    Source,
    StageSource,
    Step,
)
from pybuild.remotes.locations import GitLocation, Location, WebLocation
from pybuild.run.activity import CancelToken, Events, StepActivity
from pybuild.run.commonsteps import CommonSteps, StepIdentity, StepOutcome, step_identities
from pybuild.run.elsewhere import KeptStep
from pybuild.run.execute import OpenSource, SourceFiles
from pybuild.run.layers import BaseImages, SharedLayer, release_all, releasing
from pybuild.run.misses import Misses, StepNotes
from pybuild.run.onestep import OneStep
from pybuild.run.result import StepResult
from pybuild.run.schedule import stages_needed
from pybuild.run.stagesettings import StageSettings
from pybuild.values import dataclass, replace

if TYPE_CHECKING:
    from pybuild.run.miss import Miss


@dataclass(frozen=True, slots=True)
class FinishedStage:
    """What a stage left. ``history`` includes that of what it started from."""

    layer: SharedLayer
    key: str
    history: tuple[HistoryEntry, ...]
    steps: tuple[StepResult, ...]
    kept: tuple[KeptStep, ...] = ()


@dataclass(frozen=True, slots=True)
class _Done:
    """One step that went well. ``cached`` says that this stage hadn't to do it."""

    step: Step
    outcome: StepOutcome
    seconds: float
    cached: bool
    miss: Miss | None


class StageRunner:
    """Runs the stages of one plan, from the scheduler's threads."""

    def __init__(
        self,
        plan: Plan,
        backend: Backend,
        events: Events,
        stop: CancelToken,
        settings: StageSettings,
        *,
        misses: Misses,
    ) -> None:
        """`misses` takes note of all steps."""
        self._plan = plan
        self._backend = backend
        self._events = events
        self._stop = stop
        self._settings = settings
        self._misses = misses
        self._images = BaseImages(backend)
        self._steps = CommonSteps(plan)
        # what one of its stages wants to be done again is done again for all
        self._fresh = {
            identity
            for stage in plan.stages
            if (stage.name or "").lower() in settings.fresh_stages
            for identity in step_identities(stage)
        }
        self._finished: dict[int, FinishedStage] = {}
        self._lock = threading.Lock()
        # How many stages still need each; the images themselves need the targets.
        self._needed = Counter(target.stage.index for target in plan.targets)
        for stage in plan.stages:
            self._needed.update(stages_needed(stage))

    def finished(self, index: int) -> FinishedStage:
        """What the stage at `index` left, as long as something needs it."""
        return self._finished[index]

    def step_results(self) -> tuple[StepResult, ...]:
        """All steps, in the plan's order."""
        stages = [self._finished[stage.index] for stage in self._plan.stages]
        return tuple(result for stage in stages for result in stage.steps)

    def release(self) -> None:
        """Let go of every layer that is still held."""
        with self._lock:
            held = [
                stage.layer.release
                for index, stage in self._finished.items()
                if self._needed[index] > 0
            ]
            self._needed.clear()
        release_all([self._images.release, self._steps.release, *held])

    def run(self, stage: PlannedStage) -> None:
        """Run one stage whose needed stages are finished."""
        base = self._start(stage)
        made: list[SharedLayer] = [base]
        with releasing(lambda: release_all([layer.release for layer in made]), self._events.warn):
            current, key, done = base, self._start_key(stage), list[_Done]()
            steps = zip(stage.steps, step_identities(stage), strict=True)
            for position, (step, identity) in enumerate(steps, start=1 + _from_units(stage)):
                done.append(
                    self._run_step(stage, step, position, current.layer, key, identity=identity)
                )
                outcome = done[-1].outcome
                key = outcome.key.text
                if outcome.layer is not None:
                    current = outcome.layer
                    made.append(current)
            self._finish(stage, current.share(), key, done)

    def _finish(
        self, stage: PlannedStage, top: SharedLayer, key: str, done: Sequence[_Done]
    ) -> None:
        try:
            diffs = []
            for each in done:
                # Commits go on in the background; their errors come out here.
                with located(each.step.where):
                    made = each.outcome.layer
                    diff = made.layer.diff if made is not None else None
                    diffs.append(diff.diff_id if diff is not None else None)
            results = tuple(
                StepResult(
                    stage=stage.label,
                    title=each.step.title,
                    where=each.step.where,
                    seconds=each.seconds,
                    cached=each.cached,
                    diff_id=diff,
                    miss=each.miss,
                )
                for each, diff in zip(done, diffs, strict=True)
            )
            history = self._history(stage, [(x, y) for x, y in zip(done, diffs, strict=True)])
            kept = self._kept(stage, done) if self._settings.keeps_steps else ()
        except BaseException:
            top.release()
            raise
        with self._lock:
            self._finished[stage.index] = FinishedStage(top, key, history, results, kept)
            unneeded = []
            for index in stages_needed(stage):
                self._needed[index] -= 1
                if self._needed[index] == 0:
                    unneeded.append(self._finished[index].layer.release)
        with releasing(lambda: release_all(unneeded), self._events.warn):
            pass

    def _start(self, stage: PlannedStage) -> SharedLayer:
        if isinstance(stage.parent, StageSource):
            return self._finished[stage.parent.index].layer.share()
        image = stage.parent.image
        if image is None:
            with located(stage.where):
                return self._images.checkout(None, self._events.silent(self._stop))
        with self._events.unit(
            f"FROM {_pinned(image)}",
            self._stop,
            stage=shown_name(self._plan, stage),
            position=_position(stage, 1),
            where=stage.where,
        ) as activity:
            return self._images.checkout(image, activity)

    def _start_key(self, stage: PlannedStage) -> str:
        if isinstance(stage.parent, StageSource):
            return self._finished[stage.parent.index].key
        return ""

    def _run_step(
        self,
        stage: PlannedStage,
        step: Step,
        position: int,
        layer: ROLayer,
        parent_key: str,
        *,
        identity: StepIdentity,
    ) -> _Done:
        with (
            self._events.unit(
                step.title,
                self._stop,
                stage=shown_name(self._plan, stage),
                position=_position(stage, position),
                where=step.where,
            ) as activity,
            self._misses.step(stage, step, parent_key) as notes,
        ):
            activity.raise_if_cancelled()
            fresh = identity in self._fresh
            outcome, is_own = self._steps.once(
                identity, lambda: self._do_step(layer, activity, notes, fresh=fresh)
            )
            notes.keyed(outcome.key.text, outcome.key.files)
            notes.done(cached=outcome.cached, empty=outcome.layer is None)
            activity.cached = outcome.cached or not is_own
            return _Done(step, outcome, activity.seconds, activity.cached, notes.miss)

    def _do_step(
        self, layer: ROLayer, activity: StepActivity, notes: StepNotes, *, fresh: bool
    ) -> StepOutcome:
        images: list[SharedLayer] = []
        step = OneStep(
            plan=self._plan,
            backend=self._backend,
            settings=self._settings,
            misses=self._misses,
            notes=notes,
            layer=layer,
            activity=activity,
            open_source=self._opener(notes.step, activity, images),
            fresh=fresh,
        )
        with (
            releasing(lambda: release_all([x.release for x in images]), self._events.warn),
            self._settings.on_failure.watching(notes.step.title, layer, activity),
        ):
            return step.outcome()

    def _opener(self, step: Step, activity: StepActivity, images: list[SharedLayer]) -> OpenSource:
        def open_source(source: Source | Location) -> SourceFiles:
            match source:
                case WebLocation() | GitLocation():
                    return SourceFiles(self._settings.remotes.tree(source, activity))
                case ContextSource(name):
                    return SourceFiles(self._settings.contexts[name])
                case StageSource(index):
                    layer = self._finished[index].layer.layer
                    return SourceFiles(layer.tree(), layer)
                case ImageSource(image):
                    mounts = isinstance(step, RunStep)
                    shared = self._images.checkout(image, activity, runs=mounts)
                    images.append(shared)
                    return SourceFiles(shared.layer.tree(), shared.layer)

        return open_source

    def _kept(self, stage: PlannedStage, done: Sequence[_Done]) -> tuple[KeptStep, ...]:
        """The steps that have a key and a layer, their own or that of the step below."""
        image = self._plan.base_image(stage)
        base = len(image.layers) if image is not None else 0
        return tuple(
            KeptStep(
                each.outcome.key.text,
                each.outcome.layer.layer.diffs,
                base,
                each.outcome.layer.layer.diff is not None,
                each.outcome.ended,
            )
            for each in done
            if each.outcome.layer is not None and each.outcome.key.text
        )

    def _history(
        self, stage: PlannedStage, done: Sequence[tuple[_Done, str | None]]
    ) -> tuple[HistoryEntry, ...]:
        """The history of a finished stage, that of its base first.

        As in BuildKit, a line that made no layer has the time of the layer before it, the first
        lines that of the first layer; without any it is as old as the base, so that the same
        build gives the same image.
        """
        if isinstance(stage.parent, StageSource):
            inherited = self._finished[stage.parent.index].history
        elif stage.parent.image is not None:
            inherited = base_history(stage.inherited, len(stage.parent.image.layers))
        else:
            inherited = stage.inherited
        times = [one.outcome.ended for one, _ in done if one.outcome.layer is not None]
        base_times = (line.created for line in reversed(inherited) if line.created)
        now = rfc3339(times[0]) if times else next(base_times, None)
        fixed = rfc3339(self._settings.created) if self._settings.created else None
        own = []
        for planned in stage.history:
            empty = True
            if planned.step is not None:
                one, diff = done[planned.step]
                empty = diff is None
                if one.outcome.layer is not None:
                    now = rfc3339(one.outcome.ended)
            own.append(
                HistoryEntry(
                    created_by=planned.created_by,
                    empty_layer=empty,
                    comment=planned.comment,
                    created=fixed or now,
                )
            )
        return (*inherited, *own)


def final_config(
    stage: PlannedStage, finished: FinishedStage, created: datetime | None
) -> ImageConfig:
    """The config of the image made from `stage`, complete with rootfs, history and time.

    `created` None is the time of the last line of its history that has one, if any does.
    """
    times = (line.created for line in reversed(finished.history) if line.created)
    return replace(
        stage.config,
        created=rfc3339(created) if created else next(times, None),
        history=finished.history,
        diff_ids=tuple(diff.diff_id for diff in finished.layer.layer.diffs),
    )


def base_history(history: tuple[HistoryEntry, ...], layers: int) -> tuple[HistoryEntry, ...]:
    """`history` of an image with this many layers, made to agree with them.

    Images exist whose history lacks lines or claims too many layers; BuildKit mends them so.
    """
    left = layers
    mended = []
    for entry in history:
        if not entry.empty_layer and left == 0:
            mended.append(replace(entry, empty_layer=True))
            continue
        left -= 0 if entry.empty_layer else 1
        mended.append(entry)
    return (*mended, *(HistoryEntry(comment="from the base image") for _ in range(left)))


def rfc3339(time: datetime) -> str:
    """`time` as Go writes it: UTC, no trailing zeros in the fraction."""
    text = time.astimezone(UTC).replace(tzinfo=None).isoformat()
    if "." in text:
        text = text.rstrip("0")
    return f"{text}Z"


def shown_name(plan: Plan, stage: PlannedStage) -> str:
    """The stage's name in progress; empty where there is no other to tell it from."""
    return "" if len(plan.stages) == 1 and stage.name is None else stage.label


def _from_units(stage: PlannedStage) -> int:
    """1 if the FROM counts among the stage's steps, as it does in BuildKit for an image."""
    return 1 if isinstance(stage.parent, ImageSource) and stage.parent.image is not None else 0


def _position(stage: PlannedStage, position: int) -> str:
    total = str(len(stage.steps) + _from_units(stage))
    return f"{position:>{len(total)}}/{total}"


def _pinned(image: BaseImage) -> str:
    name = str(image.reference)
    return name if image.reference.digest else f"{name}@{image.digest}"
