"""A process's output through two FIFOs, which containerd's shim writes and a thread here reads."""

from __future__ import annotations

import os
import select
import selectors
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

_CHUNK = 64 * 1024
_STOP = 0
# how long to read on after everyone who writes should have gone
_PATIENCE = 5.0


class OutputFifos:
    """Two FIFOs in `folder`, an empty private one, read by a thread until the context ends.

    ``sink`` gets (stream, bytes) with stream 1 or 2, always from the same thread. What it
    raises stops nothing but is raised again by :meth:`drain`.
    """

    shared = True

    def __init__(self, folder: Path, sink: Callable[[int, bytes], object]) -> None:
        self._sink = sink
        self._error: BaseException | None = None
        self._descriptors: list[int] = []
        self._writers: list[int] = []
        self._folder = folder
        self._thread = threading.Thread(target=self._read, name="pybuild-output", daemon=True)
        try:
            self._stop_reader, self._stop_writer = self._remember(*os.pipe())
            self.stdout, out = self._make("stdout")
            self.stderr, err = self._make("stderr")
        except BaseException:
            self._close()
            raise
        self._streams = {out: 1, err: 2}
        self._thread.start()

    def is_open(self) -> bool:
        """Whether someone has both open to write, besides us, who stop doing so.

        A shim that sees this folder but runs on another kernel opens other FIFOs.
        """
        self._close_writers()
        look = select.poll()
        for descriptor in self._streams:
            look.register(descriptor, select.POLLIN)
        return not any(event & select.POLLHUP for _, event in look.poll(0))

    def drain(self) -> None:
        """Read what is left, once the process and its shim are done, and end the thread."""
        # the reader sees the end when the last writer has closed
        self._close_writers()
        self._thread.join(_PATIENCE)
        self._stop()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop reading and remove the folder. Idempotent."""
        if self._descriptors:
            self._stop()
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _make(self, name: str) -> tuple[str, int]:
        path = self._folder / name
        os.mkfifo(path, 0o600)
        (reader,) = self._remember(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        # without a writer of our own the reader would see an end before the shim has opened
        self._writers.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        return str(path), reader

    def _remember(self, *descriptors: int) -> tuple[int, ...]:
        self._descriptors.extend(descriptors)
        return descriptors

    def _read(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._stop_reader, selectors.EVENT_READ, _STOP)
            for descriptor, stream in self._streams.items():
                selector.register(descriptor, selectors.EVENT_READ, stream)
            while len(selector.get_map()) > 1:
                for key, _ in selector.select():
                    if key.data == _STOP:
                        return
                    piece = os.read(key.fd, _CHUNK)
                    if piece:
                        self._pass_on(key.data, piece)
                    else:
                        selector.unregister(key.fd)

    def _pass_on(self, stream: int, piece: bytes) -> None:
        try:
            self._sink(stream, piece)
        except BaseException as error:  # noqa: BLE001 - the shim must never wait for us; drain() raises it
            self._error = self._error or error

    def _close_writers(self) -> None:
        while self._writers:
            os.close(self._writers.pop())

    def _stop(self) -> None:
        if self._thread.is_alive():
            os.write(self._stop_writer, b"x")
            self._thread.join()

    def _close(self) -> None:
        self._close_writers()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
