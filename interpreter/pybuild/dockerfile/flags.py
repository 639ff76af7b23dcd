"""The ``--flags`` of an instruction, and the numbers and durations in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum, auto

from pybuild.dockerfile.arguments import Word, suggestion
from pybuild.dockerfile.lines import LogicalLine
from pybuild.errors import DockerfileSyntaxError, SourceRange
from pybuild.values import dataclass


class Kind(Enum):
    """What a flag holds: on or off, one text, or as many as it is repeated."""

    SWITCH = auto()
    TEXT = auto()
    TEXTS = auto()


@dataclass(frozen=True, slots=True)
class _Flag:
    value: str
    word: Word
    line: LogicalLine

    @property
    def where(self) -> SourceRange:
        """Of the value alone, if it is written without quotes and escapes."""
        word, line = self.word, self.line
        plain = self.value and line.value[word.start : word.end] == word.text
        return line.at(word.end - len(self.value) if plain else word.start, word.end)


class Flags:
    """The flags that an instruction was given, by name without dashes."""

    def __init__(self, given: Mapping[str, Sequence[_Flag]]) -> None:
        self._given = given

    def text(self, name: str) -> str | None:
        """The value, or None if it is empty or the flag wasn't given."""
        return self._given[name][0].value or None if name in self._given else None

    def switch(self, name: str) -> bool | None:
        return self._given[name][0].value == "true" if name in self._given else None

    def texts(self, name: str) -> tuple[tuple[str, SourceRange], ...]:
        """Each value, and where it stands."""
        return tuple((flag.value, flag.where) for flag in self._given.get(name, ()))

    def choice(self, name: str, options: Sequence[str]) -> str | None:
        """The value, which must be one of `options`, or None."""
        for flag in self._given.get(name, ()):
            if flag.value not in options:
                raise DockerfileSyntaxError(
                    f"--{name} can't be {flag.value!r}",
                    where=flag.where,
                    hint=f"it is {' or '.join(options)}",
                )
            return flag.value
        return None

    def where(self, name: str) -> SourceRange:
        return self._given[name][0].where


def parse_flags(line: LogicalLine, words: Sequence[Word], known: Mapping[str, Kind]) -> Flags:
    """Check flags against those an instruction has. Raises DockerfileSyntaxError."""
    given: dict[str, list[_Flag]] = {}
    for word in words:
        name, equals, value = word.text[2:].partition("=")
        kind = known.get(name)

        def error(message: str, hint: str | None = None, word: Word = word) -> Exception:
            return DockerfileSyntaxError(message, where=line.at(word.start, word.end), hint=hint)

        if kind is None:
            raise _unknown(name, word, line, known)
        if name in given and kind is not Kind.TEXTS:
            raise error(f"--{name} is given twice")
        if kind is Kind.SWITCH and not equals:
            value = "true"
        elif not equals or (kind is Kind.SWITCH and not value):
            raise error(f"--{name} has no value", f"write --{name}=...")
        elif kind is Kind.SWITCH:
            value = value.lower()
            if value not in ("true", "false"):
                raise error(f"--{name} can't be {value[:60]!r}", "it is true or false")
        given.setdefault(name, []).append(_Flag(value, word, line))
    return Flags(given)


def _unknown(
    name: str, word: Word, line: LogicalLine, known: Mapping[str, Kind]
) -> DockerfileSyntaxError:
    """Points at the flag without its value, if it is written without quotes and escapes."""
    flag = f"--{name}"
    plain = line.value[word.start : word.start + len(flag)] == flag
    guess = suggestion(name, known, "--")
    return DockerfileSyntaxError(
        f"unknown flag --{name[:60]}" + (f"; {guess}" if guess else ""),
        where=line.at(word.start, word.start + len(flag) if plain else word.end),
        hint=None if guess else _list_of(line.instruction, known),
    )


def _list_of(instruction: str, known: Mapping[str, Kind]) -> str:
    if not known:
        return f"{instruction} has no flags; put -- before an argument that begins with --"
    return f"the flags of {instruction} are {', '.join(f'--{name}' for name in known)}"


_UNITS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,
    "\u03bcs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_DURATION_PART = re.compile(r"([0-9]{0,20})(?:\.([0-9]{0,20}))?([^0-9.]+)")
_MAX_DURATION = (1 << 63) - 1
_MIN_DURATION = 1_000_000


def parse_duration(text: str) -> int:
    """Nanoseconds of a duration as Go writes it, ``1h30m`` or ``1.5s``; 0 or at least 1 ms.

    Raises DockerfileSyntaxError, without a place.
    """
    nanoseconds = _nanoseconds(text)
    if nanoseconds is None or nanoseconds > _MAX_DURATION:
        raise DockerfileSyntaxError(
            f"{text[:60]!r} is no duration", hint="write a number and ms, s, m or h, such as 1m30s"
        )
    if nanoseconds < 0 or 0 < nanoseconds < _MIN_DURATION:
        raise DockerfileSyntaxError(f"the duration {text[:60]} is less than a millisecond")
    return nanoseconds


def _nanoseconds(text: str) -> int | None:
    sign = -1 if text.startswith("-") else 1
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0
    total = 0
    position = 0
    while position < len(rest):
        part = _DURATION_PART.match(rest, position)
        if part is None or not (part[1] or part[2]) or part[3] not in _UNITS:
            return None
        unit = _UNITS[part[3]]
        fraction = part[2] or ""
        total += int(part[1] or "0") * unit + int(fraction or "0") * unit // 10 ** len(fraction)
        position = part.end()
        if total > _MAX_DURATION:
            return None
    return sign * total if rest else None
