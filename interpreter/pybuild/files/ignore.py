"""The patterns of .dockerignore, with the rules of moby/patternmatcher (not those of git).

``*`` and ``?`` stop at a slash, ``**`` doesn't, ``[a-z]`` is a class, a backslash makes the
next character literal. A pattern is matched against the whole path and each folder above
it. The last pattern that matches decides; ``!`` in front of one includes what it matches.

Each pattern becomes an automaton whose states are made when first needed, so a path costs
one step a character however many stars a pattern has. The states behind a folder are kept,
and only the last name of a path is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pybuild.errors import ContextError
from pybuild.values import dataclass, field

_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
_MAX_LINE = 65535
_MAX_PATTERN = 4096
_MAX_STATES = 2000
_MAX_FOLDERS = 10_000
_EVERYTHING = ("*", "**", "**/*")


def read_patterns(data: bytes) -> list[str]:
    """The patterns in a .dockerignore, cleaned: comments, blank lines and leading slashes gone.

    Raises ContextError for a line of more than 65,535 bytes.
    """
    patterns: list[str] = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if len(raw) > _MAX_LINE:
            raise ContextError(f"line {number} of the ignore file has more than {_MAX_LINE} bytes")
        line = raw.decode("utf-8", "surrogateescape")
        pattern = line.strip(_SPACE)
        if line.startswith("#") or not pattern:
            continue
        negated = pattern.startswith("!")
        if negated:
            pattern = pattern[1:].strip(_SPACE)
        if pattern:
            pattern = _clean(pattern)
            if len(pattern) > 1:
                pattern = pattern.removeprefix("/")
        patterns.append(f"!{pattern}" if negated else pattern)
    return patterns


class IgnoreMatcher:
    """Tells which paths some patterns exclude. Safe to use from several threads."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Raises ContextError for a pattern that is wrong."""
        self.patterns = tuple(patterns)
        rules: list[tuple[bool, _State]] = []
        self._excludes_root = False
        for pattern in patterns:
            stripped = pattern.strip(_SPACE)
            if not stripped:
                continue
            text = _clean(stripped)
            negated = text.startswith("!")
            if text == "!":
                raise ContextError('the ignore pattern "!" says nothing to include')
            self._excludes_root |= text in _EVERYTHING
            rules.append((negated, _compile(text[negated:], stripped)))
        self._negated = tuple(negated for negated, _ in rules)
        start = tuple(state for _, state in rules)
        self._root = _Folder(start, (False,) * len(start))
        self._folders: dict[str, _Folder] = {}

    def excludes(self, path: str) -> bool:
        """Whether `path`, relative and with slashes, is excluded, itself or by a parent.

        The context's root, ``""`` or ``"."``, never is.
        """
        path = path.rstrip("/") or path[:1]
        if path in ("", "."):
            return False
        parent, slash, name = path.rpartition("/")
        folder = self._folder(parent) if slash else self._root
        excluded = False
        for negated, state, hit in zip(self._negated, folder.states, folder.hits, strict=True):
            if negated == excluded and (hit or (state.alive and state.run(name).accepts)):
                excluded = not negated
        return excluded

    def excludes_source(self, source: str) -> bool:
        """Whether nothing is left of a COPY's `source`, as BuildKit's check CopyIgnoredFile has it.

        Where a pattern with ``!`` leaves that open it is False.
        """
        if any(self._negated):
            return False
        path = _clean(source)
        return self._excludes_root if path in (".", "/") else self.excludes(path)

    def excludes_all_below(self, path: str) -> bool:
        """Whether the folder `path` and everything that can be below it is excluded."""
        path = path.rstrip("/")
        if path in ("", "."):
            return False
        folder = self._folder(path)
        for negated, state, hit in zip(
            reversed(self._negated), reversed(folder.states), reversed(folder.hits), strict=True
        ):
            if negated and (hit or state.alive):
                return False
            if hit:
                return True
        return False

    def _folder(self, path: str) -> _Folder:
        """What is known behind ``path/``."""
        known = self._folders.get(path)
        if known is not None:
            return known
        names = path.split("/")
        folder = self._root
        for depth, name in enumerate(names, 1):
            above = "/".join(names[:depth]) if depth < len(names) else path
            below = self._folders.get(above)
            if below is None:
                below = folder.enter(name)
                if len(self._folders) >= _MAX_FOLDERS:
                    self._folders.clear()
                self._folders[above] = below
            folder = below
        return folder


@dataclass(frozen=True, slots=True)
class _Folder:
    """Each pattern's state behind the folder's slash, and whether it matched the folder."""

    states: tuple[_State, ...]
    hits: tuple[bool, ...]

    def enter(self, name: str) -> _Folder:
        ends = [state.run(name) if state.alive else state for state in self.states]
        return _Folder(
            tuple(end["/"] if end.alive else end for end in ends),
            tuple(hit or end.accepts for hit, end in zip(self.hits, ends, strict=True)),
        )


class _State(dict[str, "_State"]):
    """A set of positions in a pattern; its items are the states that characters lead to."""

    __slots__ = ("_automaton", "_positions", "accepts", "alive")

    def __init__(self, automaton: _Automaton, positions: int) -> None:
        super().__init__()
        self._automaton = automaton
        self._positions = positions
        self.accepts = bool(positions & automaton.end)
        self.alive = positions != 0

    def __missing__(self, char: str) -> _State:
        automaton = self._automaton
        positions = automaton.step(self._positions, char)
        state = automaton.states.get(positions)
        if state is None:
            state = _State(automaton, positions)
            if len(automaton.states) >= _MAX_STATES:
                return state
            automaton.states[positions] = state
        self[char] = state
        return state

    def run(self, text: str) -> _State:
        state = self
        for char in text:
            state = state[char]
            if not state.alive:
                break
        return state


@dataclass(slots=True)
class _Automaton:
    """A pattern as sets of positions, each a bit: bit n is before the nth token.

    A token either takes one character and moves on (`chars`, `any_char`, `classes`), takes
    any number of characters and stays (`stars`, without slashes; `rests`, with), or is
    optional (`skips`). `after_slash` moves on behind a slash alone.
    """

    chars: dict[str, int] = field(default_factory=dict)
    any_char: int = 0
    classes: list[tuple[int, Callable[[str], bool]]] = field(default_factory=list)
    stars: int = 0
    rests: int = 0
    after_slash: int = 0
    skips: int = 0
    double_skips: int = 0
    size: int = 0
    end: int = 0
    states: dict[int, _State] = field(default_factory=dict)

    def step(self, positions: int, char: str) -> int:
        moving = positions & self.chars.get(char, 0)
        staying = positions & self.rests
        if char == "/":
            moving |= positions & self.after_slash
        else:
            moving |= positions & self.any_char
            staying |= positions & self.stars
        for bit, accepts in self.classes:
            if positions & bit and accepts(char):
                moving |= bit
        return self.closed(moving << 1 | staying)

    def closed(self, positions: int) -> int:
        """`positions`, and those that are reached without a character."""
        while True:
            skipped = positions & self.skips
            jumped = positions & self.double_skips
            reached = positions | skipped << 1 | jumped << 1 | jumped << 2
            if reached == positions:
                return positions
            positions = reached

    def _add(self) -> int:
        self.size += 1
        return 1 << (self.size - 1)

    def add_char(self, char: str) -> None:
        bit = self._add()
        self.chars[char] = self.chars.get(char, 0) | bit

    def add_any(self) -> None:
        self.any_char |= self._add()

    def add_class(self, accepts: Callable[[str], bool]) -> None:
        self.classes.append((self._add(), accepts))

    def add_star(self) -> None:
        bit = self._add()
        self.stars |= bit
        self.skips |= bit

    def add_rest(self) -> None:
        """Any text."""
        bit = self._add()
        self.rests |= bit
        self.skips |= bit

    def add_folders(self) -> None:
        """Nothing, or any text that ends with a slash."""
        self.double_skips |= self._add()
        bit = self._add()
        self.rests |= bit
        self.after_slash |= bit

    def start(self) -> _State:
        self.end = 1 << self.size
        positions = self.closed(1)
        return self.states.setdefault(positions, _State(self, positions))


def _compile(pattern: str, written: str) -> _State:
    if len(pattern) > _MAX_PATTERN:
        raise ContextError(f"an ignore pattern has more than {_MAX_PATTERN} characters")
    automaton = _Automaton()
    position = 0
    # behind a leading ** that no slash follows, plain text may begin anywhere in a name
    plain = not any(char in pattern.removeprefix("**") for char in "*?[]\\")
    while position < len(pattern):
        char = pattern[position]
        position += 1
        if char == "*" and pattern.startswith("*", position):
            slash = pattern.startswith("/", position + 1)
            first = position == 1
            position += 2 if slash else 1
            if position == len(pattern) or (first and plain and not slash):
                automaton.add_rest()
            else:
                automaton.add_folders()
        elif char == "*":
            automaton.add_star()
        elif char == "?":
            automaton.add_any()
        elif char == "[":
            accepts, position = _read_class(pattern, position, written)
            automaton.add_class(accepts)
        elif char == "\\":
            literal, position = _read_char(pattern, position - 1, written)
            automaton.add_char(literal)
        else:
            automaton.add_char(char)
    return automaton.start()


def _read_class(pattern: str, position: int, written: str) -> tuple[Callable[[str], bool], int]:
    """What the class whose ``[`` stands before `position` accepts, and where it ends."""
    negated = pattern.startswith("^", position)
    position += negated
    ranges: list[tuple[str, str]] = []
    while not (ranges and pattern.startswith("]", position)):
        if pattern[position : position + 1] in ("-", "]", ""):
            raise _bad(written)
        low, position = _read_char(pattern, position, written)
        high = low
        if pattern.startswith("-", position):
            if pattern[position + 1 : position + 2] in ("-", "]", ""):
                raise _bad(written)
            high, position = _read_char(pattern, position + 1, written)
        if high < low:
            raise _bad(written)
        ranges.append((low, high))

    def accepts(char: str) -> bool:
        return negated != any(low <= char <= high for low, high in ranges)

    return accepts, position + 1


def _read_char(pattern: str, position: int, written: str) -> tuple[str, int]:
    """The character at `position`, or the one behind a backslash there, and where it ends."""
    position += pattern.startswith("\\", position)
    if position >= len(pattern):
        raise _bad(written)
    return pattern[position], position + 1


def _bad(pattern: str) -> ContextError:
    return ContextError(
        f"the ignore pattern {pattern[:100]!r} has an open class or escape",
        hint="put a backslash before [ and \\ where they are meant as they are",
    )


def _clean(path: str) -> str:
    """The shortest equal path, as Go's path.Clean has it: no ``.``, ``..`` or ``//`` in it."""
    rooted = path.startswith("/")
    names: list[str] = []
    for name in path.split("/"):
        if name == ".." and names and names[-1] != "..":
            names.pop()
        elif name not in ("", ".") and not (name == ".." and rooted):
            names.append(name)
    return "/" * rooted + "/".join(names) or "."
