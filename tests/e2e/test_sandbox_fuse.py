"""Steps on fuse-overlayfs: as this user, and as root again as users with and without other ids."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from pybuild.sandbox.mapping import Kind, system_program
from pybuild.sandbox.spec import Bind, FuseOverlay, Overlay, SmallFile, Tmpfs
from sandboxing import Steps, alive, best_mapping, empty, run_tests_as_user, steps_in


@pytest.fixture(autouse=True)
def needed() -> None:
    if system_program("fuse-overlayfs") is None:
        pytest.skip("needs fuse-overlayfs")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("inherent: this user may not open /dev/fuse")


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steps]:
    with steps_in(tmp_path_factory.mktemp("fuse")) as made:
        made.root = FuseOverlay
        yield made


def servers(folder: Path) -> list[int]:
    """The processes of fuse-overlayfs that have a folder below `folder` open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "comm").read_text() == "fuse-overlayfs\n":
                paths = [str(fd.readlink()) for fd in (process / "fd").iterdir()]
                if any(path.startswith(f"{folder}/") for path in paths):
                    found.append(int(process.name))
        except OSError:
            continue
    return found


def gone(folder: Path) -> bool:
    deadline = time.monotonic() + 5
    while servers(folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not servers(folder)


def test_output_and_exit_code_come_back_and_the_program_ends(steps: Steps) -> None:
    ran = steps.run("grep ' / ' /proc/mounts; echo err >&2; exit 7")
    assert (ran.code, ran.err) == (7, "err\n")
    assert ran.out.startswith("fuse-overlayfs / fuse rw,nodev,")
    assert servers(steps.folder) == []


def test_a_signal_gives_128_and_its_number(steps: Steps) -> None:
    assert steps.run("sh -c 'kill -9 $$'; exit $?").code == 128 + signal.SIGKILL


def test_changes_land_in_the_upper_folder_alone(steps: Steps) -> None:
    lone = steps.layer("lone")
    for name in ("kept", "removed"):
        (lone / name).write_text("x")
    script = "echo x >/tmp/made; rm /removed; mkdir -p /a/b; chmod 700 /kept"
    ran = steps.run(script, lowers=[lone, steps.base])
    changed = [path for path in ran.changed() if ".wh." not in path]
    assert changed == ["a", "a/b", "kept", "removed", "tmp", "tmp/made"]
    assert stat.S_ISCHR((ran.upper / "removed").lstat().st_mode)  # a whiteout
    assert (lone / "removed").exists()


def test_what_is_written_is_there_when_the_step_is_over(steps: Steps) -> None:
    ran = steps.run("head -c 8000000 /dev/zero >/tmp/big; exit 0")
    assert (ran.upper / "tmp/big").stat().st_size == 8_000_000


def test_mount_points_that_lack_leave_no_trace(steps: Steps, tmp_path: Path) -> None:
    (tmp_path / "source").write_text("bound\n")
    ran = steps.run(
        "cat /etc/resolv.conf /deep/down/file; ls -d /proc/self /sys/kernel /dev/null; echo x >/far/off/x",
        mounts=(
            SmallFile("/etc/resolv.conf", b"nameserver 192.0.2.1\n"),
            Bind("/deep/down/file", os.fsencode(tmp_path / "source")),
            Tmpfs("/far/off"),
        ),
    )
    assert ran.code == 0, ran.err
    assert ran.lines[:2] == ["nameserver 192.0.2.1", "bound"]
    assert ran.changed() == []


def test_a_mount_point_that_a_layer_deleted_leaves_no_trace(steps: Steps) -> None:
    kept = steps.layer("kept")
    (kept / "etc/sub").mkdir(parents=True)
    (kept / "etc/sub/hosts").write_text("image's\n")
    deleted = steps.run("rm -rf /etc/sub", lowers=[kept, steps.base]).upper
    ran = steps.run(
        "cat /etc/sub/hosts; ls /etc",
        lowers=[deleted, kept, steps.base],
        mounts=(SmallFile("/etc/sub/hosts", b"ours\n"),),
    )
    assert ran.lines == ["ours", "sub"]
    assert ran.changed() == []


def test_layers_hide_and_show_as_overlayfs_has_it(steps: Steps) -> None:
    """Whiteouts and opaque folders that the kernel's overlay has written."""
    low = steps.layer("low")
    (low / "d").mkdir()
    (low / "d/old").touch()
    (low / "gone").touch()
    kernels = replace(steps, root=Overlay, folder=steps.layer("kernels"))
    upper = kernels.run("rm -r /d; mkdir /d; echo >/d/new; rm /gone", lowers=[low, steps.base])
    ran = steps.run("ls /d; ls /gone", lowers=[upper.upper, low, steps.base])
    assert ran.lines == ["new"]


def test_users_own_what_they_make(steps: Steps) -> None:
    ran = steps.run("echo x >/tmp/mine; stat -c '%u %g' /tmp/mine; echo x >/bin/no", uid=33, gid=34)
    assert ran.lines == ["33 34"]
    if steps.sandbox.mapping.kind is not Kind.SINGLE:  # whose every file is the user's own
        assert "denied" in ran.err


def test_a_cancel_ends_step_and_program(steps: Steps) -> None:
    mark = f"7{os.getpid()}"

    class At:
        kill: Callable[[], None]

        def __call__(self, kill: Callable[[], None]) -> AbstractContextManager[None]:
            self.kill = kill
            return nullcontext()

    at = At()
    began: list[float] = []

    def cancel() -> None:
        while not alive(mark):
            time.sleep(0.01)
        began.append(time.monotonic())
        at.kill()

    thread = threading.Thread(target=cancel)
    thread.start()
    ran = steps.run(f"(trap '' TERM; sleep {mark}) & sleep {mark}", on_cancel=at)
    took = time.monotonic() - began[0]
    thread.join()
    assert ran.code == 137
    assert took < 2
    assert alive(mark) == []
    assert gone(steps.folder)


def test_a_killed_client_leaves_neither_step_nor_program(tmp_path: Path) -> None:
    mark = f"6{os.getpid()}"
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from pybuild.sandbox.spec import FuseOverlay
from sandboxing import steps_in
with steps_in(Path({os.fspath(tmp_path)!r})) as steps:
    steps.root = FuseOverlay
    steps.run("(sleep {mark} &) ; exec sleep {mark}")
"""
    client = subprocess.Popen([sys.executable, "-c", script])
    try:
        while len(alive(mark)) < 2:
            assert client.poll() is None
            time.sleep(0.01)
        assert len(servers(tmp_path)) == 1
    finally:
        client.send_signal(signal.SIGKILL)
        client.wait()
    assert gone(tmp_path)
    assert alive(mark) == []
    empty(best_mapping(tmp_path), tmp_path)


def test_a_killed_program_ends_the_step_with_an_error(steps: Steps) -> None:
    def kill() -> None:
        while not (found := servers(steps.folder)):
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(found[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    code = steps.run("while cat /bin/true >/dev/null; do :; done; exit 3").code
    thread.join()
    assert code != 0


def test_steps_leak_no_process_and_no_mount(steps: Steps) -> None:
    for _ in range(5):
        assert steps.run("true").code == 0
    assert servers(steps.folder) == []
    table = Path("/proc/self/mountinfo").read_text()
    assert str(steps.folder) not in table


@pytest.mark.root
@pytest.mark.parametrize("kind", ["range", "single"])
def test_the_same_holds_for_other_users(tmp_path: Path, kind: str) -> None:
    """This file, as an ordinary user who may open /dev/fuse."""
    run_tests_as_user(tmp_path, [__file__], subordinate=kind == "range")


_PROBE = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from pybuild.sandbox.modes import probe, probe_root
folder = Path({folder!r})
mapping = probe(folder).mapping
found = probe_root(folder, mapping)
print(found.kind.value, *(attempt.kind.value for attempt in found.refused))
print(*(attempt.reason for attempt in found.refused))
print(list(folder.iterdir()))
"""


@pytest.mark.root
@pytest.mark.parametrize(
    ("prepare", "kinds", "reason"),
    [
        ("true", "overlay", ""),
        ("mount -t overlay o -o lowerdir={0}/l,upperdir={0}/u,workdir={0}/w {0}/m", "fuse overlay", "Invalid argument"),
        ("mount -t overlay o -o lowerdir={0}/l,upperdir={0}/u,workdir={0}/w {0}/m; mount --bind /dev/null /dev/fuse",
         "copy overlay fuse", "/dev/fuse"),
    ],
    ids=["overlay", "fuse", "copy"],
)  # fmt: skip
def test_the_best_root_that_works_is_found_with_reasons_against_the_others(
    tmp_path: Path, prepare: str, kinds: str, reason: str
) -> None:
    for name in "luwm":
        (tmp_path / name).mkdir()
    script = _PROBE.format(path=sys.path, folder=os.fspath(tmp_path / "m"))
    command = prepare.format(tmp_path) + ' && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command, "sh", sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
    )
    found, reasons, left = done.stdout.splitlines()
    assert found == kinds
    assert reason in reasons
    assert left == "[]"


def test_the_program_is_not_seen_by_the_step(steps: Steps) -> None:
    ran = steps.run("for p in /proc/[0-9]*; do cat $p/comm; done; cat /proc/self/mountinfo")
    assert "fuse-overlayfs\n" not in ran.out
    assert str(steps.folder) not in ran.out
