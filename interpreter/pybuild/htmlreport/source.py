"""The Dockerfile with a link target for each line, and what was said about its lines."""

from __future__ import annotations

from html import escape

from pybuild.errors import SourceRange
from pybuild.htmlreport.markup import place, text
from pybuild.htmlreport.recording import Recording
from pybuild.run.output import cut, without_escapes
from pybuild.values import dataclass

_MOST_LINES = 20_000
_LONGEST_LINE = 2000


@dataclass(frozen=True, slots=True)
class _Remark:
    where: SourceRange | None
    title: str
    more: str = ""
    kind: str = "warning"


def warnings(recording: Recording) -> str:
    """All warnings, each with a link to its line."""
    file, _ = recording.dockerfile
    found = [remark for remark in _remarks(recording) if remark.kind == "warning"]
    if not found:
        return ""
    rows = "".join(
        f"<li>{text(remark.title)} {place(remark.where, file)}"
        f"{f'<br><span class=faint>{text(remark.more)}</span>' if remark.more else ''}</li>"
        for remark in found
    )
    return f'<h2 id="warnings">Warnings</h2><ul class="warnings">{rows}</ul>'


def source(recording: Recording) -> str:
    """The numbered lines, with remarks behind those that they are about."""
    file, content = recording.dockerfile
    if not file:
        return ""
    remarks: dict[int, list[_Remark]] = {}
    marked: dict[int, str] = {}
    for remark in _remarks(recording):
        if remark.where is not None and remark.where.file == file:
            remarks.setdefault(remark.where.end_line, []).append(remark)
            for number in range(remark.where.start_line, remark.where.end_line + 1):
                marked[number] = remark.kind if marked.get(number) != "error" else "error"
    numbered = enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n")[:_MOST_LINES], 1)
    lines = []
    for number, line in numbered:
        shown = cut(without_escapes(line.decode("utf-8", "replace")).expandtabs(4), _LONGEST_LINE)
        kind = f" {marked[number]}" if number in marked else ""
        lines.append(
            f'<div class="line{kind}" id="L{number}"><a href="#L{number}">{number}</a>'
            f"<code>{escape(shown)}</code></div>"
        )
        lines += [
            f'<div class="remark {remark.kind}">{text(remark.title)}</div>'
            for remark in remarks.get(number, ())
        ]
    return f'<h2 id="dockerfile">{text(file)}</h2><div class="source">{"".join(lines)}</div>'


def _remarks(recording: Recording) -> list[_Remark]:
    found = [_Remark(w.where, w.message, w.hint or "") for w in recording.warnings]
    found += [_Remark(w.where, f"{w.rule}: {w.message}", w.description) for w in recording.lint]
    if recording.error is not None and recording.error.where is not None:
        found.append(_Remark(recording.error.where, recording.error.message, kind="error"))
    return found
