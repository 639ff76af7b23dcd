"""The frontend that ``# syntax=`` asks for. None is ever fetched or run: there is the built-in one."""

from __future__ import annotations

import re

from pybuild.dockerfile.instructions import Directives
from pybuild.errors import DockerfileError, SourceRange

SYNTAX_ARG = "BUILDKIT_SYNTAX"
"""The build arg that replaces the directive."""

# A mirror's copy is the same frontend; the name is never fetched in any case.
_BUILT_IN = (
    r"([a-zA-Z0-9.-]+(:[0-9]+)?/)?docker/dockerfile(-upstream)?(:[^@]*)?(@.*)?|dockerfile\.v0"
)


def check_frontend(directives: Directives, override: str | None, file: str) -> None:
    """Raise DockerfileError for a file that wants another frontend than the built-in one.

    `override` is the value of :data:`SYNTAX_ARG`.
    """
    name = (override or directives.syntax or "").strip().split(" ", 1)[0]
    if name and not re.fullmatch(_BUILT_IN, name):
        line = 1 if override else directives.syntax_line
        raise DockerfileError(
            f"unknown syntax {name[:200]!r}",
            where=SourceRange(file, line, line),
            hint="other frontends than docker/dockerfile are not run",
        )
