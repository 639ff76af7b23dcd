"""Many files and large ones, in bounded memory."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from commandline import CommandLine, OnContainerd

MIB = 1 << 20
MOST_MEMORY = 300 * MIB
MANY = 20_000


@pytest.fixture(params=["containerd", "embedded"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def build_measured(command: CommandLine, *arguments: str | Path) -> int:
    """Build; give the most memory that the process had, in bytes."""
    most = 0
    with (command.folder / "log").open("w+") as log:
        process = command.start(*arguments, stdout=subprocess.DEVNULL, stderr=log)
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
            most = max(most, int(found[1]) * 1024 if found else 0)
            time.sleep(0.02)
        log.seek(0)
        assert process.returncode == 0, log.read()
    return most


def test_twenty_thousand_files(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM busybox\nCOPY files /files\nRUN rm -r /files/1*\n")
    for number in range(MANY):
        folder = context / "files" / str(number // 100)
        if number % 100 == 0:
            folder.mkdir(parents=True)
        (folder / str(number)).write_text(f"{number}\n")
    most = build_measured(pybuild, "-t", "many", context)
    assert most < MOST_MEMORY
    counted = pybuild.run(
        "many:latest", "sh", "-c", "find /files -type f | wc -l; cat /files/9/987"
    )
    kept = sum(1 for number in range(MANY) if not str(number // 100).startswith("1"))
    assert counted.split() == [str(kept), "987"]


def test_a_file_of_300_mebibytes(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM busybox\nCOPY large /\nRUN cp /large /copied\n")
    expected = hashlib.sha256()
    with (context / "large").open("wb") as large:
        for _ in range(300):
            chunk = os.urandom(MIB)
            expected.update(chunk)
            large.write(chunk)
    try:
        most = build_measured(pybuild, "-t", "large", context)
    finally:
        (context / "large").unlink()
    assert most < MOST_MEMORY
    sums = pybuild.run("large:latest", "sha256sum", "/large", "/copied").split()
    assert sums[::2] == [expected.hexdigest()] * 2
    if isinstance(pybuild, OnContainerd):
        pybuild.ctr("images", "rm", "docker.io/library/large:latest")  # its disk space
