"""``pybuild lock``: write the lock file of a Dockerfile, or tell what has changed since."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from pybuild.arguments import (
    SourceArguments,
    add_backend_options,
    add_other_options,
    add_source_options,
    backend_values,
    new_parser,
    parse_words,
    source_values,
)
from pybuild.environment import build_args_of, open_registry, remote_options, secrets_of
from pybuild.errors import UsageError
from pybuild.export.newfiles import written
from pybuild.lockfile import Lock, beside, changes, read_lock
from pybuild.locking import lock_images
from pybuild.run.activity import CancelToken
from pybuild.run.events import Reporter
from pybuild.values import dataclass

EXIT_CHANGED = 1
"""How ``pybuild lock --check`` ends where something isn't as the lock file says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockArguments(SourceArguments):
    """``pybuild lock``; ``output`` is the lock file's path, None for beside the Dockerfile."""

    output: str | None
    check: bool


@dataclass(frozen=True, slots=True)
class LockDone:
    """The text for standard output, and the exit code."""

    text: str
    code: int = 0


def parse_lock_arguments(
    words: Sequence[str], environ: Mapping[str, str], version: str
) -> LockArguments:
    """What the words behind ``lock`` ask for. Raises UsageError."""
    found = parse_words(lock_parser(version), list(words), {})
    return LockArguments(
        **backend_values(found),
        **source_values(found, environ),
        output=found.output,
        check=found.check,
    )


def lock_parser(version: str) -> argparse.ArgumentParser:
    """The words behind ``lock``."""
    parser = new_parser(
        "pybuild lock",
        "pybuild lock [options] CONTEXT",
        "Ask registries what the images of a Dockerfile are now, and write their digests to "
        "pybuild.lock beside it, for pybuild --locked.",
    )
    add_source_options(parser.add_argument_group("what to lock"))
    add = parser.add_argument_group("the lock file").add_argument
    add("-o", "--output", metavar="FILE", help="instead of pybuild.lock beside the Dockerfile")
    add(
        "--check",
        action="store_true",
        help="write nothing; end with 1 if the lock file isn't what it would be now",
    )
    add_backend_options(parser)
    add_other_options(parser, version)
    return parser


def run_lock(  # noqa: PLR0917 - what cli.py alone knows
    arguments: LockArguments,
    context: str | BinaryIO,
    dockerfile: str | bytes | None,
    environ: Mapping[str, str],
    reporter: Reporter,
    cancel: CancelToken,
) -> LockDone:
    """Do what `arguments` say. Raises a :class:`~pybuild.errors.PybuildError`."""
    path = Path(arguments.output) if arguments.output else beside(context, dockerfile)
    before = _earlier(path, arguments)
    platforms = arguments.platforms or (before.platforms if before else ())
    with open_registry(arguments, environ) as registry:
        after = lock_images(
            context,
            dockerfile=dockerfile,
            build_args=build_args_of(arguments, environ),
            target=arguments.target,
            platform=platforms or None,
            contexts=arguments.contexts,
            secrets=secrets_of(arguments, environ),
            remotes=remote_options(arguments, environ),
            registry=registry,
            reporter=reporter,
            cancel=cancel,
        )
    found = [str(change) for change in changes(before or Lock(), after)]
    if arguments.check:
        return LockDone("\n".join(found) or f"{path} is up to date", EXIT_CHANGED if found else 0)
    with written(str(path)) as write:
        write(str(after).encode())
    return LockDone("\n".join([*found, f"wrote {path}"]))


def _earlier(path: Path, arguments: LockArguments) -> Lock | None:
    """The lock that is there. What is something else, or a link in a context, isn't replaced."""
    if not arguments.output and path.is_symlink():
        raise UsageError(
            f'the lock file "{path}" is a link', hint="name the file it leads to: --output FILE"
        )
    if not arguments.check and not path.exists():
        return None
    return read_lock(path)
