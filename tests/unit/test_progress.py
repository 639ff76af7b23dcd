from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest

from pybuild.dockerfile.lint import LintWarning
from pybuild.errors import BackendFailed, BuildCancelled, CacheMissed, RunFailed, SourceRange
from pybuild.oci.descriptor import OCI_MANIFEST, Descriptor
from pybuild.oci.platform import Platform
from pybuild.run.events import (
    BuildFinished,
    Event,
    LintReported,
    StepFinished,
    StepLog,
    StepMissed,
    StepProgress,
    StepStarted,
    Warned,
)
from pybuild.run.miss import Cause, CauseKind, Miss
from pybuild.run.progress.plain import PlainReporter, size_text
from pybuild.run.progress.rawjson import JsonReporter
from pybuild.run.progress.tty import TtyReporter
from pybuild.run.result import BuildResult, BuiltImage

WHERE = SourceRange("Dockerfile", 2, 3)
IMAGES = {Platform("linux", "amd64"): BuiltImage("sha256:d", "sha256:c")}
RESULT = BuildResult(Descriptor(OCI_MANIFEST, "sha256:d", 1), ("a:1",), IMAGES, (), 1.5)


def plain(*events: Event, clock: Any = lambda: 0.0) -> str:
    stream = io.StringIO()
    reporter = PlainReporter(stream, clock)
    for event in events:
        reporter.report(event)
    return stream.getvalue()


def as_json(*events: Event) -> list[dict]:
    stream = io.StringIO()
    reporter = JsonReporter(stream)
    for event in events:
        reporter.report(event)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


SOURCE = b"FROM \x1b[31ma AS b\n\tENV c \\\n  d\nUSER e\nUSER f\n"
LINT = LintReported(
    (
        LintWarning(
            "StageNameCasing", "a \x1b[1mname", SourceRange("Dockerfile", 1, 1), "In words"
        ),
        LintWarning("Legacy", "two lines", WHERE, "Old"),
    ),
    SOURCE,
)


def test_plain_progress_reads_like_buildkits() -> None:
    assert plain(
        StepStarted(1, "[internal] load build definition from Dockerfile"),
        StepFinished(1, 0.04),
        StepStarted(2, "RUN  make\n all", "build", "2/4", WHERE),
        StepLog(2, 1, b"compiling\n", 0.4123),
        StepFinished(2, 0.61),
        StepStarted(3, "COPY a b", "", "3/4"),
        StepFinished(3, 0.0, cached=True),
        BuildFinished(RESULT),
    ) == (
        "#1 [internal] load build definition from Dockerfile\n"
        "#1 DONE 0.0s\n"
        "\n"
        "#2 [build 2/4] RUN make all\n"
        "#2 0.412 compiling\n"
        "#2 DONE 0.6s\n"
        "\n"
        "#3 [3/4] COPY a b\n"
        "#3 CACHED\n"
    )


MISS = Miss(
    (
        Cause(CauseKind.FILE_MODE, "/a\nb\x1b[2J", "0644", "0755", "stage x"),
        Cause(CauseKind.ARG, "V", None, "1"),
    ),
    more=3,
    against=datetime(2024, 1, 2, tzinfo=UTC),
)


def test_plain_tells_why_a_step_missed_in_one_line() -> None:
    assert plain(StepStarted(1, "RUN a"), StepMissed(1, MISS), StepFinished(1, 0.1)) == (
        "#1 RUN a\n#1 miss: files of stage x changed: /a b (mode) and 4 more\n#1 DONE 0.1s\n"
    )


def test_plain_tells_errors_and_cancels() -> None:
    text = plain(
        StepStarted(1, "RUN a"),
        StepStarted(2, "RUN b"),
        StepFinished(1, 1.0, error=BackendFailed("it broke\nbadly")),
        StepFinished(2, 1.0, error=BuildCancelled("cancelled"), cancelled=True),
    )
    assert "#1 ERROR: it broke badly\n" in text
    assert "#2 CANCELED\n" in text


def test_plain_keeps_streams_and_steps_apart_and_shows_unfinished_lines_last() -> None:
    text = plain(
        StepStarted(1, "RUN a"),
        StepStarted(2, "RUN b"),
        StepLog(1, 1, b"he", 0.1),
        StepLog(2, 1, b"other\n", 0.15),
        StepLog(1, 2, b"oops\n", 0.2),
        StepLog(1, 1, b"llo\nend", 0.3),
        StepFinished(1, 0.5),
    )
    assert [line for line in text.splitlines() if line.startswith(("#1 0", "#2 0"))] == [
        "#2 0.150 other",
        "#1 0.200 oops",
        "#1 0.300 hello",
        "#1 0.500 end",
    ]


def test_plain_shows_progress_every_five_seconds_or_five_hundredths() -> None:
    times = iter([0.0, 1.0, 2.0, 7.5, 8.0])
    text = plain(
        StepStarted(1, "pull"),
        StepProgress(1, "layer", 0, 1000_000),
        StepProgress(1, "layer", 10_000, 1000_000),
        StepProgress(1, "layer", 60_000, 1000_000),
        StepProgress(1, "layer", 70_000, 1000_000),
        StepProgress(1, "layer", 1000_000, 1000_000),
        StepProgress(1, "naming to a:1", 0, 0),
        clock=lambda: next(times, 9.0),
    )
    assert text.splitlines()[1:] == [
        "#1 layer 0B / 1.00MB",
        "#1 layer 60.00kB / 1.00MB",
        "#1 layer 70.00kB / 1.00MB",
        "#1 layer 1.00MB / 1.00MB done",
        "#1 naming to a:1 done",
    ]


def test_plain_ends_with_the_findings_of_the_build_checks() -> None:
    assert plain(LINT) == (
        "\n"
        " 2 warnings found:\n"
        " - StageNameCasing: a name (line 1)\n"
        "In words\n"
        "Dockerfile:1\n"
        "--------------------\n"
        "   1 | >>> FROM a AS b\n"
        "   2 |         ENV c \\\n"
        "   3 |       d\n"
        "--------------------\n"
        "\n"
        " - Legacy: two lines (line 2)\n"
        "Old\n"
        "Dockerfile:2\n"
        "--------------------\n"
        "   1 |     FROM a AS b\n"
        "   2 | >>>     ENV c \\\n"
        "   3 | >>>   d\n"
        "   4 |     USER e\n"
        "--------------------\n"
        "\n"
    )
    assert "1 warning found" in plain(LintReported(LINT.warnings[:1], SOURCE))


def test_raw_json_has_the_findings_in_one_line() -> None:
    (line,) = as_json(LintReported(LINT.warnings[1:], SOURCE))
    assert line == {
        "event": "lint-reported",
        "warnings": [
            {
                "rule": "Legacy",
                "message": "two lines",
                "where": {
                    "file": "Dockerfile",
                    "start_line": 2,
                    "end_line": 3,
                    "start_column": None,
                    "end_column": None,
                },
                "description": "Old",
            }
        ],
    }


def test_plain_tells_warnings_with_place_and_hint() -> None:
    assert plain(Warned(0, "old", WHERE, "new")) == "WARN: old; new (Dockerfile:2)\n"
    assert plain(Warned(4, "old")) == "#4 WARN: old\n"


def test_plain_shows_nothing_that_controls_a_terminal() -> None:
    text = plain(
        StepStarted(1, "RUN \x1b[2Jecho"),
        StepLog(1, 1, b"\x1b[1A\x1b[2Kfake\n", 0.1),
        StepProgress(1, "\x1b[31mname", 0, 0),
        StepFinished(1, 0.1, error=BackendFailed("\x1b[2Jno")),
    )
    assert "\x1b" not in text
    assert "#1 0.100 fake\n" in text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0B"), (999, "999B"), (1500, "1.50kB"), (2_350_000_000, "2.35GB")]
)
def test_sizes_are_told_in_decimal_units(size: int, text: str) -> None:
    assert size_text(size) == text


def test_rawjson_has_the_documented_members() -> None:
    place = {
        "file": "Dockerfile",
        "start_line": 2,
        "end_line": 3,
        "start_column": None,
        "end_column": None,
    }
    error = RunFailed("bad", process_exit_code=3, where=WHERE, hint="try")
    assert as_json(
        StepStarted(1, "RUN a", "build", " 2/10", WHERE),
        StepLog(1, 2, b"caf\xc3", 0.5),
        StepLog(1, 2, b"\xa9\xff", 0.6),
        StepProgress(1, "layer", 5, None),
        StepFinished(1, 0.25, error=error),
        Warned(0, "old", None, "new"),
        BuildFinished(RESULT),
    ) == [
        {
            "event": "step-started",
            "id": 1,
            "title": "RUN a",
            "stage": "build",
            "position": "2/10",
            "where": place,
        },
        {"event": "step-log", "id": 1, "stream": 2, "text": "caf", "time": 0.5},
        {"event": "step-log", "id": 1, "stream": 2, "text": "é\ufffd", "time": 0.6},
        {"event": "step-progress", "id": 1, "item": "layer", "done": 5, "total": None},
        {
            "event": "step-finished",
            "id": 1,
            "seconds": 0.25,
            "cached": False,
            "cancelled": False,
            "error": {
                "type": "RunFailed",
                "message": "bad",
                "where": place,
                "hint": "try",
                "exit_code": 3,
            },
        },
        {"event": "warning", "id": 0, "message": "old", "where": None, "hint": "new"},
        {
            "event": "build-finished",
            "digest": "sha256:d",
            "config_digest": "sha256:c",
            "names": ["a:1"],
            "platform": "linux/amd64",
            "seconds": 1.5,
        },
    ]


def test_rawjson_has_the_causes_of_a_miss() -> None:
    miss = {
        "text": str(MISS),
        "causes": [
            {
                "kind": "file-mode",
                "name": "/a\nb\x1b[2J",
                "before": "0644",
                "after": "0755",
                "source": "stage x",
            },
            {"kind": "arg", "name": "V", "before": None, "after": "1", "source": ""},
        ],
        "more": 3,
        "against": "2024-01-02T00:00:00+00:00",
    }
    missed, finished = as_json(
        StepMissed(1, MISS), StepFinished(1, 0.1, error=CacheMissed("no", miss=MISS))
    )
    assert missed == {"event": "step-missed", "id": 1, "miss": miss}
    assert finished["error"]["type"] == "CacheMissed"
    assert finished["error"]["miss"] == miss


def test_tty_shows_running_steps_and_leaves_finished_ones() -> None:
    stream = io.StringIO()
    with TtyReporter(stream) as reporter:
        reporter.report(StepStarted(1, "RUN make", "build", "2/4"))
        reporter.report(StepMissed(1, MISS))
        reporter.report(StepMissed(9, MISS))
        reporter.report(StepLog(1, 1, b"first\nsecond \x1b[2Jline", 0.1))
        reporter.report(StepProgress(1, "layer", 1_000_000, 9_000_000))
        reporter.report(StepProgress(1, "layer", 9_000_000, 9_000_000))
        reporter.report(StepProgress(1, "naming to a:1", 0, 0))
        reporter._tick_once()
        reporter.report(Warned(1, "careful"))
        reporter.report(StepFinished(1, 0.5))
        reporter.report(StepLog(9, 1, b"of no unit", 0.1))
        reporter.report(LINT)
        reporter.report(BuildFinished(RESULT))
    text = stream.getvalue()
    assert "[build 2/4] RUN make" in text
    assert "second line" in text
    assert "layer" in text
    assert "#1 [build 2/4] RUN make  DONE 0.5s\n" in text
    miss = "   miss: files of stage x changed: /a b (mode) and 4 more\n"
    assert f"#1 [build 2/4] RUN make  DONE 0.5s\n{miss}" in text.replace("\r", "")
    assert "   naming to a:1\n" in text
    assert "WARN: careful" in text
    assert " - Legacy: two lines (line 2)\n" in text
    assert "\x1b[2J" not in text


def test_tty_works_on_a_real_terminal() -> None:
    program = (
        "import sys, time\n"
        "from pybuild.run.events import *\n"
        "from pybuild.run.progress.tty import TtyReporter\n"
        "with TtyReporter(sys.stderr) as reporter:\n"
        "    for n in range(1, 6): reporter.report(StepStarted(n, 'RUN sleep' + ' x' * 300))\n"
        "    time.sleep(0.5)\n"
        "    for n in range(1, 6): reporter.report(StepFinished(n, 0.5))\n"
    )
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], stderr=theirs, timeout=60, check=False
        )
        os.close(theirs)
        text = b""
        try:
            while part := os.read(ours, 65536):
                text += part
        except OSError:
            pass  # the other end is closed
    finally:
        os.close(ours)
    assert done.returncode == 0
    assert text.count(b"DONE 0.5s") == 5
    assert b"Traceback" not in text
