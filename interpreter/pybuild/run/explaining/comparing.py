"""Finds the earlier build that a missed step is nearest to, and what tells the two apart. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice

from pybuild.plan.keyinputs import InputKind, KeyInput
from pybuild.run.explaining.filerows import differences
from pybuild.run.explaining.recorded import (
    ReadFiles,
    RecordedBuild,
    RecordedStage,
    RecordedStep,
    StepState,
)
from pybuild.run.miss import MOST_CAUSES, Cause, CauseKind, Miss
from pybuild.values import dataclass, replace

_VARIABLE = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)")
_BEGINNING = 2  # of what is compared, the base and what is below
_KEPT = frozenset({StepState.CACHED, StepState.MADE})
# what the text of an instruction says, expanded
_OF_THE_TEXT = frozenset(
    {
        *("kind", "args", "instruction", "source", "patterns", "files", "destination", "chown"),
        *("chmod", "exclude", "parents", "link", "unpack", "remotes", "insecure", "path"),
    }
)
_SETTINGS = {
    "cwd": "WORKDIR",
    "user": "USER",
    "network": "--network",
    "hostname": "the host name",
    "hosts": "--add-host",
    "shm": "--shm-size",
    "ulimits": "--ulimit",
    "cgroup": "--cgroup-parent",
    "path": "the folder",
    "destination": "the destination",
}
_UNCHANGED = frozenset({StepState.CACHED, StepState.EMPTY})
_NEVER = (Cause(CauseKind.NEVER_BUILT),)
_ENDED_BADLY = {
    StepState.FAILED: CauseKind.LAST_RUN_FAILED,
    StepState.CANCELLED: CauseKind.LAST_RUN_CANCELLED,
}


@dataclass(frozen=True, slots=True)
class _Like:
    """A stage of an earlier build, and its step that stands where the missed one does."""

    began: datetime
    stage: RecordedStage
    position: int | None
    same: int
    """So many keys are the same, from the base on."""

    @property
    def step(self) -> RecordedStep | None:
        return None if self.position is None else self.stage.steps[self.position]


def explain(stage: RecordedStage, builds: Sequence[RecordedBuild]) -> Miss:
    """Why the last step of `stage` missed; `builds` are the newest first."""
    position = len(stage.steps) - 1
    step = stage.steps[position]
    for build in builds:
        for earlier in (each for one in build.stages for each in one.steps):
            if earlier.key == step.key and earlier.state is not StepState.REFUSED:
                kind = _ENDED_BADLY.get(earlier.state, CauseKind.ENTRY_PRUNED)
                return Miss((Cause(kind),), against=build.began)
    first = [Cause(CauseKind.STEP_BELOW)] if _missed_before(stage) else []
    like = _nearest(stage, builds)
    if like is None:
        return Miss(tuple(first) or _NEVER)
    found = _causes(stage, like)
    causes = (*first, *islice(found, MOST_CAUSES - len(first)))
    return Miss(causes, sum(1 for _ in found), like.began) if causes else Miss(_NEVER)


def _missed_before(stage: RecordedStage) -> bool:
    """Whether the missed step isn't the first of its stage that the cache didn't have."""
    return any(step.state not in _UNCHANGED for step in stage.steps[:-1])


def _nearest(stage: RecordedStage, builds: Sequence[RecordedBuild]) -> _Like | None:
    """Of the stages of earlier builds the one that is most alike, of equals the newest.

    First counts how many of its keys are the same, from the base on, last how little differs of
    the instruction.
    """
    best, best_score = None, (0, False, False, 0)
    for build in builds:
        for other in map(_as_run, build.stages):
            like = _Like(build.began, other, *_compared(stage, other))
            step = like.step
            kept = step is not None and step.state in _KEPT
            differs = len(set(stage.steps[-1].inputs) ^ set(step.inputs if step else ()))
            score = like.same, stage.label == other.label, kept, -differs
            # a common base alone makes no two stages alike
            is_alike = like.same > _BEGINNING or stage.label == other.label
            if is_alike and (best is None or score > best_score):
                best, best_score = like, score
    return best


def _as_run(stage: RecordedStage) -> RecordedStage:
    """The stage without a step that was refused, as nothing was made of it."""
    return replace(stage, steps=tuple(s for s in stage.steps if s.state is not StepState.REFUSED))


def _compared(stage: RecordedStage, other: RecordedStage) -> tuple[int | None, int]:
    """Where the counterpart of the last step is, and how many keys are the same from the base on."""
    ours, theirs = ([s.base.key, s.below_key, *(x.key for x in s.steps)] for s in (stage, other))
    pairs = enumerate(zip(ours, theirs, strict=False))
    same = next((i for i, (x, y) in pairs if x != y), min(len(ours), len(theirs)))
    return _counterpart(stage, other), same


def _counterpart(stage: RecordedStage, other: RecordedStage) -> int | None:
    """Where in `other` the last step of `stage` stands, or what stood in its place."""
    position, title = len(stage.steps) - 1, stage.steps[-1].title
    alike = [i for i, step in enumerate(other.steps) if step.title == title]
    if alike:
        return min(alike, key=lambda i: (i < position, abs(i - position)))
    if position < len(other.steps) and other.steps[position].title not in stage.titles:
        return position
    return None


def _causes(stage: RecordedStage, like: _Like) -> Iterator[Cause]:
    """What differs, of steps that had nothing to do and stand right before it as well."""
    if all(step.state is StepState.EMPTY for step in stage.steps[:-1]):
        yield from _below(stage, like.stage)
    found = False
    for cause in _own_causes(stage, like):
        found = True
        yield cause
    if not found and len(stage.steps) > 1 and stage.steps[-2].state is StepState.EMPTY:
        shorter = replace(stage, steps=stage.steps[:-1])
        like = replace(like, position=_counterpart(shorter, like.stage))
        yield from _own_causes(shorter, like)
    elif not found and like.same == len(stage.steps) - 1 + _BEGINNING and like.step is not None:
        # nothing else is left, and their rows weren't kept
        yield Cause(CauseKind.FILES)


def _own_causes(stage: RecordedStage, like: _Like) -> Iterator[Cause]:
    position, step, other, before = len(stage.steps) - 1, stage.steps[-1], like.stage, like.step
    if before is None:
        if step.title not in other.titles:
            yield Cause(CauseKind.INSTRUCTION, after=_shown(step.title))
        return
    changed = before.title != step.title
    if changed:
        texts = _shown(before.title), _shown(step.title)
        yield Cause(CauseKind.INSTRUCTION, "", *texts)
    elif (like.position or 0) > position and not _missed_before(stage):
        gone = other.titles[position]
        if gone in stage.titles:
            yield Cause(CauseKind.INSTRUCTION, "order of instructions")
        else:
            yield Cause(CauseKind.INSTRUCTION, before=_shown(gone))
    images = _images(before, step)
    yield from images
    if before.inputs[0] != step.inputs[0]:  # a RUN where a COPY was
        return
    yield from _inputs(before, step, (other, stage), images=bool(images))
    # what another text or destination selects tells nothing, but what was in it before does
    yield from _files(before, step, everything=not changed and _fields(before) == _fields(step))


def _below(stage: RecordedStage, other: RecordedStage) -> Iterator[Cause]:
    """What differs of the file system that the stage starts from."""
    old, new = other.base, stage.base
    names = [f"stage {s.below}" if s.below else s.base.name for s in (other, stage)]
    if names[0] != names[1]:
        yield Cause(CauseKind.BASE_CHANGED, "", *names)
    elif stage.below_key != other.below_key:
        yield Cause(CauseKind.STAGE_BELOW, stage.below)
    elif old.key != new.key:
        yield Cause(CauseKind.BASE_IMAGE, new.name, old.digest, new.digest)


def _images(before: RecordedStep, after: RecordedStep) -> list[Cause]:
    return [
        Cause(CauseKind.IMAGE, name, before.images[name], digest)
        for name, digest in after.images.items()
        if before.images.get(name, digest) != digest
    ]


def _inputs(
    before: RecordedStep,
    after: RecordedStep,
    stages: tuple[RecordedStage, RecordedStage],
    *,
    images: bool,
) -> Iterator[Cause]:
    """What differs of the instruction, variables first. With `images` their digests are told."""
    if before.inputs == after.inputs:
        return
    old, new = _by_name(before.inputs), _by_name(after.inputs)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    variables = [name for kind, name in names if kind is InputKind.VARIABLE]
    yield from (_variable(name, old, new, stages) for name in variables)
    retold = before.title != after.title
    if not names:
        if not retold:
            yield Cause(CauseKind.INSTRUCTION, "order of variables")
        return
    expanded = False
    if not retold and any(kind is not InputKind.VARIABLE for kind, _ in names):
        for cause in _expanded(after.title, stages, frozenset(variables)):
            expanded = True
            yield cause
    for kind, name in names:
        of_the_text = kind is InputKind.MOUNT or name in _OF_THE_TEXT
        if kind is InputKind.VARIABLE or (of_the_text and (retold or expanded)):
            continue
        value = _shown(old.get((kind, name))), _shown(new.get((kind, name)))
        if kind is InputKind.MOUNT:
            if not images:
                yield Cause(CauseKind.INSTRUCTION, f"mount {name}")
        elif name in _SETTINGS:
            yield Cause(CauseKind.SETTING, _SETTINGS[name], *value)
        elif name != "source" or not images:
            yield Cause(
                CauseKind.INSTRUCTION, {"args": "command", "files": "heredoc"}.get(name, name)
            )


def _fields(step: RecordedStep) -> list[KeyInput]:
    return [row for row in step.inputs if row.kind is InputKind.FIELD and row.name != "source"]


_Rows = dict[tuple[InputKind, str], str]


def _by_name(inputs: Sequence[KeyInput]) -> _Rows:
    return {(each.kind, each.name): each.value for each in inputs}


def _variable(
    name: str, old: _Rows, new: _Rows, stages: tuple[RecordedStage, RecordedStage]
) -> Cause:
    known = next((s.variables[name] for s in reversed(stages) if name in s.variables), None)
    kind = CauseKind.ENV if known is None else known.kind
    row = InputKind.VARIABLE, name
    return Cause(kind, name, _shown(old.get(row)), _shown(new.get(row)))


def _expanded(
    text: str, stages: tuple[RecordedStage, RecordedStage], told: frozenset[str]
) -> Iterator[Cause]:
    """The variables that the text of the instruction uses and that differ between `stages`."""
    for name in dict.fromkeys(_VARIABLE.findall(text)):
        known = [stage.variables[name] for stage in stages if name in stage.variables]
        old, new = (s.variables[name].value if name in s.variables else None for s in stages)
        if old != new and name not in told:
            yield Cause(known[-1].kind, name, _shown(old), _shown(new))


def _shown(text: str | None) -> str | None:
    """What is shown of a text that was shortened."""
    return None if text is None else text.partition("\0")[0]


def _files(before: RecordedStep, after: RecordedStep, *, everything: bool) -> Iterator[Cause]:
    """What differs of the files; of another instruction's, their content alone tells anything."""
    for target, new in after.files.items():
        old = before.files.get(target)
        if old is None or old.digest == new.digest:
            continue
        for cause in _changed_files(old, new):
            # what has no source is the instruction's own: a heredoc, a folder that it makes
            read = bool(cause.source) or not cause.name.startswith("/")
            if everything or (cause.kind is CauseKind.FILE_CONTENT and read):
                yield cause


def _changed_files(old: ReadFiles, new: ReadFiles) -> Iterator[Cause]:
    before, after = old.rows(), new.rows()
    if before is None or after is None:
        yield Cause(CauseKind.FILES, source=new.source)
    else:
        yield from differences(before, after, new.source)
