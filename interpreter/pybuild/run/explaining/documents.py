"""A recorded build as JSON, and back. What occurs in many steps stands in the document once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pybuild.plan.keyinputs import InputKind, KeyInput
from pybuild.run.explaining.filerows import FileRows
from pybuild.run.explaining.recorded import (
    Base,
    ReadFiles,
    RecordedBuild,
    RecordedStage,
    RecordedStep,
    StepState,
    Variable,
)
from pybuild.run.miss import Cause, CauseKind, Miss, miss_as_json

Place = tuple[int, int]
Rows = Callable[[], FileRows | None]


def document_of(build: RecordedBuild, places: Mapping[str, Place]) -> bytes:
    """The build as JSON; `places` tell by digest where the rows of files are kept."""
    rows: dict[KeyInput, int] = {}
    document = {
        "began": build.began.isoformat(),
        "outcome": build.outcome,
        "target": build.target,
        "platforms": build.platforms,
        "stages": [_stage(stage, rows, places) for stage in build.stages],
        "inputs": [[row.kind.value, row.name, row.value] for row in rows],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _stage(
    stage: RecordedStage, rows: dict[KeyInput, int], places: Mapping[str, Place]
) -> dict[str, Any]:
    return {
        "label": stage.label,
        "base": [stage.base.name, stage.base.digest, stage.base.key],
        "below": [stage.below, stage.below_key],
        "variables": [[n, v.kind.value, v.value] for n, v in stage.variables.items()],
        "titles": stage.titles,
        "steps": [_step(step, rows, places) for step in stage.steps],
    }


def _step(
    step: RecordedStep, rows: dict[KeyInput, int], places: Mapping[str, Place]
) -> dict[str, Any]:
    return {
        "title": step.title,
        "line": step.line,
        "key": step.key,
        "state": step.state.value,
        "inputs": [rows.setdefault(row, len(rows)) for row in step.inputs],
        "images": step.images,
        "files": [
            [target, files.source, files.digest, places.get(files.digest)]
            for target, files in step.files.items()
        ],
        "miss": None if step.miss is None else miss_as_json(step.miss),
    }


def read_document(
    document: bytes, rows: Callable[[str, Place | None], Rows]
) -> RecordedBuild | None:
    """The build that :func:`document_of` wrote; None for anything else.

    `rows` gives those of files by their digest and place.
    """
    try:
        found = json.loads(document)
        inputs = [
            KeyInput(InputKind(kind), _text(name), _text(value))
            for kind, name, value in found["inputs"]
        ]
        return RecordedBuild(
            began=_time(found["began"]),
            outcome=_text(found["outcome"]),
            target=_text(found["target"]),
            platforms=_text(found["platforms"]),
            stages=tuple(_read_stage(stage, inputs, rows) for stage in found["stages"]),
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None


def _read_stage(
    found: Any, inputs: list[KeyInput], rows: Callable[[str, Place | None], Rows]
) -> RecordedStage:
    titles = tuple(map(_text, found["titles"]))
    if len(found["steps"]) > len(titles):
        raise ValueError("a step has no title")
    return RecordedStage(
        label=_text(found["label"]),
        base=Base(*map(_text, found["base"])),
        below=_text(found["below"][0]),
        below_key=_text(found["below"][1]),
        variables={
            _text(name): Variable(CauseKind(kind), _text(value))
            for name, kind, value in found["variables"]
        },
        titles=titles,
        steps=tuple(_read_step(step, inputs, rows) for step in found["steps"]),
    )


def _read_step(
    found: Any, inputs: list[KeyInput], rows: Callable[[str, Place | None], Rows]
) -> RecordedStep:
    files = {
        _text(target): ReadFiles(_text(source), _text(digest), rows(digest, _place(place)))
        for target, source, digest, place in found["files"]
    }
    if not found["inputs"]:
        raise ValueError("a step has no kind")
    return RecordedStep(
        title=_text(found["title"]),
        line=_number(found["line"]),
        key=_text(found["key"]),
        state=StepState(found["state"]),
        inputs=tuple(inputs[_number(number)] for number in found["inputs"]),
        images={_text(name): _text(digest) for name, digest in found["images"].items()},
        files=files,
        miss=None if found["miss"] is None else _read_miss(found["miss"]),
    )


def _read_miss(found: Any) -> Miss:
    causes = tuple(
        Cause(
            CauseKind(each["kind"]),
            _text(each["name"]),
            _optional(each["before"]),
            _optional(each["after"]),
            _text(each["source"]),
        )
        for each in found["causes"]
    )
    if not causes:
        raise ValueError("a miss has a cause")
    against = found["against"]
    return Miss(causes, _number(found["more"]), None if against is None else _time(against))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _optional(value: Any) -> str | None:
    return None if value is None else _text(value)


def _number(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise TypeError("no number")
    return value


def _place(value: Any) -> Place | None:
    if value is None:
        return None
    start, size = value
    return _number(start), _number(size)


def _time(value: Any) -> datetime:
    time = datetime.fromisoformat(_text(value))
    if time.tzinfo is None:
        raise ValueError("a time without a zone")
    return time
