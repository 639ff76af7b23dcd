"""The build checks that need variables, base images or what came before in a stage."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pybuild.backend import BaseImage
from pybuild.dockerfile.checks import keyword_of
from pybuild.dockerfile.instructions import (
    Add,
    Arg,
    Cmd,
    Copy,
    Dockerfile,
    Entrypoint,
    Env,
    Expose,
    From,
    Healthcheck,
    Instruction,
    Label,
    Workdir,
)
from pybuild.dockerfile.lint import Lint
from pybuild.dockerfile.rules import (
    COPY_IGNORED_FILE,
    EXPOSE_INVALID_FORMAT,
    EXPOSE_PROTO_CASING,
    FROM_PLATFORM_FLAG_CONST_DISALLOWED,
    INVALID_BASE_IMAGE_PLATFORM,
    INVALID_DEFAULT_ARG_IN_FROM,
    JSON_ARGS_RECOMMENDED,
    LEGACY_KEY_VALUE_FORMAT,
    MULTIPLE_INSTRUCTIONS_DISALLOWED,
    REDUNDANT_TARGET_PLATFORM,
    SECRETS_USED_IN_ARG_OR_ENV,
    UNDEFINED_ARG_IN_FROM,
    UNDEFINED_VAR,
    WORKDIR_RELATIVE_PATH,
    Rule,
)
from pybuild.dockerfile.words import Expansion, expand_word
from pybuild.errors import ExpansionError, SourceRange, UsageError
from pybuild.oci.platform import Platform, parse_platform
from pybuild.oci.reference import parse_reference
from pybuild.plan.scope import expand, global_variables
from pybuild.plan.state import StageState
from pybuild.plan.steps import PlanRequest
from pybuild.remotes.locations import is_git, is_url
from pybuild.values import replace

_TELLING = (
    r"(?i)(?:_|\A)(?:apikey|auth|credentials?|key|password|passwd|pword|secret|token)(?:_|\Z)"
)
_HARMLESS = r"(?i)(?:_|\A)(?:file|public|version)(?:_|\Z)"


def check_stage_heads(
    dockerfile: Dockerfile, request: PlanRequest, variables: Mapping[str, str], lint: Lint
) -> None:
    """Report what is wrong with the FROMs; `variables` are the global ones."""
    heads = [i for i in dockerfile.instructions if isinstance(i, From)]
    _check_defaults(dockerfile, heads, request, lint)
    names = (pair.name for arg in dockerfile.global_args for pair in arg.args)
    known = dict.fromkeys((*variables, *names))
    for head in heads:
        try:
            image = expand_word(head.image, variables, dockerfile.directives.escape)
            _check_declared(image, head, known, lint)
            if head.platform:
                platform = expand_word(head.platform, variables, dockerfile.directives.escape)
                _check_declared(platform, head, known, lint)
                _check_platform_flag(platform, head, variables, lint)
        except ExpansionError:
            return  # the same happens when the stages are made, and is told then


def check_base_platform(
    name: str, image: BaseImage, wanted: Platform, where: SourceRange, lint: Lint
) -> None:
    """Report an image for another system or processor than was asked for."""
    found = image.config.platform
    if (found.os, found.architecture) != (wanted.os, wanted.architecture):
        lint.report(
            INVALID_BASE_IMAGE_PLATFORM,
            where,
            f'Base image {name} was pulled with platform "{found}", expected "{wanted}" '
            "for current build",
        )


def _check_defaults(
    dockerfile: Dockerfile, heads: list[From], request: PlanRequest, lint: Lint
) -> None:
    """Without any build arg each base has a name too."""
    escape = dockerfile.directives.escape
    try:
        defaults = global_variables(dockerfile, replace(request, build_args={}))
        names = [expand(head.image, defaults, escape) for head in heads]
    except ExpansionError:
        return
    for head, name in zip(heads, names, strict=True):
        try:
            parse_reference(name)
        except UsageError:
            lint.report(
                INVALID_DEFAULT_ARG_IN_FROM,
                head.where,
                f"Default value for ARG {head.image} results in empty or invalid base image name",
            )


def _check_declared(word: Expansion, head: From, known: dict[str, None], lint: Lint) -> None:
    for name in sorted(word.unmatched - known.keys()):
        if lint.wants(UNDEFINED_ARG_IN_FROM, head.comments):
            guess = lint.guess(name, known)
            message = f"FROM argument '{name}' is not declared"
            if guess:
                message += f" (did you mean {guess}?)"
            lint.report(UNDEFINED_ARG_IN_FROM, head.where, message, head.comments)


def _check_platform_flag(
    platform: Expansion, head: From, variables: Mapping[str, str], lint: Lint
) -> None:
    if platform.unmatched:
        return
    if platform.matched == {"TARGETPLATFORM"}:
        if platform.text == variables["TARGETPLATFORM"]:
            lint.report(
                REDUNDANT_TARGET_PLATFORM,
                head.where,
                f"Setting platform to predefined {head.platform} in FROM is redundant as this "
                "is the default behavior",
                head.comments,
            )
        return
    if platform.matched:
        return
    try:
        constant = parse_platform(platform.text)
    except UsageError:
        return
    # a stage may be for one platform, if its name says so
    stage = head.stage or ""
    if constant.os not in stage and constant.architecture not in stage:
        lint.report(
            FROM_PLATFORM_FLAG_CONST_DISALLOWED,
            head.where,
            f"FROM --platform flag should not use constant value {_quoted(platform.text)}",
            head.comments,
        )


class StageChecks:
    """Watches the instructions of one stage as they are evaluated."""

    def __init__(
        self,
        state: StageState,
        lint: Lint,
        below: StageChecks | None = None,
        *,
        knows_env: bool = True,
    ) -> None:
        """`below` watched the stage that this one starts from. Without `knows_env` nobody
        looked up the base image, and an undefined variable may be one of its own.
        """
        self._state = state
        self._lint = lint
        self.knows_env: bool = knows_env and (below is None or below.knows_env)
        self.has_workdir: bool = below is not None and below.has_workdir
        self._last: dict[type[Instruction], SourceRange] = {}
        self._current: Instruction | None = None
        state.scope.on_undefined = self._undefined

    @contextmanager
    def watching(self, instruction: Instruction) -> Iterator[None]:
        """While `instruction` is evaluated, and when it was."""
        self._current = instruction
        yield
        self._check(instruction)

    def _report(self, rule: Rule, message: str, where: SourceRange | None = None) -> None:
        current = self._current
        if current is not None:
            self._lint.report(rule, where or current.where, message, current.comments)

    def _undefined(self, name: str) -> None:
        current = self._current
        if current is None or not self.knows_env:
            return
        if self._lint.wants(UNDEFINED_VAR, current.comments):
            guess = self._lint.guess(name, self._state.scope.variables)
            message = f"Usage of undefined variable '${name}'"
            self._report(UNDEFINED_VAR, message + (f" (did you mean ${guess}?)" if guess else ""))

    def _check(self, instruction: Instruction) -> None:
        match instruction:
            case Env(pairs=pairs, legacy=legacy):
                self._check_legacy(instruction, legacy=legacy)
                self._check_secrets("ENV", [pair.name for pair in pairs])
            case Arg(args=args):
                self._check_secrets("ARG", [pair.name for pair in args])
            case Label(legacy=legacy):
                self._check_legacy(instruction, legacy=legacy)
            case Cmd(command=command) | Entrypoint(command=command):
                self._check_repeated(instruction)
                if command.shell and not self._state.config.shell:
                    self._report(
                        JSON_ARGS_RECOMMENDED,
                        f"JSON arguments recommended for {keyword_of(instruction)} to prevent "
                        "unintended behavior related to OS signals",
                    )
            case Healthcheck():
                self._check_repeated(instruction)
            case Workdir(path=path):
                self._check_workdir(path)
            case Expose(ports=ports):
                self._check_ports(ports)
            case Copy(from_=None, sources=sources) | Add(sources=sources):
                self._check_sources(instruction, sources)
            case _:
                pass

    def _check_legacy(self, instruction: Env | Label, *, legacy: bool) -> None:
        if legacy:
            word = keyword_of(instruction)
            self._report(
                LEGACY_KEY_VALUE_FORMAT,
                f'"{word} key=value" should be used instead of legacy "{word} key value" format',
            )

    def _check_secrets(self, word: str, names: list[str]) -> None:
        for name in names:
            if re.search(_TELLING, name) and not re.search(_HARMLESS, name):
                self._report(
                    SECRETS_USED_IN_ARG_OR_ENV,
                    "Do not use ARG or ENV instructions for sensitive data "
                    f"({word} {_quoted(name)})",
                )

    def _check_repeated(self, instruction: Cmd | Entrypoint | Healthcheck) -> None:
        """The one that is lost is the one to report."""
        lost = self._last.get(type(instruction))
        if lost is not None:
            self._report(
                MULTIPLE_INSTRUCTIONS_DISALLOWED,
                f"Multiple {keyword_of(instruction)} instructions should not be used in the same "
                "stage because only the last one will be used",
                lost,
            )
        self._last[type(instruction)] = instruction.where

    def _check_workdir(self, word: str) -> None:
        path = self._expanded(word)
        if not self.has_workdir and not _is_absolute(path, self._state.platform):
            self._report(
                WORKDIR_RELATIVE_PATH,
                f"Relative workdir {_quoted(path)} can have unexpected results if the base image "
                "changes",
            )
        self.has_workdir = True

    def _check_ports(self, ports: tuple[str, ...]) -> None:
        for word in (w for port in ports for w in self._state.scope.expand_list(port)):
            *outer, container = word.split(":")
            protocol = container.partition("/")[2]
            if protocol != protocol.lower():
                self._report(
                    EXPOSE_PROTO_CASING,
                    f"Defined protocol '{word}' in EXPOSE instruction should be lowercase",
                )
            if any(outer):
                self._report(
                    EXPOSE_INVALID_FORMAT,
                    "EXPOSE instruction should not define an IP address or host-port mapping, "
                    f"found '{word}'",
                )

    def _check_sources(self, instruction: Copy | Add, sources: tuple[str, ...]) -> None:
        word = type(instruction).__name__
        for source in map(self._expanded, sources):
            remote = isinstance(instruction, Add) and (is_url(source) or is_git(source))
            if not remote and self._lint.excluded(source):
                self._report(
                    COPY_IGNORED_FILE,
                    f"Attempting to {word} file {_quoted(posixpath.normpath(source))} that is "
                    "excluded by .dockerignore",
                )

    def _expanded(self, word: str) -> str:
        """`word` once more, without telling anew what is undefined in it."""
        return expand(word, self._state.scope.variables, self._state.scope.escape)


def _is_absolute(path: str, platform: Platform) -> bool:
    if platform.os == "windows":
        return re.match(r"(?:[A-Za-z]:)?[\\/]", path) is not None
    return path.startswith("/")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
