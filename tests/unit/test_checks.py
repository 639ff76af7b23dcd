from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from building import Recorder, build, memory_backend

import pybuild
from pybuild import cli
from pybuild.reports import as_json, describe
from pybuild.run.activity import CancelToken
from pybuild.run.events import BuildFinished, LintReported, StepFinished, Warned
from pybuild.testkit.memory import MemoryBackend

BAD = b"FROM scratch AS Bad\nMAINTAINER me\n"
OUTLINED = b"""\
# version of the tool
ARG version=1
ARG suffix=-${version}
ARG unused=x
FROM scratch AS base
# key opens the door
ARG key=none door
# check=skip=all
RUN --mount=type=secret,id=token,required true
FROM scratch AS other
ARG not_needed
FROM base AS app
ARG suffix
ARG TARGETOS
ENV name=app
ARG image=${name}${suffix}
RUN --mount=type=ssh --mount=type=secret,target=/etc/pass,id=pass true
"""


@pytest.fixture
def backend() -> Iterator[MemoryBackend]:
    with memory_backend() as made:
        yield made
        assert made.live_layers == 0


def location(*lines: int) -> dict[str, Any]:
    return {"ranges": [{"start": {"line": n}, "end": {"line": n}} for n in lines]}


def encoded(text: bytes) -> str:
    return base64.b64encode(text).decode()


# Builds


def test_a_build_reports_once_and_behind_its_steps(backend: MemoryBackend) -> None:
    recorder = Recorder()
    build(backend, BAD.decode(), reporter=recorder)
    (report,) = recorder.of(LintReported)
    assert [w.rule for w in report.warnings] == ["StageNameCasing", "MaintainerDeprecated"]
    assert report.source == BAD
    kinds = [type(event) for event in recorder.events]
    assert kinds[-2:] == [LintReported, BuildFinished]
    assert recorder.of(Warned) == []


def test_a_build_without_findings_reports_nothing(backend: MemoryBackend) -> None:
    recorder = Recorder()
    build(backend, "FROM scratch\n", reporter=recorder)
    assert recorder.of(LintReported) == []


@pytest.mark.parametrize(
    "end", ["FRM x\n", "RUN false\n", "COPY --from=nothing / /\n", "USER ${x\n"]
)
def test_a_build_that_fails_reports_too(backend: MemoryBackend, end: str) -> None:
    recorder = Recorder()
    with pytest.raises(pybuild.PybuildError):
        build(backend, f"FROM busybox AS X\n{end}", reporter=recorder)
    (report,) = recorder.of(LintReported)
    assert report.warnings[0].rule == "StageNameCasing"
    assert recorder.events[-1] is report


def test_findings_that_are_errors_end_a_build_before_anything_runs(backend: MemoryBackend) -> None:
    recorder = Recorder()
    text = "# check=error=true\nFROM busybox AS X\nRUN touch /x\n"
    with pytest.raises(pybuild.DockerfileError, match="lint violation found for rules") as caught:
        build(backend, text, reporter=recorder)
    assert caught.value.exit_code == 2
    assert not any("RUN" in getattr(event, "title", "") for event in recorder.events)
    assert len(recorder.of(LintReported)) == 1
    build(backend, text, build_args={"BUILDKIT_DOCKERFILE_CHECK": "skip=all;error=true"})


def test_a_dry_run_reports_and_refuses_as_a_build() -> None:
    recorder = Recorder()
    pybuild.plan_build(None, dockerfile=BAD, reporter=recorder)
    assert len(recorder.of(LintReported)) == 1
    with pytest.raises(pybuild.DockerfileError, match="lint violation"):
        pybuild.plan_build(None, dockerfile=b"# check=error=true\n" + BAD)


# check


def test_a_check_looks_at_all_stages_or_at_what_a_target_needs(backend: MemoryBackend) -> None:
    text = b"FROM scratch AS a\nENV x y\nFROM scratch AS b\nLABEL x y\n"
    everything = pybuild.check(None, dockerfile=text, backend=backend)
    assert [w.where.start_line for w in everything.warnings] == [2, 4]
    result = pybuild.check(None, dockerfile=text, backend=backend, target="A")
    assert [w.where.start_line for w in result.warnings] == [2]
    assert result.error is None
    assert (result.name, result.source) == ("Dockerfile", text)


def test_a_check_knows_what_the_ignore_file_leaves_out(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY secret /\n")
    (tmp_path / ".dockerignore").write_text("secret\n")
    result = pybuild.check(tmp_path, backend=backend)
    assert [w.rule for w in result.warnings] == ["CopyIgnoredFile"]


def test_a_check_needs_no_backend() -> None:
    text = b"FROM nowhere/image\nENV x=$their_own y=1\n"
    result = pybuild.check(None, dockerfile=text)
    assert (result.warnings, result.error) == ((), None)


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (b"FRM x\n", pybuild.UnknownInstruction),
        (b"FROM nothing\n", pybuild.ImageNotFound),
        (b"FROM scratch\nCOPY --from=9 / /\n", pybuild.DockerfileError),
    ],
)
def test_an_error_is_part_of_a_checks_result(
    backend: MemoryBackend, end: bytes, kind: type[Exception]
) -> None:
    result = pybuild.check(None, dockerfile=BAD + end, backend=backend, pull="never")
    assert isinstance(result.error, kind)
    assert result.error.files == {"Dockerfile": BAD + end}
    assert "StageNameCasing" in {w.rule for w in result.warnings}


def test_a_missing_dockerfile_and_a_cancelled_check_are_raised(tmp_path: Path) -> None:
    with pytest.raises(pybuild.ContextError):
        pybuild.check(tmp_path)
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(pybuild.BuildCancelled):
        pybuild.check(None, dockerfile=BAD, cancel=cancel)


def test_a_check_as_text_reads_like_buildkits() -> None:
    assert describe(pybuild.check(None, dockerfile=BAD)) == (
        "Check complete, 2 warnings have been found!\n"
        "\n"
        "WARNING: StageNameCasing\n"
        "Stage name 'Bad' should be lowercase\n"
        "Dockerfile:1\n"
        "--------------------\n"
        "   1 | >>> FROM scratch AS Bad\n"
        "   2 |     MAINTAINER me\n"
        "   3 |     \n"
        "--------------------\n"
        "\n"
        "WARNING: MaintainerDeprecated\n"
        "Maintainer instruction is deprecated in favor of using label\n"
        "Dockerfile:2\n"
        "--------------------\n"
        "   1 |     FROM scratch AS Bad\n"
        "   2 | >>> MAINTAINER me\n"
        "   3 |     \n"
        "--------------------"
    )
    clean = pybuild.check(None, dockerfile=b"FROM scratch\n")
    assert describe(clean) == "Check complete, no warnings found."
    assert "1 warning has been found!" in describe(pybuild.check(None, dockerfile=BAD[:20]))


def test_a_check_as_json_has_buildkits_members() -> None:
    text = b"FROM scratch\nMAINTAINER \\\n me\nFRM x\n"
    assert as_json(pybuild.check(None, dockerfile=text)) == {
        "warnings": [
            {
                "ruleName": "MaintainerDeprecated",
                "description": "The MAINTAINER instruction is deprecated, use a label instead "
                "to define an image author",
                "detail": "Maintainer instruction is deprecated in favor of using label",
                "location": location(2, 3),
            }
        ],
        "sources": [{"filename": "Dockerfile", "data": encoded(text), "language": "Dockerfile"}],
        "buildError": {"message": "FRM is no instruction", "location": location(4)},
    }


# outline


def test_an_outline_has_what_the_target_and_its_stages_take() -> None:
    result = pybuild.outline(None, dockerfile=OUTLINED)
    outline = result.outline
    assert (outline.name, outline.description) == ("app", "")
    assert [(a.name, a.value, a.description, a.where.start_line) for a in outline.args] == [
        ("version", "1", "of the tool", 2),
        ("suffix", "-1", "", 3),
        ("key", "none", "opens the door", 7),
        ("door", "", "", 7),
        ("image", "app-1", "", 16),
    ]
    assert [(s.id, s.required) for s in outline.secrets] == [("token", True), ("pass", False)]
    assert [(s.id, s.required) for s in outline.ssh] == [("default", False)]


def test_an_outline_is_of_the_target_asked_for_with_the_args_given() -> None:
    result = pybuild.outline(
        None, dockerfile=OUTLINED, target="BASE", build_args={"key": "given", "door": "d"}
    )
    assert [(a.name, a.value) for a in result.outline.args] == [("key", "given"), ("door", "d")]
    assert result.outline.ssh == ()


def test_args_in_from_are_outlined_and_seen_with_the_images_env(backend: MemoryBackend) -> None:
    text = b"ARG base=busybox\nARG p=linux/amd64\nFROM --platform=$p ${base}\nARG x=$PATH\n"
    outline = pybuild.outline(None, dockerfile=text, backend=backend).outline
    assert [(a.name, a.value) for a in outline.args] == [
        ("base", "busybox"),
        ("p", "linux/amd64"),
        ("x", "/bin"),
    ]


def test_an_outline_as_text_reads_like_buildkits() -> None:
    text = b"# app is it\nFROM scratch AS app\n# a is b\nARG a=1 long_name=\n"
    mounts = b"RUN --mount=type=secret,id=s,required --mount=type=ssh true\n"
    assert describe(pybuild.outline(None, dockerfile=text + mounts)) == (
        "TARGET:      app\n"
        "DESCRIPTION: is it\n"
        "\n"
        "BUILD ARG   VALUE   DESCRIPTION\n"
        "a           1       is b\n"
        "long_name           \n"
        "\n"
        "SECRET   REQUIRED\n"
        "s        true\n"
        "\n"
        "SSH       REQUIRED\n"
        "default   "
    )
    assert describe(pybuild.outline(None, dockerfile=b"FROM scratch\n")) == ""


def test_an_outline_as_json_has_buildkits_members() -> None:
    text = b"FROM scratch AS app\nARG a=1\nRUN --mount=type=secret,id=s,required true\n"
    assert as_json(pybuild.outline(None, dockerfile=text)) == {
        "name": "app",
        "args": [{"name": "a", "value": "1", "location": location(2)}],
        "secrets": [{"name": "s", "required": True, "location": location(3)}],
        "sources": [encoded(text)],
    }


@pytest.mark.parametrize("target", ["nothing", "99"])
def test_an_outline_of_no_stage_is_refused(target: str) -> None:
    with pytest.raises(pybuild.StageNotFound):
        pybuild.outline(None, dockerfile=OUTLINED, target=target)


# targets

STAGES = b"""\
# first the first one
FROM --platform=$BUILDPLATFORM a${b} AS First
FROM first
# last the end
FROM first AS \\
  last
"""


def test_targets_are_the_stages_as_written() -> None:
    found = pybuild.targets(None, dockerfile=STAGES).targets
    assert [(t.name, t.description, t.default, t.base, t.platform) for t in found] == [
        ("first", "the first one", False, "a${b}", "$BUILDPLATFORM"),
        (None, "", False, "first", None),
        ("last", "the end", True, "first", None),
    ]


def test_targets_as_text_read_like_buildkits() -> None:
    assert describe(pybuild.targets(None, dockerfile=STAGES)) == (
        "TARGET         DESCRIPTION\n"
        "first          the first one\n"
        "               \n"
        "last (default) the end"
    )
    alone = describe(pybuild.targets(None, dockerfile=b"FROM scratch\n"))
    assert alone == "TARGET    DESCRIPTION\n(default) "


def test_targets_as_json_have_buildkits_members() -> None:
    assert as_json(pybuild.targets(None, dockerfile=STAGES)) == {
        "targets": [
            {
                "name": "first",
                "description": "the first one",
                "base": "a${b}",
                "platform": "$BUILDPLATFORM",
                "location": location(2),
            },
            {"base": "first", "location": location(3)},
            {
                "name": "last",
                "default": True,
                "description": "the end",
                "base": "first",
                "location": location(5, 6),
            },
        ],
        "sources": [encoded(STAGES)],
    }


@pytest.mark.parametrize("call", [pybuild.targets, pybuild.outline, pybuild.plan_build])
def test_another_frontend_is_refused_unless_the_caller_replaces_it(call: Any) -> None:
    text = b"# syntax=me/mine\nFROM scratch\n"
    with pytest.raises(pybuild.DockerfileError, match="unknown syntax"):
        call(None, dockerfile=text)
    call(None, dockerfile=text, build_args={"BUILDKIT_SYNTAX": "docker/dockerfile:1"})
    with pytest.raises(pybuild.DockerfileError, match="unknown syntax"):
        call(None, dockerfile=b"FROM scratch\n", build_args={"BUILDKIT_SYNTAX": "me/mine"})


def test_another_frontend_is_the_error_of_a_check_and_of_a_build(backend: MemoryBackend) -> None:
    text = "# syntax=me/mine\nFROM scratch\n"
    error = pybuild.check(None, dockerfile=text.encode()).error
    assert error is not None
    assert "unknown syntax" in error.message
    with pytest.raises(pybuild.DockerfileError, match="unknown syntax"):
        build(backend, text)


def test_nothing_shown_of_a_dockerfile_drives_the_terminal() -> None:
    text = (
        b"# x \x1b[31mred\nARG x=\x1b]0;title\x07\nFROM scratch AS X\nARG x\nENV \x1b[1m$\x1bx y\n"
    )
    for result in (
        pybuild.check(None, dockerfile=text),
        pybuild.outline(None, dockerfile=text),
        pybuild.targets(None, dockerfile=text),
    ):
        assert "\x1b" not in describe(result)


# The command line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYBUILD_BACKEND", "none")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "Dockerfile").write_bytes(BAD)
    return tmp_path


def test_a_check_exits_with_1_where_it_finds_something(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--check", str(folder)]) == 1
    assert capsys.readouterr().out.startswith("Check complete, 2 warnings have been found!\n\n")
    assert cli.main(["--call=check,ignorestatus=true", str(folder)]) == 0
    (folder / "Dockerfile").write_text("FROM scratch\n")
    capsys.readouterr()
    assert cli.main(["build", "--check", str(folder)]) == 0
    assert capsys.readouterr().out == "Check complete, no warnings found.\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [(b"FRM x\n", "FRM is no instruction"), (b"", "lint violation found for rules")],
)
def test_a_check_that_ends_in_an_error_prints_both(
    folder: Path, capsys: pytest.CaptureFixture[str], text: bytes, said: str
) -> None:
    (folder / "Dockerfile").write_bytes(b"# check=error=true\n" + BAD + text)
    assert cli.main(["--check", str(folder)]) == 2
    printed = capsys.readouterr()
    assert "WARNING: StageNameCasing" in printed.out
    assert said in printed.err
    assert "--> Dockerfile:" in printed.err


@pytest.mark.parametrize(
    ("call", "member"), [("check", "warnings"), ("outline", "name"), ("targets", "targets")]
)
def test_a_call_prints_json(
    folder: Path, capsys: pytest.CaptureFixture[str], call: str, member: str
) -> None:
    cli.main([f"--call={call},format=json", str(folder)])
    printed = capsys.readouterr()
    assert member in json.loads(printed.out)
    assert printed.err == ""


def test_a_build_shows_its_findings_at_the_end(
    folder: Path, capsys: pytest.CaptureFixture[str], backend: MemoryBackend
) -> None:
    assert cli.main(["--backend=memory", "--progress=plain", str(folder)]) == 0
    assert "\n 2 warnings found:\n - StageNameCasing: Stage name" in capsys.readouterr().err
    assert cli.main(["--backend=memory", "-q", str(folder)]) == 0
    assert capsys.readouterr().err == ""
    assert cli.main(["--dry-run", str(folder)]) == 0
    assert "warning: StageNameCasing: Stage name 'Bad'" in capsys.readouterr().err


def test_a_check_runs_no_step(backend: MemoryBackend) -> None:
    recorder = Recorder()
    pybuild.check(
        None, dockerfile=b"FROM busybox\nRUN touch /x\n", backend=backend, reporter=recorder
    )
    assert len(recorder.of(StepFinished)) == 2
