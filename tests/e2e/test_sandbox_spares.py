"""Children of the zygote that wait for a step: they do what one made for it would."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pybuild.sandbox.spec import Bind
from sandboxing import Steps, children_of, executed_inside, run_tests_as_user, steps_in

SEEN = "hostname; ls /sys /dev; ls -d /proc/[0-9]*"
SEEN += "; ifconfig -a | grep -v RX | grep -v TX; cat /proc/self/mountinfo | wc -l; umask; id"


@pytest.fixture
def steps(tmp_path: Path) -> Iterator[Steps]:
    with steps_in(tmp_path) as made:
        yield made


def waiting(steps: Steps) -> list[int]:
    """The server's children, while no step runs."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        found = children_of(steps.server)
        if all(_waits(child) for child in found):
            return found
        time.sleep(0.01)
    raise AssertionError("a child of the server doesn't come to wait")


def _waits(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
    except OSError:  # it has just ended
        return False


@pytest.mark.parametrize("own_network", [False, True])
@pytest.mark.parametrize("insecure", [False, True])
def test_every_step_of_a_kind_sees_the_same(
    steps: Steps, own_network: bool, insecure: bool
) -> None:
    ran = [
        steps.run(SEEN, own_network=own_network, insecure=insecure, hostname="one")
        for _ in range(4)
    ]
    assert [each.code for each in ran] == [0] * 4, ran[0].err
    assert {each.out for each in ran} == {ran[0].out}


def test_one_of_each_kind_waits(steps: Steps) -> None:
    steps.run("true")
    [first] = waiting(steps)
    steps.run("true", own_network=True)
    assert len(waiting(steps)) == 2
    steps.run("true")
    assert first not in waiting(steps)
    assert len(waiting(steps)) == 2


def test_what_differs_between_steps_is_that_of_each(steps: Steps) -> None:
    for number in range(5):
        ran = steps.run(
            "hostname; cat /proc/mounts | grep /dev/shm; id -u; pwd",
            hostname=f"host{number}",
            shm_size=(number + 1) << 20,
            uid=number,
            cwd=f"/w{number}",
        )
        name, shm, uid, cwd = ran.lines
        assert (name, uid, cwd) == (f"host{number}", str(number), f"/w{number}")
        assert f"size={(number + 1) << 10}k" in shm


def test_many_steps_of_several_kinds_run_at_once(steps: Steps) -> None:
    with ThreadPoolExecutor(80) as pool:
        ran = list(
            pool.map(
                lambda n: steps.run(f"sleep 0.5; echo {n}; exit {n}", own_network=n % 2 == 0),
                range(80),
            )
        )
    assert [(each.code, each.out) for each in ran] == [(n, f"{n}\n") for n in range(80)]
    assert len(waiting(steps)) == 2


def test_a_program_inside_gets_its_descriptors_however_many_there_are(steps: Steps) -> None:
    mounts = (Bind("/held", os.fsencode(steps.base / "tmp")),)
    with ThreadPoolExecutor(60) as pool:
        try:
            for _ in range(60):
                pool.submit(
                    steps.run, "while test ! -e /held/end; do sleep 0.1; done", mounts=mounts
                )
                time.sleep(0.02)
                if len(os.listdir(f"/proc/{steps.server}/fd")) > 70:  # noqa: PTH208 - names alone
                    assert _echoed_inside(steps) == "inside\n"
        finally:
            (steps.base / "tmp/end").touch()


def _echoed_inside(steps: Steps) -> str:
    read, write = os.pipe()
    words = [b"/bin/sh", b"-c", b"echo inside"]
    with executed_inside(steps.sandbox, words, (write, write, write)) as program:
        os.close(write)
        with os.fdopen(read) as file:
            said = file.read()
        program.wait()
    return said


@pytest.mark.parametrize("stopped", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_was_killed_is_replaced(steps: Steps, stopped: signal.Signals) -> None:
    steps.run("true")
    [child] = waiting(steps)
    os.kill(child, stopped)
    time.sleep(0.1)
    assert steps.run("echo works").out == "works\n"
    assert steps.run("echo works").out == "works\n"
    assert waiting(steps) != [child]


@pytest.mark.root
def test_what_is_mounted_and_unmounted_meanwhile_counts(tmp_path: Path) -> None:
    area, disk = tmp_path / "area", tmp_path / "disk"
    shown = area / "shown"
    shown.mkdir(parents=True)
    disk.mkdir()
    (disk / "file").write_text("mounted\n")
    mounts = (Bind("/mnt", os.fsencode(shown)),)
    look = "cat /mnt/file 2>/dev/null || echo none"
    (tmp_path / "sandbox").mkdir()
    _mount("--bind", area, area)
    try:
        _mount("--make-shared", area)
        with steps_in(tmp_path / "sandbox") as steps:
            for _ in range(3):
                assert steps.run(look, mounts=mounts).out == "none\n"
            _mount("--bind", disk, shown)
            try:
                for _ in range(3):
                    assert steps.run(look, mounts=mounts).out == "mounted\n"
            finally:
                subprocess.run(["umount", shown], check=True)
            assert steps.run(look, mounts=mounts).out == "none\n"
            shown.rmdir()  # no namespace holds it
    finally:
        subprocess.run(["umount", area], check=True)


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["range", "single"])
def test_the_same_holds_for_other_users(tmp_path: Path, kind: str) -> None:
    run_tests_as_user(tmp_path, [__file__], subordinate=kind == "range")
