"""Text of strangers as HTML. Everything that isn't written in this package goes through here."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from pybuild.errors import SourceRange
from pybuild.run.output import cut, without_escapes

_LONGEST = 400


def text(value: str, columns: int = _LONGEST) -> str:
    """`value` in one line, escaped for an element or a quoted attribute, and cut at `columns`."""
    return escape(cut(without_escapes(" ".join(value.split())), columns))


def lines(values: Iterable[str]) -> str:
    """Lines for a ``pre``, escaped, with their spaces."""
    return "\n".join(escape(without_escapes(value)) for value in values)


def place(where: SourceRange | None, file: str) -> str:
    """A link to a line where it is one of `file`, which the page shows; else its name."""
    if where is None:
        return ""
    if where.file != file:
        return f"<code>{text(str(where))}</code>"
    return f'<a href="#L{where.start_line}">line {where.start_line}</a>'


def duration(seconds: float) -> str:
    """``40 ms``, ``1.4 s``, ``2 min 5 s``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def count(number: int, one: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"
