"""What becomes of the embedded backend's store when processes die, meet, or find a full disk."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from programs import HERE, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inherent: runs on Linux only")


@pytest.mark.parametrize("way", ["killed_at_random", "killed_at_each_point", "side_by_side"])
def test_whoever_comes_next_finds_a_sound_store(folder: Path, way: str) -> None:
    run(sys.executable, HERE / "store_torture.py", way, folder / "store")


@pytest.mark.root
@pytest.mark.parametrize("limit", ["size=4m", "size=64m,nr_inodes=400"])
def test_a_full_disk_is_told_and_leaves_a_store_that_opens(tmp_path: Path, limit: str) -> None:
    # the mount goes with its namespace
    script = 'mount -t tmpfs -o "$1" none "$2" && exec "$3" "$4" "$2/store"'
    program = HERE / "store_full.py"
    inside = ("sh", "-c", script, "sh", limit, tmp_path, sys.executable, program)
    run("unshare", "--mount", *inside)
