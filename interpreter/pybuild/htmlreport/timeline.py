"""The timeline of a build: a bar for each unit of work, with why it ran and what it printed."""

from __future__ import annotations

from pybuild.htmlreport.markup import duration, lines, place, text
from pybuild.htmlreport.recording import Recording, Unit
from pybuild.run.progress.plain import unit_title

_LEAST_WIDTH = 0.3  # percent


def timeline(recording: Recording) -> str:
    """The bars, in the order in which the units began."""
    if not recording.units:
        return '<p class="none">Nothing was begun.</p>'
    end = max(_end(unit, recording.seconds) for unit in recording.units.values())
    file, _ = recording.dockerfile
    units = sorted(recording.units.values(), key=lambda unit: (unit.began, unit.started.id))
    rows = [_row(unit, max(end, 0.001), recording.seconds, file) for unit in units]
    marks = "".join(
        f'<span style="left:{share}%">{duration(end * share / 100)}</span>'
        for share in (0, 25, 50, 75)
    )
    axis = (
        f'<div class="row axis"><span></span><span class="track">{marks}</span><span></span></div>'
    )
    return f'<div class="timeline">{axis}{"".join(rows)}</div>'


def _end(unit: Unit, now: float) -> float:
    return now if unit.finished is None else unit.began + unit.finished.seconds


def _row(unit: Unit, end: float, now: float, file: str) -> str:
    seconds = _end(unit, now) - unit.began
    left = min(unit.began / end * 100, 100 - _LEAST_WIDTH)
    width = min(max(seconds / end * 100, _LEAST_WIDTH), 100 - left)
    state = unit.state
    note = duration(seconds) if state == "done" else state
    if state in {"failed", "cancelled", "running"}:
        note = f"{state}, {duration(seconds)}"
    title = text(unit_title(unit.started))
    bar = (
        f'<span class="track"><span class="bar {state}" '
        f'style="left:{left:.2f}%;width:{width:.2f}%"></span></span>'
    )
    row = f'<span class="title" title="{title}">{title}</span>{bar}<span class="note">{note}</span>'
    told = _details(unit, file)
    if not told:
        return f'<div class="row {state}">{row}</div>'
    opened = " open" if state == "failed" else ""
    return f'<details{opened}><summary class="row {state}">{row}</summary>{told}</details>'


def _details(unit: Unit, file: str) -> str:
    parts = []
    if unit.miss is not None:
        causes = [f"<li>{text(str(cause))}</li>" for cause in unit.miss.causes]
        if unit.miss.more:
            causes.append(f"<li>and {unit.miss.more} more</li>")
        parts.append(f'<p>Not in the cache:</p><ul class="causes">{"".join(causes)}</ul>')
    if unit.finished is not None and unit.finished.error is not None:
        parts.append(f'<p class="error">{text(unit.finished.error.message)}</p>')
    if unit.printed:
        parts.append(f"<p>The last lines that it printed:</p><pre>{lines(unit.printed)}</pre>")
    if not parts:
        return ""
    link = place(unit.started.where, file)
    where = f"<p>Dockerfile, {link}</p>" if link else ""
    return f'<div class="told">{where}{"".join(parts)}</div>'
