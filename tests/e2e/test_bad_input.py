"""What is wrong is said once: where, what to do, with the documented exit code, and no trace."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from commandline import PROGRAM, CommandLine, OnContainerd, check_decent

MARKER = "this must not run"


@pytest.fixture(params=["containerd", "embedded"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def last_lines(text: str) -> list[str]:
    """The error and what belongs to it, without the progress above."""
    lines = text.splitlines()
    (start,) = [n for n, line in enumerate(lines) if line.startswith("error: ")]
    return lines[start:]


def failing(command: CommandLine, code: int, dockerfile: str, *options: str) -> list[str]:
    return last_lines(command.fail(code, *options, command.context(dockerfile)))


# The Dockerfile


def test_an_unknown_flag_is_shown_with_the_one_that_was_meant(pybuild: CommandLine) -> None:
    assert failing(pybuild, 2, "FROM busybox\n\nCOPY --form=build /out /out\n") == [
        "error: unknown flag --form; did you mean --from?",
        "  --> Dockerfile:3:6",
        " 3 | COPY --form=build /out /out",
        "   |      ^^^^^^",
    ]


@pytest.mark.parametrize(
    ("dockerfile", "place", "word", "hint"),
    [
        ("FROM busybox\nCPOY a b\n", "2:1", "CPOY", "did you mean COPY?"),
        ("FROM busybox\nRUN <<END\necho x\n", "2:5", "END", "end it with a line that is END"),
        ("RUN x\n", "1", "FROM", None),
        ("FROM busybox AS a b\n", "1", "FROM", None),
        ("FROM busybox\nENV a\n", "2", "ENV", None),
        ('FROM busybox\nLABEL "a=b\n', "2", "quot", None),
        ("FROM busybox\nENV A=${A\n", "2", "${", None),
        ("FROM busybox\nCOPY a\n", "2", "COPY", None),
        ("FROM ${NOTHING}\n", "1", "${NOTHING}", None),
        ("FROM busybox:UPPER:x\n", "1", "busybox:UPPER:x", None),
        ("FROM busybox\nEXPOSE 99999\n", "2", "99999", None),
        ("FROM busybox\nRUN --network=mesh true\n", "2", "mesh", "it is default"),
        ("FROM busybox\nRUN --mount=type=nothing true\n", "2", "nothing", None),
        (
            "FROM busybox AS a\nCOPY --from=b /x /\nFROM a AS b\n",
            "3",
            "circular",
            "stages above it",
        ),
        ("", "1", "no instructions", "begins with FROM"),
    ],
)
def test_a_faulty_dockerfile_is_refused_with_its_line(
    pybuild: CommandLine, dockerfile: str, place: str, word: str, hint: str | None
) -> None:
    said = failing(pybuild, 2, dockerfile)
    assert word in said[0]
    assert said[1].startswith(f"  --> Dockerfile:{place}"), said
    if hint is not None:
        assert said[-1].startswith("hint: ")
        assert hint in said[-1]


def test_the_line_is_shown_of_a_dockerfile_with_another_name(pybuild: CommandLine) -> None:
    context = pybuild.context("", other="FROM busybox\nNOTHING\n")
    said = last_lines(pybuild.fail(2, "-f", "other", context))
    assert said[1:3] == ["  --> other:2:1", " 2 | NOTHING"]
    assert "Dockerfile:1:1" in pybuild.fail(2, "-", stdin=b"NOTHING\n")


@pytest.mark.parametrize(
    ("options", "dockerfile", "hint"),
    [
        (["--target", "biuld"], "FROM busybox AS build\n", "did you mean build?"),
        (["--target", "other"], "FROM busybox AS build\n", "the stages are build"),
        (["--target", "other"], "FROM busybox\n", "no stage has a name"),
    ],
)
def test_an_unknown_target(
    pybuild: CommandLine, options: list[str], dockerfile: str, hint: str
) -> None:
    said = failing(pybuild, 2, dockerfile, *options)
    assert said[0] == f'error: target stage "{options[1]}" could not be found'
    assert hint in said[-1]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("biuld", "did you mean build?"), ("nothing", "so it is taken for an image")],
)
def test_an_unknown_stage_is_an_image_that_isnt_there(
    pybuild: CommandLine, name: str, hint: str
) -> None:
    dockerfile = f"FROM busybox AS build\nRUN echo {MARKER}\nFROM build\nCOPY --from={name} /a /\n"
    said = failing(pybuild, 3, dockerfile, "--pull=never")
    assert name in said[0]
    assert said[1] == "  --> Dockerfile:4"
    assert f'there is no stage "{name}"' in said[-1]
    assert hint in said[-1]


# Steps that fail


def test_a_missing_file_in_copy(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM busybox\nCOPY here there /x/\n", here="x")
    said = last_lines(pybuild.fail(1, context))
    assert said[:3] == [
        'error: "/there": not found',
        "  --> Dockerfile:2",
        " 2 | COPY here there /x/",
    ]
    assert ".dockerignore" in said[3]


def test_a_missing_file_of_a_stage(pybuild: CommandLine) -> None:
    dockerfile = "FROM busybox AS one\nRUN touch /a\nFROM scratch\nCOPY --from=one /b /\n"
    said = failing(pybuild, 1, dockerfile)
    assert said[0] == 'error: "/b": not found'
    assert said[1] == "  --> Dockerfile:4"


def test_a_failing_run_has_its_exit_code_and_last_lines(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM busybox\nRUN for i in $(seq 100); do echo $i; done; exit 7\n")
    error = "did not complete successfully: exit code: 7"
    text = pybuild.fail(1, "--progress=plain", context)
    said = last_lines(text)
    assert said[0].endswith(error)
    assert said[1] == "  --> Dockerfile:2"
    assert " 100" in text
    assert "last output:" not in said
    quiet = pybuild.fail(1, "-q", context).splitlines()
    assert quiet[0].endswith(error)
    shown = [line for line in quiet if line.startswith("  | ")]
    assert shown == [f"  | {n}" for n in range(101 - len(shown), 101)]
    assert 5 <= len(shown) <= 50


@pytest.mark.parametrize(
    ("command", "code", "reason"),
    [
        ('["/no/such/program"]', 127, "no such file"),
        ('["/etc/passwd"]', 126, "permission denied"),
        ("nothing-like-this", 127, "not found"),
        ("sh -c 'kill -9 $$'; exit $?", 137, ""),
    ],
)
def test_what_cant_run_ends_as_in_a_shell(
    pybuild: CommandLine, command: str, code: int, reason: str
) -> None:
    text = pybuild.fail(1, "--progress=plain", pybuild.context(f"FROM busybox\nRUN {command}\n"))
    assert f"exit code: {code}" in last_lines(text)[0]
    assert reason in text


def test_one_failing_stage_ends_the_others(pybuild: CommandLine) -> None:
    dockerfile = (
        "FROM busybox AS slow\nRUN sleep 100\nFROM busybox AS bad\nRUN sleep 0.5; exit 9\n"
        "FROM busybox\nCOPY --from=slow / /a\nCOPY --from=bad / /b\n"
    )
    text = pybuild.fail(1, pybuild.context(dockerfile), timeout=30)
    assert "exit code: 9" in last_lines(text)[0]
    assert "CANCELED" in text


def test_a_user_or_folder_that_isnt_there(pybuild: CommandLine) -> None:
    said = failing(pybuild, 1, "FROM busybox\nUSER nobody-here\nRUN true\n")
    assert "nobody-here" in said[0]
    assert said[1] == "  --> Dockerfile:3"
    said = failing(pybuild, 1, "FROM busybox\nCOPY --chown=nobody-here Dockerfile /\n")
    assert "nobody-here" in said[0]
    said = failing(pybuild, 1, "FROM busybox\nWORKDIR /etc/passwd/x\n")
    assert said[1] == "  --> Dockerfile:2"


# The context


def test_a_context_without_dockerfile(pybuild: CommandLine) -> None:
    context = pybuild.context("")
    (context / "Dockerfile").unlink()
    said = last_lines(pybuild.fail(3, context))
    assert said[0] == f'error: there is no Dockerfile or Containerfile in "{context}"'
    assert "--file" in said[1]
    said = last_lines(pybuild.fail(3, "-f", "typo", context))
    assert "there is no typo in" in said[0]
    assert "--file" in said[1]


@pytest.mark.parametrize("kind", ["missing", "a file", "a git repository", "unreadable tar"])
def test_a_context_that_is_none(pybuild: CommandLine, kind: str) -> None:
    context = pybuild.context("FROM scratch\n")
    match kind:
        case "missing":
            said = last_lines(pybuild.fail(3, context / "nothing"))
        case "a file":
            said = last_lines(pybuild.fail(3, context / "Dockerfile"))
        case "a git repository":
            said = last_lines(pybuild.fail(3, "https://127.0.0.1:1/x.git"))
        case _:
            said = last_lines(pybuild.fail(3, "-", stdin=b"\x1f\x8b\x08\x00broken"))
    assert len(said) == 1 or said[1].startswith("hint: ")


def test_standard_input_without_a_dockerfile(pybuild: CommandLine) -> None:
    pybuild.fail(2, "-", stdin=b"")
    pybuild.fail(2, "-f", "-", "-", stdin=b"FROM scratch\n")
    assert "no instructions" in pybuild.fail(2, "-f", "-", ".", stdin=b"# nothing\n")


# The image


def test_a_missing_image(pybuild: CommandLine) -> None:
    said = failing(pybuild, 3, "FROM busybox\nFROM localhost:1/not/there:1\n")
    assert "localhost:1" in said[0]
    assert said[1] == "  --> Dockerfile:2"
    assert said[-1].startswith("hint: ")
    said = failing(pybuild, 3, "FROM not-there\n", "--pull=never")
    assert "not-there" in said[0]
    assert said[-1].startswith("hint: ")


# containerd


@contextmanager
def strange_server(path: Path) -> Iterator[None]:
    """Something else that listens on a socket, and talks."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        server.settimeout(0.1)
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                try:
                    connection, _ = server.accept()
                except OSError:
                    continue
                with connection, suppress(OSError):
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def unavailable(command: CommandLine, *options: str | Path) -> list[str]:
    context = command.context(f"FROM busybox\nRUN echo {MARKER}\n")
    said = last_lines(command.fail(4, *options, context, timeout=30))
    assert said[-1].startswith("hint: ")
    return said


def test_a_socket_that_isnt_there(on_containerd: OnContainerd) -> None:
    said = unavailable(on_containerd, "--containerd-address", "/nowhere/c.sock")
    assert "/nowhere/c.sock" in said[0]


def test_a_dead_socket(on_containerd: OnContainerd) -> None:
    path = on_containerd.folder / "dead.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    assert "nothing listens" in unavailable(on_containerd, "--containerd-address", path)[0]


def test_a_socket_of_something_else(on_containerd: OnContainerd) -> None:
    path = on_containerd.folder / "strange.sock"
    with strange_server(path):
        assert str(path) in unavailable(on_containerd, "--containerd-address", path)[0]


def test_a_socket_that_never_answers(on_containerd: OnContainerd) -> None:
    path = on_containerd.folder / "mute.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert str(path) in unavailable(on_containerd, "--containerd-address", path)[0]


def test_a_file_that_is_no_socket(on_containerd: OnContainerd) -> None:
    path = on_containerd.folder / "file"
    path.write_text("")
    assert str(path) in unavailable(on_containerd, "--containerd-address", path)[0]


def test_an_unusable_snapshotter(on_containerd: OnContainerd) -> None:
    said = unavailable(on_containerd, "--snapshotter", "zfs")
    assert "zfs" in said[0]
    assert "overlayfs" in said[-1]


def test_a_namespace_whose_name_is_none(on_containerd: OnContainerd) -> None:
    context = on_containerd.context("FROM scratch\nLABEL a=b\n")
    ended = on_containerd("--containerd-namespace", "no/such name", context)
    assert ended.code in {2, 4}
    check_decent(ended.err)


# What isn't there yet


def test_other_systems_are_refused(pybuild: CommandLine) -> None:
    said = failing(pybuild, 4, "FROM scratch\nCOPY Dockerfile /\n", "--platform=windows/amd64")
    assert "windows/amd64" in said[0]
    assert said[1] == "  --> Dockerfile:1"


@pytest.mark.parametrize("flag", ["--provenance=true", "--sbom"])
def test_options_for_later_are_refused_by_name(pybuild: CommandLine, flag: str) -> None:
    said = failing(pybuild, 2, "FROM scratch\n", flag)
    assert said[0].startswith(f"error: {flag.partition('=')[0]} is not supported yet")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--taget=x"], "did you mean --target?"),
        (["-t", "UPPER"], "upper"),
        (["-t", "a@sha256:" + "0" * 64], "digest"),
        (["--platform", "a/b/c/d"], "platform"),
        (["--build-arg", "=x"], "no name"),
        (["--network", "mesh"], "mesh"),
        (["--pull=sometimes"], "sometimes"),
        (["--add-host", "x"], "NAME:ADDRESS"),
        (["--shm-size", "much"], "much"),
        (["--ulimit", "nofiles=1"], "nofile?"),
        (["--progress", "loud"], "loud"),
        (["second"], "second"),
        (["--iidfile"], "iidfile"),
    ],
)
def test_wrong_options(pybuild: CommandLine, options: list[str], said: str) -> None:
    context = pybuild.context(f"FROM busybox\nRUN echo {MARKER}\n")
    assert said in pybuild.fail(2, context, *options)


def test_no_context_at_all(pybuild: CommandLine) -> None:
    assert "pybuild ." in pybuild.fail(2)


def test_a_backend_that_isnt_installed(pybuild: CommandLine) -> None:
    said = failing(pybuild, 4, "FROM scratch\n", "--backend=containered")
    assert said[0] == 'error: there is no backend "containered"; did you mean containerd?'


# Nobody listens


def test_results_that_cant_be_written(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM scratch\nLABEL a=b\n")
    ended = pybuild("--iidfile", "/nowhere/id", context)
    assert ended.code == 2
    check_decent(ended.err)
    with Path("/dev/full").open("wb") as full:
        process = pybuild.start("-q", context, stdout=full)
        _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    check_decent(said)
    with Path(os.devnull).open("rb") as read_only:
        process = pybuild.start("-q", context, stdout=read_only)
        _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    check_decent(said)


def test_a_closed_pipe_for_the_result(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM scratch\nLABEL a=b\n")
    reading, writing = os.pipe()
    os.close(reading)
    process = pybuild.start("-q", context, stdout=writing)
    os.close(writing)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said


def test_a_closed_pipe_for_the_progress_ends_the_build(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM busybox\nRUN while true; do echo x; sleep 0.1; done\n")
    with pybuild.start("--progress=plain", context) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.endswith(" x\n"):
                break
        process.stderr.close()
        assert process.wait(20) == 130
    pybuild.check_nothing_left()


def test_closed_standard_streams(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM busybox\nRUN echo x\n")
    for closing in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        script = f'exec "$@" {closing}'
        done = subprocess.run(
            ["sh", "-c", script, "sh", *PROGRAM, str(context)],
            check=False,
            capture_output=True,
            text=True,
            env=pybuild.environment,
            timeout=60,
        )
        assert "Traceback" not in done.stderr
        assert done.returncode == 0, (closing, done.stderr)
