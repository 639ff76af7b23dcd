"""Many builds over one backend: what they leave, and what a process sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from embedding import Stores, check_store
from pybuild import BuildCancelled, Builder, File, RunFailed, build
from pybuild.run.events import Event, StepLog
from pybuild.testkit.containerd import PrivateContainerd, check_nothing_left

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inherent: runs on Linux only")


@pytest.fixture(params=["embedded", "containerd"])
def builder(request: pytest.FixtureRequest, stores: Stores) -> Iterator[Builder]:
    if request.param == "containerd":
        daemon = request.getfixturevalue("base_images")
        with Builder("containerd", backend_options={"address": daemon.address}) as builder:
            yield builder
        check_nothing_left(daemon.address, "default", daemon.folder)
        return
    with stores.lent() as root:
        with Builder(backend_options={"root": root}) as builder:
            yield builder
        check_store(root)


class Waiting:
    """A reporter that tells when a process has printed something."""

    def __init__(self) -> None:
        self.seen = threading.Event()

    def report(self, event: Event) -> None:
        if isinstance(event, StepLog):
            self.seen.set()


def grown(marks: Sequence[Mapping[str, int]], name: str) -> int:
    return marks[-1][name] - marks[0][name]


def but_for_one_step(marks: Sequence[Mapping[str, int]]) -> int:
    """What the memory grew by, in KiB, without the largest of its steps: a leak is in all."""
    steps = [after["kibibytes"] - before["kibibytes"] for before, after in pairwise(marks)]
    return sum(steps) - max(steps)


def many_builds(*words: str | Path) -> Any:
    """What the program tells, of builds that leave nothing behind."""
    program = Path(__file__).with_name("many_builds.py")
    done = subprocess.run(
        [sys.executable, program, *words],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(program.parents[1])},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    before, distinct, repeated = found["before"], found["distinct"], found["repeated"]
    for name in ("descriptors", "threads", "mounts"):
        assert found["after"][name] == before[name], found
        # a thread that was slow to begin
        assert repeated[-1][name] <= distinct[0][name] + 2, found
    assert grown(distinct, "kibibytes of others") <= 1024, found
    # 2,000 for 125 builds are 16 for each, which is two names that are remembered
    assert grown(distinct[len(distinct) // 2 :], "blocks") <= 4000, found
    return found


def test_three_hundred_builds_leave_nothing_behind(tmp_path: Path) -> None:
    found = many_builds(tmp_path)
    # Python's table of interned strings doubles at some moment
    assert but_for_one_step(found["distinct"]) <= 2.5 * 1024, found
    assert but_for_one_step(found["repeated"]) <= 512, found


@pytest.mark.root
@pytest.mark.containerd
def test_nor_do_they_on_containerd(tmp_path: Path, base_images: PrivateContainerd) -> None:
    found = many_builds(tmp_path, base_images.address)
    # grpc's buffers come and go, several MiB of them at once
    assert but_for_one_step(found["distinct"]) <= 8 * 1024, found
    assert but_for_one_step(found["repeated"]) <= 4 * 1024, found
    check_nothing_left(base_images.address, "default", base_images.folder)


def test_a_process_sees_the_image_its_mounts_and_its_user(builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("from the machine\n")
    tmp_path.chmod(0o755)
    text = "FROM busybox\nCOPY --chmod=755 run /bin/run\nENV A=image B=image\nWORKDIR /srv\n"
    script = "#!/bin/sh\nid -u; pwd; echo $A $B; cat /m/f /c/x; ls /sys/class/net; echo oops >&2\n"
    image = builder.image(builder.build({"Dockerfile": text, "run": script}))
    done = image.run(
        ["run"],
        env={"B": "mine"},
        mounts={"/m": tmp_path, "/c": {"x": File("in memory", 0o600)}},
        network="none",
        user="65534",
        cwd="/tmp",
        text=True,
    )
    seen = ["65534", "/tmp", "image mine", "from the machine", "lo"]
    assert done.stdout.splitlines() == seen
    assert "Permission denied" in done.stderr  # of a file that is root's
    assert done.stderr.endswith("oops\n")
    shown = image.run(["cat", "/c/x"], mounts={"/c": {"x": "in memory"}}, user="1")
    assert shown.stdout == b"in memory"
    assert (
        b"read-only"
        in image.run(
            ["sh", "-c", "echo x > /c/y"], mounts={"/c": {"x": ""}}, user="0"
        ).stderr.lower()
    )


def test_what_a_process_changes_in_an_image_is_gone(builder: Builder) -> None:
    image = builder.image("busybox")
    assert image.run(["sh", "-c", "echo x > /made; cat /made"]).stdout == b"x\n"
    assert not image.fs.exists("/made")
    assert image.run(["cat", "/made"]).returncode == 1


def test_the_files_of_a_failed_step_are_those_that_it_left(
    builder: Builder, tmp_path: Path
) -> None:
    lines = ["FROM busybox", "RUN mkdir /app && echo old > /app/x.log && echo gone > /app/gone"]
    lines += [
        (
            "RUN for i in $(seq 2000); do echo line $i; done; echo new > /app/x.log; "
            "rm /app/gone; ln -s x.log /app/link; exit 9"
        )
    ]
    with pytest.raises(RunFailed) as caught:
        builder.build({"Dockerfile": "\n".join(lines)}, logs=tmp_path)
    error = caught.value
    assert error.fs.listdir("/app") == ["link", "x.log"]
    assert error.fs.read_text("/app/link") == "new\n"
    assert error.process_exit_code == 9
    assert error.log is not None
    assert error.log.read_text().splitlines() == [f"line {n}" for n in range(1, 2001)]
    assert error.output[-1] == "line 2000"
    # it isn't in the cache: the step is done again, and fails again
    with pytest.raises(RunFailed):
        builder.build({"Dockerfile": "\n".join(lines)})


def test_a_submitted_build_is_cancelled_while_its_process_runs(builder: Builder) -> None:
    waiting = Waiting()
    future = builder.submit(
        {"Dockerfile": "FROM busybox\nRUN echo begun; sleep 300\n"}, reporter=waiting
    )
    assert waiting.seen.wait(60)
    assert future.cancel()
    assert isinstance(future.exception(10), BuildCancelled)


def test_a_build_of_its_own_leaves_nothing_in_temporary_folders(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with stores.lent() as root:
        files = {"Dockerfile": "FROM busybox\nCOPY . /x\nRUN exit 1\n"}
        with pytest.raises(RunFailed):
            build(files, backend_options={"root": root})
        check_store(root)
    assert list(tmp_path.iterdir()) == []
