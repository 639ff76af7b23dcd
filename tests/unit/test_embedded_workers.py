"""What is said to workers and back, what a layer's folder must hold, and how trees are removed."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self, cast

import pytest

from pybuild.errors import BackendFailed, ContextError, CopyFailed, InvalidImage, PybuildError
from pybuild.files.upperdir import OverlayNotPlain
from pybuild.oci.compression import Compression
from pybuild.oci.descriptor import Descriptor, LayerDiff
from pybuild.oci.layerindex import Entry, Kind, LayerIndex
from pybuild.oci.layerwriter import write_layer
from pybuild.sandbox.client import Sandbox
from pybuild_embedded import requests
from pybuild_embedded.inside.indexes import Indexes
from pybuild_embedded.inside.serving import serve
from pybuild_embedded.requests import Measure, Merge, Pack, Packed, Remove, Request, Unpack
from pybuild_embedded.smallfolders import remove_small
from pybuild_embedded.workers import Workers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inherent: runs on Linux only")

ODD = Path(os.fsdecode(b"/store/\xff\n x"))
DIGEST = "sha256:" + "0" * 64


class InThreads:
    """Stands for a sandbox: its workers are threads of this process."""

    def __init__(self) -> None:
        self.started = 0
        self.deaf = False
        self.threads: list[threading.Thread] = []

    def spawn_inside(self, folder: Path, module: str, fds: Sequence[int]) -> InThread:
        assert (folder / module.replace(".", "/")).with_suffix(".py").exists()
        self.started += 1
        inner = InThread(socket.socket(fileno=os.dup(fds[3])), deaf=self.deaf)
        self.threads.append(inner.thread)
        return inner


class InThread:
    def __init__(self, connection: socket.socket, *, deaf: bool) -> None:
        self._connection = connection
        self.thread = threading.Thread(target=self._work, args=(deaf,), name="worker")
        self.thread.start()

    def _work(self, deaf: bool) -> None:
        with self._connection:
            folders = requests.receive(self._connection)
            assert folders is not None
            assert json.loads(folders) == sys.path
            if deaf:  # reads a request, and ends
                requests.receive(self._connection)
            else:
                serve(self._connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.thread.join()

    def kill(self) -> None:
        pass

    def wait(self) -> int:
        self.thread.join()
        return 0


@pytest.fixture
def sandbox() -> Iterator[InThreads]:
    made = InThreads()
    yield made
    assert not any(thread.is_alive() for thread in made.threads)


def workers_of(sandbox: InThreads, most: int = 2) -> Workers:
    return Workers(cast("Sandbox", sandbox), most=most)


# --- the protocol


@pytest.mark.parametrize(
    "request_",
    [
        Unpack(ODD, DIGEST, ODD, (ODD, ODD), (), ODD, userxattr=True, owners=False),
        Unpack(ODD, DIGEST, ODD, (), (), ODD, userxattr=True, owners=False, plain=ODD),
        Pack(ODD, (), ODD, ODD, None, True, Compression.ZSTD, fuse=True),
        Pack(ODD, (ODD,), ODD, ODD, 5, False, Compression.NONE),
        Merge((ODD, ODD), (ODD,), ODD, owners=True),
        Remove((ODD,)),
        Measure((ODD, Path("/x"))),
    ],
    ids=lambda request: type(request).__name__,
)
def test_requests_arrive_as_they_were_sent(request_: Request) -> None:
    sent, received = requests.Shown(), requests.Shown()
    for _ in range(2):  # the second time, much of it is known
        assert requests.decode(requests.encode(request_, sent), received) == request_


def test_what_is_no_request_is_refused() -> None:
    with pytest.raises(ValueError, match="no request: Eval"):
        requests.decode(b'["Eval", "1"]', requests.Shown())


def test_answers_keep_their_type() -> None:
    packed = Packed(LayerDiff(DIGEST, Descriptor("type", DIGEST, 7)), 4096)
    for value in (packed, None, 5, [1, 2]):
        assert requests.decode_answer(requests.encode_answer(value)) == value


@pytest.mark.parametrize(
    "kind", [BackendFailed, ContextError, CopyFailed, InvalidImage, OverlayNotPlain]
)
def test_errors_keep_their_class_message_and_hint(kind: type[PybuildError]) -> None:
    with pytest.raises(kind) as caught:
        requests.decode_answer(requests.encode_error(kind("what", hint="do")))
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.hint) == ("what", "do")


def test_a_fault_of_a_worker_is_a_bug_of_ours_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        requests.decode_answer(requests.encode_bug("ZeroDivisionError"))


def test_messages_cut_off_are_the_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"\x05" + bytes(7) + b"abc")
        ours.shutdown(socket.SHUT_WR)
        assert requests.receive(theirs) is None


# --- the client


def test_workers_are_started_when_needed_and_used_again(sandbox: InThreads, tmp_path: Path) -> None:
    with workers_of(sandbox) as workers:
        assert sandbox.started == 0
        for _ in range(5):
            assert workers.measure([tmp_path])[0] > 0
        workers.remove([])
        assert workers.measure([]) == []
        assert sandbox.started == 1


def test_more_requests_than_workers_wait_for_a_free_one(sandbox: InThreads, tmp_path: Path) -> None:
    with workers_of(sandbox) as workers:
        pending = [workers.pack(pack_of(tmp_path, number)) for number in range(8)]
        found = [each.result() for each in pending]
        assert [each.result() for each in pending] == found
    assert sandbox.started <= 2
    assert all(each is not None for each in found)


def pack_of(folder: Path, number: int) -> Pack:
    """A request for a layer with one file, whose folder is made."""
    upper = folder / f"upper-{number}"
    upper.mkdir()
    (upper / "f").write_text(str(number))
    names = (folder / f"blob-{number}", folder / f"index-{number}")
    return Pack(upper, (), *names, newest=0, owners=False, compression=Compression.GZIP)


def test_a_failed_request_leaves_its_worker_to_others(sandbox: InThreads, tmp_path: Path) -> None:
    request = pack_of(tmp_path, 1)
    request.blob.write_bytes(b"there already")
    with workers_of(sandbox) as workers:
        pending = workers.pack(request)
        for _ in range(2):
            with pytest.raises(BackendFailed, match="File exists"):
                pending.result()
        assert workers.measure([tmp_path])[0] > 0
    assert sandbox.started == 1
    assert request.blob.read_bytes() == b"there already"


def test_a_worker_that_died_is_replaced(sandbox: InThreads, tmp_path: Path) -> None:
    with workers_of(sandbox) as workers:
        sandbox.deaf = True
        with pytest.raises(BackendFailed, match="ended in the middle"):
            workers.measure([tmp_path])
        sandbox.deaf = False
        assert workers.measure([tmp_path])[0] > 0
    assert sandbox.started == 2


def test_closing_fails_what_waits_and_all_that_comes(sandbox: InThreads, tmp_path: Path) -> None:
    pipe = tmp_path / "index"
    os.mkfifo(pipe)
    workers = workers_of(sandbox, most=1)
    # the worker waits for the index, which nobody writes
    first = workers.pack(pack_with_parent(tmp_path, 1, pipe))
    second = workers.pack(pack_of(tmp_path, 2))
    closing = threading.Thread(target=workers.close)
    with pipe.open("wb"):  # a process would be killed while it waits for more
        closing.start()
        while not workers._closed:
            time.sleep(0.001)
    closing.join()
    for pending in (first, second):
        with pytest.raises(PybuildError):
            pending.result()
    with pytest.raises(BackendFailed, match="are closed"):
        workers.measure([tmp_path])
    workers.close()


def pack_with_parent(folder: Path, number: int, parent: Path) -> Pack:
    request = pack_of(folder, number)
    return Pack(
        request.upper,
        (parent,),
        request.blob,
        request.index,
        request.newest,
        request.owners,
        request.compression,
    )


# --- indexes


def test_an_index_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "index"
    path.write_bytes(LayerIndex([Entry(b"a", Kind.DIRECTORY)]).to_bytes())
    indexes = Indexes()
    first = indexes.get(path)
    path.unlink()
    assert indexes.get(path) is first
    assert indexes.tree([path]).children(b"") == [b"a"]
    with pytest.raises(FileNotFoundError):
        Indexes().get(path)


def test_indexes_not_used_lately_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pybuild_embedded.inside.indexes._MOST_ENTRIES", 130)
    paths = [tmp_path / str(number) for number in range(3)]
    for path in paths:
        path.write_bytes(LayerIndex([Entry(b"a", Kind.DIRECTORY)]).to_bytes())
    indexes = Indexes()
    first, second = indexes.get(paths[0]), indexes.get(paths[1])
    assert indexes.get(paths[0]) is first
    indexes.get(paths[2])
    assert indexes.get(paths[0]) is first
    assert indexes.get(paths[1]) is not second


def test_an_upper_folder_without_changes_leaves_no_file(sandbox: InThreads, tmp_path: Path) -> None:
    request = pack_of(tmp_path, 1)
    written = write_layer([], lambda _piece: None)
    (tmp_path / "parent").write_bytes(written.index.to_bytes())
    (request.upper / "f").unlink()
    with workers_of(sandbox) as workers:
        assert workers.pack(request).result() is None
    assert not request.blob.exists()
    assert not request.index.exists()


# --- removing what is small


def test_what_a_step_without_changes_leaves_is_removed_without_a_worker(tmp_path: Path) -> None:
    step = tmp_path / "step"
    (step / "fs").mkdir(parents=True)
    dirty = step / "work/0/work/incompat/volatile/dirty"
    dirty.parent.mkdir(parents=True)
    dirty.touch()
    (step / "work/0/work").chmod(0)  # as overlayfs makes it
    assert remove_small(step)
    assert not step.exists()
    assert remove_small(step)


def test_what_is_large_or_deep_is_left_to_a_worker(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"wide/{number}").mkdir(parents=True)
    (tmp_path / "wide/0/1/2/3/4/5/6/7/8/9").mkdir(parents=True)
    assert not remove_small(tmp_path / "wide/0")
    assert not remove_small(tmp_path / "wide")
    assert len(list((tmp_path / "wide").iterdir())) == 9


def test_removing_what_is_small_follows_no_link(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    (tmp_path / "top").mkdir()
    (tmp_path / "top/link").symlink_to(kept)
    (tmp_path / "link").symlink_to(kept)
    assert remove_small(tmp_path / "top")
    assert not remove_small(tmp_path / "link")
    assert (kept / "file").exists()
