"""A COPY of files that no build has seen reads each once; what was built before is found still."""

from __future__ import annotations

import os
import subprocess
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from random import Random
from typing import Any

import pytest

import pybuild
from embedding import Stores
from pybuild.backend import Backend
from pybuild.errors import CacheMissed, ContextError
from pybuild.files import safepath
from pybuild.run import writefirst
from pybuild.run.events import Event, StepMissed
from pybuild.run.result import StepResult
from pybuild.testkit.baseimages import busybox_layout
from pybuild.testkit.containerd import PrivateContainerd, check_nothing_left
from pybuild.testkit.layouts import import_into_containerd
from pybuild_containerd.backend import open_backend

pytestmark = [pytest.mark.root, pytest.mark.containerd]
FILES = 400
DOCKERFILE = b"FROM busybox\nCOPY . /src\n"
Open = Callable[[], AbstractContextManager[Backend]]


class Recorder:
    """Keeps all events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def report(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture(params=["embedded", "containerd"])
def opened(
    request: pytest.FixtureRequest, stores: Stores, tmp_path: Path, containerd: PrivateContainerd
) -> Iterator[Open]:
    """Opens a backend, each time the same store with busybox."""
    if request.param == "embedded":
        with stores.lent() as root:
            yield lambda: stores.opened(root)
        return
    name = f"new-{abs(hash(request.node.nodeid))}"
    import_into_containerd(busybox_layout(tmp_path / "layout"), containerd.address, name)
    options = {"address": containerd.address, "namespace": name, "cache_dir": tmp_path / "cache"}
    yield lambda: open_backend(options)
    check_nothing_left(containerd.address, name, containerd.folder)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    chance = Random(1)  # noqa: S311 - the same files each time
    folder = tmp_path / "context"
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number:04}").write_bytes(chance.randbytes(chance.randint(1, 16384)))
    (folder / "large").write_bytes(chance.randbytes(3 << 20))
    (folder / "linked").hardlink_to(folder / "0000")
    (folder / "empty").touch()
    return folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """How often files of contexts were read."""
    found: Counter[bytes] = Counter()
    plain = safepath.Root.open_content

    def counting(self: safepath.Root, path: bytes, expected: os.stat_result) -> Any:
        found[path] += 1
        return plain(self, path, expected)

    monkeypatch.setattr(safepath.Root, "open_content", counting)
    return found


def build(opened: Open, context: Path, **options: Any) -> StepResult:
    """The COPY, in a backend that is opened for it."""
    with opened() as backend:
        given = {"dockerfile": DOCKERFILE, "created": 0, **options}
        return pybuild.build(context, backend=backend, **given).steps[-1]


def copied(context: Path) -> Path:
    """The same elsewhere, links and times included."""
    moved = context.with_name("moved")
    subprocess.run(["cp", "-a", context, moved], check=True)
    return moved


def once(read: Mapping[bytes, int]) -> bool:
    """Whether each file was read once; other names of one are none."""
    return set(read.values()) == {1} and len(read) == FILES + 2


def test_new_files_are_read_once(opened: Open, context: Path, read: Counter[bytes]) -> None:
    reporter = Recorder()
    first = build(opened, context, reporter=reporter)
    assert once(read)
    assert not first.cached
    assert [type(event) for event in reporter.events].count(StepMissed) == 1
    again = build(opened, context)
    assert again.cached
    assert again.diff_id == first.diff_id


def test_the_layer_is_what_it_is_without_a_cache(opened: Open, context: Path) -> None:
    first = build(opened, context)
    assert build(opened, context, no_cache=True).diff_id == first.diff_id


def test_a_copy_of_the_context_is_found(opened: Open, context: Path, read: Counter[bytes]) -> None:
    first = build(opened, context)
    read.clear()
    moved = copied(context)
    again = build(opened, moved)
    assert again.cached
    assert again.diff_id == first.diff_id
    assert set(read.values()) == {1}


def test_it_is_found_though_the_shape_is_forgotten(opened: Open, context: Path) -> None:
    first = build(opened, context)
    with opened() as backend:
        notes = backend.notes_folder()
        assert notes is not None
        [shape] = (notes / "shapes").iterdir()
        shape.unlink()
    moved = copied(context)
    again = build(opened, moved)
    assert again.cached
    assert again.diff_id == first.diff_id


@pytest.mark.parametrize("same_size", [False, True])
def test_other_content_is_another_layer(
    opened: Open, context: Path, read: Counter[bytes], *, same_size: bool
) -> None:
    first = build(opened, context)
    read.clear()
    moved = copied(context)
    content = (moved / "0007").read_bytes()
    (moved / "0007").write_bytes(content[::-1] if same_size else content + b"x")
    again = build(opened, moved)
    assert not again.cached
    assert again.diff_id != first.diff_id
    assert same_size or max(read.values()) == 1
    assert build(opened, moved).cached
    assert build(opened, context).diff_id == first.diff_id


def test_what_must_not_miss_is_not_put(opened: Open, context: Path) -> None:
    with pytest.raises(CacheMissed):
        build(opened, context, fail_on_miss=True)
    assert not build(opened, context).cached


def test_a_stage_without_cache_is_read_once_as_well(
    opened: Open, context: Path, read: Counter[bytes]
) -> None:
    text = b"FROM busybox AS one\nCOPY . /src\n"
    first = build(opened, context, dockerfile=text)
    moved = copied(context)
    read.clear()
    again = build(opened, moved, dockerfile=text, no_cache_filter=["one"])
    assert not again.cached
    assert again.diff_id == first.diff_id
    assert max(read.values()) == 1


def test_an_archive_is_read_as_before(opened: Open, context: Path, tmp_path: Path) -> None:
    first = build(opened, context)
    packed = tmp_path / "context.tar"
    with tarfile.open(packed, "w") as archive:
        archive.add(context, ".")
    for cached in (False, True):
        with packed.open("rb") as stream:
            step = build(opened, stream)  # type: ignore[arg-type]  # any context
        assert step.cached or not cached
    assert first.diff_id is not None


def test_a_file_that_changes_meanwhile_fails_and_leaves_nothing(
    opened: Open, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = safepath.Root.open_content

    def changing(self: safepath.Root, path: bytes, expected: os.stat_result) -> Any:
        if path == b"large":
            with (context / "large").open("ab") as file:
                file.write(b"x")
        return plain(self, path, expected)

    with monkeypatch.context() as patch:
        patch.setattr(safepath.Root, "open_content", changing)
        with pytest.raises(ContextError, match="large changed while"):
            build(opened, context)
    with opened() as backend:
        notes = backend.notes_folder()
    assert notes is not None
    assert not (notes / "shapes").exists()
    assert not build(opened, context).cached


def test_builds_at_once_put_it_once(
    opened: Open, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    puts: list[int] = []
    plain = writefirst.put_first

    def counting(*given: Any) -> Any:
        puts.append(1)
        time.sleep(0.5)  # while the others come
        return plain(*given)

    monkeypatch.setattr(writefirst, "put_first", counting)
    found: list[StepResult] = []
    threads = [
        threading.Thread(target=lambda: found.append(build(opened, context))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({step.diff_id for step in found}) == 1
    assert len(found) == 3
    assert len(puts) == 1
