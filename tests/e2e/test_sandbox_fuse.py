"""Steps on fuse-overlayfs: as this user, and as root again as users with and without other ids."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pybuild.sandbox.mapping import Kind
from pybuild.sandbox.spec import Overlay
from sandboxing import Steps, holding, run_tests_as_user, steps_in


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steps]:
    with steps_in(tmp_path_factory.mktemp("fuse"), way="fuse") as made:
        yield made


def test_output_and_exit_code_come_back_and_the_program_ends(steps: Steps) -> None:
    ran = steps.run("grep ' / ' /proc/mounts; echo err >&2; exit 7")
    assert (ran.code, ran.err) == (7, "err\n")
    assert ran.out.startswith("fuse-overlayfs / fuse rw,nodev,")
    assert holding(steps.folder) == []


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


def test_a_killed_program_ends_the_step_with_an_error(steps: Steps) -> None:
    def kill() -> None:
        while not (found := holding(steps.folder, "fuse-overlayfs")):
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
    assert holding(steps.folder) == []
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
