"""What the embedded backend fetches and unpacks, and when; in processes of their own."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from embedding import busybox_registry
from pybuild.testkit.registry import Registry

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inherent: runs on Linux only")


class Program:
    """``pybuild`` on a store of its own, and a registry that counts."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self.root = folder / "store"
        self.registry = registry
        self.base = f"{registry.address}/busybox:latest"
        self.context = folder / "context"
        self.context.mkdir()
        (self.context / "file").write_text("content\n")
        [self.layer] = (
            digest
            for digest, blob in registry.blobs("busybox").items()
            if blob.startswith(b"\x1f\x8b")
        )

    def build(self, dockerfile: str, *options: str | Path) -> str:
        """Build; what is told on standard error."""
        command = [sys.executable, "-m", "pybuild", "--root", self.root, "--progress=plain"]
        done = subprocess.run(
            [*command, *options, "-f", "-", self.context],
            input=dockerfile,
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    @property
    def fetched(self) -> int:
        """How often the base's layer was fetched."""
        return len(self.registry.requested("GET", f"/blobs/{self.layer}"))

    @property
    def unpacked(self) -> list[Path]:
        return list((self.root / "layers").iterdir())

    def lose_layer(self) -> None:
        """Remove the blob of the base's layer."""
        name = self.layer.removeprefix("sha256:")
        (self.root / "blobs" / "sha256" / name[:2] / name).unlink()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    with busybox_registry() as registry:
        yield Program(tmp_path, registry)


def test_copy_and_env_over_a_base_unpack_nothing_and_fetch_each_blob_once(
    program: Program,
) -> None:
    dockerfile = f"FROM {program.base}\nCOPY file /file\nENV A=b\n"
    program.build(dockerfile, "-t", "app:1")
    program.build(dockerfile, "-t", "app:2", "--no-cache")
    assert program.unpacked == []
    assert program.fetched == 1


def test_a_base_with_known_indexes_is_fetched_by_the_first_output_that_needs_it(
    program: Program, tmp_path: Path
) -> None:
    program.build(f"FROM {program.base}\n")
    program.lose_layer()
    dockerfile = f"FROM {program.base}\nCOPY file /file\nENV A=b\n"
    program.build(dockerfile, "-t", "app:1")
    program.build(dockerfile, "-t", "app:1")
    assert (program.fetched, program.unpacked) == (1, [])
    # another process, to which the name of the base isn't told
    program.build("FROM app:1\nCOPY file /again\n", "-t", "app:2")
    assert (program.fetched, program.unpacked) == (1, [])
    archive = tmp_path / "app.tar"
    program.build("FROM app:2\n", "--output", f"type=oci,dest={archive}")
    assert program.fetched == 2
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    assert f"blobs/{program.layer.replace(':', '/')}" in names


def test_a_run_on_an_image_made_by_another_process_fetches_what_it_lacks(program: Program) -> None:
    program.build(f"FROM {program.base}\n")
    program.lose_layer()
    program.build(f"FROM {program.base}\nCOPY file /file\n", "-t", "app:1")
    said = program.build("FROM app:1\nRUN cat /file\n")
    assert "content" in said
    assert program.fetched == 2


def test_what_is_pushed_elsewhere_has_the_blobs_that_were_not_here(program: Program) -> None:
    program.build(f"FROM {program.base}\n")
    program.lose_layer()
    program.build(f"FROM {program.base}\nCOPY file /file\n", "-t", "app:1")
    with Registry() as other:
        program.build("FROM app:1\n", "-t", f"{other.address}/app:1", "--push")
        _, content = other.read_manifest("app:1")
        layers = [layer["digest"] for layer in json.loads(content)["layers"]]
        assert layers[0] == program.layer
        assert set(layers) <= set(other.blobs("app"))


def test_where_blobs_come_from_is_forgotten_with_the_last_that_needs_them(
    program: Program,
) -> None:
    def known() -> list[str]:
        with closing(sqlite3.connect(program.root / "db.sqlite")) as database:
            return [digest for (digest,) in database.execute("SELECT digest FROM origins")]

    program.build(f"FROM {program.base}\nCOPY file /file\n", "-t", "app:1")
    prune = [sys.executable, "-m", "pybuild", "prune", "--root", program.root]
    subprocess.run([*prune, "--all"], check=True, capture_output=True)
    # and that of its config
    assert len(known()) == 2
    assert program.layer in known()
    subprocess.run([*prune, "--all", "--images"], check=True, capture_output=True)
    assert known() == []
