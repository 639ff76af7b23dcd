"""Programs of their own, which tests start and then judge by how they end."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run(*command: str | Path) -> None:
    """Run a program that can import what tests do; it must succeed."""
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
