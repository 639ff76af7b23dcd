"""Progress as plain lines, like BuildKit's: ``#5 [build 2/4] RUN make``, ``#5 0.412 text``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO, assert_never

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
from pybuild.run.output import LineBuffer, without_escapes
from pybuild.run.progress.lint import lint_lines
from pybuild.values import dataclass, field

_SECONDS_BETWEEN = 5.0
_SHARE_BETWEEN = 0.05


def unit_title(event: StepStarted) -> str:
    """``[build 2/4] RUN make``, in one line."""
    place = " ".join(part for part in (event.stage, event.position) if part)
    title = without_escapes(" ".join(event.title.split()))
    return f"[{place}] {title}" if place else title


def size_text(size: float) -> str:
    """Bytes for people, in decimal units as registries count: ``2.35MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f}{unit}" if unit == "B" else f"{size:.2f}{unit}"
        size /= 1000
    return f"{size:.2f}TB"


def warning_text(event: Warned) -> str:
    """A warning in one line, with its place and hint."""
    place = f" ({event.where})" if event.where else ""
    hint = f"; {event.hint}" if event.hint else ""
    return without_escapes(f"{event.message}{hint}{place}")


def miss_text(event: StepMissed) -> str:
    """Why a step wasn't in the cache, in one line."""
    return without_escapes(" ".join(f"miss: {event.miss}".split()))


@dataclass(slots=True)
class _Unit:
    lines: dict[int, LineBuffer] = field(default_factory=dict)
    shown: dict[str, tuple[float, float]] = field(default_factory=dict)


class PlainReporter:
    """Writes every event to a text stream as it comes, flushed line by line.

    Lines of units that run at the same time mix; each carries its number. Errors of the
    stream are the caller's to catch.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._units: dict[int, _Unit] = {}
        self._began = False

    def report(self, event: Event) -> None:
        """Write what `event` says."""
        match event:
            case StepStarted():
                self._units[event.id] = _Unit()
                # The first line of all has none above it.
                self._write(
                    f"\n#{event.id} {unit_title(event)}"
                    if self._began
                    else f"#{event.id} {unit_title(event)}"
                )
            case StepMissed():
                self._write(f"#{event.id} {miss_text(event)}")
            case StepLog():
                self._log(event)
            case StepProgress():
                self._progress(event)
            case StepFinished():
                self._finish(event)
            case Warned():
                prefix = f"#{event.id} " if event.id else ""
                self._write(f"{prefix}WARN: {warning_text(event)}")
            case LintReported():
                self._write("\n".join(["", *lint_lines(event)]))
            case PlanMade() | ImageMade() | BuildFinished():
                pass
            case _:
                assert_never(event)
        self._stream.flush()

    def _write(self, line: str) -> None:
        self._began = True
        self._stream.write(f"{line}\n")

    def _log(self, event: StepLog, *, final: bool = False) -> None:
        unit = self._units.setdefault(event.id, _Unit())
        buffer = unit.lines.setdefault(event.stream, LineBuffer())
        for line in buffer.feed(event.data, final=final):
            self._write(f"#{event.id} {event.time:.3f} {line}")

    def _progress(self, event: StepProgress) -> None:
        finished = event.total is not None and event.done >= event.total
        unit = self._units.setdefault(event.id, _Unit())
        now = self._clock()
        since, share = unit.shown.get(event.item, (-_SECONDS_BETWEEN, -1.0))
        done_share = event.done / event.total if event.total else 0.0
        if not finished and (
            now - since < _SECONDS_BETWEEN and done_share - share < _SHARE_BETWEEN
        ):
            return
        unit.shown[event.item] = (now, done_share)
        amount = f" {size_text(event.done)}" if event.done else ""
        if event.total:
            amount = f" {size_text(event.done)} / {size_text(event.total)}"
        end = " done" if finished else ""
        self._write(f"#{event.id} {without_escapes(event.item)}{amount}{end}")

    def _finish(self, event: StepFinished) -> None:
        for stream in tuple(self._units.get(event.id, _Unit()).lines):
            self._log(StepLog(event.id, stream, b"", event.seconds), final=True)
        self._units.pop(event.id, None)
        self._write(f"#{event.id} {finish_text(event)}")


def finish_text(event: StepFinished) -> str:
    """How a unit ended, in BuildKit's words."""
    if event.cancelled:
        return "CANCELED"
    if event.error is not None:
        return f"ERROR: {without_escapes(' '.join(event.error.message.split()))}"
    if event.cached:
        return "CACHED"
    return f"DONE {event.seconds:.1f}s"
