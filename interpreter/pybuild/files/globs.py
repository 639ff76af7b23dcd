"""Wildcards in the sources of COPY and ADD: those of Go's filepath.Match."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pybuild.errors import CopyFailed
from pybuild.files.trees import Tree, join
from pybuild.oci.layerindex import Kind
from pybuild.values import dataclass

_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Star:
    """Any characters."""


@dataclass(frozen=True, slots=True)
class _One:
    """One character: any (no ranges), or inside, or outside of the ranges."""

    ranges: tuple[tuple[str, str], ...] = ()
    negated: bool = False

    def fits(self, character: str) -> bool:
        if not self.ranges:
            return True
        return any(low <= character <= high for low, high in self.ranges) != self.negated


def has_wildcards(path: str) -> bool:
    """Whether ``*``, ``?`` or ``[`` stands in `path` without a backslash before it."""
    characters = iter(path)
    for character in characters:
        if character == "\\":
            next(characters, None)
        elif character in "*?[":
            return True
    return False


def literal(path: str) -> str:
    """`path`, which has no wildcards, without the backslashes that made characters plain."""
    return _ESCAPED.sub(r"\1", path)


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern` fits the single name `name`. Time is at most their lengths' product.

    Raises CopyFailed for a pattern that isn't well-formed.
    """
    parts = _parse(pattern)
    at_part = at_name = 0
    after_star = star_name = -1
    while at_name < len(name):
        part = parts[at_part] if at_part < len(parts) else None
        if isinstance(part, _Star):
            after_star, star_name = at_part + 1, at_name
            at_part += 1
        elif part is not None and part.fits(name[at_name]):
            at_part += 1
            at_name += 1
        elif after_star >= 0:
            star_name += 1
            at_part, at_name = after_star, star_name
        else:
            return False
    return all(isinstance(part, _Star) for part in parts[at_part:])


def expand(tree: Tree, folder: bytes, pattern: str) -> Iterator[bytes]:
    """The paths below `folder` that `pattern` fits, sorted; it has no slash at either end.

    A wildcard doesn't match a slash, and no symlink is followed.
    """
    parts = pattern.split("/")
    for part in parts:
        _parse(part)
    pending = [(folder, 0)]
    while pending:
        here, depth = pending.pop()
        last = depth == len(parts) - 1
        deeper = []
        for name in tree.children(here):
            if not matches(parts[depth], name.decode("utf-8", "surrogateescape")):
                continue
            path = join(here, name)
            if last:
                yield path
                continue
            entry = tree.get(path)
            if entry is not None and entry.kind is Kind.DIRECTORY:
                deeper.append((path, depth + 1))
        pending.extend(reversed(deeper))


def _parse(pattern: str) -> list[_Star | _One]:
    parts: list[_Star | _One] = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        if character == "*":
            if not (parts and isinstance(parts[-1], _Star)):
                parts.append(_Star())
            at += 1
        elif character == "?":
            parts.append(_One())
            at += 1
        elif character == "[":
            one, at = _parse_class(pattern, at + 1)
            parts.append(one)
        else:
            literal, at = _literal(pattern, at)
            parts.append(_One(((literal, literal),)))
    return parts


def _parse_class(pattern: str, at: int) -> tuple[_One, int]:
    negated = pattern.startswith("^", at)
    at += negated
    ranges: list[tuple[str, str]] = []
    while not (ranges and pattern.startswith("]", at)):
        low, at = _class_character(pattern, at)
        high = low
        if pattern.startswith("-", at):
            high, at = _class_character(pattern, at + 1)
        ranges.append((low, high))
    return _One(tuple(ranges), negated), at + 1


def _class_character(pattern: str, at: int) -> tuple[str, int]:
    if at >= len(pattern) or pattern[at] in "-]":
        raise _malformed(pattern)
    return _literal(pattern, at)


def _literal(pattern: str, at: int) -> tuple[str, int]:
    if pattern[at] != "\\":
        return pattern[at], at + 1
    if at + 1 == len(pattern):
        raise _malformed(pattern)
    return pattern[at + 1], at + 2


def _malformed(pattern: str) -> CopyFailed:
    return CopyFailed(f"syntax error in the pattern {pattern!r}")
