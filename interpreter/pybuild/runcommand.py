"""``pybuild run``: the words of the command line as values."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from pybuild.arguments import (
    BackendArguments,
    add_backend_options,
    add_other_options,
    backend_values,
    new_parser,
    parse_words,
)
from pybuild.backend import Network, PullPolicy
from pybuild.errors import UsageError
from pybuild.flagvalues import parse_build_args, parse_pull_policy
from pybuild.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RunArguments(BackendArguments):
    """``pybuild run IMAGE ARGS``; the rest as in :func:`pybuild.running.run_image`."""

    image: str
    args: tuple[str, ...]
    env: Mapping[str, str]
    user: str | None
    workdir: str | None
    network: Network
    platform: str | None
    pull: PullPolicy


def parse_run_arguments(
    words: Sequence[str], environ: Mapping[str, str], version: str
) -> RunArguments:
    """What the words behind ``run`` ask for; `environ` gives the values of ``--env NAME``.

    Whatever follows the image is the process's own. Raises UsageError.
    """
    found = parse_words(run_parser(version), list(words), {})
    if found.image is None:
        raise UsageError("the image is missing", hint="pybuild images lists those that are here")
    try:
        network = Network(found.network)
    except ValueError:
        raise UsageError(f'the network "{found.network}" is not default or none') from None
    return RunArguments(
        **backend_values(found),
        image=found.image,
        args=tuple(found.args),
        env=parse_build_args(found.env, environ),
        user=found.user,
        workdir=found.workdir,
        network=network,
        platform=found.platform,
        pull=PullPolicy(parse_pull_policy(found.pull)),
    )


def run_parser(version: str) -> argparse.ArgumentParser:
    """The words behind ``run``."""
    parser = new_parser(
        "pybuild run",
        "pybuild run [options] IMAGE [ARG...]",
        "Run an image's entrypoint with ARGs, by default its command. What it changes is "
        "thrown away.",
    )
    parser.add_argument("image", nargs="?", metavar="IMAGE", help=argparse.SUPPRESS)
    parser.add_argument("args", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    add = parser.add_argument_group("how to run").add_argument
    add(
        "-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="one more variable"
    )
    add("-u", "--user", metavar="USER", help="instead of the image's")
    add("-w", "--workdir", metavar="DIR", help="instead of the image's")
    add("--network", default="default", metavar="MODE", help="default or none")
    add("--platform", metavar="OS/ARCH", help="of several in an index")
    add("--pull", default="missing", metavar="WHEN", help="missing (the default), always or never")
    add_backend_options(parser)
    add_other_options(parser, version)
    return parser
