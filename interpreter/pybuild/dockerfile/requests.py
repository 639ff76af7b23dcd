"""An instruction's line with its flags read: what the parser of each instruction starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from pybuild.dockerfile.arguments import Word, json_array, split_blanks, split_flags, split_quoted
from pybuild.dockerfile.flags import Flags, Kind, parse_flags
from pybuild.dockerfile.instructions import Command
from pybuild.dockerfile.lines import LogicalLine
from pybuild.errors import DockerfileSyntaxError, SourceRange
from pybuild.values import dataclass


class Common(TypedDict):
    where: SourceRange
    text: str
    comments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """A line whose flags are read; ``rest`` is ``line.value[start:]``."""

    line: LogicalLine
    escape: str
    flags: Flags
    start: int
    rest: str

    @property
    def common(self) -> Common:
        line = self.line
        return {"where": line.where, "text": line.text, "comments": line.comments}

    def error(
        self, message: str, word: Word | None = None, hint: str | None = None
    ) -> DockerfileSyntaxError:
        """An error about `word` of ``line.value``, or the whole instruction."""
        where = self.line.where if word is None else self.line.at(word.start, word.end)
        return DockerfileSyntaxError(message, where=where, hint=hint)

    def array(self) -> tuple[str, ...] | None:
        """The strings if the rest is a JSON array."""
        try:
            return json_array(self.rest)
        except DockerfileSyntaxError as error:
            error.where = self.line.at(self.start, len(self.line.value))
            raise

    def blank_words(self) -> list[Word]:
        return split_blanks(self.line.value, self.start)

    def quoted_words(self) -> list[Word]:
        words = split_quoted(self.rest, self.escape)
        return [Word(w.text, w.start + self.start, w.end + self.start) for w in words]

    def single(self) -> str:
        """The rest as one argument, which mustn't be missing."""
        if not self.rest:
            raise self.error(f"{self.line.instruction} has no argument")
        return self.rest

    def command(self) -> Command:
        array = self.array()
        if array is not None:
            return Command(array, shell=False)
        args = (self.rest,) if self.rest else ()
        return Command(args, shell=True)  # noqa: S604 - a value, nothing is called


def read_request(line: LogicalLine, escape: str, known: Mapping[str, Kind]) -> Request:
    """Read the flags of `line`, of which the instruction has `known`."""
    words, start = split_flags(line.value, escape)
    flags = parse_flags(line, words, known)
    return Request(line, escape, flags, start, line.value[start:])
