"""Progress as JSON lines, for other programs.

Every line is an object with ``event`` and these members; times are seconds, sizes bytes:

=================  ==========================================================================
``step-started``   ``id``, ``title``, ``stage``, ``position``, ``where``
``step-missed``    ``id``, ``miss``: ``text``, ``causes`` (a list of ``kind``, ``name``,
                   ``before``, ``after``, ``source``), ``more``, ``against``
``step-log``       ``id``, ``stream`` (1 or 2), ``text``, ``time`` since the step began
``step-progress``  ``id``, ``item``, ``done``, ``total`` (null if unknown)
``step-finished``  ``id``, ``seconds``, ``cached``, ``cancelled``, ``error`` (null or ``type``,
                   ``message``, ``where``, ``hint``, for a RUN ``exit_code``, and ``miss``
                   for a step that was to be in the cache)
``warning``        ``id`` (0 for the build), ``message``, ``where``, ``hint``
``lint-reported``  ``warnings``: a list of ``rule``, ``message``, ``description``, ``where``
``build-finished`` ``digest``, ``config_digest``, ``names``, ``platform``, ``seconds``
=================  ==========================================================================

``where`` is null or ``file``, ``start_line``, ``end_line``, ``start_column``, ``end_column``.
``text`` is a piece of output, not a line; bytes that aren't UTF-8 are U+FFFD in it. Members may
be added later, none is renamed.
"""

from __future__ import annotations

import codecs
import json
from dataclasses import asdict
from typing import Any, TextIO, assert_never

from pybuild.errors import CacheMissed, PybuildError, RunFailed, SourceRange
from pybuild.run.events import (
    BuildFinished,
    Event,
    ImageMade,
    LintReported,
    PlanMade,
    StepFinished,
    StepLog,
    StepMissed,
    StepProgress,
    StepStarted,
    Warned,
)
from pybuild.run.miss import miss_as_json

_Shown = (
    StepStarted
    | StepMissed
    | StepLog
    | StepProgress
    | StepFinished
    | Warned
    | LintReported
    | BuildFinished
)


class JsonReporter:
    """Writes each event as one line of JSON."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._decoders: dict[tuple[int, int], codecs.IncrementalDecoder] = {}

    def report(self, event: Event) -> None:
        """Write `event` and flush."""
        if isinstance(event, PlanMade | ImageMade):
            return
        self._stream.write(json.dumps(self._as_json(event), ensure_ascii=True) + "\n")
        self._stream.flush()

    def _as_json(self, event: _Shown) -> dict[str, Any]:
        match event:
            case StepStarted():
                return {
                    "event": "step-started",
                    "id": event.id,
                    "title": event.title,
                    "stage": event.stage,
                    "position": event.position.strip(),
                    "where": _place(event.where),
                }
            case StepMissed():
                return {"event": "step-missed", "id": event.id, "miss": miss_as_json(event.miss)}
            case StepLog():
                decoder = self._decoders.setdefault(
                    (event.id, event.stream), codecs.getincrementaldecoder("utf-8")("replace")
                )
                return {
                    "event": "step-log",
                    "id": event.id,
                    "stream": event.stream,
                    "text": decoder.decode(event.data),
                    "time": round(event.time, 6),
                }
            case StepProgress():
                return {"event": "step-progress", **asdict(event)}
            case StepFinished():
                return {
                    "event": "step-finished",
                    "id": event.id,
                    "seconds": round(event.seconds, 6),
                    "cached": event.cached,
                    "cancelled": event.cancelled,
                    "error": error_as_json(event.error) if event.error else None,
                }
            case Warned():
                return {
                    "event": "warning",
                    "id": event.id,
                    "message": event.message,
                    "where": _place(event.where),
                    "hint": event.hint,
                }
            case LintReported():
                return {"event": "lint-reported", "warnings": list(map(asdict, event.warnings))}
            case BuildFinished(result):
                return {
                    "event": "build-finished",
                    "digest": result.digest,
                    "config_digest": result.config_digest,
                    "names": list(result.names),
                    "platform": str(result.platform),
                    "seconds": round(result.seconds, 6),
                }
            case _:
                assert_never(event)


def error_as_json(error: PybuildError) -> dict[str, Any]:
    """An error's type, message, place and hint."""
    members: dict[str, Any] = {
        "type": type(error).__name__,
        "message": error.message,
        "where": _place(error.where),
        "hint": error.hint,
    }
    if isinstance(error, RunFailed):
        members["exit_code"] = error.process_exit_code
    if isinstance(error, CacheMissed):
        members["miss"] = miss_as_json(error.miss)
    return members


def _place(where: SourceRange | None) -> dict[str, Any] | None:
    return None if where is None else asdict(where)
