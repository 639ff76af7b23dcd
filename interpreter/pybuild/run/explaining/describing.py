"""Turns what a running build noted of its steps into what is recorded and compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256

from pybuild.oci.platform import Platform
from pybuild.oci.reference import familiar
from pybuild.plan.cachekey import base_key
from pybuild.plan.keyinputs import KeyInput, step_inputs
from pybuild.plan.steps import (
    ContextSource,
    CopyStep,
    ImageSource,
    Plan,
    PlannedBind,
    PlannedCache,
    PlannedStage,
    RunStep,
    Source,
    StageSource,
    Step,
)
from pybuild.run.explaining.filerows import FileRows, rows_of
from pybuild.run.explaining.recorded import (
    Base,
    ReadFiles,
    RecordedStage,
    RecordedStep,
    StepState,
    Variable,
)
from pybuild.run.miss import CauseKind
from pybuild.run.misses import StepNotes
from pybuild.values import replace

LONGEST_TEXT = 400
"""Characters of a value or title that are kept; of the rest a hash."""

_LOGIN = re.compile(r"//[^/@\s]*@")


class Describer:
    """Describes the stages of one plan, each step of them but once."""

    def __init__(self, plan: Plan) -> None:
        self._stages = {stage.index: stage for stage in plan.stages}
        self._described: dict[int, RecordedStage] = {}
        self._steps: dict[int, RecordedStep] = {}

    def stage(self, stage: PlannedStage, begun: Sequence[StepNotes]) -> RecordedStage:
        """The stage with the steps `begun`, the first of its steps."""
        described = self._described.get(stage.index)
        if described is None:
            described = self._described[stage.index] = self._without_steps(stage)
        return replace(
            described,
            below_key=begun[0].parent_key if begun else "",
            steps=tuple([self._step(notes) for notes in begun if notes.key]),
        )

    def _without_steps(self, stage: PlannedStage) -> RecordedStage:
        bottom = stage
        while isinstance(bottom.parent, StageSource):
            bottom = self._stages[bottom.parent.index]
        below = stage.parent
        return RecordedStage(
            label=stage.label,
            base=_base(bottom.parent, bottom.platform),
            below=self._stages[below.index].label if isinstance(below, StageSource) else "",
            below_key="",
            variables=_variables(stage),
            titles=tuple(shortened(step.title) for step in stage.steps),
            steps=(),
        )

    def _step(self, notes: StepNotes) -> RecordedStep:
        """The step as it is by now."""
        found = self._steps.get(id(notes)) or self._described_step(notes)
        if found.state.value != notes.state or found.miss is not notes.miss:
            found = replace(found, state=StepState(notes.state), miss=notes.miss)
        self._steps[id(notes)] = found
        return found

    def _described_step(self, notes: StepNotes) -> RecordedStep:
        step = notes.step
        images = [each for each in _sources(step).values() if isinstance(each, ImageSource)]
        return RecordedStep(
            title=shortened(step.title),
            line=step.where.start_line,
            key=notes.key,
            state=StepState(notes.state),
            inputs=tuple(_kept(each) for each in step_inputs(step)),
            images={
                familiar(each.image.reference): each.image.digest for each in images if each.image
            },
            files=self._files(notes),
            miss=notes.miss,
        )

    def _files(self, notes: StepNotes) -> dict[str, ReadFiles]:
        labels = {target: self._label(each) for target, each in _sources(notes.step).items()}
        found = {}
        own = _heredocs(notes.step)
        for target, (entries, paths) in notes.files().items():
            if target and target not in labels:  # a script, which the instruction holds
                continue
            rows = rows_of(entries, [None if path in own else path for path in paths])
            label = labels.get(target) or _remote_label(notes.step)
            found[target] = ReadFiles(label, rows.digest, _Same(rows))
        return found

    def _label(self, source: Source) -> str:
        match source:
            case ContextSource(None):
                return ""
            case ContextSource(name):
                return f"context {name}"
            case StageSource(index):
                return f"stage {self._stages[index].label}"
            case ImageSource(image):
                return f"image {familiar(image.reference)}" if image is not None else "scratch"


class _Same:
    """Rows that are in memory."""

    def __init__(self, rows: FileRows) -> None:
        self._rows = rows

    def __call__(self) -> FileRows:
        return self._rows


def shortened(text: str) -> str:
    """`text` without logins in URLs, cut where it is long; texts that differ stay different."""
    shown = _LOGIN.sub("//***@", text)
    if len(shown) > LONGEST_TEXT:
        shown = f"{shown[:LONGEST_TEXT]}…"
    if shown == text:
        return text
    digest = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{shown}\0{digest[:16]}"


def _kept(row: KeyInput) -> KeyInput:
    value = shortened(row.value)
    return row if value == row.value else KeyInput(row.kind, row.name, value)


def _base(source: ImageSource, platform: Platform) -> Base:
    image = source.image
    key = base_key(image, platform)
    if image is None:
        return Base("scratch", "", key)
    return Base(familiar(image.reference), image.digest, key)


def _variables(stage: PlannedStage) -> dict[str, Variable]:
    found = {name: Variable(CauseKind.ARG, shortened(value)) for name, value in stage.args}
    return found | {
        name: Variable(CauseKind.ENV, shortened(value)) for name, value in stage.config.env
    }


def _sources(step: Step) -> dict[str, Source]:
    """What the files of `step` come from, by mount target; under an empty one, of COPY and ADD."""
    match step:
        case CopyStep():
            return {"": step.source} if step.patterns else {}
        case RunStep():
            return {
                mount.target: mount.source
                for mount in step.mounts
                if isinstance(mount, PlannedBind | PlannedCache) and mount.source is not None
            }
        case _:
            return {}


def _heredocs(step: Step) -> frozenset[bytes]:
    """The names of files that the instruction itself holds."""
    files = step.files if isinstance(step, CopyStep) else ()
    return frozenset(file.name.encode("utf-8", "surrogateescape") for file in files)


def _remote_label(step: Step) -> str:
    """The address that ADD fetches, where it fetches nothing else."""
    if isinstance(step, CopyStep) and not step.patterns and step.remotes:
        return str(step.remotes[0].location)
    return ""
