"""Builds beside each other on one embedded store, killed at random; then all must be well.

Whatever they leave is more than the store may hold, so that they also make room all the time.

Run as a program of one thread with the folder to use, so that it can make processes by fork:
starting Python anew for each would take most of the time. It ends with 0, or with what went
wrong. As the reaper of all below it, it sees every process that a killed build leaves.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import random
import signal
import sys
import time
from pathlib import Path

from embedding import Stores
from pybuild.cli import main as pybuild_main
from pybuild_embedded.store import Store
from storing import images_of

KILLS = 200
BUILDERS = 8
# less than the image they all begin with, so that each removes all that no other one uses
MAX_SIZE = "1m"
DOCKERFILES = (
    """\
FROM busybox
RUN echo a > /a
RUN seq 2000 > /s && rm /a
COPY file /c
RUN cat /c /s > /d
""",
    """\
FROM busybox AS one
RUN mkdir -p /o/p && echo 1 > /o/p/1
FROM busybox AS two
RUN echo 2 > /2
FROM busybox
COPY --from=one /o /o
COPY --from=two /2 /o/
RUN ls -R /o > /listed
""",
    """\
FROM busybox
WORKDIR /w
RUN for i in $(seq 50); do echo $i > $i; done
RUN rm -r /w/1*
RUN mkdir /w/1 && echo x > /w/1/x
""",
    """\
FROM scratch
COPY file /x
COPY file /y/
ENV A=b
""",
)
FAILS = "FROM busybox\nRUN seq 3000 > /failed && rm /bin/cat; exit 1\n"
_PR_SET_CHILD_SUBREAPER = 36


def build(folder: Path, root: Path, number: int, *options: str) -> int:
    """Be a process that builds; its output goes to a file of the number's."""
    words = ["--root", str(root), "-q", "-t", f"app:{number}", "-f", str(folder / f"{number}")]
    with (
        (folder / f"out-{number}").open("w") as out,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(io.StringIO()) as said,
    ):
        code = pybuild_main([*words, *options, str(folder / "context")])
    if code:
        sys.stderr.write(said.getvalue())
    return code


def fail_or_look(folder: Path, root: Path, *, look: bool) -> int:
    """Be a process that builds what fails, or looks at what the last one left, if that is there."""
    words = [
        "debug",
        "--root",
        str(root),
        "--",
        "test",
        "-s",
        "/failed",
        "-a",
        "!",
        "-e",
        "/bin/cat",
    ]
    if not look:
        words = ["--root", str(root), "-q", "-f", str(folder / "fails"), str(folder / "context")]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = pybuild_main(words)
    if look and code == 2 and "kept" in said.getvalue():
        return 0
    if not look and code == 1 and "exit code: 1" in said.getvalue():
        return 0
    sys.stderr.write(said.getvalue())
    return code


def forked(*arguments: object) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        if arguments[0] == "prune":
            with contextlib.redirect_stdout(io.StringIO()):
                code = pybuild_main(["prune", "--root", str(arguments[1]), "--all"])
        elif arguments[0] in {"fail", "look"}:
            code = fail_or_look(*arguments[1:], look=arguments[0] == "look")  # type: ignore[arg-type]
        else:
            code = build(*arguments)  # type: ignore[arg-type]
    finally:
        os._exit(code)


def digests(folder: Path, root: Path, *options: str) -> list[str]:
    """The digests of all images, each built by a process of its own."""
    found = []
    for number in range(len(DOCKERFILES)):
        _, status = os.waitpid(forked(folder, root, number, *options), 0)
        assert os.waitstatus_to_exitcode(status) == 0
        found.append((folder / f"out-{number}").read_text().split()[-1])
    return found


def begun(chance: random.Random, folder: Path, root: Path) -> int:
    """A process that builds something, or tidies up."""
    if chance.random() < 0.05:
        return forked("prune", root)
    if chance.random() < 0.2:
        return forked(chance.choice(["fail", "look"]), folder, root)
    options = ["--no-cache"] if chance.random() < 0.5 else []
    return forked(folder, root, chance.randrange(len(DOCKERFILES)), *options)


def torture(folder: Path, root: Path) -> None:
    chance = random.Random(1)  # noqa: S311 - moments and choices
    running = [begun(chance, folder, root) for _ in range(BUILDERS)]
    kills = 0
    while kills < KILLS:
        time.sleep(chance.random() * 0.1)
        victim = running.pop(chance.randrange(BUILDERS))
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        _, status = os.waitpid(victim, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in {0, -signal.SIGKILL}, code
        kills += code < 0
        running.append(begun(chance, folder, root))
    for pid in running:
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0


def wait_for_all_to_end() -> None:
    """No process of a killed build outlives it for long."""
    end = time.monotonic() + 20
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            assert time.monotonic() < end, "a process is left"
            if not pid:
                time.sleep(0.01)


def assert_sound(root: Path) -> None:
    """Nothing is damaged, unfinished, or without a row."""
    assert str(root) not in Path("/proc/self/mountinfo").read_text()
    with Store.open(root) as store:
        assert [path.name for path in (root / "sessions").iterdir()] == [store.session.ident]
        assert list((root / "ingest").iterdir()) == []
        assert list((root / "locks").iterdir()) == []
        assert images_of(store).check(repair=False) == []
        with store.database.reading() as connection:
            rows = connection.execute("SELECT ident FROM folders").fetchall()
        assert {path.name for path in (root / "layers").iterdir()} == {x for (x,) in rows}


def main(folder: Path) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    (folder / "context").mkdir()
    (folder / "context" / "file").write_text("content\n")
    for number, text in enumerate(DOCKERFILES):
        (folder / str(number)).write_text(text)
    (folder / "fails").write_text(FAILS)
    stores = Stores(folder)
    root = stores.new()
    expected = digests(folder, stores.new())
    os.environ["PYBUILD_MAX_SIZE"] = MAX_SIZE
    torture(folder, root)
    del os.environ["PYBUILD_MAX_SIZE"]
    wait_for_all_to_end()
    assert digests(folder, root) == expected
    assert digests(folder, root, "--no-cache") == expected
    wait_for_all_to_end()
    assert_sound(root)


if __name__ == "__main__":
    os.environ["SOURCE_DATE_EPOCH"] = "1700000000"
    main(Path(sys.argv[1]))
