"""Many steps and many layers on the embedded backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedding import Stores
from pybuild import build

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inherent: runs on Linux only")


def test_the_thousandth_step_costs_what_the_first_did(tmp_path: Path) -> None:
    program = Path(__file__).with_name("many_steps.py")
    done = subprocess.run(
        [sys.executable, program, tmp_path],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(program.parents[1])},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["last"] <= 2.5 * found["first"], found  # caches of a busy machine differ
    assert found["mebibytes"] < 200, found
    assert found["mebibytes of others"] < 200, found


def test_a_base_of_more_layers_than_dockers_limit_is_built_upon(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    copies = "".join(f"COPY file /copied-{number}\n" for number in range(150))
    with Stores(tmp_path / "stores").opened() as backend:
        text = f"FROM busybox\n{copies}RUN rm /copied-7\n"
        build(tmp_path, dockerfile=text.encode(), tags=["base:1"], backend=backend)
        check = (
            "RUN test ! -e /copied-7 && test -f /copied-0 && ls /copied-* | wc -l | grep -qx 149\n"
        )
        text = f"FROM base:1\n{check}COPY file /copied-7\nRUN cat /copied-7\n"
        build(tmp_path, dockerfile=text.encode(), backend=backend)
