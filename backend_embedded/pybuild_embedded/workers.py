"""Starts workers in the user namespace of a sandbox, and has them do what only they may.

Unpacked layers belong to ids of the sandbox, so this process can't make, read or remove
them. A worker is a trusted program of ours that is root there.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from pybuild.errors import BackendFailed
from pybuild.sandbox.client import InsideProcess, Sandbox
from pybuild_embedded.requests import (
    Apply,
    MakePoints,
    Measure,
    Merge,
    Pack,
    Packed,
    Record,
    Remove,
    RemovePoints,
    Request,
    Shown,
    Unpack,
    decode_answer,
    encode,
    receive,
    send,
)

__all__ = ["Apply", "Merge", "Pack", "Packed", "PendingPack", "Unpack", "Workers"]

_FOLDER, _MODULE = Path(__file__).parents[1], "pybuild_embedded.inside.worker"
_SOCKET = 3  # where the worker has it
_LEAST = 2


class PendingPack:
    """A layer that is being written. Safe in threads."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def when_done(self, callback: Callable[[], object]) -> None:
        """Call it once the layer is written or can't be, in a thread of the workers."""
        self._future.add_done_callback(lambda _: callback())

    def result(self) -> Packed | None:
        """Wait for the layer; None if nothing was changed, and no file written.

        Raises CopyFailed or BackendFailed, each time, if it can't be written.
        """
        return _result(self._future)  # type: ignore[no-any-return]


class Workers:
    """Processes inside a sandbox: a context manager, safe in threads.

    They are started when they are needed. Each does one thing at a time, and what comes
    while all are busy waits in its order. Every method raises BackendFailed if the disk is
    full, or a worker or the sandbox has ended.
    """

    def __init__(self, sandbox: Sandbox, *, most: int | None = None) -> None:
        """Have at most `most` processes; by default one for each processor, and two at least."""
        self._sandbox = sandbox
        count = most or max(_LEAST, len(os.sched_getaffinity(0)))
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="pybuild-worker")
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._started: set[_Worker] = set()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def unpack(self, request: Unpack) -> int:
        """Unpack a layer; the bytes that it takes on disk.

        Device files that can't be made in a user namespace are left out. Raises InvalidImage
        for a layer whose content isn't what its diff id says, or that this machine or this
        mapping of ids can't hold; `target` is empty then.
        """
        return self._wait_for(request)  # type: ignore[no-any-return]

    def apply(self, request: Apply) -> None:
        """Change a folder so that it shows one layer more; it is empty if that fails.

        Devices and errors are as with :meth:`unpack`.
        """
        self._wait_for(request)

    def make_points(self, folder: Path, points: Sequence[tuple[bytes, bool]]) -> Callable[[], None]:
        """Make what lacks in `folder` to mount on: paths, and whether each is a folder.

        What is returned removes them again, but for what isn't empty or was changed. It
        raises StepFailed if one was moved.
        """
        if not points:
            return lambda: None
        request = MakePoints(folder, tuple(points))
        known = tuple(self._wait_for(request))
        return lambda: self._wait_for(RemovePoints(folder, request.points, known))

    def record(self, folder: Path, file: Path) -> None:
        """Write to the new file `file` what is in `folder`, for a :meth:`pack` of that."""
        self._wait_for(Record(folder, file))

    def pack(self, request: Pack) -> PendingPack:
        """Begin to write a layer. `upper` must stay as it is until that is done."""
        return PendingPack(self._submit(request))

    def merge(self, request: Merge) -> int:
        """Copy a chain of layers into one folder; the bytes that it takes on disk.

        Device files are left out as by :meth:`unpack`.
        """
        return self._wait_for(request)  # type: ignore[no-any-return]

    def remove(self, folders: Sequence[Path]) -> None:
        """Remove folders with all that is in them, whatever their depth, owners and modes.

        One that isn't there is no error.
        """
        if folders:
            self._wait_for(Remove(tuple(folders)))

    def warm_up(self) -> None:
        """Wait until there is a process."""
        self._wait_for(Measure(()))

    def measure(self, folders: Sequence[Path]) -> list[int]:
        """The bytes that each of the folders takes on disk, those of hard links once.

        What vanishes meanwhile, and what is more than 16 KiB of path deep, isn't counted.
        """
        return self._wait_for(Measure(tuple(folders))) if folders else []

    def close(self) -> None:
        """End all processes; what they were doing fails. Idempotent."""
        with self._lock:
            self._closed = True
            workers = list(self._started)
        for worker in workers:
            worker.end()
        self._threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.close()

    def _submit(self, request: Request) -> Future[Any]:
        try:
            return self._threads.submit(self._serve, request)
        except RuntimeError as error:
            raise BackendFailed("the workers of the sandbox are closed") from error

    def _wait_for(self, request: Request) -> Any:
        return _result(self._submit(request))

    def _serve(self, request: Request) -> Any:
        with self._worker() as worker:
            answer = worker.ask(request)
        return decode_answer(answer)

    @contextmanager
    def _worker(self) -> Iterator[_Worker]:
        """A worker of one's own, which is good for others afterwards if no error passes."""
        with self._lock:
            if self._closed:
                raise BackendFailed("the workers of the sandbox are closed")
            worker = self._idle.pop() if self._idle else None
            if worker is None:
                worker = _Worker(self._sandbox)
                self._started.add(worker)
        try:
            yield worker
        except BaseException:
            worker.close()
            with self._lock:
                self._started.discard(worker)
            raise
        with self._lock:
            self._idle.append(worker)


class _Worker:
    """One process, and the socket to it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._ending = threading.Lock()
        self._ended = False
        self._shown = Shown()
        self._socket, theirs = socket.socketpair()
        null = os.open(os.devnull, os.O_RDWR)
        try:
            with theirs:
                fds = [null] * _SOCKET + [theirs.fileno()]
                self._process: InsideProcess = sandbox.spawn_inside(_FOLDER, _MODULE, fds)
            send(self._socket, json.dumps(sys.path).encode())
        except BaseException:
            self._socket.close()
            raise
        finally:
            os.close(null)

    def ask(self, request: Request) -> bytes:
        """Send a request and wait for the answer. Raises BackendFailed if none comes."""
        try:
            send(self._socket, encode(request, self._shown))
            answer = receive(self._socket)
        except OSError:
            answer = None
        if answer is None:
            raise BackendFailed("a worker of the sandbox ended in the middle of its work")
        return answer

    def end(self) -> None:
        """End the process, and wait until it is gone. From any thread; whoever asks fails."""
        with self._ending:
            if self._ended:
                return
            self._ended = True
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            with self._process, suppress(BackendFailed):
                self._process.kill()
                self._process.wait()

    def close(self) -> None:
        """End the process, when nobody asks any more."""
        self.end()
        self._socket.close()


def _result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except CancelledError as error:
        raise BackendFailed("the workers of the sandbox are closed") from error
