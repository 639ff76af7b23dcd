"""What is kept of a RUN that failed, and going into it, on the memory backend."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from building import Recorder, build, memory_backend

from pybuild.backend import Activity, Capability
from pybuild.errors import RunFailed, UnsupportedByBackend, UsageError
from pybuild.keptlayers import LONGEST_KEPT
from pybuild.run import keptruns
from pybuild.run.events import Warned
from pybuild.run.failedruns import FailedRun, FailedRuns
from pybuild.run.keptruns import KeptRuns
from pybuild.secrets import Secret
from pybuild.testkit.memory import MemoryBackend
from pybuild.testkit.pseudoterminals import read_until
from pybuild.testkit.workbench import RecordingActivity

FAILS = "FROM busybox\nENV WHO=me\nUSER web\nWORKDIR /tmp\nRUN echo why > /tmp/why; exit 3\n"


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[MemoryBackend]:
    with memory_backend(notes=tmp_path / "notes") as made:
        yield made
        assert made.live_layers == 0


def fail(backend: MemoryBackend, dockerfile: str = FAILS, **options: Any) -> RunFailed:
    options.setdefault("failed_runs", FailedRuns())
    with pytest.raises(RunFailed) as caught:
        build(backend, dockerfile, **options)
    return caught.value


def run_in(run: FailedRun, script: str) -> str:
    activity = RecordingActivity()
    run.run(("/bin/sh", "-c", script), activity)
    return activity.stdout.decode()


def test_the_last_failure_is_opened_with_its_files_and_its_process(backend: MemoryBackend) -> None:
    error = fail(backend)
    runs = KeptRuns(backend)
    [kept] = runs.newest()
    assert kept.title == error.step == "RUN echo why > /tmp/why; exit 3"
    assert (kept.where, kept.lacking) == ("Dockerfile:5", ())
    with runs.opened(kept, RecordingActivity()) as run:
        assert run_in(run, "cat /tmp/why") == "why\n"
        process = run.process
    assert (process.cwd, process.user.uid, process.user.gid) == ("/tmp", 101, 102)
    assert dict(process.env)["WHO"] == "me"


def test_the_error_says_how_to_go_on(backend: MemoryBackend) -> None:
    assert fail(backend).hint == "pybuild debug opens a shell where it failed"


def test_what_is_changed_afterwards_is_thrown_away(backend: MemoryBackend) -> None:
    fail(backend)
    runs = KeptRuns(backend)
    [kept] = runs.newest()
    for _ in range(2):
        with runs.opened(kept, RecordingActivity()) as run:
            assert run_in(run, "cat /tmp/why; echo changed > /tmp/why") == "why\n"


def test_secrets_are_in_no_note(backend: MemoryBackend, tmp_path: Path) -> None:
    mounts = "--mount=type=secret,id=s --mount=type=secret,id=s,env=S,target=/s"
    dockerfile = f"FROM busybox\nRUN {mounts} exit 1\n"
    fail(backend, dockerfile, secrets={"s": Secret(b"hidden value")})
    [note] = list((tmp_path / "notes/failures").iterdir())
    assert b"hidden" not in note.read_bytes()
    assert note.stat().st_mode & 0o077 == 0
    [kept] = KeptRuns(backend).newest()
    assert kept.process.secret_env == ()
    assert kept.lacking == (
        "the secret variable S", "the secret at /run/secrets/s", "the secret at /s",
    )  # fmt: skip


def test_mounts_come_back_but_for_those_of_other_files(backend: MemoryBackend) -> None:
    mounts = (
        "--mount=type=cache,target=/c,id=mine,uid=7 --mount=type=tmpfs,target=/t,size=1m "
        "--mount=type=bind,from=busybox,target=/b"
    )
    seen: list[FailedRun] = []
    runs = FailedRuns(lambda run, _: seen.append(run))
    fail(backend, f"FROM busybox\nRUN {mounts} <<END\nexit 1\nEND\n", failed_runs=runs)
    [kept] = KeptRuns(backend).newest()
    assert kept.lacking == ("the bind mount at /b",)
    [run] = seen
    assert list(kept.mounts[:2]) == list(run.mounts[:2])
    assert {mount.target for mount in run.mounts} - {mount.target for mount in kept.mounts} == {
        "/b"
    }


def test_only_the_last_failures_are_kept(backend: MemoryBackend) -> None:
    for number in range(keptruns.MOST_KEPT + 2):
        fail(backend, f"FROM busybox\nRUN echo {number} > /n; exit 1\n")
    runs = KeptRuns(backend)
    found = []
    for kept in runs.newest():
        with runs.opened(kept, RecordingActivity()) as run:
            found.append(run_in(run, "cat /n"))
    assert found == ["4\n", "3\n", "2\n"]


def test_a_failure_is_forgotten_after_a_day(
    backend: MemoryBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(backend)
    later = time.time() + LONGEST_KEPT + 1
    monkeypatch.setattr(keptruns.time, "time", lambda: later)
    assert KeptRuns(backend).newest() == []
    assert list((tmp_path / "notes/failures").iterdir()) == []


def test_files_that_made_room_are_missed_with_a_hint(tmp_path: Path) -> None:
    with memory_backend(notes=tmp_path) as first:
        fail(first)
    with memory_backend(notes=tmp_path) as emptied:
        runs = KeptRuns(emptied)
        [kept] = runs.newest()
        with (
            pytest.raises(UsageError, match="aren't kept any more"),
            runs.opened(kept, RecordingActivity()),
        ):
            pass


def test_one_whose_place_a_later_failure_has_taken_is_not_opened(backend: MemoryBackend) -> None:
    fail(backend)
    runs = KeptRuns(backend)
    [kept] = runs.newest()
    for number in range(keptruns.MOST_KEPT):
        fail(backend, f"FROM busybox\nRUN echo {number} > /n; exit 1\n")
    activity = RecordingActivity()
    with pytest.raises(UsageError, match="aren't kept any more"), runs.opened(kept, activity):
        pass


@pytest.mark.parametrize(
    "change",
    [
        b"", b"\xff", b"[]", b"null", b'{"title": 1}', b"[" * 100_000,
        {"mounts": [["cache"]]}, {"mounts": 5}, {"process": {}}, {"failed": "then"},
        {"mounts": [["file", "/t", "no base64!", True]]},
    ],
)  # fmt: skip
def test_a_damaged_note_counts_as_none(
    tmp_path: Path, backend: MemoryBackend, change: bytes | dict[str, object]
) -> None:
    fail(backend)
    note = tmp_path / "notes/failures/0"
    if isinstance(change, bytes):
        note.write_bytes(change)
    else:
        note.write_text(json.dumps(json.loads(note.read_bytes()) | change))
    assert KeptRuns(backend).newest() == []
    fail(backend)
    assert len(KeptRuns(backend).newest()) == 1


def test_notes_that_cant_be_written_are_a_warning(backend: MemoryBackend, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir(exist_ok=True)
    (tmp_path / "notes/failures").write_text("in the way")
    recorder = Recorder()
    error = fail(backend, reporter=recorder)
    assert error.process_exit_code == 3
    assert error.hint is None
    [warned] = recorder.of(Warned)
    assert "isn't kept for pybuild debug" in warned.message


def test_a_shell_sees_what_the_step_saw_before_everything_is_given_back(
    backend: MemoryBackend,
) -> None:
    told = []

    def shell(run: FailedRun, activity: Activity) -> None:
        told.append(run_in(run, "cat /tmp/why /s"))
        activity.raise_if_cancelled()

    dockerfile = FAILS.replace("RUN", "RUN --mount=type=secret,id=s,target=/s,mode=0444")
    secrets = {"s": Secret(b"lent\n")}
    error = fail(backend, dockerfile, failed_runs=FailedRuns(shell), secrets=secrets)
    assert told == ["why\nlent\n"]
    assert error.process_exit_code == 3


def test_a_shell_is_on_the_terminal_that_it_is_given(backend: MemoryBackend) -> None:
    def shell(run: FailedRun, activity: Activity) -> None:
        run.run(("/bin/sh", "-c", "echo $TERM; cat why"), activity, terminal=theirs)

    ours, theirs = os.openpty()
    try:
        fail(backend, failed_runs=FailedRuns(shell))
        assert read_until(ours, b"why\r\n") == b"xterm\r\nwhy\r\n"
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_build_that_ends_well_opens_no_shell_and_keeps_nothing(backend: MemoryBackend) -> None:
    runs = FailedRuns(lambda *_: pytest.fail("opened"))
    build(backend, "FROM busybox\nRUN true\n", failed_runs=runs)
    assert KeptRuns(backend).newest() == []


def test_a_failure_is_kept_for_a_builder_and_for_later(backend: MemoryBackend) -> None:
    from pybuild.run.failedsteps import FailedSteps  # noqa: PLC0415 - for this test alone

    steps = FailedSteps()
    error = fail(backend, failed_steps=steps)
    assert error.fs.read_text("/tmp/why") == "why\n"
    assert len(KeptRuns(backend).newest()) == 1
    steps.close()


def test_a_backend_that_cant_refuses_a_shell_before_anything_runs() -> None:
    capabilities = set(Capability) - {Capability.DEBUG}
    with memory_backend(capabilities=capabilities) as backend:
        runs = FailedRuns(lambda *_: None)
        with pytest.raises(UnsupportedByBackend, match="opens no shell in a failed step"):
            build(backend, FAILS, failed_runs=runs)
        fail(backend)
        assert KeptRuns(backend).newest() == []


def test_without_a_folder_for_notes_nothing_is_kept() -> None:
    with memory_backend() as backend:
        assert fail(backend).hint is None
        assert KeptRuns(backend).newest() == []
