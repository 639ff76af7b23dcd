"""Quotes, escapes and variables in the words of a Dockerfile.

The forms of ``${name}`` are those of the Dockerfile reference and of BuildKit's lexer::

    $x  ${x}  ${x:-word}  ${x-word}  ${x:+word}  ${x+word}  ${x:?word}  ${x?word}
    ${x#pattern}  ${x##pattern}  ${x%pattern}  ${x%%pattern}  ${x/pattern/word}  ${x//pattern/word}

Words and patterns are expanded in turn. Nesting and growth are limited, so a hostile word
costs an :class:`~pybuild.errors.ExpansionError` and neither the stack nor the memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from pybuild.dockerfile import globs
from pybuild.errors import ExpansionError
from pybuild.values import dataclass

SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
"""White space as Unicode and Go have it; Python's own also counts U+001C to U+001F."""

MAX_NESTING = 100
MAX_GROWTH = 1 << 20
"""How many characters the variables of one word may make, beside as many as it has."""

_WHITE = re.compile(f"[{SPACE}]+")
_SPECIAL_PARAMETERS = "@*#?-$!0"
_FORMS_HINT = "the forms are ${x}, ${x:-word}, ${x:+word}, ${x:?word}, ${x#p}, ${x%p}, ${x/p/word}"


@dataclass(frozen=True, slots=True)
class Expansion:
    """An expanded word, and the names of variables it asked for: those set and those not."""

    text: str
    matched: frozenset[str]
    unmatched: frozenset[str]


def expand_word(word: str, env: Mapping[str, str], escape: str = "\\") -> Expansion:
    """`word` without its quotes and escapes, variables replaced, white space kept.

    Raises ExpansionError for open quotes, a bad ``${}``, a failed ``${x:?}``, or a limit.
    """
    if not any(char in word for char in ("$", "'", '"', escape)):
        return Expansion(word, frozenset(), frozenset())
    lexer = _Lexer(word, env, escape)
    text = "".join(piece for piece, _ in lexer.pieces())
    return Expansion(text, frozenset(lexer.matched), frozenset(lexer.unmatched))


def expand_words(word: str, env: Mapping[str, str], escape: str = "\\") -> list[str]:
    """The words in `word` after expansion: unquoted white space parts them, also in values.

    Empty words are left out. Raises ExpansionError as :func:`expand_word`.
    """
    return _split(_Lexer(word, env, escape).pieces())


def expand_text(text: str, env: Mapping[str, str], escape: str = "\\") -> Expansion:
    """`text`, a heredoc's body, with variables replaced; quotes are ordinary characters.

    An escape is dropped and makes the next character literal. Raises ExpansionError.
    """
    if "$" not in text and escape not in text:
        return Expansion(text, frozenset(), frozenset())
    lexer = _Lexer(text, env, escape, quotes=False)
    expanded = "".join(piece for piece, _ in lexer.pieces())
    return Expansion(expanded, frozenset(lexer.matched), frozenset(lexer.unmatched))


def split_raw(text: str) -> list[str]:
    """The words of a line that may have heredocs: quotes, escapes and variables are kept.

    White space behind ``<<`` doesn't part words. Raises ExpansionError for open quotes.
    """
    lexer = _Lexer(text, None, "\\", raw_quotes=True, raw_escapes=True)
    return _split(lexer.pieces())


def unquote_words(text: str, *, raw_quotes: bool) -> list[str]:
    """As :func:`split_raw`, but without escapes, and without quotes unless `raw_quotes`."""
    return _split(_Lexer(text, None, "\\", raw_quotes=raw_quotes).pieces())


def _split(pieces: list[tuple[str, bool]]) -> list[str]:
    words: list[str] = []
    current: list[str] = []
    for text, splits in pieces:
        if not splits:
            current.append(text)
            continue
        first, *others = _WHITE.split(text)
        current.append(first)
        for other in others:
            words.append("".join(current))
            current = [other]
    words.append("".join(current))
    return [word for word in words if word]


@cache
def _plain(special: str) -> re.Pattern[str]:
    return re.compile(f"[^{re.escape(special)}]+")


class _Lexer:
    """Reads one word. With `env` None variables stay as they are written."""

    def __init__(
        self,
        source: str,
        env: Mapping[str, str] | None,
        escape: str,
        *,
        quotes: bool = True,
        raw_quotes: bool = False,
        raw_escapes: bool = False,
    ) -> None:
        self.matched: set[str] = set()
        self.unmatched: set[str] = set()
        self._source = source
        self._env = env
        self._escape = escape
        self._quotes = quotes
        self._raw_quotes = raw_quotes
        self._raw_escapes = raw_escapes
        self._position = 0
        self._depth = 0
        self._growth = 0

    def pieces(self, stop: str = "") -> list[tuple[str, bool]]:
        """The text up to `stop`, in pieces; True marks those whose white space parts words."""
        special = f"$<{self._escape}{stop}" + ("'\"" if self._quotes else "")
        plain = _plain(special)
        pieces: list[tuple[str, bool]] = []
        while char := self._peek():
            if char == stop:
                self._position += 1
                return pieces
            if char == "$":
                pieces.append((self._dollar(), True))
            elif char == "<":
                pieces.append((self._angle(), False))
            elif char == "'" and self._quotes:
                pieces.append((self._single_quoted(), False))
            elif char == '"' and self._quotes:
                pieces.append((self._double_quoted(), False))
            elif char == self._escape:
                if self._raw_escapes:
                    pieces.append((char, False))
                self._position += 1
                pieces.append((self._next(), False))
            else:
                run = plain.match(self._source, self._position)
                end = run.end() if run else self._position + 1
                pieces.append((self._source[self._position : end], True))
                self._position = end
        if stop:
            raise ExpansionError(
                "a ${...} has no second slash" if stop == "/" else "a ${ is never closed by }"
            )
        return pieces

    def _peek(self) -> str:
        return self._source[self._position : self._position + 1]

    def _next(self) -> str:
        char = self._peek()
        self._position += len(char)
        return char

    def _inner(self, stop: str, *, raw_escapes: bool) -> str:
        """The expanded text up to `stop`, inside a ``${...}``."""
        if self._depth == MAX_NESTING:
            raise ExpansionError(f"variables are nested more than {MAX_NESTING} deep")
        before, self._raw_escapes = self._raw_escapes, raw_escapes
        self._depth += 1
        text = "".join(piece for piece, _ in self.pieces(stop))
        self._depth -= 1
        self._raw_escapes = before
        return text

    def _angle(self) -> str:
        """``<``, or ``<<`` with the white space behind it."""
        start = self._position
        self._position += 1
        if self._peek() == "<":
            self._position += 1
            while self._peek() in ("\t", "\r", " "):
                self._position += 1
        return self._source[start : self._position]

    def _single_quoted(self) -> str:
        start = self._position
        end = self._source.find("'", start + 1)
        if end < 0:
            raise ExpansionError("a single quote is never closed")
        self._position = end + 1
        return self._source[start : end + 1] if self._raw_quotes else self._source[start + 1 : end]

    def _double_quoted(self) -> str:
        """Only ``$`` and, before ``"``, ``$`` or itself, the escape are special in here."""
        plain = _plain(f'"${self._escape}')
        quote = '"' if self._raw_quotes else ""
        pieces = [quote]
        self._position += 1
        while char := self._peek():
            if char == '"':
                self._position += 1
                pieces.append(quote)
                return "".join(pieces)
            if char == "$":
                pieces.append(self._dollar())
            elif char == self._escape:
                self._position += 1
                if self._raw_escapes:
                    pieces.append(char)
                following = self._peek()
                # before anything else the escape is a character, which a pattern
                # then sees escaped, as it sees all quoted text
                if following in ('"', "$", self._escape):
                    pieces.append(self._next())
                elif following:
                    pieces.append(char)
            else:
                run = plain.match(self._source, self._position)
                end = run.end() if run else self._position + 1
                pieces.append(self._source[self._position : end])
                self._position = end
        raise ExpansionError("a double quote is never closed")

    def _name(self) -> str:
        """A name, a number, a special parameter such as ``@``, or nothing."""
        source, start = self._source, self._position
        end = start
        first = self._peek()
        if first.isdecimal():
            while source[end : end + 1].isdecimal():
                end += 1
        elif first and first in _SPECIAL_PARAMETERS:
            end += 1
        else:
            while (char := source[end : end + 1]) and (
                char == "_" or char.isalpha() or char.isdecimal()
            ):
                end += 1
        self._position = end
        return source[start:end]

    def _value(self, name: str) -> str | None:
        value = self._env.get(name) if self._env is not None else None
        if value is None:
            self.unmatched.add(name)
        else:
            self.matched.add(name)
        return value

    def _grown(self, text: str) -> str:
        self._growth += len(text)
        if self._growth > MAX_GROWTH + len(self._source):
            raise ExpansionError(
                f"the variables of one word make more than {MAX_GROWTH} characters"
            )
        return text

    def _dollar(self) -> str:
        start = self._position
        self._position += 1
        if self._peek() == "{":
            self._position += 1
            text = self._braced(start)
        else:
            name = self._name()
            if not name:
                return "$"
            value = self._value(name)
            text = f"${name}" if self._env is None else value or ""
        return self._grown(text)

    def _braced(self, start: int) -> str:
        name = self._name()
        if not name:
            if not self._peek():
                raise ExpansionError("a ${ is never closed by }")
            raise ExpansionError("a ${...} has no name of a variable", hint=_FORMS_HINT)
        modifier = self._next()
        if modifier == ":":
            modifier += self._next()
        match modifier:
            case "}":
                text = self._value(name) or ""
            case "-" | ":-" | "+" | ":+" | "?" | ":?":
                text = self._conditional(name, modifier)
            case "#" | "%":
                text = self._stripped(name, modifier)
            case "/":
                text = self._replaced(name)
            case "" | ":":
                raise ExpansionError("a ${ is never closed by }")
            case _:
                raise ExpansionError(
                    f"${{{name}{modifier}...}} isn't a form that is known", hint=_FORMS_HINT
                )
        return self._source[start : self._position] if self._env is None else text

    def _conditional(self, name: str, modifier: str) -> str:
        word = self._inner("}", raw_escapes=False)
        value = self._value(name)
        given = value is not None and (value != "" or modifier[0] != ":")
        match modifier[-1]:
            case "-":
                return (value or "") if given else word
            case "+":
                return word if given else ""
            case _:
                if given or self._env is None:
                    return value or ""
                state = "not set" if value is None else "empty"
                raise ExpansionError(f"{name}: {word}" if word else f"variable {name} is {state}")

    def _stripped(self, name: str, modifier: str) -> str:
        pattern = self._inner("}", raw_escapes=True)
        value = self._value(name)
        longest = pattern.startswith(modifier)
        if longest:
            pattern = pattern[1:]
        if self._env is None:
            return ""
        strip = globs.strip_prefix if modifier == "#" else globs.strip_suffix
        return strip(value or "", pattern, longest=longest)

    def _replaced(self, name: str) -> str:
        every = self._peek() == "/"
        if every:
            self._position += 1
        pattern = self._inner("/", raw_escapes=True)
        replacement = self._inner("}", raw_escapes=True)
        value = self._value(name)
        if self._env is None:
            return ""
        return globs.replace(value or "", pattern, replacement, every=every, limit=MAX_GROWTH)
