"""What the embedded backend says where it can't have the sandbox that it would like."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pybuild.testkit.baseimages import busybox_layout
from sandboxing import run_python_as_user

pytestmark = pytest.mark.root

SYSCTL = "user.max_user_namespaces"


def without_namespaces(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run pybuild where the limit of user namespaces is 0, with a store in `folder`."""
    limited = f'echo 0 >/proc/sys/{SYSCTL.replace(".", "/")} && exec "$@"'
    program = [sys.executable, "-m", "pybuild", *words]
    return subprocess.run(
        ["unshare", "-Ur", "sh", "-c", limited, "sh", *program],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYBUILD_BACKEND": "embedded", "PYBUILD_ROOT": str(folder / "store")},
    )


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM busybox\nRUN echo ran\n")
    (folder / "copies").write_text("FROM busybox\nCOPY Dockerfile /\nWORKDIR /below\n")
    return folder


def test_without_user_namespaces_a_run_is_refused_with_the_sysctl(
    tmp_path: Path, context: Path
) -> None:
    layout = busybox_layout(tmp_path / "busybox")
    option = f"--build-context=busybox=oci-layout://{layout}"
    ended = without_namespaces(tmp_path, "--progress=plain", option, context)
    assert ended.returncode == 4, ended.stderr
    assert f"user namespaces are forbidden: the sysctl {SYSCTL} is 0" in ended.stderr
    assert f"sysctl -w {SYSCTL}=" in ended.stderr
    assert "use the containerd backend" in ended.stderr
    assert " ran\n" not in ended.stderr
    # what runs no process works all the same
    copies = without_namespaces(tmp_path, option, "-f", context / "copies", context)
    assert copies.returncode == 0, copies.stderr


def test_the_doctor_names_the_sysctl(tmp_path: Path) -> None:
    ended = without_namespaces(tmp_path, "doctor")
    assert ended.returncode == 4, ended.stdout
    failing = re.search(r"FAIL +backend embedded +(.*\(chosen\))\n +-> (.*)", ended.stdout)
    assert failing is not None, ended.stdout
    assert f"the sysctl {SYSCTL} is 0" in failing[1]
    assert f"sysctl -w {SYSCTL}=" in failing[2]
    assert "containerd" in failing[2]


@pytest.mark.parametrize("kind", ["range", "single"])
def test_the_doctor_tells_users_their_mode_and_how_to_a_better_one(
    tmp_path: Path, kind: str
) -> None:
    options = ["--backend=embedded", f"--root={tmp_path}/own/store"]
    ended = run_python_as_user(
        tmp_path, ["-m", "pybuild", "doctor", *options], subordinate=kind == "range"
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = dict(re.findall(r"backend embedded: ([\w ]+?)  +(.*)", ended.stdout))
    if kind == "range":
        assert found["processes run as"].startswith("a user namespace with subordinate ids from")
        assert "not tools" not in found
    else:
        assert found["processes run as"].startswith("a user namespace of one id")
        assert "/etc/subuid and /etc/subgid give builder no 65536 ids" in found["not range"]
        assert "usermod --add-subuids 100000-165535 --add-subgids" in ended.stdout
