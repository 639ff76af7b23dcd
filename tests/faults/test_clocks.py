"""Clocks that jump: a store and caches made in another time are used, checked and pruned."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from embedding import Stores, check_store
from pybuild import RunFailed, UsageError
from pybuild.api import build
from pybuild.files.statcache import KnownFile, StatCache
from pybuild.imagestore import PruneRequest
from pybuild.run.failedruns import FailedRuns
from pybuild.run.keptruns import KeptRuns
from pybuild.testkit.baseimages import BUSYBOX
from pybuild.testkit.workbench import RecordingActivity
from pybuild_embedded.backend import EmbeddedBackend

DAY = 86400
YEAR = 365 * DAY

either_way = pytest.mark.parametrize("seconds", [YEAR, -YEAR], ids=["ahead", "behind"])


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return Stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "file").write_text("content\n")
    (folder / "Dockerfile").write_text(f"FROM {BUSYBOX}\nCOPY file /\nRUN echo ran >/made\n")
    return folder


def move(backend: EmbeddedBackend, seconds: int) -> None:
    """Have everything in the store happen that much later."""
    with backend._store.database.writing() as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
        for table in tables:
            columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            for column in columns & {"used", "made"}:
                connection.execute(f"UPDATE {table} SET {column} = {column} + ?", (seconds,))  # noqa: S608 - our own names
    for folder, _, names in os.walk(backend._store.root):
        for name in names:
            path = Path(folder, name)
            status = path.lstat()
            times = status.st_atime + seconds, status.st_mtime + seconds
            os.utime(path, times, follow_symlinks=False)


@either_way
def test_steps_of_another_time_are_found_and_are_in_order(
    stores: Stores, context: Path, seconds: int
) -> None:
    with stores.lent() as root:
        with stores.opened(root) as backend:
            first = build(context, backend=backend, created=0)
            move(backend, seconds)
            # also while the session that made them lives
            assert build(context, backend=backend, created=0).digest == first.digest
        with stores.opened(root) as backend:
            again = build(context, backend=backend, created=0)
            assert again.digest == first.digest
            assert all(step.cached for step in again.steps)
        check_store(root)


@either_way
def test_a_ceiling_holds_whatever_the_times_of_use(
    stores: Stores, context: Path, seconds: int
) -> None:
    with stores.lent() as root:
        with stores.opened(root) as backend:
            build(context, backend=backend, created=0, tags=["kept"])
            move(backend, seconds)
        with stores.opened(root) as backend:
            build(context, backend=backend, created=0, build_args={"UNUSED": "1"})
            store = backend.image_store()
            # what this session uses stays
            store.prune(PruneRequest(max_size=0, all_images=True))
            assert build(context, backend=backend, created=0).digest
        with stores.opened(root) as backend:
            backend.image_store().prune(PruneRequest(max_size=0, all_images=True))
            assert list(backend.image_store().images()) == []
        check_store(root)


def test_what_was_used_in_the_future_is_not_old(stores: Stores, context: Path) -> None:
    with stores.lent() as root:
        with stores.opened(root) as backend:
            build(context, backend=backend, created=0)
            move(backend, YEAR)
        with stores.opened(root) as backend:
            backend.image_store().prune(PruneRequest(unused_for=3600))
            again = build(context, backend=backend, created=0)
            assert all(step.cached for step in again.steps)
            # which brings the times of use back to today
            move(backend, -2 * 3600)
        with stores.opened(root) as backend:
            pruned = backend.image_store().prune(PruneRequest(unused_for=3600))
            assert pruned.removed
        check_store(root)


@pytest.mark.parametrize("opened", [False, True])
def test_what_a_failed_step_left_makes_room_first_after_a_day(
    stores: Stores, context: Path, opened: bool
) -> None:
    def failures(backend: EmbeddedBackend) -> list[str]:
        runs, found = KeptRuns(backend), []
        for kept in runs.newest():
            with suppress(UsageError), runs.opened(kept, RecordingActivity()) as run:
                found.append(run.process.args[-1])
        return found

    def room_for_less(backend: EmbeddedBackend) -> Sequence[str]:
        """What goes, in its order; may be more than one, as a row takes no room."""
        store = backend.image_store()
        total = store.prune(PruneRequest(max_size=1 << 40, dry_run=True)).left
        return store.prune(PruneRequest(max_size=total - 1)).removed

    script = "head -c 1000000 /dev/urandom > /f; exit 1"
    with stores.lent() as root:
        with stores.opened(root) as backend:
            build(context, backend=backend, created=0)
            move(backend, -DAY // 2)
            files = {"Dockerfile": f"FROM {BUSYBOX}\nRUN {script}\n"}
            with pytest.raises(RunFailed):
                build(files, backend=backend, failed_runs=FailedRuns())
            if opened:
                assert failures(backend) == [script]
        with stores.opened(root) as backend:
            # what was used longest ago goes first
            assert "kept" not in room_for_less(backend)[0]
            move(backend, -2 * DAY)
        with stores.opened(root) as backend:
            assert "kept" in room_for_less(backend)[0]
        with stores.opened(root) as backend:
            assert failures(backend) == []
        check_store(root)


@either_way
def test_a_changed_file_is_read_again_though_the_clock_jumped(tmp_path: Path, seconds: int) -> None:
    folder = tmp_path / "context"
    folder.mkdir()
    path = folder / "file"
    path.write_text("one")
    now = time.time()
    os.utime(path, (now + seconds, now + seconds))
    known = KnownFile(f"sha256:{'1' * 64}", is_plain=True)
    clock = time.time_ns() + 10**10 + max(0, seconds) * 10**9
    cache = StatCache(tmp_path / "cache", folder.stat(), clock)
    cache.record(path.lstat(), known.is_plain, known.digest)
    cache.save()
    # the clock is back, or goes on: the row is good for this very state alone
    cache = StatCache(tmp_path / "cache", folder.stat(), time.time_ns())
    assert cache.find(path.lstat()) == known
    path.write_text("two")
    os.utime(path, (now + seconds, now + seconds))
    assert cache.find(path.lstat()) is None


def test_a_file_of_the_future_is_not_remembered(tmp_path: Path) -> None:
    """Its next change might have the same times."""
    path = tmp_path / "file"
    path.write_text("one")
    os.utime(path, (time.time() + YEAR,) * 2)
    cache = StatCache(tmp_path / "cache", tmp_path.stat(), time.time_ns())
    cache.record(path.lstat(), True, f"sha256:{'1' * 64}")
    cache.save()
    later = StatCache(tmp_path / "cache", tmp_path.stat(), time.time_ns())
    assert later.find(path.lstat()) is None
