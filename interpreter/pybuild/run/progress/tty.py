"""Progress on a terminal: finished steps scroll by, below them one line for each running one.

A running step shows its last line of output and the time it takes; each download a bar. The
only importer of tqdm.

Whenever nothing is being drawn, the cursor is at the beginning of the first of those lines. It
stays there when the window changes its size, whether the terminal wraps long lines anew or not,
so all below it can be wiped and drawn again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self, TextIO, assert_never

from tqdm import tqdm

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
from pybuild.run.output import LineBuffer, cut, without_escapes
from pybuild.run.progress.lint import lint_lines
from pybuild.run.progress.plain import finish_text, miss_text, unit_title, warning_text
from pybuild.values import dataclass, field

_TICK = 0.2
_SMALLEST_BAR = 1_000_000
_UNKNOWN = os.terminal_size((80, 24))
# a line that turns out to be too long is cut by the terminal, which takes one row at any moment
_LINE = "\r\x1b[?7l{}\x1b[K\x1b[?7h\r"
_WIPE = "\x1b[J"


class _Bar(tqdm):  # type: ignore[type-arg]  # generic in its stubs alone
    """A tqdm bar with a lock of its own: the default one makes semaphores of the system."""

    monitor_interval = 0

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:  # type: ignore[override]  # always a stream of ours
        """What writes the bar's line. tqdm's own pads it to the longest, whatever fits now."""

        def write(text: str) -> None:
            file.write(_LINE.format(text))
            file.flush()

        return write


_Bar.set_lock(threading.RLock())


@dataclass(slots=True)
class _Unit:
    title: str
    line: _Bar
    began: float
    last: str = ""
    buffers: dict[int, LineBuffer] = field(default_factory=dict)
    bars: dict[str, _Bar] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class TtyReporter:
    """Draws on a terminal until closed; a context manager, because it keeps a clock running."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._units: dict[int, _Unit] = {}
        self._size = self._find_size()
        # The clock's thread and the build's threads draw on one terminal.
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="pybuild-clock", daemon=True)

    def __enter__(self) -> Self:
        self._ticker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._ticker.join()
        with self._lock, suppress(OSError, ValueError):
            for number in tuple(self._units):
                self._drop(self._units.pop(number))

    def report(self, event: Event) -> None:
        """Draw what `event` says."""
        with self._lock:
            self._fit()
            match event:
                case StepStarted():
                    line = _Bar(
                        total=0,
                        bar_format="{desc}",
                        file=self._stream,
                        leave=False,
                        dynamic_ncols=True,
                    )
                    unit = _Unit(unit_title(event), line, self._clock())
                    self._units[event.id] = unit
                    self._draw(unit)
                case StepMissed():
                    self._miss(event)
                case StepLog():
                    self._log(event)
                case StepProgress():
                    self._progress(event)
                case StepFinished():
                    self._finish(event)
                case Warned():
                    self._print(f"WARN: {warning_text(event)}")
                case LintReported():
                    self._print("\n".join(lint_lines(event)))
                case PlanMade() | ImageMade() | BuildFinished():
                    pass
                case _:
                    assert_never(event)

    def _tick(self) -> None:
        while not self._closed.wait(_TICK):
            self._tick_once()

    def _tick_once(self) -> None:
        # A terminal that went away ends the build through report(), not through the clock.
        with self._lock, suppress(OSError, ValueError):
            self._fit()
            for unit in self._units.values():
                self._draw(unit)

    def _fit(self) -> None:
        """Draw everything anew if the window has another size."""
        size = self._find_size()
        if size == self._size:
            return
        self._size = size
        self._stream.write(_WIPE)
        for unit in self._units.values():
            for bar in (unit.line, *unit.bars.values()):
                bar.ncols, bar.nrows = size
                bar.refresh()
            self._draw(unit)

    def _find_size(self) -> os.terminal_size:
        try:
            size = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return _UNKNOWN
        return size if all(size) else _UNKNOWN

    def _draw(self, unit: _Unit) -> None:
        seconds = self._clock() - unit.began
        last = f"  {unit.last}" if unit.last else ""
        unit.line.set_description_str(
            cut(f"{unit.title}  {seconds:.1f}s{last}", self._size.columns - 1)
        )

    def _miss(self, event: StepMissed) -> None:
        unit = self._units.get(event.id)
        if unit is not None:
            unit.last = miss_text(event)
            unit.notes.append(unit.last)
            self._draw(unit)

    def _log(self, event: StepLog) -> None:
        unit = self._units.get(event.id)
        if unit is None:
            return
        buffer = unit.buffers.setdefault(event.stream, LineBuffer())
        lines = buffer.feed(event.data)
        shown = buffer.pending or (lines[-1] if lines else "")
        if shown.strip():
            unit.last = shown.expandtabs(4).strip()

    def _progress(self, event: StepProgress) -> None:
        unit = self._units.get(event.id)
        if unit is None:
            return
        item = without_escapes(event.item)
        finished = event.total is not None and event.done >= event.total
        bar = unit.bars.get(item)
        if bar is None and not finished and (event.total or 0) >= _SMALLEST_BAR:
            bar = unit.bars[item] = _Bar(
                total=event.total,
                desc=f"  {cut(item, 32)}",
                unit="B",
                unit_scale=True,
                file=self._stream,
                leave=False,
                dynamic_ncols=True,
            )
        if bar is not None:
            bar.update(event.done - bar.n)
            if finished:
                bar.close()
                del unit.bars[item]
        elif finished and event.total == 0:
            unit.notes.append(item)
        else:
            unit.last = item

    def _finish(self, event: StepFinished) -> None:
        unit = self._units.pop(event.id, None)
        if unit is None:
            return
        self._drop(unit)
        self._print(f"#{event.id} {unit.title}  {finish_text(event)}")
        for note in unit.notes:
            self._print(f"   {note}")

    def _drop(self, unit: _Unit) -> None:
        for bar in unit.bars.values():
            bar.close()
        unit.line.close()

    def _print(self, text: str) -> None:
        _Bar.write(text, file=self._stream)
