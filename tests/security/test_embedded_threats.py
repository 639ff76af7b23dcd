"""What the store of the embedded backend keeps from others, and what a build leaves in memory."""

from __future__ import annotations

import gzip
import json
import os
import re
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_base_image_threats import PLATFORM, zeros
from threatening import Builds, assert_clear, run_command

from pybuild.testkit.registry import Registry
from sandboxing import USER

MIB = 1024 * 1024


@pytest.fixture(scope="module", params=["embedded"])
def runner(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def own_files(root: Path) -> Iterator[Path]:
    """Everything in a store but what images put there."""
    for folder, folders, files in os.walk(root):
        if Path(folder).name == "fs":
            folders.clear()
            continue
        yield from (Path(folder, name) for name in (*folders, *files) if name != "fs")


def test_a_store_is_its_owners_alone(builds: Builds, tmp_path: Path) -> None:
    """moby CVE-2021-41091, containerd CVE-2021-41103, podman CVE-2025-4953."""
    builds.build("FROM busybox\nRUN echo x > /file && chmod 666 /file\n")
    ended = run_command(
        "images", *builds.options[1:], "--backend=embedded", context="--format=json"
    )
    assert ended.code == 0, ended.err
    assert stat.S_IMODE(builds.state.stat().st_mode) == 0o700
    open_to_others = [
        f"{path} {status.st_mode:o}"
        for path in own_files(builds.state)
        if not stat.S_ISLNK((status := path.lstat()).st_mode) and status.st_mode & 0o077
    ]
    assert open_to_others == []


def test_a_store_that_was_opened_to_others_is_closed_again(tmp_path: Path) -> None:
    root = tmp_path / "store"
    for mode in (0o777, 0o755):
        root.mkdir(exist_ok=True)
        root.chmod(mode)
        assert run_command("images", "--backend=embedded", context=f"--root={root}").code == 0
        assert stat.S_IMODE(root.stat().st_mode) == 0o700


@pytest.mark.root
@pytest.mark.parametrize("linked", [False, True])
def test_a_store_of_another_user_is_refused(tmp_path: Path, linked: bool) -> None:
    root = tmp_path / "store"
    root.mkdir(mode=0o700)
    os.chown(root, USER, USER)
    (tmp_path / "link").symlink_to(root)
    given = tmp_path / "link" if linked else root
    ended = run_command("--backend=embedded", f"--root={given}", stdin=b"FROM scratch\nLABEL a=b\n")
    assert_clear(ended, codes=(4,))
    assert "belongs to another user" in ended.err
    assert list(root.iterdir()) == []


@pytest.mark.root
def test_a_setuid_program_of_an_image_is_out_of_others_reach(
    builds: Builds, tmp_path: Path
) -> None:
    """moby CVE-2021-41091."""
    (tmp_path / "program").write_text("#!/bin/sh\n")
    text = (
        "FROM busybox\nCOPY --chmod=6755 program /by-copy\nRUN chmod 4755 /bin/busybox\nRUN true\n"
    )
    builds.build(text, tmp_path)
    found = [
        path
        for path in builds.state.glob("layers/*/fs/**/*")
        if stat.S_ISREG(mode := path.lstat().st_mode) and mode & 0o6000
    ]
    assert {path.name for path in found} >= {"by-copy", "busybox"}
    as_other = ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups"]
    for parent in builds.state.parents:  # whatever the folders above let others do
        if parent.stat().st_uid == os.getuid() and parent.name.startswith(("pytest-", "popen-")):
            parent.chmod(parent.stat().st_mode | 0o011)
    for path in found:
        done = subprocess.run(
            [*as_other, "stat", path], check=False, capture_output=True, text=True
        )
        assert done.returncode != 0
        assert "Permission denied" in done.stderr


def memory_of_children() -> int:
    """The most bytes that any process below this one had, as long as it lives."""
    parents, peaks = {}, {}
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(re.findall(r"(PPid|VmHWM):\s*(\d+)", path.read_text()))
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields["PPid"])
        peaks[int(path.parent.name)] = int(fields.get("VmHWM", 0)) * 1024
    below, pending = [0], [os.getpid()]
    while pending:
        parent = pending.pop()
        pending += (children := [each for each, above in parents.items() if above == parent])
        below += [peaks[child] for child in children]
    return max(below)


def test_a_large_layer_is_unpacked_in_little_memory(builds: Builds, registry: Registry) -> None:
    """In the workers too, which unpack it, and pack what a step makes of it."""
    blob, diff_id = zeros(384, lambda data: gzip.compress(data, 1))
    config = {**PLATFORM, "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
    registry.add_image("large:1", json.dumps(config).encode(), [blob])
    peaks, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            peaks.append(memory_of_children())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        builds.build(
            f"FROM {registry.address}/large:1 AS large\nFROM busybox\n"
            "COPY --from=large /zeros /one\nRUN cp /one /two\n"
        )
    finally:
        ended.set()
        thread.join()
    assert 0 < max(peaks) < 300 * MIB
