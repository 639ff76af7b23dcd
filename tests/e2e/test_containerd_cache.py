"""The step cache of the containerd backend: what is found again, what isn't, and what is kept."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commandline import CommandLine

import pybuild
from pybuild.backend import Capability
from pybuild.errors import BuildCancelled, RunFailed, UnsupportedByBackend
from pybuild.imagestore import PruneRequest, UsageKind
from pybuild.oci.layerwriter import write_layer
from pybuild.oci.platform import host_platform
from pybuild.run.activity import CancelToken
from pybuild.run.events import Event, StepLog
from pybuild.run.result import BuildResult
from pybuild.testkit.baseimages import busybox_layout
from pybuild.testkit.containerd import PrivateContainerd, check_nothing_left
from pybuild.testkit.layouts import import_into_containerd
from pybuild.testkit.registry import Registry
from pybuild.testkit.validate import validate
from pybuild.testkit.workbench import RecordingActivity, Workbench, content, file
from pybuild_containerd.backend import ContainerdBackend, open_backend
from pybuild_containerd.client import Client
from pybuild_containerd.content import ContentStore
from pybuild_containerd.leases import Session
from pybuild_containerd.singleflight import single_flight
from pybuild_containerd.stepcache import StepCache, StepRecord

pytestmark = [pytest.mark.root, pytest.mark.containerd]

# what two runs of it make is never the same
RANDOM = "RUN cat /proc/sys/kernel/random/uuid > /random\n"


class Cached:
    """Builds on busybox in a namespace of the test's own."""

    def __init__(self, daemon: PrivateContainerd, namespace: str, folder: Path) -> None:
        self.daemon = daemon
        self.namespace = namespace
        self.folder = folder
        self.import_busybox(folder / "layout")

    def import_busybox(self, folder: Path) -> None:
        import_into_containerd(busybox_layout(folder), self.daemon.address, self.namespace)

    def open(self, **options: object) -> ContainerdBackend:
        given = {"address": self.daemon.address, "namespace": self.namespace}
        backend = open_backend({**given, "cache_dir": self.folder / "cache", **options})
        assert isinstance(backend, ContainerdBackend)
        return backend

    def build(
        self, dockerfile: str, files: dict[str, str] | None = None, /, **options: Any
    ) -> BuildResult:
        """With `files` in the context; options are of pybuild.build, or of the backend."""
        context = Path(tempfile.mkdtemp(dir=self.folder))
        for name, text in (files or {}).items():
            (context / name).write_text(text)
        backend = {key: options.pop(key) for key in ("snapshotter",) if key in options}
        with self.open(**backend) as opened:
            return pybuild.build(
                context,
                dockerfile=dockerfile.encode(),
                backend=opened,
                **{"pull": "never", "tags": ["built"], **options},
            )

    def cached(self, dockerfile: str, /, *files: Any, **options: Any) -> list[bool]:
        """Which steps weren't run."""
        return [step.cached for step in self.build(dockerfile, *files, **options).steps]

    @contextmanager
    def steps(self) -> Iterator[StepCache]:
        with Client(self.daemon.address, self.namespace) as client:
            yield StepCache(client, ContentStore(client), "overlayfs")

    def records(self) -> list[StepRecord]:
        with self.steps() as steps:
            return steps.records()

    def collect_garbage(self) -> None:
        self.daemon.collect_garbage(self.namespace)

    def ctr(self, *words: str) -> str:
        command = ["ctr", "-a", self.daemon.address, "-n", self.namespace, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def has_blob(self, digest: str) -> bool:
        self.collect_garbage()
        return digest in self.ctr("content", "ls", "-q").split()


@pytest.fixture
def store(
    containerd: PrivateContainerd, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Cached]:
    name = f"cache-{abs(hash(request.node.nodeid))}"
    yield Cached(containerd, name, tmp_path)
    check_nothing_left(containerd.address, name, containerd.folder)


# What is found again


def test_a_rebuild_runs_nothing_and_gives_the_same_image(store: Cached) -> None:
    text = (
        f"FROM busybox AS a\n{RANDOM}FROM busybox\nCOPY f /f\nCOPY --from=a /random /\nRUN true\n"
    )
    first = store.build(text, {"f": "1"})
    second = store.build(text, {"f": "1"})
    assert [step.cached for step in first.steps] == [False] * 4
    assert [step.cached for step in second.steps] == [True] * 4
    assert second.digest == first.digest
    assert [s.diff_id for s in second.steps] == [s.diff_id for s in first.steps]
    with store.open() as backend, Workbench(backend, "docker.io/library/built:latest") as bench:
        validate(backend, bench.create(bench.base(), "checked"))


def test_an_edit_misses_from_there_on(store: Cached) -> None:
    text = "FROM busybox\nRUN echo a > /a\nCOPY f /f\nRUN cat /f\n"
    assert store.cached(text, {"f": "1"}) == [False] * 3
    assert store.cached(text, {"f": "2"}) == [True, False, False]
    assert store.cached(text.replace("cat", "wc"), {"f": "2"}) == [True, True, False]
    assert store.cached(text.replace("echo a", "echo b"), {"f": "2"}) == [False] * 3
    assert store.cached(text, {"f": "1"}) == [True] * 3


def test_steps_of_an_edited_build_run_on_what_was_found(store: Cached) -> None:
    start = "FROM busybox\nRUN echo a > /a; mkdir /d\nCOPY f /d/f\n"
    store.build(start, {"f": "1"})
    result = store.build(f"{start}RUN cat /a /d/f > /both\n", {"f": "1"})
    assert [step.cached for step in result.steps] == [True, True, False]
    ran = store.ctr("run", "--rm", "docker.io/library/built:latest", "x", "cat", "/both")
    assert ran == "a\n1"


def test_what_was_made_on_one_snapshotter_serves_another(store: Cached) -> None:
    text = f"FROM busybox\n{RANDOM}"
    first = store.build(text)
    second = store.build(f"{text}RUN cp /random /again\n", snapshotter="native")
    assert [step.cached for step in second.steps] == [True, False]
    assert second.steps[0].diff_id == first.steps[0].diff_id
    store.ctr("images", "rm", "--sync", "docker.io/library/built:latest")
    assert store.cached(f"{text}RUN cp /random /again\n") == [True, True]


def test_another_base_image_under_the_same_name_misses(store: Cached, registry: Registry) -> None:
    name = f"{registry.address}/base"

    def push(text: bytes) -> None:
        parts: list[bytes] = []
        written = write_layer([file(b"base", text)], parts.append)
        here = host_platform()
        config = {
            "os": here.os,
            "architecture": here.architecture,
            **({"variant": here.variant} if here.variant else {}),
            "rootfs": {"type": "layers", "diff_ids": [written.diff.diff_id]},
        }
        registry.add_image("base:latest", config, [b"".join(parts)])

    text = f"FROM {name}\nCOPY f /f\n"
    push(b"old")
    assert store.cached(text, {"f": "1"}, pull="missing") == [False]
    assert store.cached(text, {"f": "1"}, pull="always") == [True]
    push(b"new")
    assert store.cached(text, {"f": "1"}, pull="missing") == [True]
    assert store.cached(text, {"f": "1"}, pull="always") == [False]
    assert store.cached(text, {"f": "1"}, pull="never") == [True]


def test_without_the_cache_steps_run_and_nothing_is_kept(store: Cached) -> None:
    text = f"FROM busybox\n{RANDOM}"
    kept = store.build(text)
    assert store.cached(text, no_cache=True) == [False]
    found = store.build(text)
    assert found.steps[0].cached
    assert found.digest == kept.digest


def test_a_stage_that_has_to_run_again_replaces_what_was_kept(store: Cached) -> None:
    text = f"FROM busybox AS a\n{RANDOM}FROM busybox\nRUN true\nCOPY --from=a /random /\n"
    kept = store.build(text)
    fresh = store.build(text, no_cache_filter=["A"])
    assert [step.cached for step in fresh.steps] == [False, True, False]
    found = store.build(text)
    assert [step.cached for step in found.steps] == [True] * 3
    assert found.digest == fresh.digest != kept.digest


def test_a_failing_step_leaves_no_entry_and_those_before_it_do(store: Cached) -> None:
    text = "FROM busybox\nRUN echo a > /a\nRUN echo b > /b; exit 3\n"
    for _ in range(2):
        with pytest.raises(RunFailed):
            store.build(text)
        assert len(store.records()) == 1
    assert store.cached(text.replace("exit 3", "exit 0")) == [True, False]


def test_a_cancelled_step_leaves_no_entry(store: Cached) -> None:
    class CancelsOnceItRuns:
        cancel = CancelToken()

        def report(self, event: Event) -> None:
            if isinstance(event, StepLog):
                self.cancel.cancel()

    reporter = CancelsOnceItRuns()
    text = "FROM busybox\nRUN echo a > /a\nRUN echo runs; sleep 60\n"
    with pytest.raises(BuildCancelled):
        store.build(text, cancel=reporter.cancel, reporter=reporter)
    assert len(store.records()) == 1
    assert store.cached(text.replace("sleep 60", "true")) == [True, False]


def test_of_two_builds_at_once_one_runs_the_steps(pybuild: CommandLine) -> None:
    context = pybuild.context(f"FROM busybox\nCOPY f /f\nRUN sleep 0.5\n{RANDOM}", f="1")
    both = [pybuild.start("--pull=never", "-t", f"both{n}", context) for n in range(2)]
    digests = {process.communicate(timeout=120)[0].split()[-1] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    ended = pybuild.build("--pull=never", "--progress=plain", context)
    assert ended.err.count(" CACHED") == 3
    assert {ended.digest} == digests


# What is kept, and what goes


def test_removed_images_and_collected_garbage_take_nothing_from_the_cache(store: Cached) -> None:
    text = f"FROM busybox\n{RANDOM}RUN cp /random /again\n"
    first = store.build(text)
    store.ctr("images", "rm", "--sync", "docker.io/library/built:latest")
    assert not store.has_blob(first.digest)
    store.collect_garbage()
    again = store.build(text)
    assert [step.cached for step in again.steps] == [True, True]
    assert again.digest == first.digest


def _lose_blob(store: Cached, result: BuildResult) -> None:
    """As by ``ctr content prune references``, which takes labels away, and a collection."""
    (record,) = store.records()
    assert record.step is not None
    own = record.step.layers[-1].blob.digest
    assert result.steps[0].diff_id == record.step.layers[-1].diff_id
    store.ctr("images", "rm", "--sync", "docker.io/library/built:latest")
    store.ctr("content", "rm", own)


def _lose_label(store: Cached, _: BuildResult) -> None:
    (record,) = store.records()
    store.ctr("content", "label", record.digest, "pybuild/step.document={")


@pytest.mark.parametrize("damage", [_lose_blob, _lose_label])
def test_a_damaged_entry_is_a_miss_and_the_step_is_kept_again(
    store: Cached, damage: Callable[[Cached, BuildResult], None]
) -> None:
    text = "FROM busybox\nRUN echo x > /x\n"
    damage(store, store.build(text))
    assert store.cached(text) == [False]
    assert store.cached(text) == [True]


def test_a_lost_snapshot_is_unpacked_again(store: Cached) -> None:
    text = "FROM busybox\nRUN echo x > /x\n"
    first = store.build(text, tags=[])
    for name in store.ctr("images", "ls", "-q").split():
        if "busybox" not in name:
            store.ctr("images", "rm", "--sync", name)
    store.collect_garbage()
    lines = [line.split() for line in store.ctr("snapshots", "ls").splitlines()[1:]]
    (top,) = {line[0] for line in lines} - {line[1] for line in lines if len(line) == 3}
    store.ctr("snapshots", "rm", top)
    again = store.build(f"{text}RUN cat /x > /y\n")
    assert [step.cached for step in again.steps] == [True, False]
    assert again.steps[0].diff_id == first.steps[0].diff_id


def test_those_used_least_recently_go_first(store: Cached) -> None:
    with store.open() as backend, Workbench(backend, "") as bench:
        assert Capability.STEP_CACHE in backend.capabilities
        steps = backend._space.steps
        for number in range(4):
            bench.put(bench.scratch(), file(b"f", b"%d" % number * 1000), key=f"key {number}")
            (record,) = [r for r in steps.records() if r.key == f"key {number}"]
            # a second apart, whatever the clock says
            backend._content.update_labels(
                record.digest, {"pybuild/step.used": str(10**9 + number)}
            )
        old = steps.records()[-1]
        steps.shrink(most_steps=3)
        assert [record.key for record in steps.records()] == ["key 3", "key 2", "key 1"]
        own = [record.step.layers[-1].blob for record in steps.records() if record.step]
        steps.shrink(most_bytes=own[0].size + own[1].size)
        assert [record.key for record in steps.records()] == ["key 3", "key 2"]
    assert old.step is not None
    assert not store.has_blob(old.step.layers[-1].blob.digest)
    assert store.has_blob(own[0].digest)


def test_a_build_that_recorded_steps_ends_within_the_limits(
    store: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StepCache.shrink
    monkeypatch.setattr(StepCache, "shrink", lambda steps: real(steps, most_steps=1))
    with store.open() as backend, Workbench(backend, "") as bench:
        for number in range(3):
            bench.put(bench.scratch(), file(b"f", b"%d" % number), key=f"limited {number}")
    with store.open() as backend:
        assert len(backend._space.steps.records()) == 1


def test_what_a_build_has_found_outlives_its_entry(store: Cached) -> None:
    with store.open() as backend, Workbench(backend, "") as bench:
        bench.put(bench.scratch(), file(b"a", b"kept"), key="key")
    with store.open() as backend, Workbench(backend, "") as bench:
        found = backend.lookup("key")
        assert found is not None
        bench.hold(found)
        with store.open() as other:
            assert len(other.image_store().prune(PruneRequest()).removed) == 1
        store.collect_garbage()
        assert backend.lookup("key") is None
        above = bench.put(found, file(b"b", b"new"))
        assert [content(above, name) for name in (b"a", b"b")] == [b"kept", b"new"]
        validate(backend, bench.create(above, "outlives"))


def test_pruning_frees_what_the_cache_alone_keeps(store: Cached) -> None:
    store.build(f"FROM busybox\n{RANDOM}")
    store.build("FROM busybox\nRUN head -c 3000000 /dev/urandom > /large\n", tags=["gone"])
    store.ctr("images", "rm", "--sync", "docker.io/library/gone:latest")
    with store.open() as backend:
        rooms = backend.image_store()
        usage = {line.kind: line for line in rooms.usage()}
        # the blob and the unpacked file
        assert 6_000_000 < usage[UsageKind.STEPS].reclaimable < 6_500_000
        assert usage[UsageKind.STEPS].count == 2
        assert usage[UsageKind.IMAGES].count == 2
        assert rooms.prune(PruneRequest(unused_for=3600)).removed == ()
        assert rooms.prune(PruneRequest(max_size=7_000_000)).removed == ()
        tried = rooms.prune(PruneRequest(dry_run=True))
        assert len(store.records()) == 2
        layers = {r.step.layers[-1].blob.digest for r in store.records() if r.step is not None}
        assert len(layers & set(store.ctr("content", "ls", "-q").split())) == 2
        done = rooms.prune(PruneRequest())
        # one is an image's; the other is gone by now
        assert len(layers & set(store.ctr("content", "ls", "-q").split())) == 1
        assert done == tried
        assert (done.freed, done.left) == (usage[UsageKind.STEPS].size, 0)
        assert len(done.removed) == 2
    assert store.records() == []
    with store.open() as backend:
        usage = {line.kind: line for line in backend.image_store().usage()}
        assert usage[UsageKind.STEPS].size == 0
    assert store.ctr("run", "--rm", "docker.io/library/built:latest", "x", "cat", "/random")


def test_the_commands_for_room_are_there_and_those_for_images_are_not(
    pybuild: CommandLine,
) -> None:
    pybuild.build("--pull=never", pybuild.context(f"FROM busybox\n{RANDOM}"))
    assert "steps" in pybuild.build("df").out
    assert pybuild.build("prune", "--max-size=20g").out.startswith("freed 0B")
    assert pybuild.build("prune", "--all").out.startswith("step ")
    for command in (["images"], ["prune", "--images"]):
        assert "ctr" in pybuild.fail(UnsupportedByBackend.exit_code, *command)


# One at a time


def test_one_at_a_time_runs_the_same_step(store: Cached) -> None:
    inside, most = 0, 0
    lock = threading.Lock()

    def fly(number: int) -> None:
        nonlocal inside, most
        # two connections, as two processes have
        with Client(store.daemon.address, store.namespace) as client, Session(client):
            for _ in range(5):
                # builds that share no folder
                locks, activity = store.folder / f"locks-{number}", RecordingActivity()
                with single_flight(client, "key", activity, lambda: False, locks):
                    with lock:
                        inside += 1
                        most = max(most, inside)
                    time.sleep(0.002 * number)
                    with lock:
                        inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fly, range(4)))
    assert most == 1


def test_other_steps_dont_wait(store: Cached) -> None:
    with store.open() as one, store.open() as two:
        activity = RecordingActivity()
        with one.single_flight("a", activity), two.single_flight("b", activity):
            pass


def test_whoever_waits_for_a_step_can_be_cancelled(store: Cached) -> None:
    waiting = RecordingActivity()
    with store.open() as one, store.open() as two:
        timer = threading.Timer(0.3, waiting.cancel)
        with one.single_flight("key", RecordingActivity()):
            timer.start()
            with pytest.raises(BuildCancelled), two.single_flight("key", waiting):
                pass
        timer.join()


_HOLDER = """
import sys, time
from pybuild.testkit.workbench import RecordingActivity
from pybuild_containerd.backend import open_backend
with open_backend({"address": sys.argv[1], "namespace": sys.argv[2]}) as backend:
    with backend.single_flight("key", RecordingActivity()):
        print("held", flush=True)
        time.sleep(60)
"""


def test_a_killed_build_holds_up_nobody(store: Cached) -> None:
    command = [sys.executable, "-c", _HOLDER, store.daemon.address, store.namespace]
    with store.open() as backend, subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        threading.Timer(0.3, holder.kill).start()
        with backend.single_flight("key", RecordingActivity()):
            assert holder.wait() != 0
    with store.open():
        pass  # sweeps up after the killed one
