"""Why steps miss, told by the command line on real backends."""

from __future__ import annotations

import json

import pytest
from commandline import CommandLine, OnEmbedded

TEXT = (
    "FROM busybox AS build\nARG VERSION=1.2\nCOPY src /src\n"
    "RUN echo $VERSION > /out && cat /src/app >> /out\n"
    "FROM busybox\nCOPY --from=build /out /bin/\nWORKDIR /new\nRUN cp /bin/out /new/out\n"
)


@pytest.fixture(params=["embedded", "containerd"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def misses(text: str) -> list[str]:
    """What progress tells of misses."""
    return [line.partition(" ")[2] for line in text.splitlines() if " miss: " in line]


def test_an_edit_is_named_below_the_step_that_it_made_run(pybuild: CommandLine) -> None:
    context = pybuild.context(TEXT)
    (context / "src").mkdir()
    (context / "src" / "app").write_text("one")
    words = ("--progress=plain", context)
    first = pybuild.build(*words)
    assert misses(first.err) == ["miss: never built here", "miss: never built here"]
    assert misses(pybuild.build(*words).err) == []

    (context / "src" / "app").write_text("two")
    second = pybuild.build(*words)
    assert misses(second.err) == [
        "miss: src/app changed (content)",
        "miss: files of stage build changed: /out (content)",
    ]
    lines = second.err.splitlines()
    at = next(i for i, line in enumerate(lines) if line.endswith("COPY src /src"))
    assert lines[at + 1].endswith(" miss: src/app changed (content)")
    assert second.digest != first.digest

    third = pybuild.build("--build-arg", "VERSION=1.3", *words)
    assert misses(third.err) == [
        "miss: ARG VERSION 1.2 -> 1.3",
        "miss: files of stage build changed: /out (content)",
    ]
    # what was built before is found again, and nothing is said
    again = pybuild.build(*words)
    assert (again.digest, misses(again.err)) == (second.digest, [])


def test_explain_shows_all_of_the_last_build_that_missed_something(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM busybox\nCOPY a b /d/\nRUN true\n", a="1", b="1")
    assert "no build of" in pybuild.fail(2, "explain", context)
    pybuild.build(context)
    (context / "a").write_text("2")
    (context / "b").chmod(0o755)
    pybuild.build(context)
    pybuild.build(context)
    text = pybuild("explain", context).out
    assert (
        "  miss  1/2 COPY a b /d/\n          a changed (content)\n          b changed (mode)\n"
        in text
    )
    found = json.loads(pybuild("explain", "--format=json", ".", cwd=context).out)
    first, second = found["stages"][0]["steps"]
    assert [cause["kind"] for cause in first["miss"]["causes"]] == ["file-content", "file-mode"]
    assert [cause["kind"] for cause in second["miss"]["causes"]] == ["step-below"]


def test_fail_on_miss_ends_a_build_before_the_step_runs(pybuild: CommandLine) -> None:
    context = pybuild.context(
        "FROM busybox AS base\nCOPY a /a\nFROM base\nRUN echo it ran\n", a="1"
    )
    err = pybuild.fail(1, "--progress=plain", "--fail-on-miss", context)
    assert "error: the step is not in the cache: never built here\n  --> Dockerfile:2\n" in err
    pybuild.build(context)
    pybuild.build("--fail-on-miss", context)
    dockerfile = context / "Dockerfile"
    dockerfile.write_text(dockerfile.read_text().replace("it ran", "it runs"))
    pybuild.build("--fail-on-miss=BASE", "-t", "based", "--target=base", context)
    err = pybuild.fail(1, "--progress=plain", "--fail-on-miss=stage-1", context)
    assert "error: the step is not in the cache: instruction changed\n  --> Dockerfile:4\n" in err
    assert not [
        line for line in err.splitlines() if line.endswith(" it runs") and "RUN" not in line
    ]
    assert 'no stage "nope"' in pybuild.fail(2, "--fail-on-miss=nope", context)


def test_rawjson_tells_the_causes(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM busybox\nCOPY a /a\n", a="1")
    pybuild.build(context)
    (context / "a").write_text("2")
    ended = pybuild.build("--progress=rawjson", context)
    events = [json.loads(line) for line in ended.err.splitlines()]
    (missed,) = (event for event in events if event["event"] == "step-missed")
    assert missed["miss"]["text"] == "a changed (content)"
    assert missed["miss"]["causes"][0]["name"] == "a"


def test_several_builds_at_once_leave_good_records(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM busybox\nARG N\nRUN echo $N > /n\n")
    started = [pybuild.start("--build-arg", f"N={n}", context) for n in range(4)]
    for process in started:
        _, err = process.communicate()
        assert process.returncode == 0, err
        assert "Traceback" not in err
    ended = pybuild.build("--build-arg", "N=9", context)
    (told,) = misses(ended.err)
    assert told.startswith("miss: ARG N ")
    assert told.endswith(" -> 9")


def test_damaged_records_are_as_if_they_were_not_there(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM busybox\nCOPY a /a\n", a="1")
    pybuild.build(context)
    notes = pybuild.root if isinstance(pybuild, OnEmbedded) else pybuild.home
    records = list(notes.rglob("builds/*/*"))
    assert records
    for path in records:
        path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    (context / "a").write_text("2")
    ended = pybuild.build(context)
    check = [line for line in ended.err.splitlines() if line.startswith(("error", "warning"))]
    assert check == []
    assert misses(ended.err) == ["miss: never built here"]
