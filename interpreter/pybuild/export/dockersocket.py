"""Loading an image into a running Docker: one request of its API over its socket.

After the Docker Engine API, ``POST /images/load``.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

from pybuild.backend import Activity
from pybuild.errors import ExportFailed, UsageError
from pybuild.export.newfiles import Sink

_SCHEME = "unix://"
_SECONDS = 60.0
_MOST_LINES = 10_000
_LONGEST_LINE = 1 << 20


def check_docker(host: str) -> None:
    """Connect to Docker and ask nothing.

    Raises UsageError for an address that is no socket here, ExportFailed if none answers there.
    """
    with _translated(host), closing(_Connection(_socket_path(host))) as connection:
        connection.connect()


def load_archive(host: str, write: Callable[[Sink], object], activity: Activity) -> None:
    """Have Docker load the archive that `write` writes to the sink it is given.

    Raises ExportFailed where no Docker answers or where it refuses, BuildCancelled.
    """
    connection = _Connection(_socket_path(host))
    with closing(connection), _translated(host, activity):
        connection.connect()
        with activity.on_cancel(connection.interrupt):
            activity.raise_if_cancelled()
            connection.putrequest("POST", "/images/load?quiet=1")
            connection.putheader("Content-Type", "application/x-tar")
            connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders()
            # A Docker that has seen enough closes the connection; its answer says why.
            with suppress(BrokenPipeError, ConnectionResetError):
                write(lambda piece: connection.send(_chunk(piece)))
                connection.send(b"0\r\n\r\n")
            with closing(connection.getresponse()) as answer:
                _check(answer, host)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        family = getattr(socket, "AF_UNIX", None)
        if family is None:
            raise OSError("this system has no such sockets")
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
        self.sock.settimeout(None)  # to unpack an image may take minutes; a cancel ends it

    def interrupt(self) -> None:
        """End all waiting, from another thread."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


def _socket_path(host: str) -> str:
    path = host.removeprefix(_SCHEME)
    if not host.startswith(_SCHEME) or not path.startswith("/"):
        raise UsageError(
            f'can\'t load into a Docker at "{host}": only unix:///path is spoken',
            hint="pipe the archive: pybuild -o type=docker,dest=- … | docker load",
        )
    return path


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""


def _check(answer: http.client.HTTPResponse, host: str) -> None:
    """Raise ExportFailed unless the answer, lines of JSON, tells of success."""
    if answer.status != 200:
        raise ExportFailed(
            f"Docker at {host} answered {answer.status}{_reason(answer.readline(_LONGEST_LINE))}"
        )
    for _ in range(_MOST_LINES):
        line = answer.readline(_LONGEST_LINE)
        if not line:
            return
        if _error(line):
            raise ExportFailed(f"Docker at {host} can't load the image{_reason(line)}")


def _error(line: bytes) -> str | None:
    try:
        document = json.loads(line, strict=False)
    except (ValueError, RecursionError):
        return None
    found = document.get("error") or document.get("message") if isinstance(document, dict) else None
    return found if isinstance(found, str) else None


def _reason(line: bytes) -> str:
    text = _error(line) or ""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return f": {printable[:300]}" if printable else ""


@contextmanager
def _translated(host: str, activity: Activity | None = None) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        if activity is not None:
            activity.raise_if_cancelled()
        reason = getattr(error, "strerror", None) or error
        raise ExportFailed(
            f"can't load into Docker at {host}: {reason}",
            hint="start Docker, or name its socket in DOCKER_HOST",
        ) from error
