"""The command line's grammar: words in, values out. The only importer of argparse.

Nothing is read here but the arguments; what the environment says comes in as a mapping.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

from pybuild.backend import HostEntry, Ulimit
from pybuild.errors import UsageError

PROGRESS_MODES = ("auto", "plain", "tty", "rawjson")

_LATER = {
    "--allow": "entitlements",
    "--attest": "attestations",
    "--build-context": "named contexts",
    "--builder": "builders",
    "--cache-from": "cache import",
    "--cache-to": "cache export",
    "--call": "subrequests",
    "--cgroup-parent": "control groups",
    "--check": "build checks",
    "--load": "loading into Docker",
    "--no-cache-filter": "cache filters",
    "--output": "other outputs",
    "--policy": "policies",
    "--provenance": "provenance",
    "--push": "pushing",
    "--resource": "resource limits",
    "--sbom": "SBOMs",
    "--secret": "secrets",
    "--source-date-epoch": "an epoch as a flag",
    "--ssh": "SSH agents",
}
_SHORT_LATER = {"-o": "--output"}
# Docker's old builder had these; they mean nothing here and break no script.
_IGNORED = ("--rm", "--force-rm", "--compress")
# Flags that stand alone or take =value, never the next word: `--pull .` pulls and builds `.`
_ALONE = {"--pull": "always", "--dry-run": "text", "--no-cache": "true"}
_ANNOTATED = frozenset({"manifest", "index", "manifest-descriptor", "index-descriptor"})
_ULIMITS = frozenset(
    [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ]
)
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgtp]?)i?b?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendArguments:
    """Which backend, and what it is told. None where the command line doesn't say."""

    backend: str | None
    root: str | None
    address: str | None
    namespace: str | None
    snapshotter: str | None
    hosts_dir: str | None
    moby_labels: bool
    unpack: bool
    debug: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorArguments(BackendArguments):
    """``pybuild doctor``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildArguments(BackendArguments):
    """``pybuild [build] …``; ``-`` as ``context`` or ``file`` is standard input."""

    context: str
    file: str | None
    tags: tuple[str, ...]
    build_args: Mapping[str, str]
    target: str | None
    platforms: tuple[str, ...]
    pull: str
    no_cache: bool
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    index_annotations: Mapping[str, str]
    network: str | None
    add_hosts: tuple[HostEntry, ...]
    shm_size: int | None
    ulimits: tuple[Ulimit, ...]
    iidfile: str | None
    metadata_file: str | None
    quiet: bool
    progress: str | None
    dry_run: str | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (\S+): ", r"\1: ", message)
        raise UsageError(message, hint="pybuild --help lists the options")


class _HelpFormatter(argparse.HelpFormatter):
    """Shows the value of a flag that may stand alone in the only way to give it."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        flag = next((flag for flag in action.option_strings if flag in _ALONE), None)
        if flag is None:
            return super()._format_action_invocation(action)
        return flag if action.metavar is None else f"{flag}[={action.metavar}]"


class _Later(argparse.Action):
    def __call__(self, *arguments: Any) -> None:
        option = arguments[-1]
        meaning = _LATER[_SHORT_LATER.get(option, option)]
        raise UsageError(f"{option} is not supported yet ({meaning})")


def parse_arguments(
    argv: Sequence[str], environ: Mapping[str, str], version: str
) -> BuildArguments | DoctorArguments:
    """What `argv`, without the program's name, asks for.

    `environ` gives the values of ``--build-arg NAME``. Raises UsageError; SystemExit(0)
    after ``--help`` and ``--version``, whose text goes to standard output.
    """
    words = list(argv)
    if words[:1] == ["doctor"]:
        found = _parse(_doctor_parser(version), words[1:])
        return DoctorArguments(**_backend_values(found))
    if words[:1] == ["build"]:
        words = words[1:]
    found = _parse(_build_parser(version), words)
    if found.context is None:
        raise UsageError("the build context is missing", hint="for this folder: pybuild .")
    return BuildArguments(
        **_backend_values(found),
        context=found.context,
        file=found.file,
        tags=tuple(found.tag),
        build_args=parse_build_args(found.build_arg, environ),
        target=found.target,
        platforms=tuple(found.platform),
        pull=_pull_policy(found.pull),
        no_cache=_boolean("--no-cache", found.no_cache),
        labels=dict(_pair("--label", text) for text in found.label),
        annotations=_annotations(found.annotation, "manifest"),
        index_annotations=_annotations(found.annotation, "index"),
        network=found.network,
        add_hosts=tuple(map(parse_host, found.add_host)),
        shm_size=None if found.shm_size is None else parse_size(found.shm_size),
        ulimits=tuple(map(parse_ulimit, found.ulimit)),
        iidfile=found.iidfile,
        metadata_file=found.metadata_file,
        quiet=found.quiet,
        progress=found.progress,
        dry_run=found.dry_run,
    )


def parse_build_args(texts: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """``NAME=value``, or ``NAME`` for the environment's value; unset there, it is left out."""
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name:
            raise UsageError(f'--build-arg "{text}" has no name')
        if equals:
            values[name] = value
        elif name in environ:
            values[name] = environ[name]
    return values


def parse_host(text: str) -> HostEntry:
    """``name:address`` or ``name=address``; an IPv6 address may stand in brackets."""
    from ipaddress import ip_address  # noqa: PLC0415  (seldom needed)

    name, separator, address = text.partition("=")
    if not separator:
        name, separator, address = text.partition(":")
    if not name or not address or any(c.isspace() for c in name):
        raise UsageError(f'--add-host "{text}" is not NAME:ADDRESS')
    if address == "host-gateway":
        raise UsageError("--add-host with host-gateway is not supported yet")
    try:
        return HostEntry(name, str(ip_address(address.removeprefix("[").removesuffix("]"))))
    except ValueError:
        raise UsageError(f'--add-host "{text}": "{address}" is no IP address') from None


def parse_size(text: str) -> int:
    """A size with an optional unit, in bytes: ``64m``, ``1.5g``, ``65536``; units are binary."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f'"{text}" is no size', hint="write it like 64m or 1g")
    power = " kmgtp".index(found[2].lower() or " ")
    return int(float(found[1]) * 1024**power)


def parse_ulimit(text: str) -> Ulimit:
    """``name=soft[:hard]``; -1 is no limit."""
    name, _, value = text.partition("=")
    if name not in _ULIMITS:
        near = get_close_matches(name, _ULIMITS, n=1)
        raise UsageError(
            f'--ulimit "{text}": there is no limit "{name}"',
            hint=f"did you mean {near[0]}?"
            if near
            else f"there are: {', '.join(sorted(_ULIMITS))}",
        )
    soft_text, _, hard_text = value.partition(":")
    try:
        soft, hard = int(soft_text), int(hard_text or soft_text)
    except ValueError:
        raise UsageError(
            f'--ulimit "{text}" is not NAME=SOFT[:HARD]', hint="for example nofile=1024:2048"
        ) from None
    if soft < -1 or hard < -1:
        raise UsageError(f'--ulimit "{text}": a limit is -1 or more')
    if hard != -1 and (soft == -1 or soft > hard):
        raise UsageError(f'--ulimit "{text}": the soft limit is above the hard one')
    return Ulimit(name, soft, hard)


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    end = words.index("--") if "--" in words else len(words)
    spelled = [f"{word}={_ALONE[word]}" if word in _ALONE else word for word in words[:end]]
    found, extra = parser.parse_known_args([*spelled, *words[end:]])
    unknown = next((word for word in extra if word.startswith("-") and word != "-"), None)
    if unknown is not None:
        name = unknown.partition("=")[0]
        flags = [flag for action in parser._actions for flag in action.option_strings]  # noqa: SLF001  (argparse has no public list)
        near = get_close_matches(name, [flag for flag in flags if flag.startswith("--")], n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"unknown flag {name}{guess}", hint="pybuild --help lists the options")
    if extra:
        raise UsageError(
            f'one build context is enough: "{extra[0]}" is another',
            hint="options that take a value need it right behind them",
        )
    return found


def _backend_values(found: argparse.Namespace) -> dict[str, Any]:
    return {
        "backend": found.backend,
        "root": found.root,
        "address": found.containerd_address,
        "namespace": found.containerd_namespace,
        "snapshotter": found.snapshotter,
        "hosts_dir": found.hosts_dir,
        "moby_labels": found.moby_labels,
        "unpack": not found.no_unpack,
        "debug": found.debug,
    }


def _pull_policy(text: str) -> str:
    known = {"true": "always", "false": "missing", "1": "always", "0": "missing"}
    policy = known.get(text.lower(), text.lower())
    if policy not in {"missing", "always", "never"}:
        raise UsageError(f'--pull "{text}" is not missing, always or never')
    return policy


def _boolean(flag: str, text: str) -> bool:
    if text.lower() not in {"true", "false", "1", "0"}:
        raise UsageError(f'{flag} "{text}" is not true or false')
    return text.lower() in {"true", "1"}


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name:
        raise UsageError(f'{flag} "{text}" has no name')
    return name, value


def _annotations(texts: Sequence[str], wanted: str) -> dict[str, str]:
    """Those of ``[KIND[,KIND]:]key=value`` that are for `wanted`; KIND is manifest or index."""
    found: dict[str, str] = {}
    for text in texts:
        if "=" not in text:
            raise UsageError(f'--annotation "{text}" is not KEY=VALUE')
        name, value = _pair("--annotation", text)
        before, colon, rest = name.partition(":")
        kinds = set(before.split(",")) if colon else set()
        if not kinds or not kinds <= _ANNOTATED:  # the colon is one of the name's
            kinds, rest = {"manifest"}, name
        if later := kinds & {"manifest-descriptor", "index-descriptor"}:
            raise UsageError(
                f'--annotation "{text}": annotations of a {later.pop()} are not supported yet'
            )
        if wanted in kinds:
            found[rest] = value
    return found


def _new_parser(program: str, usage: str, description: str) -> _Parser:
    return _Parser(
        prog=program,
        usage=usage,
        description=description,
        allow_abbrev=False,
        add_help=False,
        formatter_class=lambda prog: _HelpFormatter(prog, max_help_position=30, width=96),
    )


def _add_other(parser: _Parser, version: str) -> None:
    add = parser.add_argument_group("other").add_argument
    add("-h", "--help", action="help", help="show this")
    add("--version", action="version", version=f"pybuild {version}", help="show the version")
    add("-D", "--debug", action="store_true", help="show tracebacks of errors")


def _add_backend(parser: _Parser) -> None:
    group = parser.add_argument_group("backend")
    add = group.add_argument
    add("--backend", metavar="NAME", help="what builds (PYBUILD_BACKEND; default: embedded)")
    add("--root", metavar="DIR", help="the embedded backend's store (PYBUILD_ROOT)")
    add("--containerd-address", metavar="SOCKET", help="containerd's socket (CONTAINERD_ADDRESS)")
    add("--containerd-namespace", metavar="NAME", help="where images go (CONTAINERD_NAMESPACE)")
    add("--snapshotter", metavar="NAME", help="which snapshotter (CONTAINERD_SNAPSHOTTER)")
    add("--hosts-dir", metavar="DIR", help="mirrors of registries, as hosts.toml files")
    add("--moby-labels", action="store_true", help="label the image as Docker's builder does")
    add("--no-unpack", action="store_true", help="don't unpack the finished image")


def _doctor_parser(version: str) -> _Parser:
    parser = _new_parser(
        "pybuild doctor",
        "pybuild doctor [options]",
        "Say what pybuild found on this machine, and what to do about what is missing.",
    )
    _add_backend(parser)
    _add_other(parser, version)
    return parser


def _build_parser(version: str) -> _Parser:
    parser = _new_parser(
        "pybuild",
        "pybuild [options] CONTEXT\n       pybuild doctor",
        "Build an image from a Dockerfile. CONTEXT is a folder, or - for a tar archive or a "
        "Dockerfile on standard input.",
    )
    parser.add_argument("context", nargs="?", metavar="CONTEXT", help=argparse.SUPPRESS)
    _add_input(parser)
    _add_run(parser)
    _add_output(parser)
    _add_backend(parser)
    _add_other(parser, version)
    for flag in (*_LATER, *_SHORT_LATER):
        parser.add_argument(flag, action=_Later, nargs="?", help=argparse.SUPPRESS)
    for flag in _IGNORED:
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    return parser


def _add_input(parser: _Parser) -> None:
    add = parser.add_argument_group("what to build").add_argument
    add("-f", "--file", metavar="PATH", help="the Dockerfile; - for standard input")
    add(
        "-t",
        "--tag",
        action="append",
        default=[],
        metavar="NAME",
        help="name of the image; repeatable",
    )
    add(
        "--build-arg",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="value of an ARG; without one, the environment's",
    )
    add("--target", metavar="STAGE", help="build this stage instead of the last one")
    add(
        "--platform",
        action="append",
        default=[],
        metavar="OS/ARCH",
        help="as linux/arm64; of several, with commas between, an index is made",
    )
    add("--label", action="append", default=[], metavar="NAME=VALUE", help="label of the image")
    add(
        "--annotation",
        action="append",
        default=[],
        metavar="[KIND:]NAME=VALUE",
        help="annotation of each manifest, or with the KIND index of the index",
    )


def _add_run(parser: _Parser) -> None:
    add = parser.add_argument_group("how to build").add_argument
    add(
        "--pull",
        default="missing",
        metavar="WHEN",
        help="missing (the default), always or never; alone, always",
    )
    add("--no-cache", default="false", help="use no result of earlier builds")
    add("--network", metavar="MODE", help="of RUN: default, none or host")
    add(
        "--add-host",
        action="append",
        default=[],
        metavar="NAME:IP",
        help="line of RUN's /etc/hosts",
    )
    add("--shm-size", metavar="SIZE", help="of RUN's /dev/shm (default: 64m)")
    add("--ulimit", action="append", default=[], metavar="NAME=SOFT[:HARD]", help="limit of RUN")


def _add_output(parser: _Parser) -> None:
    add = parser.add_argument_group("what to show and write").add_argument
    add(
        "--dry-run",
        choices=("text", "json"),
        metavar="FORMAT",
        help="show the plan, as text or json, and build nothing",
    )
    add("-q", "--quiet", action="store_true", help="show nothing but the image's digest")
    add("--progress", choices=PROGRESS_MODES, metavar="MODE", help=", ".join(PROGRESS_MODES))
    add("--iidfile", metavar="PATH", help="write the image's digest to a file")
    add("--metadata-file", metavar="PATH", help="write digests and names to a file, as JSON")
