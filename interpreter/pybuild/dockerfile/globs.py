"""The patterns of ``${name#pattern}``, ``%`` and ``/``: ``*`` and ``?``, and nothing else.

As in BuildKit, no wildcard matches a line feed, a backslash makes ``*``, ``?`` and itself
literal, and a backslash before ``}`` or ``/`` is dropped.

No pattern makes a match slow: the text between two stars is placed once and never moved
again, which finds the same match as backtracking would, in time proportional to
the lengths of `pattern` and `value` multiplied.
"""

from __future__ import annotations

import re

from pybuild.errors import ExpansionError

_MAX_PATTERN = 4096
_MAX_WORK = 1 << 24


def strip_prefix(value: str, pattern: str, *, longest: bool) -> str:
    """`value` without the shortest or longest beginning that matches. Raises ExpansionError."""
    end = _match(_segments(_atoms(pattern, value)), value, 0, longest=longest)
    return value if end is None else value[end:]


def strip_suffix(value: str, pattern: str, *, longest: bool) -> str:
    """`value` without the shortest or longest end that matches. Raises ExpansionError."""
    # the shortest end is the shortest beginning of the reversed text
    backwards = value[::-1]
    end = _match(_segments(_atoms(pattern, value)[::-1]), backwards, 0, longest=longest)
    return value if end is None else backwards[end:][::-1]


def replace(value: str, pattern: str, replacement: str, *, every: bool, limit: int) -> str:
    """`value` with the first, or every, longest match replaced.

    Raises ExpansionError for a bad pattern, and for a result of more than `limit` characters.
    """
    segments = _segments(_atoms(pattern, value))
    pieces: list[str] = []
    size = position = copied = 0
    while position <= len(value):
        found = _search(segments, value, position)
        if found is None:
            break
        start, end = found
        pieces.append(value[copied:start])
        size += start - copied
        # an empty match right behind another one doesn't count
        if end > copied or start == 0:
            pieces.append(replacement)
            size += len(replacement)
        if size > limit:
            raise ExpansionError(f"a replacement makes a text of more than {limit} characters")
        copied = end
        position = max(position + 1, end)
        if not every:
            break
    pieces.append(value[copied:])
    return "".join(pieces)


def _atoms(pattern: str, value: str) -> list[str | None]:
    """Regular expressions of one character each, and None for a star."""
    if len(pattern) > _MAX_PATTERN or len(pattern) * len(value) > _MAX_WORK:
        raise ExpansionError(
            f"a pattern of {len(pattern)} characters is too long for a value of {len(value)}"
        )
    atoms: list[str | None] = []
    characters = iter(range(len(pattern)))
    for index in characters:
        char = pattern[index]
        if char == "*":
            atoms.append(None)
        elif char == "?":
            atoms.append(".")
        elif char == "\\":
            following = pattern[index + 1 : index + 2]
            if following in ("}", "/"):
                continue
            if following not in ("*", "?", "\\"):
                raise ExpansionError(
                    f"the pattern {pattern!r} has a backslash before {following!r}"
                    if following
                    else f"the pattern {pattern!r} ends with a backslash",
                    hint="a backslash may stand before *, ?, /, } and another backslash",
                )
            next(characters)
            atoms.append(re.escape(following))
        else:
            atoms.append(re.escape(char))
    return atoms


def _segments(atoms: list[str | None]) -> list[str]:
    """The regular expressions between the stars; the first and last may be empty."""
    segments = [""]
    for index, atom in enumerate(atoms):
        if atom is not None:
            segments[-1] += atom
        elif index == 0 or atoms[index - 1] is not None:
            segments.append("")
    return segments


def _match(segments: list[str], value: str, start: int, *, longest: bool) -> int | None:
    """Where the match that begins at `start` ends."""
    match = re.compile(segments[0]).match(value, start)
    last = len(segments) - 1
    for index in range(1, len(segments)):
        if match is None:
            return None
        star = ".*" if longest and index == last else ".*?"
        match = re.compile(star + segments[index]).match(value, match.end())
    return None if match is None else match.end()


def _search(segments: list[str], value: str, position: int) -> tuple[int, int] | None:
    """The leftmost match at or behind `position`, and of these the longest."""
    first = re.compile(segments[0])
    while (candidate := first.search(value, position)) is not None:
        end = _match(segments, value, candidate.start(), longest=True)
        if end is not None:
            return candidate.start(), end
        # what can't be found behind this candidate isn't behind a later one of its line
        position = value.find("\n", candidate.start()) + 1
        if position == 0:
            return None
    return None
