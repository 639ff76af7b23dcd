"""The command line's grammar: words in, values out. The only importer of argparse.

Nothing is read here but the arguments; what the environment says comes in as a mapping.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from pybuild.backend import HostEntry, Ulimit
from pybuild.errors import UsageError
from pybuild.export.outputs import Output, parse_output
from pybuild.flagvalues import (
    CallArguments,
    SecretArgument,
    parse_annotations,
    parse_boolean,
    parse_build_args,
    parse_call,
    parse_host,
    parse_named_context,
    parse_pair,
    parse_pull_policy,
    parse_secret,
    parse_size,
    parse_ulimit,
    with_epoch,
)
from pybuild.lendingflags import (
    SshOption,
    parse_entitlements,
    parse_ssh,
)
from pybuild.values import dataclass

if TYPE_CHECKING:
    from pybuild.cachetransfer.places import CacheExport, CacheImport

PROGRESS_MODES = ("auto", "plain", "tty", "rawjson")
STORE_COMMANDS = ("images", "inspect", "history", "tag", "rm", "df", "prune", "fsck")
"""The commands of :mod:`pybuild.storecommands`."""
RUNNERS = ("auto", "sandbox", "task", "crun", "runc")

_LATER = {
    "--attest": "attestations",
    "--builder": "builders",
    "--policy": "policies",
    "--provenance": "provenance",
    "--resource": "resource limits",
    "--sbom": "SBOMs",
}
# Docker's old builder had these; they mean nothing here and break no script.
_IGNORED = ("--rm", "--force-rm", "--compress")
# Flags that stand alone or take =value, never the next word: `--pull .` pulls and builds `.`
_ALONE = {
    "--pull": "always",
    "--dry-run": "text",
    "--no-cache": "true",
    "--check": "true",
    "--fail-on-miss": "",
    "--locked": "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendArguments:
    """Which backend, and what it is told. None where the command line doesn't say."""

    backend: str | None
    root: str | None
    address: str | None
    namespace: str | None
    snapshotter: str | None
    runner: str | None
    hosts_dir: str | None
    moby_labels: bool
    unpack: bool
    debug: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorArguments(BackendArguments):
    """``pybuild doctor``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceArguments(BackendArguments):
    """What is to be built; ``-`` as ``context`` or ``file`` is standard input.

    ``build_arg_files`` are paths of files with more build args, which ``build_args`` override.
    """

    context: str
    file: str | None
    build_args: Mapping[str, str]
    build_arg_files: tuple[str, ...]
    target: str | None
    platforms: tuple[str, ...]
    contexts: Mapping[str, str]
    secrets: tuple[SecretArgument, ...]
    public_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildArguments(SourceArguments):
    """``pybuild [build] …``.

    ``locked`` is the path of a lock file, empty for that beside the Dockerfile. ``fail_on_miss``
    is True for all stages, else has the names of some or none.
    """

    tags: tuple[str, ...]
    pull: str
    locked: str | None
    no_cache: bool
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    index_annotations: Mapping[str, str]
    network: str | None
    add_hosts: tuple[HostEntry, ...]
    shm_size: int | None
    ulimits: tuple[Ulimit, ...]
    cgroup_parent: str | None
    allow: tuple[str, ...]
    ssh: tuple[SshOption, ...]
    ca: tuple[str, ...]
    outputs: tuple[Output, ...]
    push: bool
    load: bool
    no_cache_filter: tuple[str, ...]
    cache_from: tuple[CacheImport, ...]
    cache_to: tuple[CacheExport, ...]
    fail_on_miss: bool | tuple[str, ...]
    on_error: str
    iidfile: str | None
    metadata_file: str | None
    report: str | None
    quiet: bool
    progress: str | None
    dry_run: str | None
    call: CallArguments | None


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
        raise UsageError(f"{option} is not supported yet ({_LATER[option]})")


def parse_arguments(
    argv: Sequence[str], environ: Mapping[str, str], version: str
) -> BuildArguments | DoctorArguments:
    """What `argv`, without the program's name, asks for.

    `environ` gives the values of ``--build-arg NAME``. Raises UsageError; SystemExit(0)
    after ``--help`` and ``--version``, whose text goes to standard output.
    """
    words = list(argv)
    if words[:1] == ["doctor"]:
        found = parse_words(doctor_parser(version), words[1:], {})
        return DoctorArguments(**backend_values(found))
    if words[:1] == ["build"]:
        words = words[1:]
    found = parse_words(build_parser(version), words, _ALONE)
    call = parse_call(found.call, check=parse_boolean("--check", found.check))
    if call is not None and found.locked is not None:
        raise UsageError("--locked is for builds, and --call builds nothing")
    sources = source_values(found, environ)
    sources["build_args"] = with_epoch(sources["build_args"], found.source_date_epoch, environ)
    return BuildArguments(
        **backend_values(found),
        **sources,
        tags=tuple(found.tag),
        pull=parse_pull_policy(found.pull),
        locked=found.locked,
        no_cache=parse_boolean("--no-cache", found.no_cache),
        labels=dict(parse_pair("--label", text) for text in found.label),
        annotations=parse_annotations(found.annotation, "manifest"),
        index_annotations=parse_annotations(found.annotation, "index"),
        network=found.network,
        add_hosts=tuple(map(parse_host, found.add_host)),
        shm_size=None if found.shm_size is None else parse_size(found.shm_size),
        ulimits=tuple(map(parse_ulimit, found.ulimit)),
        cgroup_parent=found.cgroup_parent,
        allow=tuple(sorted(parse_entitlements(found.allow))),
        ssh=tuple(map(parse_ssh, found.ssh)),
        ca=tuple(found.ca),
        outputs=tuple(map(parse_output, found.output)),
        push=found.push,
        load=found.load,
        cache_from=tuple(one for text in found.cache_from for one in _cache_from(text)),
        cache_to=tuple(map(_cache_to, found.cache_to)),
        no_cache_filter=_names(found.no_cache_filter),
        fail_on_miss="" in found.fail_on_miss or _names(found.fail_on_miss),
        on_error=found.on_error,
        iidfile=found.iidfile,
        metadata_file=found.metadata_file,
        report=found.report,
        quiet=found.quiet,
        progress=found.progress,
        dry_run=found.dry_run,
        call=call,
    )


def _cache_from(text: str) -> tuple[CacheImport, ...]:
    from pybuild.cachetransfer.places import parse_cache_from  # noqa: PLC0415  (seldom needed)

    return parse_cache_from(text)


def _cache_to(text: str) -> CacheExport:
    from pybuild.cachetransfer.places import parse_cache_to  # noqa: PLC0415  (seldom needed)

    return parse_cache_to(text)


def _names(texts: Sequence[str]) -> tuple[str, ...]:
    """The names in several texts, each with commas between."""
    return tuple(name for text in texts for name in text.split(",") if name)


def parse_words(
    parser: argparse.ArgumentParser, words: list[str], alone: Mapping[str, str]
) -> argparse.Namespace:
    """Parse `words`. Flags in `alone` take that value if none follows behind a ``=``.

    Raises UsageError.
    """
    end = words.index("--") if "--" in words else len(words)
    spelled = [f"{word}={alone[word]}" if word in alone else word for word in words[:end]]
    found, extra = parser.parse_known_args([*spelled, *words[end:]])
    unknown = next((word for word in extra if word.startswith("-") and word != "-"), None)
    if unknown is not None:
        from difflib import get_close_matches  # noqa: PLC0415  (for a wrong flag only)

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


def backend_values(found: argparse.Namespace) -> dict[str, Any]:
    return {
        "backend": found.backend,
        "root": found.root,
        "address": found.containerd_address,
        "namespace": found.containerd_namespace,
        "snapshotter": found.snapshotter,
        "runner": found.runner,
        "hosts_dir": found.hosts_dir,
        "moby_labels": found.moby_labels,
        "unpack": not found.no_unpack,
        "debug": found.debug,
    }


def source_values(found: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, Any]:
    """The fields of :class:`SourceArguments`. Raises UsageError."""
    if found.context is None:
        raise UsageError("the build context is missing", hint="for this folder: pybuild .")
    return {
        "context": found.context,
        "file": found.file,
        "build_args": parse_build_args(found.build_arg, environ),
        "build_arg_files": tuple(found.build_arg_file),
        "target": found.target,
        "platforms": tuple(found.platform),
        "contexts": dict(parse_named_context(text) for text in found.build_context),
        "secrets": tuple(parse_secret(text, environ) for text in found.secret),
        "public_only": found.public_only,
    }


def new_parser(program: str, usage: str, description: str) -> _Parser:
    return _Parser(
        prog=program,
        usage=usage,
        description=description,
        allow_abbrev=False,
        add_help=False,
        formatter_class=lambda prog: _HelpFormatter(prog, max_help_position=30, width=96),
    )


def add_other_options(parser: _Parser, version: str) -> None:
    add = parser.add_argument_group("other").add_argument
    add("-h", "--help", action="help", help="show this")
    add("--version", action="version", version=f"pybuild {version}", help="show the version")
    add("-D", "--debug", action="store_true", help="show tracebacks of errors")


def add_backend_options(parser: _Parser) -> None:
    group = parser.add_argument_group("backend")
    add = group.add_argument
    add("--backend", metavar="NAME", help="what builds (PYBUILD_BACKEND; default: embedded)")
    add("--root", metavar="DIR", help="the embedded backend's store (PYBUILD_ROOT)")
    add("--containerd-address", metavar="SOCKET", help="containerd's socket (CONTAINERD_ADDRESS)")
    add("--containerd-namespace", metavar="NAME", help="where images go (CONTAINERD_NAMESPACE)")
    add("--snapshotter", metavar="NAME", help="which snapshotter (CONTAINERD_SNAPSHOTTER)")
    add(
        "--runner",
        choices=RUNNERS,
        help="what runs a RUN: pybuild's own sandbox, containerd (task), or a runtime in the "
        "sandbox (default: auto, the fastest that works)",
    )
    add("--hosts-dir", metavar="DIR", help="mirrors of registries, as hosts.toml files")
    add("--moby-labels", action="store_true", help="label the image as Docker's builder does")
    add("--no-unpack", action="store_true", help="don't unpack the finished image")


def doctor_parser(version: str) -> _Parser:
    """The words behind ``doctor``."""
    parser = new_parser(
        "pybuild doctor",
        "pybuild doctor [options]",
        "Say what pybuild found on this machine, and what to do about what is missing.",
    )
    add_backend_options(parser)
    add_other_options(parser, version)
    return parser


def build_parser(version: str) -> _Parser:
    """The words of a build."""
    parser = new_parser(
        "pybuild",
        "pybuild [options] CONTEXT\n       pybuild run [options] IMAGE [ARG...]\n"
        "       pybuild explain [CONTEXT]\n       pybuild debug [-- COMMAND]\n"
        "       pybuild lock [options] CONTEXT\n       pybuild diff IMAGE IMAGE\n"
        "       pybuild doctor\n       "
        f"pybuild {'|'.join(STORE_COMMANDS)} ...\n       pybuild completion bash|zsh|fish",
        "Build an image from a Dockerfile. CONTEXT is a folder, - for a tar archive or a "
        "Dockerfile on standard input, or the URL of a git repository or a tar archive.",
    )
    _add_input(parser)
    _add_run(parser)
    _add_lending(parser)
    _add_output(parser)
    add_backend_options(parser)
    add_other_options(parser, version)
    for flag in _LATER:
        parser.add_argument(flag, action=_Later, nargs="?", help=argparse.SUPPRESS)
    for flag in _IGNORED:
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    return parser


def _add_input(parser: _Parser) -> None:
    group = parser.add_argument_group("what to build")
    add_source_options(group)
    add = group.add_argument
    add(
        "-t",
        "--tag",
        action="append",
        default=[],
        metavar="NAME",
        help="name of the image; repeatable",
    )
    add("--label", action="append", default=[], metavar="NAME=VALUE", help="label of the image")
    add(
        "--annotation",
        action="append",
        default=[],
        metavar="[KIND:]NAME=VALUE",
        help="annotation of each manifest, or with the KIND index of the index",
    )


def add_source_options(group: argparse._ArgumentGroup) -> None:
    """The options of :class:`SourceArguments`."""
    group.add_argument("context", nargs="?", metavar="CONTEXT", help=argparse.SUPPRESS)
    add = group.add_argument
    add("-f", "--file", metavar="PATH", help="the Dockerfile; - for standard input")
    add(
        "--build-arg",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="value of an ARG; without one, the environment's",
    )
    add(
        "--build-context",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what stands in for the image or stage NAME: a folder, an URL, docker-image://NAME, "
        "oci-layout://PATH[:TAG][@DIGEST] or target:STAGE",
    )
    add(
        "--build-arg-file",
        action="append",
        default=[],
        metavar="PATH",
        help="file with a build arg in each line",
    )
    add(
        "--secret",
        action="append",
        default=[],
        metavar="id=ID,src=PATH",
        help="secret from a file, or with env=NAME from the environment",
    )
    add("--target", metavar="STAGE", help="build this stage instead of the last one")
    add(
        "--platform",
        action="append",
        default=[],
        metavar="OS/ARCH",
        help="as linux/arm64; of several, with commas between, an index is made",
    )
    add(
        "--public-only",
        action="store_true",
        help="fetch ADD's sources and contexts from public addresses alone",
    )


def _add_run(parser: _Parser) -> None:
    add = parser.add_argument_group("how to build").add_argument
    add(
        "--pull",
        default="missing",
        metavar="WHEN",
        help="missing (the default), always or never; alone, always",
    )
    add(
        "--locked",
        metavar="FILE",
        help="take images and sources of ADD as pybuild lock found them (default: pybuild.lock)",
    )
    add("--no-cache", default="false", help="use no result of earlier builds")
    add(
        "--no-cache-filter",
        action="append",
        default=[],
        metavar="STAGE",
        help="run all steps of this stage again",
    )
    add(
        "--cache-from",
        action="append",
        default=[],
        metavar="CACHE",
        help="where steps are sought that aren't kept here: an image's name, or "
        "type=registry,ref=NAME or type=local,src=FOLDER; repeatable",
    )
    add(
        "--cache-to",
        action="append",
        default=[],
        metavar="CACHE",
        help="where steps are written to: type=registry,ref=NAME, type=local,dest=FOLDER or "
        "type=inline, with mode=max for all of them, and mounts=IDS; repeatable",
    )
    add(
        "--fail-on-miss",
        action="append",
        default=[],
        metavar="STAGE",
        help="end at the first step that is not in the cache, before it runs",
    )
    add("--on-error", choices=("fail", "shell"), default="fail", help="what a failed RUN leads to")
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
    add("--cgroup-parent", metavar="PATH", help="control group of RUN")


def _add_lending(parser: _Parser) -> None:
    add = parser.add_argument_group("what steps may use").add_argument
    for flag, value, text in (
        ("--ssh", "ID[=PATH]", "for --mount=type=ssh: default, or a socket, or keys with commas"),
        ("--allow", "NAME", "network.host, security.insecure, device or device=NAME"),
        ("--ca", "FILE", "certificates that RUN trusts; host for this machine's"),
    ):
        add(flag, action="append", default=[], metavar=value, help=text)


def _add_output(parser: _Parser) -> None:
    add = parser.add_argument_group("what to show and write").add_argument
    add(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="OUTPUT",
        help="type=image, registry, oci, docker, tar or local, with dest=PATH; repeatable",
    )
    add("--push", action="store_true", help="push the image to the registries of its names")
    add("--load", action="store_true", help="load the image into Docker or containerd")
    add(
        "--source-date-epoch",
        metavar="SECONDS",
        help="no time in the image is later (SOURCE_DATE_EPOCH)",
    )
    add(
        "--dry-run",
        choices=("text", "json"),
        metavar="FORMAT",
        help="show the plan, as text or json, and build nothing",
    )
    add(
        "--call",
        default="build",
        metavar="NAME",
        help="check, outline or targets instead of building; as JSON with ,format=json",
    )
    add("--check", default="false", help="run the build checks and build nothing")
    add("-q", "--quiet", action="store_true", help="show nothing but the image's digest")
    add("--progress", choices=PROGRESS_MODES, metavar="MODE", help=", ".join(PROGRESS_MODES))
    add("--iidfile", metavar="PATH", help="write the image's digest to a file")
    add("--metadata-file", metavar="PATH", help="write digests and names to a file, as JSON")
    add("--report", metavar="PATH", help="write a page about the build to a file, as HTML")
