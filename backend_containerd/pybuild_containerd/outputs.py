"""How the output of processes gets here: through FIFOs, or through files that containerd reads.

FIFOs need a kernel and a folder in common with containerd's shim. Nothing else proves that as
well as a try: the first process whose shim doesn't open them makes a build go over to files.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import IO, BinaryIO, Protocol, Self

from pybuild.backend import Activity
from pybuild.errors import BackendError, BackendFailed
from pybuild_containerd import rpcs
from pybuild_containerd.client import Client
from pybuild_containerd.content import ContentStore
from pybuild_containerd.fifos import OutputFifos
from pybuild_containerd.runmounts import RunMounts, small_file
from pybuild_containerd.workfolder import WorkFolder

_TAR = "application/vnd.oci.image.layer.v1.tar"
_CHUNK = 64 * 1024
# seconds between two looks at the files, each of which has containerd pack all of them
_PAUSE = 1.0
# how many times as long as a look takes to wait for the next one
_RESTRAINT = 10


class Output(Protocol):
    """Where a process's output goes: two paths as the shim sees them.

    ``shared`` says that they are paths here as well. A sink gets (stream, bytes) with stream
    1 or 2, from one thread at a time.
    """

    stdout: str
    stderr: str
    shared: bool

    def is_open(self) -> bool:
        """Whether the shim has opened them; asked between the task's creation and its start."""

    def drain(self) -> None:
        """Read what is left, once the process and its shim are done. Raises what the sink did."""


class Outputs:
    """Opens outputs. ``shared`` is True until `give_up_sharing`."""

    def __init__(
        self, client: Client, content: ContentStore, mounts: RunMounts, folder: WorkFolder
    ) -> None:
        self._client = client
        self._content = content
        self._mounts = mounts
        self._folder = folder
        # containerd runs on Linux, and FIFOs don't reach into a virtual machine
        self.shared = sys.platform == "linux"

    def give_up_sharing(self) -> None:
        """Use files from now on."""
        self.shared = False

    def open(self, activity: Activity, *, shared: bool) -> AbstractContextManager[Output]:
        """An output to `activity.log`; nothing of it is left after the context."""
        if shared:
            return OutputFifos(self._folder.new_folder("output"), activity.log)
        return OutputFiles(self._client, self._content, self._mounts, activity)


class OutputFiles:
    """Two files in a snapshot of our own, to which the shim appends.

    A thread has containerd pack the snapshot's folder about every second and reads what is
    new, so that output comes late and in turns, but whole and with the streams apart.
    """

    shared = False

    def __init__(
        self, client: Client, content: ContentStore, mounts: RunMounts, activity: Activity
    ) -> None:
        # the names make each packing different from those of other processes, so that
        # deleting one takes none away from anybody
        names = [f"{secrets.token_hex(16)}-{stream}" for stream in (1, 2)]
        self._client = client
        self._content = content
        self._mounts = mounts
        self._sink: Callable[[int, bytes], object] = activity.log
        self._passed_on = dict.fromkeys(names, 0)
        self._key, self._folder = mounts.new_folder(
            [small_file(name.encode(), b"") for name in names], activity, unique=True
        )
        self.stdout, self.stderr = (f"{self._folder}/{name}" for name in names)
        self._error: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="pybuild-output", daemon=True)
        self._thread.start()

    def is_open(self) -> bool:
        return True

    def drain(self) -> None:
        self._stop()
        if self._error is None:
            self._read()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop reading and remove the files. Idempotent."""
        self._stop()
        self._mounts.remove_folder(self._key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        pause = _PAUSE
        while self._error is None and not self._over.wait(pause):
            begun = time.monotonic()
            # a file that grows while it is packed makes containerd fail
            with contextlib.suppress(BackendError):
                self._read()
            pause = max(_PAUSE, _RESTRAINT * (time.monotonic() - begun))

    def _read(self) -> None:
        """Pass on what is new. What the sink raises is kept in `_error`."""
        import tarfile  # noqa: PLC0415 - for a task whose output isn't shared

        with self._packed() as blob:
            try:
                with tarfile.open(fileobj=blob, mode="r|") as archive:
                    for member in archive:
                        content = archive.extractfile(member)
                        if member.name in self._passed_on and content is not None:
                            self._pass_on(member.name, content)
            except tarfile.TarError as error:
                raise BackendFailed(f"containerd packed the output wrongly: {error}") from error

    @contextlib.contextmanager
    def _packed(self) -> Iterator[BinaryIO]:
        """Both files as a tar, which is deleted afterwards."""
        made = self._client.call(
            rpcs.DIFF_DIFF,
            left=[],
            right=[{"type": "bind", "source": self._folder, "options": ["rbind", "ro"]}],
            media_type=_TAR,
            ref=f"pybuild-{secrets.token_hex(16)}",
        ).diff
        try:
            with self._content.open(made.digest) as blob:
                yield blob
        finally:
            self._content.delete(made.digest)

    def _pass_on(self, name: str, content: IO[bytes]) -> None:
        stream = 1 if self.stdout.endswith(name) else 2
        known = self._passed_on[name]
        while known and (piece := content.read(min(known, _CHUNK))):
            known -= len(piece)
        while piece := content.read(_CHUNK):
            self._passed_on[name] += len(piece)
            try:
                self._sink(stream, piece)
            except BaseException as error:  # noqa: BLE001 - raised by drain(), in the caller's thread
                self._error = self._error or error
