"""``pybuild debug``: go where a RUN failed, in a build that has ended."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

from pybuild.arguments import (
    BackendArguments,
    add_backend_options,
    add_other_options,
    backend_values,
    new_parser,
    parse_words,
)
from pybuild.backend import Backend, Capability
from pybuild.errors import UnsupportedByBackend, UsageError
from pybuild.run.activity import CancelToken
from pybuild.run.keptruns import MOST_KEPT, KeptRun, KeptRuns
from pybuild.running import OnOutput, process_activity
from pybuild.stepshell import StepShell
from pybuild.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DebugArguments(BackendArguments):
    """``pybuild debug``. Without ``args`` a shell is opened; ``failure`` 1 is the last one."""

    args: tuple[str, ...]
    failure: int
    list: bool


@dataclass(frozen=True, slots=True)
class Talk:
    """Takes the output of a command, and what the user is to know besides; `cancel` ends it."""

    on_output: OnOutput
    tell: Callable[[str], object]
    cancel: CancelToken


def parse_debug_arguments(words: Sequence[str], version: str) -> DebugArguments:
    """What the words behind ``debug`` ask for. Raises UsageError."""
    end = list(words).index("--") if "--" in words else len(words)
    found = parse_words(debug_parser(version), list(words[:end]), {})
    if found.failure < 1:
        raise UsageError(f"--failure {found.failure} is not 1 or more", hint="1 is the last one")
    if found.args:
        raise UsageError(
            f'"{found.args[0]}" is no option', hint="a command comes behind --: pybuild debug -- ls"
        )
    args = tuple(words[end + 1 :])
    return DebugArguments(
        **backend_values(found), args=args, failure=found.failure, list=found.list
    )


def debug_parser(version: str) -> argparse.ArgumentParser:
    """The words behind ``debug``."""
    parser = new_parser(
        "pybuild debug",
        "pybuild debug [options] [-- COMMAND [ARG...]]",
        "Open a shell, or run COMMAND, where the last RUN failed: on its files, as its user, "
        "with its variables and caches. What is changed is thrown away.",
    )
    parser.add_argument("args", nargs="*", metavar="COMMAND", help=argparse.SUPPRESS)
    add = parser.add_argument_group("what to open").add_argument
    add(
        "--failure",
        type=int,
        default=1,
        metavar="N",
        help=f"1 for the last one (the default), up to {MOST_KEPT} for those before",
    )
    add("--list", action="store_true", help="show which failed steps are kept")
    add_backend_options(parser)
    add_other_options(parser, version)
    return parser


def run_debug(
    arguments: DebugArguments,
    backend: Backend,
    shell: StepShell | None,
    talk: Talk,
) -> int:
    """Do it, and give the exit code of what was run.

    `shell` is for a terminal. Raises UsageError if nothing is kept, or there is no terminal for a shell.
    """
    if not arguments.args and shell is None:
        raise UsageError(
            "pybuild debug opens a shell, which needs a terminal",
            hint="run a command instead: pybuild debug -- ls -l",
        )
    check_debugs(backend)
    kept = _chosen(backend, arguments.failure)
    activity = process_activity(talk.on_output, talk.cancel)
    with KeptRuns(backend).opened(kept, activity) as run:
        backend.require(frozenset({Capability.RUN}))
        if kept.lacking:
            talk.tell("not here, unlike in the step: " + ", ".join(kept.lacking))
        if arguments.args or shell is None:
            return run.run(arguments.args, activity)
        talk.tell(f"where this failed: {describe(kept)}")
        return shell.open(run, activity)


def listed(backend: Backend) -> str:
    """A line for each failed step that is kept, the last first. Raises UsageError for none."""
    check_debugs(backend)
    return "\n".join(
        f"{number}  {time.strftime('%H:%M:%S', time.localtime(kept.failed))}  {describe(kept)}"
        for number, kept in enumerate(_found(backend), 1)
    )


def describe(kept: KeptRun) -> str:
    """The step and its place."""
    return f"{kept.title} ({kept.where})" if kept.where else kept.title


def check_debugs(backend: Backend) -> None:
    """Raise UnsupportedByBackend where failed steps aren't kept."""
    if Capability.DEBUG not in backend.capabilities:
        raise UnsupportedByBackend(
            f'the backend "{backend.name}" keeps no failed steps',
            hint="build with --backend embedded and pybuild's own sandbox",
        )


def _found(backend: Backend) -> Sequence[KeptRun]:
    found = KeptRuns(backend).newest()
    if not found:
        raise UsageError(
            "no failed step is kept here",
            hint="a RUN that fails is kept for a day, as long as there is room",
        )
    return found


def _chosen(backend: Backend, number: int) -> KeptRun:
    kept = _found(backend)
    if number > len(kept):
        raise UsageError(
            f"no more than {len(kept)} failed steps are kept", hint="pybuild debug --list"
        )
    return kept[number - 1]
