"""Going into a RUN that failed: ``--on-error=shell`` and ``pybuild debug``, on a terminal too."""

from __future__ import annotations

import os
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commandline import CommandLine, OnContainerd, OnEmbedded

from embedding import orphans
from pybuild.testkit.pseudoterminals import read_soon
from sandboxing import run_tests_as_user

FAILS = """\
FROM busybox
ENV WHO=me
WORKDIR /work
RUN --mount=type=secret,id=s --mount=type=bind,target=/context --mount=type=cache,target=/cache \\
 echo why > why; echo cached > /cache/c; exit 3
"""
SHELLLESS = """\
FROM busybox AS tools
FROM scratch
COPY --from=tools /bin/busybox /busybox
RUN ["/busybox", "no-such-tool"]
"""
_PATIENCE = 20


@pytest.fixture
def pybuild(on_embedded: OnEmbedded) -> CommandLine:
    if "PYTHONPATH" in os.environ:  # a user who hasn't installed it
        on_embedded.environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return on_embedded


class Session:
    """``pybuild`` on a terminal of its own."""

    def __init__(self, command: CommandLine, arguments: list[str], ours: int, theirs: int) -> None:
        self.process = subprocess.Popen(
            [*command.program, *arguments],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            cwd=command.folder,
            env=command.environment,
            start_new_session=True,
        )
        self.ours, self.theirs = ours, theirs
        self.shown = ""

    def type(self, line: str) -> None:
        os.write(self.ours, line.encode() + b"\r")

    def wait_for(self, text: str) -> str:
        """All that is shown up to `text`, which is new since the last call."""
        end = time.monotonic() + _PATIENCE
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            self.shown += read_soon(self.ours).decode().replace("\r\n", "\n")
        before, _, self.shown = self.shown.partition(text)
        return before

    def end(self) -> int:
        """The exit code; what is shown until then is in ``shown``."""
        end = time.monotonic() + _PATIENCE
        while True:
            code, shown = self.process.poll(), read_soon(self.ours)
            if code is not None and not shown:
                return code
            assert time.monotonic() < end, self.shown
            self.shown += shown.decode().replace("\r\n", "\n")


@contextmanager
def on_terminal(command: CommandLine, *arguments: str | Path) -> Iterator[Session]:
    """The terminal is as it was afterwards, and no process is left."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (33, 77))
    before = termios.tcgetattr(theirs)
    session = Session(command, list(map(str, arguments)), ours, theirs)
    try:
        yield session
        assert session.process.poll() is not None
        assert termios.tcgetattr(theirs) == before
        assert orphans() == []
    finally:
        session.process.kill()
        session.process.communicate()
        os.close(ours)
        os.close(theirs)


def shell_on(pybuild: CommandLine, dockerfile: str, *options: str | Path) -> list[str | Path]:
    context = pybuild.context(dockerfile, given="given\n")
    return ["--on-error=shell", "--progress=plain", *options, context]


def test_a_command_runs_where_the_last_step_failed(pybuild: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "s").write_text("hidden")
    context = pybuild.context(FAILS)
    said = pybuild.fail(1, f"--secret=id=s,src={tmp_path}/s", context)
    assert "hint: pybuild debug opens a shell where it failed" in said
    for _ in range(2):  # what the first has changed is gone
        done = pybuild("debug", "--", "sh", "-c", "cat why /cache/c; echo $WHO; rm why; exit 7")
        assert (done.code, done.out) == (7, "why\ncached\nme\n")
        lacking = "the secret at /run/secrets/s, the bind mount at /context"
        assert done.err == f"not here, unlike in the step: {lacking}\n"
    pybuild.check_nothing_left()


def test_no_secret_gets_to_the_disk(
    pybuild: CommandLine, on_embedded: OnEmbedded, tmp_path: Path
) -> None:
    (tmp_path / "s").write_text("deeply-hidden")
    context = pybuild.context("FROM busybox\nRUN --mount=type=secret,id=s,env=S exit 1\n")
    pybuild.fail(1, f"--secret=id=s,src={tmp_path}/s", context)
    files = [path for path in on_embedded.root.rglob("*") if path.is_file()]
    assert [path for path in files if b"deeply-hidden" in path.read_bytes()] == []


def test_the_failures_are_listed_and_chosen_by_number(pybuild: CommandLine) -> None:
    assert "no failed step is kept here" in pybuild.fail(2, "debug", "--list")
    for number in (1, 2):
        pybuild.fail(1, pybuild.context(f"FROM busybox\nRUN echo {number} > /n; exit 1\n"))
    lines = pybuild.build("debug", "--list").out.splitlines()
    assert [line.split("  ")[::2] for line in lines] == [
        ["1", "RUN echo 2 > /n; exit 1 (Dockerfile:2)"],
        ["2", "RUN echo 1 > /n; exit 1 (Dockerfile:2)"],
    ]
    assert pybuild.build("debug", "--failure=2", "--", "cat", "/n").out == "1\n"
    assert "no more than 2 failed steps are kept" in pybuild.fail(
        2, "debug", "--failure=3", "--", "ls"
    )


def test_a_layer_is_packed_when_somebody_wants_to_see_it(
    pybuild: CommandLine, on_embedded: OnEmbedded
) -> None:
    pybuild.build(pybuild.context("FROM busybox\nRUN true\n"))
    before = pybuild.blobs()
    pybuild.fail(1, pybuild.context("FROM busybox\nRUN echo kept > /n; rm /bin/cat; exit 1\n"))
    assert pybuild.blobs() == before
    for _ in range(2):
        script = "while read line; do echo $line; done < /n; test -e /bin/cat || echo gone"
        assert pybuild.build("debug", "--", "sh", "-c", script).out == "kept\ngone\n"
        assert len(pybuild.blobs() - before) == 1
    work = [path for path in on_embedded.root.glob("layers/*/work/*") if path.is_dir()]
    assert work == []
    pybuild.check_nothing_left()


@pytest.mark.parametrize("opened", [False, True])
def test_what_later_failures_have_pushed_out_is_gone(
    pybuild: CommandLine, on_embedded: OnEmbedded, opened: bool
) -> None:
    pybuild.build(pybuild.context("FROM busybox\nRUN true\n"))
    folders = len(list(on_embedded.root.glob("layers/*")))
    for number in range(6):
        pybuild.fail(1, pybuild.context(f"FROM busybox\nRUN echo {number} > /n; exit 1\n"))
        if opened:
            assert pybuild.build("debug", "--", "cat", "/n").out == f"{number}\n"
    assert len(list(on_embedded.root.glob("layers/*"))) == folders + 3
    assert pybuild.build("debug", "--failure=3", "--", "cat", "/n").out == "3\n"
    pybuild.check_nothing_left()


def test_a_step_that_fails_again_and_changes_nothing_is_kept_too(pybuild: CommandLine) -> None:
    for _ in range(2):
        pybuild.fail(1, pybuild.context("FROM busybox\nRUN exit 1\n"))
        pybuild.fail(1, pybuild.context("FROM busybox\nRUN echo same > /n; exit 1\n"))
    for number, there in (1, "yes"), (2, "no"), (3, "yes"):
        done = pybuild("debug", f"--failure={number}", "--", "sh", "-c", "test -e /n && echo yes")
        assert (done.out == "yes\n") == (there == "yes")
    pybuild.check_nothing_left()


def test_prune_removes_what_is_kept(pybuild: CommandLine) -> None:
    pybuild.fail(1, pybuild.context("FROM busybox\nRUN echo 1 > /n; exit 1\n"))
    pybuild.build("prune", "--all")
    assert "aren't kept any more" in pybuild.fail(2, "debug", "--", "cat", "/n")


@pytest.mark.parametrize("words", [["debug"], ["--on-error=shell", "."]])
def test_without_a_terminal_no_shell_is_promised(pybuild: CommandLine, words: list[str]) -> None:
    said = pybuild.fail(2, *words)
    assert "needs a terminal" in said
    assert "pybuild debug -- " in said
    assert "FROM" not in said


def test_a_word_of_debug_that_is_no_option_is_explained(pybuild: CommandLine) -> None:
    assert "a command comes behind --" in pybuild.fail(2, "debug", "ls")


@pytest.mark.root
@pytest.mark.containerd
def test_the_containerd_backend_refuses(on_containerd: OnContainerd) -> None:
    context = on_containerd.context("FROM busybox\nRUN exit 1\n")
    assert "pybuild debug" not in on_containerd.fail(1, context)
    assert "keeps no failed steps" in on_containerd.fail(4, "debug", "--", "ls")
    with on_terminal(on_containerd, "--on-error=shell", context) as session:
        assert session.end() == 4
        assert "opens no shell in a failed step" in session.shown
        assert "RUN exit 1" not in session.shown


def test_a_shell_is_where_the_step_failed(pybuild: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "s").write_text("lent\n")
    words = shell_on(pybuild, FAILS, f"--secret=id=s,src={tmp_path}/s")
    with on_terminal(pybuild, *words) as session:
        session.wait_for("# ")
        session.type(
            "cat why /context/given /run/secrets/s /cache/c; pwd; echo $WHO; echo $((1+1))"
        )
        assert "\nwhy\ngiven\nlent\ncached\n/work\nme" in session.wait_for("\n2\n")
        session.type("test -t 0 && test -t 1 && test -t 2 && stty size; echo changed > why")
        session.wait_for("33 77")
        termios.tcsetwinsize(session.theirs, (44, 88))
        time.sleep(0.5)
        session.type("stty size </dev/tty")
        session.wait_for("44 88")
        session.type("sleep 100; echo ended with $?")
        session.wait_for("$?")
        time.sleep(0.5)
        os.write(session.ours, b"\x03")
        session.type("exit 9")
        assert session.end() == 1
        assert "exit code: 3\n  --> Dockerfile:4" in session.shown
    assert pybuild.build("debug", "--", "cat", "why").out == "why\n"
    pybuild.check_nothing_left()


def test_a_shell_opens_where_the_last_build_failed(pybuild: CommandLine) -> None:
    pybuild.fail(1, pybuild.context("FROM busybox\nUSER www-data\nRUN echo 1 > /tmp/n; exit 1\n"))
    with on_terminal(pybuild, "debug") as session:
        session.wait_for("$ ")
        session.type("cat /tmp/n; id -un; exit 5")
        assert session.end() == 5
        assert "1\nwww-data\n" in session.shown


@pytest.mark.parametrize("words", ["build", "debug"])
def test_an_image_without_a_shell_is_lent_one(pybuild: CommandLine, words: str) -> None:
    options = shell_on(pybuild, SHELLLESS)
    if words == "debug":
        pybuild.fail(1, *options[1:])
    with on_terminal(pybuild, *(["debug"] if words == "debug" else options)) as session:
        session.wait_for("# ")
        session.type("ls /; touch /made; echo $((40+2))")
        assert "busybox" in session.wait_for("\n42\n")
        session.type("exit 0")
        assert session.end() == (0 if words == "debug" else 1)
    # neither the lent shell nor what was made with it
    left = pybuild.build("debug", "--", "/busybox", "ls", "/").out.split()
    assert left == ["busybox", "dev", "etc", "proc", "sys"]


def test_without_a_busybox_it_is_said_how_to_get_one(pybuild: CommandLine) -> None:
    options = shell_on(pybuild, SHELLLESS)
    (pybuild.folder / "empty").mkdir()
    pybuild.environment["PATH"] = str(pybuild.folder / "empty")
    with on_terminal(pybuild, *options) as session:
        assert session.end() == 1
        assert "no shell: the image has no /bin/sh" in session.shown
        assert "install busybox-static" in session.shown
        assert "  --> Dockerfile:4" in session.shown


def test_a_signal_ends_the_shell_and_puts_the_terminal_back(pybuild: CommandLine) -> None:
    with on_terminal(pybuild, *shell_on(pybuild, "FROM busybox\nRUN exit 1\n")) as session:
        session.wait_for("# ")
        session.process.send_signal(signal.SIGTERM)
        assert session.end() == 130


@pytest.mark.root
@pytest.mark.parametrize("kind", ["range", "single"])
def test_all_of_this_as_a_user(tmp_path: Path, kind: str) -> None:
    files = ["tests/e2e/test_debugging.py"]
    run_tests_as_user(tmp_path, files, subordinate=kind == "range")
