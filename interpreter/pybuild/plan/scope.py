"""The variables of a build: global ARGs, and the ARG and ENV scope of each stage.

After BuildKit's frontend: a word sees what ENV and ARG set before it, whichever came last;
ENV alone goes into the image. A stage that starts from another inherits both, and what ENV
set there beats what ARG set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from pybuild.dockerfile.instructions import Dockerfile, From, Pair
from pybuild.dockerfile.words import Expansion, expand_text, expand_word, expand_words
from pybuild.errors import UsageError, located
from pybuild.oci.platform import Platform
from pybuild.plan.steps import PlanRequest

PATH_UNIX = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Set for RUN without an ARG, in both cases of the name, and kept out of history and keys.
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
_PLATFORM_ARGS = frozenset(
    f"{side}{part}"
    for side in ("BUILD", "TARGET")
    for part in ("PLATFORM", "OS", "OSVERSION", "ARCH", "VARIANT", "STAGE")
)
_HOSTNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Read by the builder itself; they never become variables of a process.
_NO_VARIABLES = frozenset({"BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"})


def platform_args(request: PlanRequest, last_stage: str | None) -> dict[str, str]:
    """The ARGs that every Dockerfile has before its first line, build args applied."""
    build, target = request.build_platform, request.platform
    found = {
        "BUILDPLATFORM": str(build),
        "BUILDOS": build.os,
        "BUILDOSVERSION": build.os_version,
        "BUILDARCH": build.architecture,
        "BUILDVARIANT": build.variant,
        "TARGETPLATFORM": _with_version(target),
        "TARGETOS": target.os,
        "TARGETOSVERSION": target.os_version,
        "TARGETARCH": target.architecture,
        "TARGETVARIANT": target.variant,
        "TARGETSTAGE": request.target or last_stage or "default",
    }
    return {name: request.build_args.get(name, value) for name, value in found.items()}


def global_variables(dockerfile: Dockerfile, request: PlanRequest) -> dict[str, str]:
    """What FROM sees, and what an ARG without a default gets: the ARGs before the first FROM."""
    stages = [i for i in dockerfile.instructions if isinstance(i, From)]
    variables = platform_args(request, stages[-1].stage if stages else None)
    for instruction in dockerfile.global_args:
        for pair in instruction.args:
            value = request.build_args.get(pair.name)
            if value is None and pair.value is not None:
                with located(instruction.where):
                    value = expand(pair.value, variables, dockerfile.directives.escape)
            if value is not None:
                variables[pair.name] = value
    return variables


def expand(word: str, variables: Mapping[str, str], escape: str) -> str:
    """`word` with quotes removed and variables replaced. Raises ExpansionError."""
    return expand_word(word, variables, escape).text


def predefined(name: str) -> bool:
    """Whether the build arg `name` has a meaning without an ARG that declares it."""
    return (
        name.lower() in _PROXIES
        or name in _PLATFORM_ARGS
        or name.startswith("BUILDKIT_")
        or name == "SOURCE_DATE_EPOCH"
    )


def sandbox_hostname(build_args: Mapping[str, str]) -> str | None:
    """The host name of every RUN, where the build args name one.

    Raises UsageError for what the kernel or /etc/hosts would refuse.
    """
    name = build_args.get("BUILDKIT_SANDBOX_HOSTNAME")
    if name and not _HOSTNAME.fullmatch(name):
        raise UsageError(
            f"the build arg BUILDKIT_SANDBOX_HOSTNAME {name!r} is no host name",
            hint="it has letters, digits, dots and dashes, at most 64",
        )
    return name or None


def proxy_variables(build_args: Mapping[str, str]) -> dict[str, str]:
    """The proxy variables of a RUN, from the build args with these names in any case."""
    values: dict[str, str] = {}
    for name in sorted(build_args):
        if name.lower() in _PROXIES:
            values[name.lower()] = build_args[name]
    found: dict[str, str] = {}
    for name in _PROXIES:
        if values.get(name):
            found |= {name.upper(): values[name], name: values[name]}
    return found


class Scope:
    """The variables of one stage, changed as its instructions are evaluated."""

    def __init__(
        self,
        env: Mapping[str, str],
        platform: Platform,
        escape: str,
        below: Scope | None = None,
    ) -> None:
        """Begin with the `env` of an image, or of the stage that `below` is the scope of."""
        self.escape = escape
        self.env: dict[str, str] = dict(env)
        if "PATH" not in self.env and platform.os != "windows":
            self.env["PATH"] = PATH_UNIX
        self.declared: list[tuple[str, str | None]] = []
        self.variables: dict[str, str] = {}
        self.on_undefined: Callable[[str], None] = _ignore
        self.may_be_unset = set(_NO_VARIABLES)
        if below is not None:
            self.declared += below.declared
            self.may_be_unset |= below.may_be_unset
            self.variables |= below.variables
        for name, value in self.env.items():
            self._set(name, value)

    def expand(self, word: str) -> str:
        """See :func:`expand`. Tells ``on_undefined`` of each name that nothing declared."""
        return self._told(expand_word(word, self.variables, self.escape))

    def expand_list(self, word: str) -> list[str]:
        """`word` expanded, then split at white space that wasn't quoted."""
        return expand_words(word, self.variables, self.escape)

    def expand_heredoc(self, text: str) -> str:
        """The body of a COPY's heredoc; its escape is always the backslash."""
        return self._told(expand_text(text, self.variables, "\\"))

    def expand_pairs(self, pairs: tuple[Pair, ...]) -> list[tuple[str, str]]:
        """The pairs of an ENV or LABEL: all see the values from before the instruction."""
        return [(self.expand(p.name), self.expand(p.value or "")) for p in pairs]

    def set_env(self, name: str, value: str) -> None:
        """Set a variable of the image."""
        self.env[name] = value
        self._set(name, value)

    def declare(
        self, pair: Pair, build_args: Mapping[str, str], global_args: Mapping[str, str]
    ) -> str | None:
        """Evaluate one ``name[=default]`` of an ARG and return its value, None for unset."""
        value: str | None
        if pair.name in build_args:
            value = build_args[pair.name]
        elif pair.value is not None:
            value = self.expand(pair.value)
        else:
            value = global_args.get(pair.name)
        if value is not None and pair.name not in _NO_VARIABLES:
            self._set(pair.name, value)
        else:
            self.may_be_unset.add(pair.name)
        self.declared.append((pair.name, value))
        return value

    def _told(self, expansion: Expansion) -> str:
        if expansion.unmatched:
            for name in sorted(expansion.unmatched - self.may_be_unset):
                self.on_undefined(name)
        return expansion.text

    def _set(self, name: str, value: str) -> None:
        # a process's environment is ordered by when a variable was last set
        self.variables.pop(name, None)
        self.variables[name] = value


def _ignore(_: str) -> None:
    """Nobody wants to know what is undefined."""


def _with_version(platform: Platform) -> str:
    text = str(platform)
    if not platform.os_version:
        return text
    return text.replace(platform.os, f"{platform.os}({platform.os_version})", 1)
