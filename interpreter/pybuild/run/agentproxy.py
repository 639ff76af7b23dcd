"""Sockets that lead to an SSH agent of this machine, one for each step that wants it.

A step gets a socket of its own, which can be given any owner and mode, and never the
agent's. What goes through is the agent protocol (draft-ietf-sshm-ssh-agent): messages with
their length before them, each request followed by its response. Nothing of it is looked at
but the lengths.
"""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LONGEST_MESSAGE = 256 * 1024  # OpenSSH's own limit
_MOST_CONNECTIONS = 64
_SOCKET = "agent"


@contextmanager
def agent_proxy(agent: Path) -> Iterator[Path]:
    """The path of a new socket in a private folder; connections to it reach `agent`.

    They all end with the context. An agent that doesn't answer ends a connection.
    """
    with (
        tempfile.TemporaryDirectory(prefix="pybuild-ssh-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
    ):
        path = Path(folder) / _SOCKET
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(_MOST_CONNECTIONS)
        proxy = _Proxy(agent, listener)
        try:
            yield path
        finally:
            proxy.close()


class _Proxy:
    """The threads behind one socket: one that accepts, and one for each connection."""

    def __init__(self, agent: Path, listener: socket.socket) -> None:
        self._agent = agent
        self._listener = listener
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closed = False
        self._acceptor = threading.Thread(target=self._accept, name="pybuild-ssh", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for connection in (self._listener, *self._open):
                with suppress(OSError):  # whoever closed it first
                    connection.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()

    def _accept(self) -> None:
        workers: list[threading.Thread] = []
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                break
            workers = [worker for worker in workers if worker.is_alive()]
            if len(workers) >= _MOST_CONNECTIONS or not self._keep(client):
                client.close()
                continue
            worker = threading.Thread(
                target=self._serve, args=(client,), name="pybuild-ssh-client", daemon=True
            )
            workers.append(worker)
            worker.start()
        for worker in workers:
            worker.join()

    def _keep(self, connection: socket.socket) -> bool:
        with self._lock:
            if not self._closed:
                self._open.add(connection)
            return not self._closed

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
            try:
                if self._keep(agent):
                    agent.connect(str(self._agent))
                    while _pass_message(client, agent) and _pass_message(agent, client):
                        continue
            except OSError:
                return  # one of both has gone, which the other is told by the end of its own
            finally:
                with self._lock:
                    self._open -= {client, agent}


def _pass_message(source: socket.socket, target: socket.socket) -> bool:
    """Pass one message on; False at the end of the stream, or for a message that is too long."""
    head = _receive(source, 4)
    length = int.from_bytes(head, "big")
    if len(head) < 4 or not 0 < length <= _LONGEST_MESSAGE:
        return False
    body = _receive(source, length)
    if len(body) < length:
        return False
    target.sendall(head + body)
    return True


def _receive(source: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size and (piece := source.recv(size - len(received))):
        received += piece
    return bytes(received)
