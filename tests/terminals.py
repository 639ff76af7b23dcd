"""A small model of a terminal: what a reader sees of what a program writes to one.

It knows what pybuild writes, and refuses the rest. It resizes as terminals do: with `reflow`
long lines are wrapped anew, and the cursor stays at its character; without, they are cut.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKENS = re.compile(r"\x1b\[(\??)(\d*)([A-Za-z])|(.)", re.DOTALL)
_UNFINISHED = re.compile(r"\x1b(\[\??\d*)?\Z")


@dataclass
class _Row:
    text: list[str] = field(default_factory=list)
    goes_on: bool = False
    """Whether the next row is a part of the same line."""


class TerminalModel:
    """The rows, those that scrolled out of sight too, and the cursor."""

    def __init__(self, columns: int, rows: int, *, reflow: bool) -> None:
        self.columns, self.rows = columns, rows
        self.cursor_is_shown = True
        self._reflow = reflow
        self._wraps = True
        self._all = [_Row()]
        self._row = self._column = 0
        self._rest = ""

    def feed(self, text: str) -> None:
        """Show what a program has written."""
        text = self._rest + text
        unfinished = _UNFINISHED.search(text)
        self._rest = unfinished[0] if unfinished else ""
        for found in _TOKENS.finditer(text.removesuffix(self._rest)):
            private, number, command, character = found.groups()
            if character is not None:
                self._put(character)
            else:
                self._obey(private + command, int(number or 1), number)

    def resize(self, columns: int, rows: int) -> None:
        """What the window's user does."""
        if self._reflow:
            self._wrap_anew(columns)
        else:
            for row in self._all:
                del row.text[columns:]
        self.columns, self.rows = columns, rows
        self._column = min(self._column, columns - 1)

    def lines(self) -> list[str]:
        """All lines, rows that belong together as one."""
        found, line = [], ""
        for row in self._all:
            line += "".join(row.text)
            if not row.goes_on:
                found.append(line.rstrip())
                line = ""
        return found

    @property
    def is_ready(self) -> bool:
        """Whether a shell's prompt would begin a new line, be seen, and be wrapped."""
        at_end = self._row == len(self._all) - 1 and not self._all[-1].text
        return at_end and self._column == 0 and self.cursor_is_shown and self._wraps

    def _put(self, character: str) -> None:
        match character:
            case "\r":
                self._column = 0
            case "\n":
                self._down()
            case _ if character.isprintable():
                if self._column == self.columns:
                    if self._wraps:
                        self._all[self._row].goes_on = True
                        self._down()
                        self._column = 0
                    else:
                        self._column -= 1
                row = self._all[self._row].text
                row += " " * (self._column + 1 - len(row))
                row[self._column] = character
                self._column += 1
            case _:
                raise AssertionError(f"{character!r} was written to a terminal")

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self._all):
            self._all.append(_Row())

    def _obey(self, command: str, count: int, number: str) -> None:
        match command, number:
            case "A", _:
                self._row = max(self._row - count, len(self._all) - self.rows, 0)
            case "K", "" | "0":
                self._cut_row()
            case "J", "" | "0":
                self._cut_row()
                del self._all[self._row + 1 :]
            case "?h" | "?l", "7":
                self._wraps = command == "?h"
            case "?h" | "?l", "25":
                self.cursor_is_shown = command == "?h"
            case _:
                raise AssertionError(f"{command!r} with {number!r} was sent to a terminal")

    def _cut_row(self) -> None:
        row = self._all[self._row]
        del row.text[min(self._column, self.columns - 1) :]
        row.goes_on = False

    def _wrap_anew(self, columns: int) -> None:
        wrapped: list[_Row] = []
        place = 0, 0
        line: list[str] = []
        for number, row in enumerate(self._all):
            if number == self._row:
                offset = len(line) + self._column
                place = len(wrapped) + offset // columns, offset % columns
            line += row.text
            if not row.goes_on:
                pieces = [line[n : n + columns] for n in range(0, len(line), columns)] or [[]]
                wrapped += [_Row(piece, goes_on=True) for piece in pieces]
                wrapped[-1].goes_on = False
                line = []
        self._all = wrapped
        self._row, self._column = min(place[0], len(wrapped) - 1), place[1]
