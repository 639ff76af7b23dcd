"""What the build checks find, and which of them count: ``# check=`` and its like.

The value is that of BuildKit: ``skip=RULE,RULE;error=true;experimental=RULE``, with ``all`` for
every rule. The build arg ``BUILDKIT_DOCKERFILE_CHECK`` replaces the directive at the top of the
file; a comment right above an instruction adds to either, for that instruction alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import islice

from pybuild.dockerfile.arguments import closest
from pybuild.dockerfile.instructions import Directives
from pybuild.dockerfile.rules import Rule
from pybuild.errors import DockerfileError, SourceRange, UsageError, located
from pybuild.values import dataclass

CHECK_ARG = "BUILDKIT_DOCKERFILE_CHECK"
"""The build arg that says which rules count."""

MAX_WARNINGS = 1000
"""More are dropped: a hostile file can have millions."""

_ALL = "all"
_LONGEST_MESSAGE = 1000
_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
_COMMENT = re.compile(r"check\s*=\s*(\S+)", re.IGNORECASE | re.ASCII)
# comparing names costs the product of their lengths, for each pair of names
_MOST_GUESSES = 100
_MOST_NAMES = 200
_LONGEST_NAME = 40


@dataclass(frozen=True, slots=True)
class LintWarning:
    """What a check found. ``rule`` and ``description`` say in general what ``message`` says
    of this place.
    """

    rule: str
    message: str
    where: SourceRange
    description: str


@dataclass(frozen=True, slots=True)
class LintOptions:
    """Which rules count, by name, and whether what they find is an error."""

    skipped: frozenset[str] = frozenset()
    experimental: frozenset[str] = frozenset()
    error: bool = False

    def want(self, rule: Rule) -> bool:
        if rule.experimental:
            return not self.experimental.isdisjoint((rule.name, _ALL))
        return self.skipped.isdisjoint((rule.name, _ALL))

    def adding(self, other: LintOptions) -> LintOptions:
        """These, and the rules that `other` names."""
        return LintOptions(
            self.skipped | other.skipped, self.experimental | other.experimental, self.error
        )


def parse_lint_options(text: str) -> LintOptions:
    """The options in a ``# check=``. Raises DockerfileError, without a place."""
    skipped = experimental = frozenset[str]()
    error = False
    for part in text.strip().split(";", 2) if text.strip() else ():
        key, equals, value = part.partition("=")
        names = frozenset(name.strip() for name in value.split(","))
        match key.strip():
            case "skip" if equals:
                skipped = names
            case "experimental" if equals:
                experimental = names
            case "error" if value.strip() in (*_TRUE, *_FALSE):
                error = value.strip() in _TRUE
            case _:
                raise DockerfileError(
                    f"invalid check option {part[:60]!r}",
                    hint="the form is skip=RULE,RULE;error=true;experimental=RULE",
                )
    return LintOptions(skipped, experimental, error)


class Lint:
    """Collects what the checks of one Dockerfile find, as it is parsed and planned."""

    def __init__(
        self, override: str | None = None, excluded: Callable[[str], bool] | None = None
    ) -> None:
        """`override` is the value of :data:`CHECK_ARG`, `excluded` tells whether a source of
        COPY is lost to .dockerignore. Raises UsageError.
        """
        self.excluded = excluded or (lambda _: False)
        self._overridden = override is not None
        self._options = LintOptions()
        if override is not None:
            try:
                self._options = parse_lint_options(override)
            except DockerfileError as error:
                raise UsageError(
                    f"--build-arg {CHECK_ARG}: {error.message}", hint=error.hint
                ) from error
        self._found: list[LintWarning] = []
        self._guesses = 0
        self._comments: tuple[str, ...] = ()
        self._below_comments = self._options

    @property
    def warnings(self) -> tuple[LintWarning, ...]:
        """What was found so far, in order of lines."""
        return tuple(sorted(self._found, key=lambda warning: warning.where.start_line))

    def follow(self, directives: Directives, file: str) -> None:
        """Take the options of the file's directive. Raises DockerfileError."""
        if directives.check is None or self._overridden:
            return
        line = directives.check_line
        with located(SourceRange(file, line, line)):
            self._options = parse_lint_options(directives.check.split(" ", 1)[0])

    def wants(self, rule: Rule, comments: tuple[str, ...] = ()) -> bool:
        """Whether `rule` counts below `comments`, those right above an instruction."""
        if not comments:
            return self._options.want(rule)
        # one instruction may have many comments, and be reported often
        if comments is not self._comments:
            self._comments = comments
            self._below_comments = self._options.adding(_options_of(comments))
        return self._below_comments.want(rule)

    def report(
        self, rule: Rule, where: SourceRange, message: str, comments: tuple[str, ...] = ()
    ) -> None:
        """Note what `rule` found, if it counts."""
        if len(self._found) < MAX_WARNINGS and self.wants(rule, comments):
            if len(message) > _LONGEST_MESSAGE:
                message = f"{message[:_LONGEST_MESSAGE]}…"
            self._found.append(LintWarning(rule.name, message, where, rule.description))

    def guess(self, name: str, names: Iterable[str]) -> str | None:
        """The one of `names` that `name` was probably to be."""
        self._guesses += 1
        if self._guesses > _MOST_GUESSES or len(name) > _LONGEST_NAME:
            return None
        return closest(name, islice(names, _MOST_NAMES))

    def refuse(self) -> None:
        """Raise DockerfileError if anything was found and ``error=true`` was asked for."""
        if self._options.error and self._found:
            rules = dict.fromkeys(warning.rule for warning in self.warnings)
            raise DockerfileError(
                f"lint violation found for rules: {', '.join(rules)}",
                where=self.warnings[0].where,
                hint="the Dockerfile or a build arg asks for this by error=true",
            )


def _options_of(comments: tuple[str, ...]) -> LintOptions:
    """The options in the first comment that has some; wrong ones say nothing."""
    for comment in comments:
        match = _COMMENT.match(comment)
        if match is not None:
            try:
                return parse_lint_options(match[1])
            except DockerfileError:
                break
    return LintOptions()
