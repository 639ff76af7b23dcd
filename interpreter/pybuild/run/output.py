"""Output of processes as text that is safe to show: pure, bytes in, lines out."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import deque

MAX_LINE = 16 * 1024
"""Characters after which a line without an end is broken."""

_TAIL_BYTES = 64 * 1024
_TAIL_LINES = 20

# CSI and OSC sequences go as a whole; any other escape loses its first byte and does nothing.
_ESCAPES = r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x9b[0-?]*[ -/]*[@-~]"
_HIDDEN = "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
_BREAKS = r"\r\n|\n|\r"


def without_escapes(text: str) -> str:
    """`text` without what could move a terminal's cursor, colour or rename it; tabs stay.

    Controls of text direction go too: they can make a line read as another.
    """
    if text.isascii() and text.isprintable():
        return text
    return re.sub(_HIDDEN, "", re.sub(_ESCAPES, "", text))


def width(text: str) -> int:
    """The columns that `text`, which holds no control characters, takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_columns(c) for c in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in {"Cf", "Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def cut(text: str, columns: int) -> str:
    """`text`, or as much of its beginning as fits, with an ellipsis."""
    if width(text) <= columns:
        return text
    kept, used = [], 1
    for character in text:
        used += _columns(character)
        if used > columns:
            break
        kept.append(character)
    return f"{''.join(kept)}…"


class LineBuffer:
    """Joins the pieces of one stream into lines.

    A carriage return begins the line anew, as on a terminal. Bytes that aren't UTF-8 become
    U+FFFD.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""
        self._returned = False

    @property
    def pending(self) -> str:
        """The line begun and not yet ended."""
        return without_escapes(self._pending)

    def feed(self, data: bytes, *, final: bool = False) -> list[str]:
        """Take a piece and return the lines that it ended; with `final`, the rest as well."""
        lines: list[str] = []
        text = self._decoder.decode(data, final)
        start = 0
        for found in re.finditer(_BREAKS, text):
            self._add(text[start : found.start()], lines)
            start = found.end()
            if found.group() == "\r":
                self._returned = True
            else:
                self._end(lines)
        self._add(text[start:], lines)
        if final and self._pending:
            self._end(lines)
        return lines

    def _add(self, text: str, lines: list[str]) -> None:
        if not text:
            return
        if self._returned:
            self._pending = ""
            self._returned = False
        line = self._pending + text
        full = (len(line) - 1) // MAX_LINE * MAX_LINE
        pieces = (line[start : start + MAX_LINE] for start in range(0, full, MAX_LINE))
        lines.extend(map(without_escapes, pieces))
        self._pending = line[full:]

    def _end(self, lines: list[str]) -> None:
        lines.append(without_escapes(self._pending))
        self._pending = ""
        self._returned = False


class OutputTail:
    """Keeps the end of a process's output, both streams together, in bounded memory."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Take any piece of output."""
        piece = data[-_TAIL_BYTES:]
        self._pieces.append(piece)
        self._size += len(piece)
        while self._size - len(self._pieces[0]) >= _TAIL_BYTES:
            self._size -= len(self._pieces.popleft())

    def lines(self) -> tuple[str, ...]:
        """The last 20 lines, cleaned for showing."""
        lines = LineBuffer().feed(b"".join(self._pieces), final=True)
        while lines and not lines[-1].strip():
            lines.pop()
        return tuple(lines[-_TAIL_LINES:])
