"""Lines of a source file around a place, in BuildKit's form, safe to show on a terminal."""

from __future__ import annotations

from pybuild.errors import SourceRange
from pybuild.run.output import cut, without_escapes

_RULE = "-" * 20
_MAX_LINES = 20
_MAX_COLUMNS = 200


def excerpt(where: SourceRange, source: bytes) -> list[str]:
    """The lines of `where`, marked by ``>>>``, and one or two more before and behind them.

    Nothing for a place that `source` doesn't have.
    """
    lines = source.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not 1 <= where.start_line <= len(lines):
        return []
    last = min(where.end_line, where.start_line + _MAX_LINES - 1)
    around = 2 if where.start_line == where.end_line else 1
    shown = [without_escapes(f"{where.file}:{where.start_line}"), _RULE]
    for number in range(max(where.start_line - around, 1), min(last + around, len(lines)) + 1):
        mark = ">>>" if where.start_line <= number <= where.end_line else "   "
        text = lines[number - 1].decode("utf-8", "replace").expandtabs(4)
        shown.append(f" {number:3} | {mark} {cut(without_escapes(text), _MAX_COLUMNS)}")
    return [*shown, _RULE]
