"""A containerd that shares a socket with its client and no files, as one in a virtual machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from promptness import AT_ONCE
from pybuild.backend import Backend, BindMount, ROLayer
from pybuild.errors import BuildCancelled
from pybuild.files.trees import MemoryTree
from pybuild.testkit.baseimages import BUSYBOX, busybox_entries, busybox_layout
from pybuild.testkit.containerd import (
    PrivateContainerd,
    check_nothing_left,
    private_containerd,
)
from pybuild.testkit.layouts import import_into_containerd
from pybuild.testkit.suite_mounts import MountSuite
from pybuild.testkit.suite_runs import RunSuite
from pybuild.testkit.validate import validate
from pybuild.testkit.workbench import RecordingActivity, Workbench, content, file
from pybuild_containerd import rpcs
from pybuild_containerd.backend import ContainerdBackend, open_backend
from pybuild_containerd.client import Client
from pybuild_containerd.snapshots import Snapshots

pytestmark = [pytest.mark.root, pytest.mark.containerd]

# what resolv.conf there says, and not here
NAMESERVER = "nameserver 192.0.2.53"

# In a mount namespace of its own: only the daemon's folder with the socket is as it was, but
# for the files of the daemon in it. The programs may be below /tmp themselves.
_ELSEWHERE = """
set -e
mkdir -p "$1/root" "$1/state" "$1/programs"
mount --bind "$(dirname "$(command -v containerd)")" "$1/programs"
mount --rbind "$1" /mnt
mount -t tmpfs none /tmp
mkdir -p "$1"
mount --move /mnt "$1"
mount -t tmpfs none "$1/root"
mount -t tmpfs none "$1/state"
echo "$2" > /tmp/resolv.conf
mount --bind /tmp/resolv.conf /etc/resolv.conf
PATH="$1/programs:$PATH"
shift 2
exec "$@"
"""


def _elsewhere(folder: Path) -> list[str]:
    shell = ["sh", "-c", _ELSEWHERE, "sh", str(folder), NAMESERVER]
    return ["unshare", "--mount", "--propagation", "private", *shell]


@pytest.fixture(scope="module")
def remote() -> Iterator[PrivateContainerd]:
    with private_containerd(wrapper=_elsewhere) as daemon:
        yield daemon


def _open(daemon: PrivateContainerd, namespace: str) -> ContainerdBackend:
    backend = open_backend({"address": daemon.address, "namespace": namespace})
    assert isinstance(backend, ContainerdBackend)
    return backend


@pytest.fixture
def bench(remote: PrivateContainerd) -> Iterator[Workbench]:
    with _open(remote, "remote") as backend, Workbench(backend, "") as bench:
        yield bench
    check_nothing_left(remote.address, "remote", remote.folder)


def _busybox(bench: Workbench) -> ROLayer:
    return bench.put(bench.scratch(), *busybox_entries())


def test_an_image_is_built(remote: PrivateContainerd, bench: Workbench) -> None:
    assert not any((remote.folder / "root").iterdir())
    put = bench.put(_busybox(bench), file(b"from/context", b"copied\n"))
    mount = BindMount("/mnt/in", MemoryTree([file(b"f", b"mounted\n")]))
    script = "cat /from/context /mnt/in/f > /made; rm /etc/shadow; echo said; echo blamed >&2"
    ran = bench.run(put, script, [mount])
    assert (ran.code, ran.out, ran.err) == (0, "said\n", "blamed\n")
    again = bench.run(ran.layer, "cat /made; ls /etc/shadow")
    assert again.out == "copied\nmounted\n"
    assert again.code != 0
    image = bench.create(ran.layer, "elsewhere", cmd=("/bin/cat", "/made"))
    validate(bench.backend, image)
    assert content(ran.layer, b"made") == b"copied\nmounted\n"


def test_names_are_resolved_as_where_containerd_is(bench: Workbench) -> None:
    base = _busybox(bench)
    assert bench.run(base, "cat /etc/resolv.conf").out == f"{NAMESERVER}\n"
    assert bench.run(base, "echo > /etc/resolv.conf").code != 0


def test_output_comes_while_the_process_runs(bench: Workbench) -> None:
    base = _busybox(bench)
    told = threading.Event()

    class Listening(RecordingActivity):
        def log(self, stream: int, data: bytes) -> None:
            super().log(stream, data)
            told.set()

    activity = Listening()
    begun = time.monotonic()
    ended: list[float] = []

    def run() -> None:
        bench.run(base, "echo early; sleep 5; echo late", activity=activity)
        ended.append(time.monotonic() - begun)

    thread = Thread(target=run)
    thread.start()
    assert told.wait(4)
    assert activity.stdout == b"early\n"
    assert not ended
    thread.join()
    assert activity.stdout == b"early\nlate\n"


def test_much_output_comes_whole_and_once(bench: Workbench) -> None:
    ran = bench.run(_busybox(bench), "seq 1 300000; sleep 2; seq 300001 600000; echo end >&2")
    assert ran.out == "".join(f"{number}\n" for number in range(1, 600_001))
    assert ran.err == "end\n"


def test_cancel_at_any_time_leaves_nothing(remote: PrivateContainerd) -> None:
    for delay in (0.0, 0.05, 0.15, 0.3, 1.1):
        with _open(remote, "remote") as backend, Workbench(backend, "") as bench:
            base = _busybox(bench)
            activity = RecordingActivity()
            canceller = Thread(target=lambda d=delay, a=activity: (time.sleep(d), a.cancel()))
            canceller.start()
            begun = time.monotonic()
            with pytest.raises(BuildCancelled):
                bench.run(base, "while :; do echo on and on; done", activity=activity)
            assert time.monotonic() - begun < delay + AT_ONCE
            canceller.join()
        check_nothing_left(remote.address, "remote", remote.folder)


def test_nothing_of_the_output_is_left_after_a_step(
    remote: PrivateContainerd, bench: Workbench
) -> None:
    base = _busybox(bench)
    bench.run(base, "true").layer.release()
    before = _counts(remote)
    for _ in range(3):
        bench.run(base, "echo x; sleep 1.5; exit 3").layer.release()
    assert _counts(remote) == before


def _counts(daemon: PrivateContainerd) -> tuple[int, ...]:
    """How many snapshots and blobs there are."""
    with Client(daemon.address, "remote") as client:
        snapshots = list(Snapshots(client, "overlayfs").list())
        with client.stream(rpcs.CONTENT_LIST) as pages:
            blobs = [info for page in pages for info in page.info]
    return len(snapshots), len(blobs)


class TestRemote(RunSuite, MountSuite):
    """Whatever runs a process, of the suite of every backend."""

    @pytest.fixture(scope="class")
    @classmethod
    def daemon(
        cls, remote: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory
    ) -> PrivateContainerd:
        layout = busybox_layout(tmp_path_factory.mktemp("layout") / "busybox", BUSYBOX)
        import_into_containerd(layout, remote.address, "suite")
        return remote

    @pytest.fixture
    def backend(self, daemon: PrivateContainerd, tmp_path: Path) -> Iterator[Backend]:
        given = {"address": daemon.address, "namespace": "suite", "cache_dir": tmp_path}
        with open_backend(given) as backend:
            yield backend
        check_nothing_left(daemon.address, "suite", daemon.folder)
