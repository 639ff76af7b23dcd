"""The temporary folder of a backend."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pybuild_containerd.workfolder import WorkFolder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="inherent: needs file locks")

_KILLED = """
import os, signal
from pybuild_containerd.workfolder import WorkFolder
with WorkFolder() as folder:
    print(folder.path, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_it_is_private_and_gone_afterwards(temporary: Path) -> None:
    with WorkFolder() as folder:
        assert folder.path.stat().st_mode & 0o777 == 0o700
        inside = folder.new_folder("x")
        (inside / "file").touch()
        assert folder.new_folder("x") != inside
    assert list(temporary.iterdir()) == []


def test_one_in_use_is_left_alone() -> None:
    with WorkFolder() as first, WorkFolder() as second:
        assert first.path.exists()
        assert second.path.exists()


def test_that_of_a_killed_process_is_removed() -> None:
    command = [sys.executable, "-c", _KILLED]
    killed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    left = Path(killed.stdout.strip())
    assert left.exists()
    with WorkFolder():
        assert not left.exists()


def test_a_link_of_that_name_is_not_followed(temporary: Path) -> None:
    outside = temporary / "outside"
    outside.mkdir()
    (outside / "lock").touch()
    (temporary / "pybuild-work-x").symlink_to(outside)
    with WorkFolder():
        assert (outside / "lock").exists()
