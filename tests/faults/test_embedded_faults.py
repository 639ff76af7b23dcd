"""What becomes of builds on the embedded backend when processes die, disks fill, bytes change."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from programs import HERE, run

from embedding import Stores, busybox_registry
from pybuild import BuildResult, build
from pybuild.errors import InvalidImage
from pybuild.oci.descriptor import LayerDiff
from pybuild.testkit.registry import Registry
from pybuild.testkit.workbench import RecordingActivity
from pybuild_embedded import plaincopies
from pybuild_embedded.backend import open_backend

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inherent: runs on Linux only")

RANDOM = (
    b"FROM busybox\nRUN sleep 0.2; head -c 16 /dev/urandom > /r\nRUN cp /r /s; date +%N >> /s\n"
)


def test_killed_builds_leave_nothing_and_change_nothing(folder: Path) -> None:
    run(sys.executable, HERE / "build_torture.py", folder)


@pytest.mark.root
def test_a_full_disk_is_told_and_the_store_can_be_used_again(tmp_path: Path) -> None:
    small = tmp_path / "mounted"
    small.mkdir()
    # the mount goes with its namespace
    script = 'mount -t tmpfs -o size=32m none "$1" && exec "$2" "$3" "$1" "$4"'
    program = HERE / "build_full.py"
    inside = ("sh", "-c", script, "sh", small, sys.executable, program, tmp_path)
    run("unshare", "--mount", *inside)


def test_builds_of_the_same_dockerfile_at_once_run_each_step_once(tmp_path: Path) -> None:
    root = Stores(tmp_path).new()
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_bytes(RANDOM)
    command = [sys.executable, "-m", "pybuild", "--root", root, "-q", "-f", dockerfile, tmp_path]
    environ = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    builds = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) for _ in range(4)
    ]
    digests = {each.communicate()[0] for each in builds}
    assert [each.returncode for each in builds] == [0] * 4
    assert len(digests) == 1


def test_a_build_that_waits_for_a_step_which_fails_elsewhere_makes_it_itself(
    tmp_path: Path,
) -> None:
    with Stores(tmp_path).opened() as backend:
        key, activity = "sha256:key", RecordingActivity()
        with pytest.raises(ZeroDivisionError), backend.single_flight(key, activity):
            raise ZeroDivisionError
        with backend.single_flight(key, activity):
            assert backend.lookup(key) is None


def damage(path: Path) -> None:
    """Change one byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Pulled:
    """A new store, with an image of busybox from a registry that stays."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self.root = folder / "own"
        self.base = f"{registry.address}/busybox:latest"
        self.context = folder / "context"
        self.context.mkdir()
        (self.context / "file").write_text("content")
        self.build("")  # the index is known now, and nothing unpacked
        assert list((self.root / "layers").iterdir()) == []

    def build(self, steps: str, **options: Any) -> BuildResult:
        """Build on the base image, in a session of its own."""
        with open_backend({"root": self.root}) as backend:
            text = f"FROM {self.base}\n{steps}".encode()
            options = {"backend": backend, "created": 1, **options}
            return build(self.context, dockerfile=text, **options)

    def largest_blob(self) -> Path:
        """That of the base's only layer."""
        blobs = (self.root / "blobs" / "sha256").glob("*/*")
        return max(blobs, key=lambda path: path.stat().st_size)

    def faults(self) -> list[str]:
        with open_backend({"root": self.root}) as backend:
            images = backend.image_store()
            assert images is not None
            return [fault.what for fault in images.check(repair=False)]


@pytest.fixture
def pulled(tmp_path: Path) -> Iterator[Pulled]:
    with busybox_registry() as registry:
        yield Pulled(tmp_path, registry)


def test_a_damaged_blob_of_the_base_image_is_fetched_again(pulled: Pulled) -> None:
    blob = pulled.largest_blob()
    whole = blob.read_bytes()
    damage(blob)
    pulled.build("RUN echo ran\n")
    assert blob.read_bytes() == whole
    assert pulled.faults() == []


@pytest.mark.parametrize("fault", ["cut short", "not written"])
def test_a_step_runs_though_the_plain_copy_of_its_base_is_no_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    taken = plaincopies.PlainCopies.taken
    found: list[Path | None] = []

    @contextmanager
    def spoilt(self: plaincopies.PlainCopies, layer: LayerDiff) -> Iterator[Path | None]:
        with taken(self, layer) as path:
            found.append(path)
            if path is not None and fault == "cut short":
                os.truncate(path, path.stat().st_size // 2)
            yield path

    def write(self: FileIO, piece: object) -> int:
        del self, piece
        raise OSError(errno.ENOSPC, "no room")

    if fault == "not written":
        monkeypatch.setattr(plaincopies, "FileIO", type("Full", (FileIO,), {"write": write}))
    monkeypatch.setattr(plaincopies.PlainCopies, "taken", spoilt)
    root = tmp_path / "own"
    with busybox_registry() as registry, open_backend({"root": root}) as backend:
        text = f"FROM {registry.address}/busybox:latest\nRUN echo ran > /ran\n".encode()
        build(None, dockerfile=text, backend=backend)
        assert [path is None for path in found] == [fault == "not written"]
        assert [path for path in (root / "ingest").rglob("*") if path.is_file()] == []


def test_a_missing_blob_of_the_base_image_is_fetched_again(pulled: Pulled) -> None:
    blob = pulled.largest_blob()
    whole = blob.read_bytes()
    blob.unlink()
    pulled.build("RUN echo ran\n")
    assert blob.read_bytes() == whole


def test_a_damaged_blob_of_a_step_fails_one_build_clearly_and_is_made_anew_by_the_next(
    pulled: Pulled,
) -> None:
    made = pulled.build("COPY file /\n").descriptor
    with open_backend({"root": pulled.root}) as backend, backend.open_blob(made.digest) as file:
        layer = json.load(file)["layers"][-1]["digest"].removeprefix("sha256:")
    damage(pulled.root / "blobs" / "sha256" / layer[:2] / layer)
    with pytest.raises(InvalidImage):
        pulled.build("COPY file /\nRUN cat /file\n")
    assert pulled.build("COPY file /\nRUN cat /file\n").steps[0].cached is False
    assert pulled.faults() == []


@pytest.mark.parametrize("content", [b"", b"pybuild-layer-index-1\n"], ids=["empty", "short"])
def test_a_damaged_index_is_made_anew(pulled: Pulled, content: bytes) -> None:
    expected = pulled.build("COPY file /bin/\nRUN cp /bin/file /f\n", no_cache=True).descriptor
    for index in (pulled.root / "indexes").iterdir():
        index.write_bytes(content)
    again = pulled.build("COPY file /bin/\nRUN cp /bin/file /f\n", no_cache=True).descriptor
    assert again == expected
    assert pulled.faults() == []
