"""The parts of the containerd backend below its layers, against a real containerd."""

from __future__ import annotations

import gc
import grp
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pybuild.errors import BackendUnavailable, BuildCancelled
from pybuild.testkit import _containerd_cleaner
from pybuild.testkit.containerd import PrivateContainerd, check_nothing_left, private_containerd
from pybuild_containerd import leases, rpcs
from pybuild_containerd.client import Client, Stream
from pybuild_containerd.content import ContentStore
from pybuild_containerd.errors_table import (
    AlreadyExists,
    CallFailed,
    FailedPrecondition,
    InvalidArgument,
    Locked,
    NotFound,
)
from pybuild_containerd.leases import Owner, Session, collect_garbage, keep_content, sweep
from pybuild_containerd.probe import probe, usable_snapshotters
from pybuild_containerd.snapshots import Snapshots, layer_folders

pytestmark = [pytest.mark.root, pytest.mark.containerd]

NAMESPACE = "default"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateContainerd]:
    missing = [name for name in ("containerd", "runc") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        message = f"needs root, containerd and runc (missing: {missing}, uid {os.geteuid()})"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with private_containerd(socket_gid=grp.getgrnam("nogroup").gr_gid) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: PrivateContainerd) -> Iterator[Client]:
    with Client(daemon.address, NAMESPACE) as client:
        yield client
    check_nothing_left(daemon.address, NAMESPACE, daemon.folder)


@pytest.fixture
def session(client: Client) -> Iterator[Session]:
    with Session(client) as session:
        yield session


@pytest.fixture
def store(client: Client, session: Session) -> ContentStore:
    return ContentStore(client)


@pytest.fixture
def snapshots(client: Client, session: Session) -> Snapshots:
    return Snapshots(client, "overlayfs")


# content


@pytest.mark.parametrize("size", [0, 1, 1000, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_a_blob_of_any_size_is_written_and_read(store: ContentStore, size: int) -> None:
    data = os.urandom(size)
    digest = digest_of(data)
    with store.writer() as writer:
        for start in range(0, size, 70_000):
            writer.write(data[start : start + 70_000])
        writer.commit(digest, size, {"a/b.c": "x"})
    assert store.read(digest) == data
    info = store.info(digest)
    assert (info.size, info.labels["a/b.c"]) == (size, "x")


def test_a_buffer_may_be_used_again_once_it_was_written(store: ContentStore) -> None:
    data = os.urandom(3_500_000)
    buffer = bytearray(data)
    with store.writer() as writer:
        writer.write(memoryview(buffer)[:500_000])
        writer.write(memoryview(buffer)[500_000:])
        buffer[:] = bytes(len(buffer))
        writer.commit(digest_of(data), len(data))
    assert store.read(digest_of(data)) == data


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 0), (0, 1), (5, 10), (2_999_999, 0), (2_999_999, 9), (3_000_000, 0)]
)
def test_a_range_of_a_blob_is_read(store: ContentStore, offset: int, size: int) -> None:
    data = bytes(range(250)) * 12_000
    store.write_small(data, digest_of(data))
    with store.open(digest_of(data), offset, size) as blob:
        assert blob.read() == data[offset : offset + size if size else None]


def test_a_reader_may_stop_early(store: ContentStore) -> None:
    data = os.urandom(8 << 20)
    store.write_small(data, digest_of(data))
    with store.open(digest_of(data)) as blob:
        assert blob.read(10) == data[:10]
    before = {thread.ident for thread in threading.enumerate()}
    assert len(before) < 60


def test_an_unknown_blob_is_not_found(store: ContentStore) -> None:
    digest = digest_of(b"unknown")
    assert not store.exists(digest)
    store.delete(digest)
    with pytest.raises(NotFound):
        store.open(digest)
    with pytest.raises(NotFound):
        store.update_labels(digest, {"a": "b"})


def test_writing_what_exists_keeps_it_and_adds_the_labels(
    client: Client, store: ContentStore
) -> None:
    data = os.urandom(100)
    digest = digest_of(data)
    store.write_small(data, digest, {"first": "1"})
    first, client.lease = client.lease, "second"
    client.call(rpcs.LEASE_CREATE, id="second")
    try:
        store.write_small(data, digest, {"second": "2"})
        with store.writer(expected=digest, total=len(data)) as writer:
            assert writer.present
            assert writer.complete
            writer.commit(digest, len(data), {"third": "3"})
        kept = client.call(rpcs.LEASE_RESOURCES, id="second").resources
        assert [(resource.type, resource.id) for resource in kept] == [("content", digest)]
    finally:
        client.call(rpcs.LEASE_DELETE, id="second")
        client.lease = first
    assert store.info(digest).labels.items() >= {"first": "1", "second": "2", "third": "3"}.items()
    store.update_labels(digest, {"first": ""})
    assert "first" not in store.info(digest).labels


def test_two_writers_of_one_blob_at_once_both_succeed(store: ContentStore) -> None:
    data = os.urandom(3 << 20)
    digest = digest_of(data)
    with store.writer() as one, store.writer() as other:
        for writer in (one, other):
            writer.write(data)
        one.commit(digest, len(data), {"one": "1"})
        other.commit(digest, len(data), {"other": "2"})
    assert {"one", "other"} <= set(store.info(digest).labels)


def test_bytes_that_differ_from_their_digest_are_refused_and_dropped(
    client: Client, store: ContentStore
) -> None:
    with pytest.raises(FailedPrecondition), store.writer() as writer:  # noqa: PT012  # what follows is one act
        writer.write(b"other bytes")
        writer.commit(digest_of(b"bytes"), 11)
    with pytest.raises(FailedPrecondition), store.writer() as writer:  # noqa: PT012  # what follows is one act
        writer.write(b"bytes")
        writer.commit(digest_of(b"bytes"), 4)
    assert not client.call(rpcs.CONTENT_STATUSES).statuses


def test_a_writer_left_without_commit_leaves_no_ingest(client: Client, store: ContentStore) -> None:
    with store.writer() as writer:
        writer.write(os.urandom(3 << 20))
    assert not client.call(rpcs.CONTENT_STATUSES).statuses


def test_a_resumable_writer_goes_on_where_it_was_cut(client: Client, store: ContentStore) -> None:
    data = os.urandom(5 << 20)
    digest = digest_of(data)
    with (  # noqa: PT012  # what follows is one act
        pytest.raises(ZeroDivisionError),
        store.writer("layer-x", expected=digest, total=len(data), resumable=True) as writer,
    ):
        writer.write(data[: 3 << 20])
        raise ZeroDivisionError
    with store.writer("layer-x", expected=digest, total=len(data), resumable=True) as writer:
        assert 0 < writer.offset <= 3 << 20
        writer.write(data[writer.offset :])
        writer.commit(digest, len(data))
    assert store.read(digest) == data
    assert not client.call(rpcs.CONTENT_STATUSES).statuses


def test_a_held_ref_is_locked_and_a_second_writer_waits_for_it(store: ContentStore) -> None:
    data = os.urandom(1000)
    digest = digest_of(data)
    with store.writer("layer-y", expected=digest) as first:
        with pytest.raises(Locked), pytest.MonkeyPatch.context() as patch:  # noqa: PT012  # what follows is one act
            patch.setattr("pybuild_containerd.content._LOCKED_SECONDS", 0.2)
            store.writer("layer-y", expected=digest)
        first.write(data)
        done = threading.Event()

        def second() -> None:
            with store.writer("layer-y", expected=digest) as writer:
                assert writer.present
                writer.commit(digest, len(data))
            done.set()

        thread = threading.Thread(target=second)
        thread.start()
        assert not done.wait(0.3)
        first.commit(digest, len(data))
        assert done.wait(10)
        thread.join()


def test_a_blob_of_another_namespace_needs_no_bytes(
    daemon: PrivateContainerd, store: ContentStore
) -> None:
    data = os.urandom(100_000)
    digest = digest_of(data)
    store.write_small(data, digest)
    with Client(daemon.address, "other") as other, Session(other):
        there = ContentStore(other)
        assert not there.exists(digest)
        with there.writer(expected=digest, total=len(data)) as writer:
            assert writer.complete
            writer.commit(digest, len(data), {"a": "b"})
        assert there.read(digest) == data
        assert there.info(digest).labels["a"] == "b"
    check_nothing_left(daemon.address, "other")


def test_many_threads_write_over_one_connection(store: ContentStore) -> None:
    blobs = [os.urandom(300_000) for _ in range(24)]
    failures: list[BaseException] = []

    def write(some: list[bytes]) -> None:
        try:
            for data in some:
                store.write_small(data, digest_of(data))
        except BaseException as error:  # noqa: BLE001  # judged by the test
            failures.append(error)

    threads = [threading.Thread(target=write, args=(blobs[i::6],)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(store.read(digest_of(data)) == data for data in blobs)


# leases


@pytest.mark.parametrize("patience", [None, 0.0])
def test_what_a_session_made_is_collected_after_it(
    daemon: PrivateContainerd,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    patience: float | None,
) -> None:
    if patience is not None:
        monkeypatch.setattr(leases, "_COLLECTION_SECONDS", patience)
    snapshots = Snapshots(client, "overlayfs")
    with Session(client):
        ContentStore(client).write_small(b"gone", digest_of(b"gone"))
        snapshots.prepare("gone")
        collect_garbage(client)
        assert ContentStore(client).exists(digest_of(b"gone"))
    assert client.lease is None
    assert not client.call(rpcs.LEASE_LIST).leases
    # nothing else begins a collection here
    until = time.monotonic() + 10
    while ContentStore(client).exists(digest_of(b"gone")) or snapshots.exists("gone"):
        assert time.monotonic() < until
        time.sleep(0.01)
    check_nothing_left(daemon.address, NAMESPACE)


def test_a_lease_is_renewed_and_keeps_everything_beyond_its_first_lifetime(client: Client) -> None:
    with Session(client, lifetime=2) as session:
        store = ContentStore(client)
        store.write_small(b"kept", digest_of(b"kept"))
        Snapshots(client, "overlayfs").prepare("kept")
        first = client.lease
        time.sleep(3.5)
        collect_garbage(client)
        assert client.lease != first
        assert store.read(digest_of(b"kept")) == b"kept"
        assert Snapshots(client, "overlayfs").stat("kept").kind == "active"
        names = {lease.id for lease in client.call(rpcs.LEASE_LIST).leases}
        assert len(names) <= 2
        assert all(name.startswith(session.id) for name in names)


def test_the_error_of_a_stream_keeps_nothing_alive(client: Client) -> None:
    class Mark:
        pass

    def fail() -> weakref.ref[Mark]:
        mark = Mark()
        with (
            client.stream(rpcs.CONTENT_READ, digest=digest_of(b"is nowhere")) as stream,
            pytest.raises(NotFound),
        ):
            read(stream, mark)
        with pytest.raises(NotFound):
            stream.receive()
        return weakref.ref(mark)

    def read(stream: Stream, _in_the_traceback: Mark) -> None:
        stream.receive()

    gc.collect()
    gc.disable()
    try:
        assert fail()() is None
    finally:
        gc.enable()


def test_what_a_stream_adds_to_the_old_lease_survives_the_renewal(client: Client) -> None:
    with Session(client) as session:
        store = ContentStore(client)
        with store.writer() as writer:
            writer.write(b"late")
            session.renew()
            writer.commit(digest_of(b"late"), 4)
        session.renew()
        session.renew()
        collect_garbage(client)
        assert store.exists(digest_of(b"late"))


def test_a_session_ends_quietly_when_the_daemon_is_gone() -> None:
    with private_containerd() as daemon, Client(daemon.address, NAMESPACE) as client:
        with Session(client):
            daemon.kill()
        assert client.lease is None


def _leave_behind(address: str, labels: dict[str, str]) -> None:
    """A lease, a snapshot and a container record, as a killed build leaves them."""
    with Client(address, NAMESPACE) as client:
        name = labels[leases.SESSION]
        expire = {"containerd.io/gc.expire": "2999-01-01T00:00:00Z"} | labels
        client.call(rpcs.LEASE_CREATE, id=name, labels=expire)
        client.lease = name
        Snapshots(client, "overlayfs").prepare(name)
        client.call(
            rpcs.CONTAINER_CREATE,
            container={
                "id": name,
                "labels": labels,
                "runtime": {"name": "io.containerd.runc.v2"},
                "spec": {"type_url": "x", "value": b"{}"},
                "snapshotter": "overlayfs",
                "snapshot_key": name,
            },
        )


def _left(client: Client) -> tuple[set[str], set[str]]:
    return (
        {container.id for container in client.call(rpcs.CONTAINER_LIST).containers},
        {lease.id for lease in client.call(rpcs.LEASE_LIST).leases},
    )


def test_a_sweep_removes_the_dead_and_spares_the_living_and_strangers(
    daemon: PrivateContainerd, client: Client
) -> None:
    me = Owner.of_process(os.getpid())
    owners = {
        "dead": replace(me, started="1"),
        "alive": me,
        "other-boot": replace(me, boot="other", started="1"),
        "other-host": replace(me, pid_namespace="1", started="1"),
    }
    for name, owner in owners.items():
        _leave_behind(daemon.address, {leases.SESSION: name} | owner.labels())
    client.call(rpcs.LEASE_CREATE, id="not-ours", labels={"x": "y"})
    try:
        swept = sweep(client)
        assert (swept.containers, swept.leases) == (1, 1)
        spared = {"alive", "other-boot", "other-host"}
        assert _left(client) == (spared, spared | {"not-ours"})
        with pytest.raises(NotFound):
            Snapshots(client, "overlayfs").stat("dead")
        # a lease that is gone has expired: then strangers' containers may go too
        for name in spared:
            client.call(rpcs.LEASE_DELETE, id=name)
        assert sweep(client).containers == 2
        assert _left(client)[0] == {"alive"}
    finally:
        for container in _left(client)[0]:
            client.call(rpcs.CONTAINER_DELETE, id=container)
        client.call(rpcs.LEASE_DELETE, id="not-ours", sync=True)


_SLEEPER = """
import json, sys, time
from pybuild_containerd import rpcs
from pybuild_containerd.client import Client
from pybuild_containerd.content import ContentStore
from pybuild_containerd.leases import Session
from pybuild_containerd.snapshots import Snapshots

client = Client(sys.argv[1], "default")
session = Session(client)
session.__enter__()
snapshots = Snapshots(client, "overlayfs")
mounts = snapshots.prepare(session.id)
ContentStore(client).writer("killed").write(b"x" * (2 << 20))
spec = {
    "ociVersion": "1.0.2",
    "process": {"args": ["/bin/sleep", "600"], "cwd": "/", "env": ["PATH=/bin"]},
    "root": {"path": "rootfs"},
    "mounts": [
        {"destination": f"/{name}", "source": f"/{name}", "type": "bind", "options": ["rbind", "ro"]}
        for name in ("usr", "bin", "lib", "lib64")
    ] + [{"destination": "/proc", "type": "proc", "source": "proc"}],
    "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}], "cgroupsPath": f"/test-{session.id}"},
}
client.call(rpcs.CONTAINER_CREATE, container={
    "id": session.id, "labels": session.labels, "runtime": {"name": "io.containerd.runc.v2"},
    "spec": {"type_url": "types.containerd.io/opencontainers/runtime-spec/1/Spec",
             "value": json.dumps(spec).encode()},
    "snapshotter": "overlayfs", "snapshot_key": session.id,
})
client.call(rpcs.TASK_CREATE, container_id=session.id, rootfs=[m.fields() for m in mounts])
print(client.call(rpcs.TASK_START, container_id=session.id).pid, flush=True)
time.sleep(600)
"""


def test_a_sweep_ends_the_task_of_a_build_that_was_killed(
    daemon: PrivateContainerd, client: Client
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SLEEPER, daemon.address], stdout=subprocess.PIPE
    ) as build:
        assert build.stdout is not None
        task = int(build.stdout.readline())
        assert sweep(client).containers == 0
        build.kill()
    assert Path(f"/proc/{task}").exists()
    swept = sweep(client)
    assert (swept.containers, swept.leases) == (1, 1)
    assert not Path(f"/proc/{task}").exists()
    check_nothing_left(daemon.address, NAMESPACE, daemon.folder)


# snapshots


def test_the_life_of_a_snapshot(snapshots: Snapshots) -> None:
    folders = layer_folders(snapshots.prepare("life-1", labels={"a": "1"}))
    assert folders is not None
    assert folders.upper is not None
    Path(folders.upper, "file").write_bytes(b"x" * 100_000)
    assert snapshots.stat("life-1").kind == "active"
    assert snapshots.commit("life-1", "life-one", {"b": "2"})
    assert not snapshots.exists("life-1")
    assert snapshots.exists("life-one")
    assert snapshots.usage("life-one").size >= 100_000
    info = snapshots.stat("life-one")
    assert (info.kind, info.parent) == ("committed", "")
    above = snapshots.prepare("life-2", "life-one")
    assert layer_folders(snapshots.mounts("life-2")) == layer_folders(above)
    lower = layer_folders(above)
    assert lower is not None
    assert lower.lowers == (folders.upper,)
    assert not lower.unknown
    view = layer_folders(snapshots.view("life-3", "life-one"))
    assert view is not None
    assert (view.upper, view.lowers) == (None, (folders.upper,))
    snapshots.update_labels("life-one", {"c": "3", "b": ""})
    assert "b" not in snapshots.stat("life-one").labels
    assert {"life-one", "life-2", "life-3"} <= {info.name for info in snapshots.list()}
    with pytest.raises(FailedPrecondition):
        snapshots.remove("life-one")
    for key in ("life-2", "life-3", "life-one", "life-one"):
        snapshots.remove(key)


def test_a_commit_that_comes_second_drops_its_own_and_keeps_the_first(
    client: Client, snapshots: Snapshots
) -> None:
    snapshots.prepare("second-1")
    snapshots.prepare("second-2")
    assert snapshots.commit("second-1", "second")
    assert not snapshots.commit("second-2", "second")
    assert not snapshots.exists("second-2")
    kept = client.call(rpcs.LEASE_RESOURCES, id=client.lease).resources
    assert ("snapshots/overlayfs", "second") in {(kept.type, kept.id) for kept in kept}


def test_finding_a_snapshot_of_someone_elses_keeps_it(
    daemon: PrivateContainerd, client: Client, snapshots: Snapshots
) -> None:
    with Client(daemon.address, NAMESPACE) as other, Session(other):
        theirs = Snapshots(other, "overlayfs")
        theirs.prepare("theirs-1")
        theirs.commit("theirs-1", "theirs")
        assert snapshots.exists("theirs")
    collect_garbage(client)
    assert snapshots.stat("theirs").kind == "committed"


def test_errors_of_snapshots_are_told_apart(client: Client, snapshots: Snapshots) -> None:
    snapshots.prepare("once")
    with pytest.raises(AlreadyExists):
        snapshots.prepare("once")
    with pytest.raises(NotFound):
        snapshots.prepare("child", "no-such-parent")
    with pytest.raises(InvalidArgument):
        Snapshots(client, "no-such").prepare("x")


# what containerd can do


def test_the_probe_knows_this_containerd(client: Client, session: Session) -> None:
    found = probe(client)
    assert found.version == client.version
    assert found.snapshotter == "overlayfs"
    assert {"overlayfs", "native"} <= set(found.snapshotters)
    assert found.shared_fs
    assert found.can_mount
    assert [platform.os for platform in found.platforms] == ["linux"]
    assert not any(Snapshots(client, "overlayfs").list("kind==active"))


def test_a_namespace_may_have_a_default_snapshotter(daemon: PrivateContainerd) -> None:
    labels = {"containerd.io/defaults/snapshotter": "native"}
    with Client(daemon.address, "labelled") as client:
        client.call(rpcs.NAMESPACE_CREATE, namespace={"name": "labelled", "labels": labels})
        with Session(client):
            assert probe(client).snapshotter == "native"
            assert probe(client, "overlayfs").snapshotter == "overlayfs"
    check_nothing_left(daemon.address, "labelled")


def test_a_missing_snapshotter_is_an_error_that_names_the_usable_ones(client: Client) -> None:
    with pytest.raises(BackendUnavailable, match="'stargz'") as caught:
        probe(client, "stargz")
    assert "native, overlayfs" in (caught.value.hint or "")
    assert {found.name for found in usable_snapshotters(client)} >= {"native", "overlayfs"}


def test_an_unprivileged_user_with_the_socket_has_no_files_of_snapshots(
    daemon: PrivateContainerd,
) -> None:
    program = (
        "import os, sys\n"
        "from pybuild_containerd.client import Client\n"
        "from pybuild_containerd.leases import Session\n"
        "from pybuild_containerd.probe import probe\n"
        "os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(65534)\n"
        "with Client(sys.argv[1], 'default') as client, Session(client):\n"
        "    found = probe(client)\n"
        "    print(found.shared_fs, found.can_mount)"
    )
    group = str(grp.getgrnam("nogroup").gr_gid)
    told = subprocess.run(
        [sys.executable, "-c", program, daemon.address, group],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.stdout.split() == ["False", "False"], told.stderr


# the daemon's faults


def test_a_restarted_daemon_is_found_again_by_calls_that_read() -> None:
    with private_containerd() as daemon, Client(daemon.address, NAMESPACE) as client:
        with Session(client):
            store = ContentStore(client)
            store.write_small(b"before", digest_of(b"before"))
            daemon.kill()
            starter = threading.Timer(0.3, daemon.start)
            starter.start()
            assert store.read(digest_of(b"before")) == b"before"
            starter.join()
            store.write_small(b"after", digest_of(b"after"))
        check_nothing_left(daemon.address, NAMESPACE, daemon.folder)


def test_a_daemon_that_dies_in_the_middle_of_a_blob_is_a_clear_error() -> None:
    with private_containerd() as daemon, Client(daemon.address, NAMESPACE) as client:
        started = time.monotonic()
        with pytest.raises(BackendUnavailable), ContentStore(client).writer() as writer:  # noqa: PT012  # what follows is one act
            writer.write(b"x" * (4 << 20))
            daemon.kill()
            while True:
                writer.write(b"x" * (1 << 20))
        assert time.monotonic() - started < 10
        with pytest.raises(BackendUnavailable, match="nothing listens there"):
            Client(daemon.address, NAMESPACE)
        daemon.start()
        leftover = client.call(rpcs.CONTENT_STATUSES).statuses
        for ingest in leftover:
            client.call(rpcs.CONTENT_ABORT, ref=ingest.ref)


class _Cancelled:
    """An activity of a build that is cancelled already."""

    def raise_if_cancelled(self) -> None:
        raise BuildCancelled("cancelled")


def test_a_cancelled_build_writes_nothing(client: Client, store: ContentStore) -> None:
    activity: Any = _Cancelled()
    with pytest.raises(BuildCancelled):
        store.writer(activity=activity)
    assert not client.call(rpcs.CONTENT_STATUSES).statuses


# the testkit itself


def test_a_leftover_is_found(daemon: PrivateContainerd) -> None:
    with Client(daemon.address, "untidy") as client:
        client.call(rpcs.LEASE_CREATE, id="forgotten")
        client.lease = "forgotten"
        Snapshots(client, "overlayfs").prepare("active")
        ContentStore(client).writer("begun").write(b"x" * (2 << 20))
        with pytest.raises(AssertionError) as caught:
            check_nothing_left(daemon.address, "untidy", daemon.folder)
        client.call(rpcs.LEASE_DELETE, id="forgotten", sync=True)
    for left in ("lease forgotten", "overlayfs snapshot active", "ingest begun"):
        assert left in str(caught.value)


def _alive(folder: Path) -> bool:
    return any(
        str(folder) in argument
        for _, arguments in _containerd_cleaner._processes()
        for argument in arguments
    )


def test_a_private_containerd_with_a_running_task_leaves_nothing() -> None:
    with (
        private_containerd() as daemon,
        subprocess.Popen(
            [sys.executable, "-c", _SLEEPER, daemon.address], stdout=subprocess.PIPE
        ) as build,
    ):
        assert build.stdout is not None
        task = int(build.stdout.readline())
        build.kill()
    assert not _containerd_cleaner._runs(task)
    assert not daemon.folder.exists()
    assert not _alive(daemon.folder)
    assert not list(Path("/sys/fs/cgroup").glob("**/test-pybuild-*"))


def test_a_killed_test_leaves_neither_containerd_nor_files() -> None:
    program = (
        "import time\n"
        "from pybuild.testkit.containerd import private_containerd\n"
        "with private_containerd() as daemon:\n"
        "    print(daemon.folder, flush=True)\n"
        "    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as test:
        assert test.stdout is not None
        folder = Path(test.stdout.readline().decode().strip())
        assert folder.is_dir()
        test.kill()
    deadline = time.monotonic() + 10
    while (folder.exists() or _alive(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not folder.exists()
    assert not _alive(folder)


def test_a_missing_containerd_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="install containerd and runc"), private_containerd():
        pass


def test_a_folder_with_a_long_name_is_refused(tmp_path: Path) -> None:
    parent = tmp_path / ("x" * 120)
    parent.mkdir()
    with pytest.raises(RuntimeError, match="too long"), private_containerd(parent=parent):
        pass
    assert not list(parent.iterdir())


def test_keeping_without_a_lease_is_nothing(client: Client) -> None:
    keep_content(client, digest_of(b"nothing"))
    with suppress(CallFailed):
        client.call(rpcs.LEASE_DELETE, id="nothing")
