"""Standard input and output as what a build reads and writes, until it is cancelled."""

from __future__ import annotations

import io
import sys
from typing import BinaryIO, TextIO, cast

from pybuild.errors import UsageError
from pybuild.run.activity import CancelToken
from pybuild.run.inputs import read_limited


def read_inputs(
    context: str, dockerfile: str | None, stdin: TextIO | None, cancel: CancelToken
) -> tuple[str | BinaryIO, str | bytes | None]:
    """The context and the Dockerfile; either may be ``-``, standard input, not both."""
    if context == "-" and dockerfile == "-":
        raise UsageError("standard input can't be both the context and the Dockerfile")
    if "-" not in {context, dockerfile}:
        return context, dockerfile
    if stdin is None:
        raise UsageError("standard input is closed")
    stream = standard_input(stdin, cancel)
    if context == "-":
        return stream, dockerfile
    return context, read_limited(stream, "the Dockerfile")


def standard_input(stdin: TextIO, cancel: CancelToken) -> BinaryIO:
    """Standard input, whose reader stops waiting when the build is cancelled."""
    stream = stdin.buffer
    if sys.platform == "win32":  # nothing there can wait for a pipe
        return stream
    try:
        number = stream.fileno()
    except OSError:  # a replaced stream
        return stream
    from pybuild.pipes import CancellableInput  # noqa: PLC0415  (most contexts are folders)

    return cast("BinaryIO", io.BufferedReader(CancellableInput(number, cancel)))


def standard_output(stdout: TextIO | None, cancel: CancelToken) -> BinaryIO:
    """Standard output for an archive; whoever writes stops waiting when the build is cancelled.

    Raises UsageError if it is closed, or a terminal.
    """
    if stdout is None:
        raise UsageError("standard output is closed")
    if stdout.isatty():
        raise UsageError(
            "an archive isn't written to a terminal", hint="give a file: --output …,dest=FILE"
        )
    stream = stdout.buffer
    try:
        number = stream.fileno()
    except OSError:  # a replaced stream
        return stream
    if sys.platform == "win32":  # nothing there can wait for a pipe
        return stream
    from pybuild.pipes import CancellableOutput  # noqa: PLC0415  (few outputs go there)

    return cast("BinaryIO", CancellableOutput(number, cancel))
