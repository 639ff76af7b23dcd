"""The rules that conftest.py enforces: no silent skip in CI, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


def _pytest(folder: Path, body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one test file under the rules, in a process of its own."""
    (folder / "test_it.py").write_text(f"import pytest\n{body}\n")
    kept = {name: value for name, value in os.environ.items() if name != "CI"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "conftest", str(folder)],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**kept, "PYTHONPATH": str(TESTS), **environment},
    )


@pytest.mark.parametrize(
    ("reason", "in_ci", "outcome"),
    [
        ("no tool", False, "1 skipped"),
        ("no tool", True, "1 failed"),
        ("inherent: not here", True, "1 skipped"),
        ("accepted: BuildKit differs", True, "1 skipped"),
    ],
)
def test_a_skip_in_ci_fails_unless_it_is_meant(
    tmp_path: Path, reason: str, in_ci: bool, outcome: str
) -> None:
    environment = {"CI": "true"} if in_ci else {}
    done = _pytest(tmp_path, f"def test(): pytest.skip({reason!r})", **environment)
    assert outcome in done.stdout, done.stdout + done.stderr


def test_a_module_skipped_whole_fails_in_ci(tmp_path: Path) -> None:
    body = "pytest.importorskip('no_such_module')\ndef test(): pass"
    assert _pytest(tmp_path, body).returncode in {0, 5}
    done = _pytest(tmp_path, body, CI="1")
    assert "isn't allowed in CI" in done.stdout


def test_an_expected_failure_stays_one_in_ci(tmp_path: Path) -> None:
    body = "@pytest.mark.xfail\ndef test(): assert False"
    assert "1 xfailed" in _pytest(tmp_path, body, CI="1").stdout


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("import tempfile\ndef test(): tempfile.mkdtemp(prefix='forgotten-')", "file"),
        (
            "import subprocess\ndef test(): subprocess.Popen(['sleep', '3'], start_new_session=True)",
            "process",
        ),
        (
            "import threading, time\ndef test(): threading.Thread(target=time.sleep, args=(2,)).start()",
            "thread",
        ),
    ],
    ids=["file", "process", "thread"],
)
def test_what_is_left_behind_fails_the_session(tmp_path: Path, body: str, left: str) -> None:
    done = _pytest(tmp_path, body)
    assert "1 passed" in done.stdout
    assert f"  {left} " in done.stdout
    assert done.returncode == 1


def test_a_tidy_session_passes(tmp_path: Path) -> None:
    body = "import tempfile\ndef test(tmp_path):\n  with tempfile.TemporaryDirectory(): pass"
    done = _pytest(tmp_path, body)
    assert done.returncode == 0, done.stdout + done.stderr
