"""What a build shows where it is looked at: on a terminal that changes its size, a dumb one, a pipe."""

from __future__ import annotations

import codecs
import os
import re
import signal
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from commandline import CommandLine, OnEmbedded

from promptness import AT_ONCE
from pybuild.testkit.pseudoterminals import read_soon
from terminals import TerminalModel

STAGE = """
FROM busybox AS {0}
RUN for i in 1 2 3 4 5 6 7 8 9 10; do echo {0} line $i, at length and more; sleep 0.2; done; : {1}
"""
REST = """
FROM busybox
COPY --from=one /etc/passwd /one
COPY --from=two /etc/passwd /two
RUN echo end
"""
STEPS = 8  # each stage's FROM is one
_PATIENCE = 60


@pytest.fixture
def pybuild(on_embedded: OnEmbedded) -> CommandLine:
    return on_embedded


def dockerfile() -> str:
    """One that no other test has built."""
    unique = os.urandom(8).hex()
    return STAGE.format("one", unique) + STAGE.format("two", unique) + REST


def watched(
    command: CommandLine,
    *arguments: str | Path,
    sizes: Sequence[tuple[int, int]] = ((100, 24),),
    reflow: bool = True,
    env: Mapping[str, str] | None = None,
) -> tuple[TerminalModel, str]:
    """What a terminal shows in the end of a build that succeeds, and all that was written to it.

    It gets the next of the `sizes` (columns and rows) after a while; the build outlasts them.
    """
    todo = list(sizes)
    ours, theirs = os.openpty()

    def resize() -> tuple[int, int]:
        columns, rows = todo.pop(0)
        termios.tcsetwinsize(theirs, (rows, columns))
        return columns, rows

    screen = TerminalModel(*resize(), reflow=reflow)
    process = command.start(*arguments, env=env, stderr=theirs)
    try:
        decoder = codecs.getincrementaldecoder("utf-8")()
        written = ""
        end, last = time.monotonic() + _PATIENCE, time.monotonic()
        while True:
            code, shown = process.poll(), read_soon(ours)
            if code is not None and not shown:
                break
            assert time.monotonic() < end, written
            if shown:
                text = decoder.decode(shown)
                screen.feed(text)
                written += text
                last = last if written else time.monotonic()
            if todo and "2] RUN" in written and time.monotonic() - last > 0.45:
                screen.resize(*resize())
                process.send_signal(signal.SIGWINCH)
                last = time.monotonic()
        assert code == 0, written
        assert not todo
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
        os.close(theirs)
    return screen, written


def check_final(screen: TerminalModel, *, whole: bool) -> None:
    """Each step is there once, and nothing but what belongs to steps; `whole` lines too."""
    lines = [line for line in screen.lines() if line]
    assert [line for line in lines if not line.startswith(("#", "   "))] == []
    ends = [line for line in lines if line.startswith("#")]
    numbers = [line.split()[0] for line in ends]
    assert sorted(numbers) == sorted(set(numbers)), lines
    steps = [line for line in lines if re.match(r"#\d+ \[(\S+ )?\d/\d\] \w", line)]
    assert len(steps) == STEPS, lines
    if whole:
        assert [line for line in ends if not re.search(r"(DONE .*s|CACHED)$", line)] == []
    assert screen.is_ready


@pytest.mark.parametrize("reflow", [True, False])
@pytest.mark.parametrize(
    "sizes",
    [
        [(100, 24)],
        [(100, 24), (40, 24), (23, 24), (120, 24)],
        [(40, 24), (130, 24), (60, 24)],
        [(80, 24), (80, 6), (30, 6), (80, 24)],
    ],
    ids=lambda sizes: "-".join(f"{columns}x{rows}" for columns, rows in sizes),
)
def test_a_window_may_change_its_size(
    pybuild: CommandLine, sizes: list[tuple[int, int]], reflow: bool
) -> None:
    screen, _ = watched(pybuild, pybuild.context(dockerfile()), sizes=sizes, reflow=reflow)
    check_final(screen, whole=reflow or len(sizes) == 1)  # else the terminal cuts them


def test_more_steps_than_rows_are_drawn_in_the_rows_there_are(pybuild: CommandLine) -> None:
    unique = os.urandom(8).hex()
    stages = [
        f"FROM busybox AS s{n}\nRUN for i in 1 2 3 4 5 6 7; do echo {unique}; sleep 0.2; done\n"
        for n in range(6)
    ]
    copies = [f"COPY --from=s{n} /etc/passwd /s{n}\n" for n in range(6)]
    context = pybuild.context("".join([*stages, "FROM busybox\n", *copies]))
    screen, _ = watched(pybuild, context, sizes=[(90, 12), (90, 4), (90, 12)], reflow=True)
    lines = [line for line in screen.lines() if line]
    assert [line for line in lines if not line.startswith(("#", "   "))] == []
    assert len([line for line in lines if line.startswith("#")]) == 2 + 6 * 2 + 7 + 1
    assert screen.is_ready


@pytest.mark.parametrize("name", ["TERM=dumb", "NO_COLOR=1"])
def test_a_terminal_that_knows_nothing_gets_plain_lines(pybuild: CommandLine, name: str) -> None:
    variable, _, value = name.partition("=")
    context = pybuild.context("FROM busybox\nRUN echo hello\n")
    _, written = watched(pybuild, context, env={variable: value})
    assert re.search(r"^#\d+ \d+\.\d+ hello\r$", written, re.MULTILINE)
    assert "\x1b" not in written
    assert "\r" not in written.replace("\r\n", "")


def test_a_pipe_gets_plain_lines(pybuild: CommandLine) -> None:
    done = pybuild.build(pybuild.context("FROM busybox\nRUN echo hello\n"))
    assert re.search(r"^#\d+ (\d+\.\d+ hello|CACHED)$", done.err, re.MULTILINE)
    assert "\x1b" not in done.err
    assert "\r" not in done.err


@pytest.mark.parametrize("mode", ["plain", "tty", "rawjson"])
def test_a_build_whose_reader_has_gone_ends_quietly(pybuild: CommandLine, mode: str) -> None:
    context = pybuild.context(dockerfile())
    reader, writer = os.pipe()
    process = pybuild.start(f"--progress={mode}", context, stderr=writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as lines:
        assert lines.readline()
    begun = time.monotonic()
    out, _ = process.communicate(timeout=_PATIENCE)
    assert (process.returncode, out) == (130, "")
    assert time.monotonic() - begun < AT_ONCE
    pybuild.check_nothing_left()


@pytest.mark.parametrize(
    "words", ["images", "history busybox", "--help", "images --help", "doctor"]
)
def test_what_nobody_reads_is_no_error(pybuild: CommandLine, words: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = pybuild.start(*words.split(), stdout=writer)
    os.close(writer)
    _, said = process.communicate(timeout=_PATIENCE)
    assert said == ""
    assert process.returncode == 130
