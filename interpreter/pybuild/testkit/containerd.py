"""A containerd of one's own for tests, and a check that nothing was left in it.

::

    with private_containerd() as daemon:
        ...                                       # build with daemon.address
        check_nothing_left(daemon.address, "default", daemon.folder)

It needs root, and in PATH a containerd from 1.6 on with its shim, and runc. Nothing here needs
pytest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pybuild.errors import BackendUnavailable
from pybuild.testkit import _containerd_cleaner as cleaner_program
from pybuild_containerd import rpcs
from pybuild_containerd.cachefolders import CACHE_LABEL
from pybuild_containerd.client import COMMITTED, Client
from pybuild_containerd.leases import collect_garbage
from pybuild_containerd.probe import usable_snapshotters

# Version 2 is the newest that 1.6 reads and 2.x reads still; what a containerd doesn't have may
# be disabled nevertheless, so that one list fits all.
_CONFIG = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
oom_score = 0
disabled_plugins = [
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
    "io.containerd.monitor.container.v1.restart",
    "io.containerd.nri.v1.nri",
    "io.containerd.podsandbox.controller.v1.podsandbox",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.tracing",
]

[grpc]
address = "{folder}/c.sock"
uid = {uid}
gid = {gid}

[ttrpc]
address = "{folder}/t.sock"
"""

_LONGEST_SOCKET_PATH = 100
_NEEDED_PROGRAMS = ("containerd", "runc")
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0


class PrivateContainerd:
    """A containerd whose root, state, socket and log are in `folder`.

    ``wrapper`` is a command that executes the one that follows it.
    """

    def __init__(self, folder: Path, wrapper: Sequence[str] = ()) -> None:
        self._wrapper = tuple(wrapper)
        self.folder = folder
        self.address = str(folder / "c.sock")
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "this containerd isn't running"
        return self._process.pid

    def collect_garbage(self, namespace: str) -> None:
        """Have it remove what nothing in `namespace` refers to, which a build doesn't wait for."""
        with Client(self.address, namespace) as client:
            collect_garbage(client)

    def log(self) -> str:
        """What the daemon wrote so far."""
        return self._log.read_text(errors="replace")

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._wrapper, "containerd", "--config", str(self.folder / "config.toml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )
        self._wait_until_it_answers()

    def kill(self) -> None:
        """End the daemon as a crash would. Tasks go on; `start` may follow."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the daemon in its own time. Tasks go on; `start` may follow."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Stop the daemon and start it again on the same files."""
        self.stop()
        self.start()

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                Client(self.address, "default").close()
            except BackendUnavailable as error:
                ended = self._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    fate = "ended" if ended else "didn't answer"
                    raise RuntimeError(
                        f"containerd {fate} ({error.message}); its log:\n{self.log()[-4000:]}"
                    ) from None
                time.sleep(0.02)
            else:
                return


@contextlib.contextmanager
def private_containerd(
    *,
    socket_uid: int = 0,
    socket_gid: int = 0,
    parent: Path | None = None,
    wrapper: Callable[[Path], Sequence[str]] = lambda _: (),
) -> Iterator[PrivateContainerd]:
    """A containerd with its own files in a new folder; all of it is gone afterwards.

    Members of the group `socket_gid` may use the socket. `parent` is where the folder is
    made; overlayfs needs a file system there that isn't an overlay itself. `wrapper` gives
    the :class:`PrivateContainerd` of a folder its wrapper. A process of its
    own cleans up, so that a killed test leaves nothing either. Raises RuntimeError where a
    program is missing or the daemon doesn't start.
    """
    _check_prerequisites()
    folder = Path(tempfile.mkdtemp(prefix="ctd-", dir=parent))
    if len(str(folder / "t.sock")) > _LONGEST_SOCKET_PATH:
        folder.rmdir()
        raise RuntimeError(f"{folder} is too long a path for a socket; give another parent")
    cleaner = subprocess.Popen(
        [sys.executable, "-I", "-S", cleaner_program.__file__, str(folder)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert cleaner.stdin is not None
    daemon = PrivateContainerd(folder, wrapper(folder))
    try:
        folder.chmod(0o711)
        config = _CONFIG.format(folder=folder, uid=socket_uid, gid=socket_gid)
        (folder / "config.toml").write_text(config)
        daemon.start()
        yield daemon
    finally:
        daemon.stop()
        cleaner.stdin.close()
        cleaner.wait()
    if folder.exists():
        raise RuntimeError(f"{folder} could not be removed")


def _check_prerequisites() -> None:
    missing = [program for program in _NEEDED_PROGRAMS if shutil.which(program) is None]
    if missing:
        raise RuntimeError(f"install {' and '.join(missing)} to start a containerd")
    if os.geteuid() != 0:
        raise RuntimeError("only root can start a containerd")


def check_nothing_left(address: str, namespace: str, folder: Path | None = None) -> None:
    """Raise AssertionError if a build left anything behind but images, their layers and caches.

    Leases, containers, tasks, uncommitted snapshots and unfinished ingests of `namespace`
    are listed, and mounts below `folder` if it is given. What containerd is about to collect
    isn't left.
    """
    left = list(_leftovers(address, namespace))
    if left:
        with Client(address, namespace) as client:
            collect_garbage(client)
        left = list(_leftovers(address, namespace))
    if folder is not None:
        left += [f"mount {point}" for point in cleaner_program.mounts_below(folder)]
    if left:
        raise AssertionError(f"left in containerd's namespace {namespace}: {', '.join(left)}")


def _leftovers(address: str, namespace: str) -> Iterator[str]:
    with Client(address, namespace) as client:
        for lease in client.call(rpcs.LEASE_LIST).leases:
            yield f"lease {lease.id} {dict(lease.labels)}"
        for container in client.call(rpcs.CONTAINER_LIST).containers:
            yield f"container {container.id}"
        for task in client.call(rpcs.TASK_LIST).tasks:
            yield f"task {task.id}"
        for ingest in client.call(rpcs.CONTENT_STATUSES).statuses:
            yield f"ingest {ingest.ref}"
        for snapshotter in usable_snapshotters(client):
            with client.stream(rpcs.SNAPSHOT_LIST, snapshotter=snapshotter.name) as pages:
                for page in pages:
                    for info in page.info:
                        if info.kind != COMMITTED and CACHE_LABEL not in info.labels:
                            yield f"uncommitted {snapshotter.name} snapshot {info.name}"
