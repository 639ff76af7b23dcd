"""The room that real builds take up on the embedded backend: told, and kept below a ceiling."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from embedding import Stores, busybox_registry, check_store
from pybuild import build
from pybuild.backends import open_backend
from pybuild.imagestore import ImageStore
from pybuild.oci.platform import host_platform
from pybuild.oci.reference import parse_reference
from pybuild.testkit.registry import Registry
from pybuild_embedded.usage import OnDisk
from pybuild_embedded.usage import look as real
from sandboxing import run_python_as_user
from storing import disk_usage

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inherent: runs on Linux only")

# many small files, hard links, a sparse file, other owners, and a cache mount that grows
STEPS = """\
RUN mkdir /many && for i in $(seq 1000); do echo $i > /many/$i; done
RUN for i in $(seq 200); do ln /many/$i /many/l$i; done; rm /many/3*
RUN dd if=/dev/zero of=/sparse bs=1M seek=200 count=1 2>/dev/null; chown -R 33:33 /many
RUN --mount=type=cache,target=/c for i in $(seq 500); do echo $i > /c/$i; ln -f /c/$i /c/l$i; done
RUN --mount=type=cache,target=/c mkdir -p /c/d && chown 33:33 /c/1 /c/d && chmod 700 /c/d \\
 && dd if=/dev/urandom of=/c/d/more bs=64k count=20 2>/dev/null
COPY . /context/
"""
BUILT = """\
import json, sys
from pybuild.cli import main
root, context = sys.argv[1:]
words = ["--backend=embedded", f"--root={root}"]
for tag in ("a", "b"):
    assert main([*words, "-t", tag, f"--build-arg=TAG={tag}", context]) == 0
sys.exit(main(["df", "--format=json", *words]))
"""


@pytest.fixture
def registry() -> Iterator[Registry]:
    with busybox_registry() as registry:
        yield registry


def make_context(folder: Path, dockerfile: str) -> Path:
    folder.mkdir()
    (folder / "Dockerfile").write_text(dockerfile)
    for number in range(100):
        (folder / f"file{number}").write_text("x" * number)
    return folder


@pytest.mark.root
@pytest.mark.parametrize("kind", ["root", "range"])
def test_the_lines_of_df_together_are_what_du_says(
    tmp_path: Path, registry: Registry, kind: str
) -> None:
    dockerfile = f"FROM {registry.address}/busybox\nARG TAG\nRUN echo $TAG\n{STEPS}"
    context = make_context(tmp_path / "context", dockerfile)
    store = tmp_path / "own" / "store"
    words = ["-c", BUILT, str(store), str(context)]
    if kind == "root":
        store.parent.mkdir()
        command = [sys.executable, *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    else:
        done = run_python_as_user(tmp_path, words, subordinate=True)
    try:
        assert done.returncode == 0, done.stderr[-6000:]
        lines = json.loads(done.stdout[done.stdout.index("[") :])
        assert sum(line["size"] for line in lines) == pytest.approx(disk_usage(store), rel=0.02)
        sizes = {line["kind"]: line["size"] for line in lines}
        assert sizes["cache mounts"] > 500 * 4096 + 20 * 65536
        assert sizes["unpacked layers"] > 1000 * 4096
    finally:
        shutil.rmtree(tmp_path / "own")


class Room:
    """Builds on one store, each in a session of its own."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.root = root
        self.context = make_context(folder / "context", "")

    def build(self, steps: str, max_size: int | str = "100%", **options: Any) -> list[bool]:
        """Which steps were cached."""
        options = {"backend_options": {"root": self.root, "max_size": max_size}, **options}
        text = f"FROM busybox\n{steps}".encode()
        result = build(self.context, dockerfile=text, backend="embedded", **options)
        self._age()
        return [step.cached for step in result.steps]

    def _age(self) -> None:
        """Ten seconds pass: when something was used is kept in whole ones."""
        with closing(sqlite3.connect(self.root / "db.sqlite")) as database, database:
            for table in ("steps", "folders", "caches", "images"):
                database.execute(f"UPDATE {table} SET used = used - 10")  # noqa: S608 - no input

    @property
    def size(self) -> int:
        return disk_usage(self.root)

    def names(self) -> list[str]:
        with open_backend("embedded", {"root": self.root}) as backend:
            store = backend.image_store()
            assert isinstance(store, ImageStore)
            return [name.repository for image in store.images() for name in image.names]


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    with Stores(tmp_path).lent() as root:
        yield Room(tmp_path, root)
        check_store(root)


def noise(name: str, megabytes: int = 4, cache: str = "") -> str:
    """A step that leaves as much, in its layer or in a cache mount."""
    mount, folder = (f"--mount=type=cache,id={cache},target=/c ", "/c") if cache else ("", "")
    write = f"dd if=/dev/urandom of={folder}/{name} bs=1M count={megabytes} 2>/dev/null"
    return f"RUN {mount}{write}\n"


def test_a_build_that_leaves_too_much_removes_the_oldest_first(room: Room) -> None:
    for name in ("first", "second", "third"):  # each as a blob and unpacked
        room.build(noise(name), tags=[])
    limit = room.size
    room.build(noise("fourth"), limit)
    assert room.size <= limit
    assert room.build(noise("fourth")) == [True]
    assert room.build(noise("first")) == [False]
    assert room.names() == ["library/busybox"]


def test_cache_mounts_count_and_go_like_all_else(room: Room) -> None:
    room.build(noise("x", 4, "old"))
    limit = room.size + (6 << 20)
    room.build(noise("x", 4, "new"), limit)
    assert len(list((room.root / "cachemounts").iterdir())) == 2
    # the same mount grows: nothing but that is new
    room.build(noise("y", 4, "new"), limit)
    assert room.size <= limit
    assert len(list((room.root / "cachemounts").iterdir())) == 1


def test_images_with_names_that_were_built_here_stay(room: Room) -> None:
    room.build(noise("kept"), tags=["kept"])
    room.build(noise("unnamed"))
    room.build(noise("last"), 0, tags=["last"])
    assert sorted(room.names()) == ["library/busybox", "library/kept", "library/last"]
    # and nothing besides them
    assert list((room.root / "layers").iterdir()) == []
    assert room.build(noise("kept")) == [False]


def test_images_that_were_pulled_go_unless_they_got_another_name(
    room: Room, registry: Registry
) -> None:
    platform = host_platform()
    config = {"os": platform.os, "architecture": platform.architecture}
    rootfs = {"type": "layers", "diff_ids": []}
    registry.add_image("pulled:1", {**config, "config": {}, "rootfs": rootfs})
    name = f"{registry.address}/pulled:1"
    with open_backend("embedded", {"root": room.root}) as backend:
        build(None, dockerfile=f"FROM {name}\n".encode(), backend=backend)
    assert "pulled" in room.names()
    room.build(noise("x"), 0)
    assert "pulled" not in room.names()
    with open_backend("embedded", {"root": room.root}) as backend:
        build(None, dockerfile=f"FROM {name}\n".encode(), backend=backend)
        store = backend.image_store()
        assert isinstance(store, ImageStore)
        store.tag(name, parse_reference("mine:1"))
    room.build(noise("y"), 0)
    assert {"pulled", "library/mine"} <= set(room.names())


def test_what_another_build_uses_stays(room: Room) -> None:
    steps = noise("used")
    with open_backend("embedded", {"root": room.root, "max_size": "100%"}) as backend:
        text = f"FROM busybox\n{steps}".encode()
        build(room.context, dockerfile=text, backend=backend)
        room.build(noise("other"), 0)
        again = build(room.context, dockerfile=text + b"RUN ls /used\n", backend=backend)
        assert [step.cached for step in again.steps] == [True, False]


def test_a_build_that_adds_nothing_looks_at_nothing(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = noise("x")
    room.build(steps)
    room.build(steps)  # the image is another one only once
    looked: list[object] = []

    def look(*arguments: object) -> None:
        looked.append(arguments)

    monkeypatch.setattr("pybuild_embedded.ceiling.look", look)
    monkeypatch.setattr("pybuild_embedded.ceiling.grown", look)
    assert room.build(steps, 0) == [True]
    assert looked == []


def test_a_build_below_the_ceiling_does_not_look_at_all_of_the_store(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.build(noise("x"))
    looked: list[object] = []

    def look(*arguments: object) -> OnDisk:
        looked.append(arguments)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("pybuild_embedded.ceiling.look", look)
    room.build(noise("y"), room.size + (20 << 20))
    assert looked == []
    room.build(noise("z"), room.size)
    assert len(looked) == 1


def test_a_store_of_a_build_that_was_killed_is_looked_at_anew(room: Room) -> None:
    room.build(noise("x"))
    (room.context / "large").write_bytes(os.urandom(8 << 20))
    code = (
        "import os, sys\nfrom pybuild import build, open_backend\n"
        "backend = open_backend('embedded', {'root': sys.argv[1]})\n"
        "text = b'FROM scratch\\nCOPY large /\\n'\n"
        "build(sys.argv[2], dockerfile=text, backend=backend)\nos._exit(9)"
    )
    command = [sys.executable, "-c", code, str(room.root), str(room.context)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    limit = room.size
    room.build("COPY file9 /\n", limit - (1 << 20))
    assert room.size < limit


def test_the_environment_sets_the_ceiling(room: Room) -> None:
    room.build(noise("x"))
    (room.context / "Dockerfile").write_text(f"FROM busybox\n{noise('y')}")
    command = [sys.executable, "-m", "pybuild", "--backend=embedded", f"--root={room.root}"]

    def ended(size: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "-q", room.context],
            check=False,
            capture_output=True,
            text=True,
            env={"PYBUILD_MAX_SIZE": size, "HOME": str(room.root), "PATH": "/usr/bin:/bin"},
        )

    wrong = ended("much")
    assert wrong.returncode == 2
    assert 'PYBUILD_MAX_SIZE: "much" is no size' in wrong.stderr
    assert ended("1m").returncode == 0
    assert list((room.root / "layers").iterdir()) == []
