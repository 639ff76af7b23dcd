"""How the text behind an instruction's name falls into flags, words or a JSON array."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache

from pybuild.dockerfile.words import SPACE
from pybuild.errors import DockerfileSyntaxError
from pybuild.values import dataclass

_BLANKS = re.compile(r"[\t\v\f\r ]+")
_NOT_BLANKS = re.compile(r"[^\t\v\f\r ]+")
_MAX_EDITS = 2


@dataclass(frozen=True, slots=True)
class Word:
    """A word and where it stands in the text it was read from; `end` is exclusive."""

    text: str
    start: int
    end: int


def split_keyword(text: str) -> tuple[str, int]:
    """The first word of `text`, which has no space around it, and where the rest begins."""
    blanks = _BLANKS.search(text)
    if blanks is None:
        return text, len(text)
    rest = blanks.end()
    return text[: blanks.start()], rest + len(text[rest:]) - len(text[rest:].lstrip(SPACE))


def split_blanks(text: str, start: int = 0) -> list[Word]:
    """The words of ``text[start:]``, parted by blanks, quotes being ordinary characters."""
    return [Word(m.group(), m.start(), m.end()) for m in _NOT_BLANKS.finditer(text, start)]


def split_flags(text: str, escape: str) -> tuple[list[Word], int]:
    """The leading ``--flag`` words, without quotes and escapes, and where the rest begins.

    A bare ``--`` ends the flags and is no part of either.
    """
    flags: list[Word] = []
    position = _skip_space(text, 0)
    while text.startswith("--", position):
        word, end = _unquoted(text, position, escape)
        if word != "--":
            flags.append(Word(word, position, end))
        position = _skip_space(text, end)
        if word == "--":
            break
    return flags, position


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in SPACE:
        position += 1
    return position


@cache
def _plain_word(escape: str) -> re.Pattern[str]:
    return re.compile(rf"[^{re.escape(SPACE)}'\"{re.escape(escape)}]+(?=[{re.escape(SPACE)}]|\Z)")


def _unquoted(text: str, position: int, escape: str) -> tuple[str, int]:
    """The word at `position` without quotes and escapes, and its end."""
    plain = _plain_word(escape).match(text, position)
    if plain is not None:
        return plain.group(), plain.end()
    pieces: list[str] = []
    quote = ""
    while position < len(text):
        char = text[position]
        if quote and char == quote:
            quote = ""
        elif not quote and char in ("'", '"'):
            quote = char
        elif not quote and char in SPACE:
            break
        elif char == escape:
            position += 1
            pieces.append(text[position : position + 1])
        else:
            pieces.append(char)
        position += 1
    return "".join(pieces), min(position, len(text))


@cache
def _quoted_word(escape: str) -> re.Pattern[str]:
    e = re.escape(escape)
    return re.compile(
        rf"""(?: [^{re.escape(SPACE)}'"{e}]++ | {e}. | '[^']*+(?:'|\Z)
            | "(?: [^"{e}] | {e}. )*+ (?: "|(?P<lone>{e}?)\Z) )++""",
        re.VERBOSE | re.DOTALL,
    )


def split_quoted(text: str, escape: str) -> list[Word]:
    """The words of an ENV, LABEL or ARG line. Quotes keep space together and stay."""
    words: list[Word] = []
    for match in _quoted_word(escape).finditer(text):
        # an open double quote may end in an escape with nothing behind it
        end = match.end() - len(match["lone"] or "")
        words.append(Word(text[match.start() : end], match.start(), end))
    return words


def json_array(text: str) -> tuple[str, ...] | None:
    """The strings of a JSON array, or None if `text` is none: then it's in shell form.

    Raises DockerfileSyntaxError for an array of anything else than strings.
    """
    if not text.startswith("[", _skip_space(text, 0)):
        return None
    try:
        array = json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(item, str) for item in array):
        raise DockerfileSyntaxError(
            "a JSON array may hold strings only", hint='write every element in double quotes ("")'
        )
    return tuple(_without_surrogates(item) for item in array)


def _number(_digits: str) -> None:
    """Numbers aren't allowed anyway; a long one isn't worth converting."""


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _without_surrogates(text: str) -> str:
    if text.isascii():
        return text
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def suggestion(word: str, options: Iterable[str], prefix: str = "") -> str | None:
    """A hint with the option that is at most two edits from `word`, if there is one."""
    best = closest(word, options)
    return None if best is None else f"did you mean {prefix}{best}?"


def closest(word: str, options: Iterable[str]) -> str | None:
    """The option with the fewest edits from `word`, one or two, if there is one."""
    best, fewest = None, _MAX_EDITS + 1
    for option in sorted(options):
        edits = _distance(word, option)
        if 0 < edits < fewest:
            best, fewest = option, edits
    return best


def _distance(left: str, right: str) -> int:
    """The Levenshtein distance, or a larger number than counts."""
    if abs(len(left) - len(right)) > _MAX_EDITS:
        return _MAX_EDITS + 1
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
        if min(row) > _MAX_EDITS:
            return _MAX_EDITS + 1
    return row[-1]
