"""The bytes of a Dockerfile -> logical lines with their heredocs, comments and places.

dockerfile-parse splits a Dockerfile into instructions, but doesn't know heredocs, empty
continuation lines, an end of file inside a continuation, a byte order mark, or two
backslashes at a line's end. So physical lines are joined here first, as BuildKit joins
them, heredocs taken out, and dockerfile-parse is given one physical line for each
instruction, at the line where it began and fenced by a sentinel at either end of its value.
This is the only file that uses it.

Bytes that aren't UTF-8 are kept as Python's ``surrogateescape`` has them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

from pybuild.dockerfile.arguments import json_array, split_flags, split_keyword
from pybuild.dockerfile.instructions import Directives, Heredoc
from pybuild.dockerfile.words import SPACE, split_raw, unquote_words
from pybuild.errors import (
    DockerfileError,
    DockerfileSyntaxError,
    ExpansionError,
    SourceRange,
    located,
)
from pybuild.values import dataclass, replace

MAX_SIZE = 16 << 20
MAX_LINE = 65535
"""Bytes in a physical line, as in BuildKit."""

_WITH_HEREDOCS = frozenset({"ADD", "COPY", "RUN"})
_DIRECTIVE = re.compile(r"#[" + SPACE + r"]*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+)\Z", re.ASCII)
_HEREDOC = re.compile(r"([0-9]*)<<(-?)\s*+([^<]*+)\Z", re.ASCII)
_PLAIN_KEYWORD = re.compile(r"[!-~]+")
_FENCE = "."


@dataclass(frozen=True, slots=True)
class LogicalLine:
    """One instruction. ``value`` is the text behind its name, without space around it."""

    instruction: str
    """Upper case; `?` where it can't be one."""
    keyword: str
    """As written."""
    value: str
    value_start: int
    """Where ``value`` begins in ``text``."""
    text: str
    """The whole instruction, continuations joined, heredoc bodies left out."""
    where: SourceRange
    comments: tuple[str, ...] = ()
    heredocs: tuple[Heredoc, ...] = ()
    """As written: leading tabs are still there."""
    pieces: tuple[tuple[int, int, int], ...] = ()
    """For each physical line: where it begins in ``text``, its number, the column there."""

    def at(self, start: int, end: int) -> SourceRange:
        """The place of ``value[start:end]``."""
        if not self.pieces:
            return self.where
        first_line, first_column = self._place(self.value_start + start)
        last_line, last_column = self._place(self.value_start + max(end - 1, start))
        return SourceRange(
            self.where.file, first_line, last_line, first_column, last_column + (end > start)
        )

    def _place(self, offset: int) -> tuple[int, int]:
        for start, line, column in reversed(self.pieces):
            if start <= offset:
                return line, column + offset - start
        _, line, column = self.pieces[0]
        return line, column


@dataclass(frozen=True, slots=True)
class SplitFile:
    directives: Directives
    lines: tuple[LogicalLine, ...]
    gaps: tuple[SourceRange, ...]
    """The last lines of the instructions with empty lines behind a continuation."""


def split_file(data: bytes, name: str) -> SplitFile:
    """The directives and instructions of a Dockerfile; `name` is for messages.

    What the instructions are isn't checked here. Raises DockerfileSyntaxError.
    """
    physical = _physical_lines(data, name)
    directives, first = _read_directives(physical, name)
    reader = _Reader(physical, first, name, directives.escape)
    lines = _through_dockerfile_parse(reader.read(), len(physical))
    return SplitFile(directives, lines, tuple(reader.gaps))


def split_trigger(trigger: str, where: SourceRange, escape: str) -> tuple[LogicalLine, ...]:
    """The instructions in an ONBUILD trigger; all of them stand at `where`."""
    physical = _keep_ends(trigger)
    try:
        found = _Reader(physical, 0, where.file, escape).read()
    except DockerfileError as error:
        error.where = where
        raise
    lines = _through_dockerfile_parse(found, len(physical))
    return tuple(replace(line, where=where, pieces=()) for line in lines)


def parse_heredoc(word: str) -> Heredoc | None:
    """``<<NAME`` with an empty body, or None if `word` is no heredoc.

    Raises ExpansionError if the name has an open quote.
    """
    match = _HEREDOC.match(word)
    if match is None:
        return None
    descriptor, chomp, rest = match.groups()
    names = unquote_words(rest, raw_quotes=False)
    if len(names) != 1:
        return None
    (name,) = names
    raw = unquote_words(rest, raw_quotes=True)[0]
    return Heredoc(
        name=name,
        content="",
        # a quote that is gone was no part of the name, so the name was quoted
        expand=raw.count("'") + raw.count('"') == name.count("'") + name.count('"'),
        chomp=bool(chomp),
        fd=int(descriptor[:9] or "0"),
    )


def heredocs_of(text: str) -> list[Heredoc]:
    """The heredocs that a line opens, with empty bodies."""
    try:
        words = split_raw(text)
    except ExpansionError:
        return []  # quotes that only the shell of a RUN understands
    return [heredoc for heredoc in map(parse_heredoc, words) if heredoc is not None]


def _keep_ends(text: str) -> list[str]:
    lines = text.split("\n")
    last = lines.pop()
    return [f"{line}\n" for line in lines] + ([last] if last else [])


def _physical_lines(data: bytes, name: str) -> list[str]:
    if len(data) > MAX_SIZE:
        raise DockerfileSyntaxError(
            f"the file has more than {MAX_SIZE} bytes", where=SourceRange(name, 1, 1)
        )
    for number, line in enumerate(data.split(b"\n"), 1):
        if len(line) > MAX_LINE:
            raise DockerfileSyntaxError(
                f"the line has {len(line)} bytes, and {MAX_LINE} is the most",
                where=SourceRange(name, number, number),
                hint="break it with continuations, or COPY long data from a file",
            )
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    return _keep_ends(text)


def _read_directives(lines: Sequence[str], name: str) -> tuple[Directives, int]:
    """The parser directives, and the index of the first line that is none."""
    found: dict[str, str] = {}
    places: dict[str, int] = {}
    for index, line in enumerate(lines):
        match = _DIRECTIVE.match(line.strip(SPACE))
        key = match[1].lower() if match else ""
        if match is None or key not in ("syntax", "escape", "check"):
            break
        where = SourceRange(name, index + 1, index + 1)
        if key in found:
            raise DockerfileSyntaxError(f"the directive {key} is given twice", where=where)
        found[key] = match[2]
        places[key] = index + 1
        if key == "escape" and match[2] not in ("\\", "`"):
            raise DockerfileSyntaxError(
                f"the escape character can't be {match[2]!r}",
                where=where,
                hint="it is a backslash or a backtick",
            )
    count = len(found)
    if not found and lines and lines[0].startswith("#!"):
        # the frontend, and only that, may also be named below a #! line
        match = _DIRECTIVE.match(lines[1].strip(SPACE)) if len(lines) > 1 else None
        if match is not None and match[1].lower() == "syntax":
            found["syntax"] = match[2]
            places["syntax"] = 2
    directives = Directives(
        found.get("escape", "\\"),
        found.get("syntax"),
        found.get("check"),
        places.get("syntax", 1),
        places.get("check", 1),
    )
    return directives, count


class _Reader:
    """Joins physical lines into logical ones."""

    def __init__(self, lines: Sequence[str], first: int, name: str, escape: str) -> None:
        self.gaps: list[SourceRange] = []
        self._lines = lines
        self._next = first
        self._name = name
        self._escape = escape

    def read(self) -> list[LogicalLine]:
        lines: list[LogicalLine] = []
        comments: list[str] = []
        while self._next < len(self._lines):
            line = self._lines[self._next].rstrip("\r\n")
            stripped = line.lstrip(SPACE)
            if stripped.startswith("#"):
                self._next += 1
                comment = stripped[1:].strip(SPACE)
                # an empty comment parts a text from the comments above it
                if comment:
                    comments.append(comment)
                else:
                    comments = []
            elif not stripped:
                self._next += 1
            else:
                lines.append(self._logical_line(tuple(comments)))
                comments = []
        if not lines:
            number = max(len(self._lines), 1)
            raise DockerfileSyntaxError(
                "the file has no instructions",
                where=SourceRange(self._name, number, number),
                hint="a Dockerfile begins with FROM",
            )
        return lines

    def _logical_line(self, comments: tuple[str, ...]) -> LogicalLine:
        start = self._next + 1
        text, pieces, gap = self._join()
        where = SourceRange(self._name, start, self._next)
        if gap:
            self.gaps.append(SourceRange(self._name, self._next, self._next))
        keyword, value_start = split_keyword(text)
        line = LogicalLine(
            instruction=keyword.upper(),
            keyword=keyword,
            value=text[value_start:],
            value_start=value_start,
            text=text,
            where=where,
            comments=comments,
            pieces=pieces,
        )
        if "<<" not in text or not _takes_heredocs(line, self._escape):
            return line
        with located(where):
            opened = heredocs_of(text)
        heredocs = tuple(self._read_body(heredoc, line) for heredoc in opened)
        return replace(line, heredocs=heredocs, where=SourceRange(self._name, start, self._next))

    def _join(self) -> tuple[str, tuple[tuple[int, int, int], ...], bool]:
        """The joined text without space around it, its pieces, and whether lines were empty."""
        texts: list[str] = []
        pieces: list[tuple[int, int, int]] = []
        length = 0
        gap = False
        continues = True
        while continues and self._next < len(self._lines):
            line = self._lines[self._next].rstrip("\r\n")
            self._next += 1
            stripped = line.lstrip(SPACE)
            if stripped.startswith("#"):
                continue
            if not stripped:
                gap = True
                continue
            column = 1
            if not pieces:
                column += len(line) - len(stripped)
                line = stripped
            line, continues = self._without_escape(line)
            pieces.append((length, self._next, column))
            texts.append(line)
            length += len(line)
        text = "".join(texts)
        lead = len(text) - len(text.lstrip(SPACE))
        if lead:  # an escape alone on the first line
            pieces = [(offset - lead, number, column) for offset, number, column in pieces]
        return text.strip(SPACE), tuple(pieces), gap

    def _without_escape(self, line: str) -> tuple[str, bool]:
        """`line` without the escape that continues it, and whether there is one."""
        end = line.rstrip(" \t")
        if end.endswith(self._escape) and not end.endswith(self._escape * 2):
            return end[:-1], True
        return line, False

    def _read_body(self, heredoc: Heredoc, line: LogicalLine) -> Heredoc:
        first = self._next
        for index in range(first, len(self._lines)):
            end = self._lines[index].rstrip("\r\n")
            if heredoc.chomp:
                end = end.lstrip("\t")
            if end == heredoc.name:
                self._next = index + 1
                return replace(heredoc, content="".join(self._lines[first:index]))
        raise DockerfileSyntaxError(
            f"the heredoc {heredoc.name} never ends",
            where=_marker(heredoc, line),
            hint=f"end it with a line that is {heredoc.name} and nothing else",
        )


def _marker(heredoc: Heredoc, line: LogicalLine) -> SourceRange:
    """Where `line` opens `heredoc`."""
    match = re.search(
        r"[0-9]*<<-?\s*['\"]?" + re.escape(heredoc.name) + r"['\"]?", line.value, re.ASCII
    )
    return line.at(match.start(), match.end()) if match else line.where


def _takes_heredocs(line: LogicalLine, escape: str) -> bool:
    """Whether ``<<`` opens a heredoc in this instruction, or in the one it triggers."""
    instruction, value = line.instruction, line.value
    if instruction == "ONBUILD":
        _, start = split_flags(value, escape)
        keyword, rest = split_keyword(value[start:].strip(SPACE))
        instruction, value = keyword.upper(), value[start:].strip(SPACE)[rest:]
    if instruction not in _WITH_HEREDOCS:
        return False
    _, start = split_flags(value, escape)
    with located(line.where):
        return json_array(value[start:].strip(SPACE)) is None


def _through_dockerfile_parse(lines: Sequence[LogicalLine], count: int) -> tuple[LogicalLine, ...]:
    """Have dockerfile-parse tell instruction from value."""
    # it imports logging, which takes longer than splitting a file
    from dockerfile_parse import (  # type: ignore[import-untyped]  # noqa: PLC0415 - has no types
        DockerfileParser,
    )

    physical = [""] * count
    for line in lines:
        # what can't be an instruction's name might look like two words or a comment to it
        keyword = line.keyword if _PLAIN_KEYWORD.fullmatch(line.keyword) else "?"
        physical[line.where.start_line - 1] = f"{keyword} {_FENCE}{line.value}{_FENCE}"
    # bytes go through it as the characters of the same numbers, as it takes UTF-8 only
    data = "\n".join(physical).encode("utf-8", "surrogateescape")
    plain = data.isascii()
    fed = data if plain else data.decode("latin-1").encode("utf-8")
    structure = DockerfileParser(fileobj=io.BytesIO(fed), cache_content=False).structure
    split: list[LogicalLine] = []
    for line, part in zip(lines, structure, strict=True):
        value = part["value"]
        if not plain:
            value = value.encode("latin-1").decode("utf-8", "surrogateescape")
        split.append(
            LogicalLine(
                instruction=part["instruction"],
                keyword=line.keyword,
                value=value[len(_FENCE) : -len(_FENCE)],
                value_start=line.value_start,
                text=line.text,
                where=line.where,
                comments=line.comments,
                heredocs=line.heredocs,
                pieces=line.pieces,
            )
        )
    return tuple(split)
