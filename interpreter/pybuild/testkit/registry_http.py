"""The HTTP side of the test registry: requests to calls of :class:`.registry.Registry`."""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from pybuild.testkit.registry import Registry

_NAME = r"[a-z0-9]+(?:[._/-]+[a-z0-9]+)*"
_MANIFEST = re.compile(rf"/v2/({_NAME})/manifests/([^/]+)")
_BLOB = re.compile(rf"/v2/({_NAME})/blobs/(sha256:[0-9a-f]{{64}})")
_UPLOADS = re.compile(rf"/v2/({_NAME})/blobs/uploads/")
_UPLOAD = re.compile(rf"/v2/({_NAME})/blobs/uploads/([0-9a-f]+)")
_TAGS = re.compile(rf"/v2/({_NAME})/tags/list")
_RANGE = re.compile(r"bytes=([0-9]+)-([0-9]*)")


@dataclass(slots=True)
class Fault:
    """What goes wrong with requests of `method` whose path matches the regular expression.

    It happens `times` times (None: always), after letting `skip` requests pass. ``status``
    with ``body`` replaces the answer; ``content`` replaces a blob's or manifest's bytes;
    ``truncate`` ends the body after so many bytes, though the length announces all;
    ``pace`` is (bytes, seconds) between pieces; ``delay`` is seconds before the answer;
    ``reset`` closes the connection without one. ``headers`` are set over the usual ones; a
    value of None removes one. ``ignore_range`` sends the whole blob. Of an upload, ``take``
    bytes arrive, then the connection breaks; ``finish`` lets the request do its work before
    the fault replaces its answer.
    """

    path: str
    method: str = "GET"
    times: int | None = 1
    skip: int = 0
    status: int | None = None
    body: bytes = b""
    headers: Mapping[str, str | None] = field(default_factory=dict)
    content: bytes | None = None
    truncate: int | None = None
    ignore_range: bool = False
    pace: tuple[int, float] | None = None
    delay: float = 0.0
    reset: bool = False
    take: int | None = None
    finish: bool = False


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request that came. Header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


class RegistryProblem(Exception):
    """An error answer of the distribution API."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(message or code)
        self.status = status
        self.code = code


class RegistryServer(ThreadingHTTPServer):
    """Serves one registry on a port of 127.0.0.1 that the system picks."""

    daemon_threads = False  # stop() waits for them
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, registry: Registry, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Exchange)
        self.registry = registry
        self.port: int = self.server_address[1]
        self.stopped = threading.Event()
        self._tls = tls
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.05,), name="test registry"
        )

    def start(self) -> None:
        """Serve in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """End all connections, wait for all threads."""
        self.stopped.set()
        self.shutdown()
        self._thread.join()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        self.server_close()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection, TLS included, so that no client holds up another."""
        connection = request
        try:
            if self._tls is not None:
                request.settimeout(10)
                connection = self._tls.wrap_socket(request, server_side=True)
            with self._lock:
                self._connections.add(connection)
            if not self.stopped.is_set():
                self.finish_request(connection, client_address)
        except (OSError, ValueError):
            pass  # the client went away, or spoke no TLS
        finally:
            with self._lock:
                self._connections.discard(connection)
            self.shutdown_request(connection)


def serve(registry: Registry, tls: ssl.SSLContext | None) -> RegistryServer:
    """A started server for `registry`."""
    server = RegistryServer(registry, tls)
    server.start()
    return server


class _Exchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for head and small bodies
    disable_nagle_algorithm = True
    server: RegistryServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base's name
        """Say nothing: requests are recorded."""

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(60)

    def do_GET(self) -> None:
        self._answer(self._read)

    def do_HEAD(self) -> None:
        self._answer(self._read)

    def do_POST(self) -> None:
        self._answer(self._begin)

    def do_PATCH(self) -> None:
        self._answer(self._append)

    def do_PUT(self) -> None:
        self._answer(self._finish)

    def do_DELETE(self) -> None:
        self._answer(self._cancel)

    def _answer(self, act: Callable[[], None]) -> None:
        self._registry = self.server.registry
        parts = urlsplit(self.path)
        self._target, self._query = parts.path, parse_qs(parts.query)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = RecordedRequest(self.command, self.path, headers)
        self._fault = self._registry.record(request)
        fault = self._fault
        if fault is not None and fault.take is not None:
            self._break_off(fault.take)
            return
        self._body = self._read_body()
        if fault is not None:
            self.server.stopped.wait(fault.delay)
            if fault.finish:
                with suppress(RegistryProblem):
                    self._unanswered(act)
            if fault.reset:
                self.close_connection = True
                return
            if fault.status is not None:
                self._send(fault.status, fault.body, {})
                return
        try:
            if self._target == "/token":
                self._give_token()
                return
            match = re.match(rf"/v2/({_NAME})/(?:manifests|blobs|tags)/", self._target)
            source = self._parameter("from") if self._parameter("mount") else ""
            challenge = self._registry.challenge(request, match[1] if match else "", source)
            if challenge is not None:
                problem = RegistryProblem(401, "UNAUTHORIZED", "authentication required")
                self._problem(problem, {"WWW-Authenticate": challenge})
                return
            act()
        except RegistryProblem as problem:
            self._problem(problem, {})

    def _break_off(self, size: int) -> None:
        """Keep `size` bytes of what is uploaded, and end the connection."""
        self.close_connection = True
        piece = self.rfile.read(min(size, int(self.headers.get("Content-Length") or 0)))
        if match := _UPLOAD.fullmatch(self._target):
            with suppress(RegistryProblem):
                self._registry.append_upload(match[2], piece, None)

    def _unanswered(self, act: Callable[[], None]) -> None:
        """Do what the request asks for, but let its answer get lost."""
        kept, self.wfile = self.wfile, cast("Any", BytesIO())
        try:
            act()
        finally:
            self.wfile = kept

    def _read(self) -> None:
        if self._target == "/v2/":
            self._send(200, b"{}", {"Content-Type": "application/json"})
        elif match := _MANIFEST.fullmatch(self._target):
            digest, media_type, content = self._registry.find_manifest(match[1], match[2])
            headers = {"Content-Type": media_type, "Docker-Content-Digest": digest}
            self._send(200, self._content(content), headers)
        elif match := _BLOB.fullmatch(self._target):
            self._send_blob(self._registry.find_blob(match[1], match[2]), match[2])
        elif match := _TAGS.fullmatch(self._target):
            answer = {"name": match[1], "tags": self._registry.tags(match[1])}
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})
        elif match := _UPLOAD.fullmatch(self._target):
            size = self._registry.append_upload(match[2], b"", None)
            self._send(204, b"", {"Range": f"0-{max(0, size - 1)}"})
        else:
            raise RegistryProblem(404, "NAME_UNKNOWN")

    def _begin(self) -> None:
        match = _UPLOADS.fullmatch(self._target)
        if match is None:
            raise RegistryProblem(404, "NAME_UNKNOWN")
        mounted, source = self._parameter("mount"), self._parameter("from")
        if mounted and source and self._registry.mount(match[1], mounted, source):
            self._created(match[1], "blobs", mounted)
            return
        upload = self._registry.begin_upload()
        digest = self._parameter("digest")
        if digest:
            self._registry.append_upload(upload, self._body, None)
            self._registry.finish_upload(match[1], upload, digest)
            self._created(match[1], "blobs", digest)
            return
        headers = {"Location": f"/v2/{match[1]}/blobs/uploads/{upload}", "Range": "0-0"}
        self._send(202, b"", {**headers, "Docker-Upload-UUID": upload})

    def _append(self) -> None:
        match = _UPLOAD.fullmatch(self._target)
        if match is None:
            raise RegistryProblem(404, "BLOB_UPLOAD_UNKNOWN")
        size = self._registry.append_upload(match[2], self._body, self._start())
        headers = {"Location": self._target, "Range": f"0-{max(0, size - 1)}"}
        self._send(202, b"", headers)

    def _finish(self) -> None:
        if match := _UPLOAD.fullmatch(self._target):
            digest = self._parameter("digest")
            self._registry.append_upload(match[2], self._body, self._start())
            self._registry.finish_upload(match[1], match[2], digest)
            self._created(match[1], "blobs", digest)
        elif match := _MANIFEST.fullmatch(self._target):
            media_type = self.headers.get("Content-Type", "")
            digest = self._registry.push_manifest(match[1], match[2], self._body, media_type)
            self._created(match[1], "manifests", digest)
        else:
            raise RegistryProblem(404, "NAME_UNKNOWN")

    def _cancel(self) -> None:
        match = _UPLOAD.fullmatch(self._target)
        if match is None:
            raise RegistryProblem(405, "UNSUPPORTED")
        self._registry.cancel_upload(match[2])
        self._send(204, b"", {})

    def _give_token(self) -> None:
        form = parse_qs(self._body.decode()) if self.command == "POST" else self._query
        scope = form.get("scope", [""])[0]
        refresh = form.get("refresh_token", [None])[0]
        answer = self._registry.issue_token(self.headers.get("Authorization", ""), scope, refresh)
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send_blob(self, content: bytes, digest: str) -> None:
        content = self._content(content)
        headers = {
            "Content-Type": "application/octet-stream",
            "Docker-Content-Digest": digest,
            "Accept-Ranges": "bytes",
        }
        span = _RANGE.fullmatch(self.headers.get("Range", ""))
        if span is None or (self._fault is not None and self._fault.ignore_range):
            self._send(200, content, headers)
            return
        first = int(span[1])
        last = min(int(span[2]) if span[2] else len(content), len(content) - 1)
        if first > last:
            self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(206, content[first : last + 1], headers)

    def _content(self, content: bytes) -> bytes:
        fault: Fault | None = self._fault
        return content if fault is None or fault.content is None else fault.content

    def _created(self, repository: str, kind: str, digest: str) -> None:
        headers = {
            "Location": f"/v2/{repository}/{kind}/{digest}",
            "Docker-Content-Digest": digest,
        }
        self._send(201, b"", headers)

    def _problem(self, problem: Any, headers: Mapping[str, str]) -> None:
        errors = [{"code": problem.code, "message": str(problem), "detail": None}]
        body = json.dumps({"errors": errors}).encode()
        self._send(problem.status, body, {"Content-Type": "application/json", **headers})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        fault: Fault | None = self._fault
        sent: dict[str, str | None] = {"Content-Length": str(len(body)), **headers}
        if fault is not None:
            sent.update(fault.headers)
        self.send_response(status)
        for name, value in sent.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD" or status == 204:
            return
        try:
            self._send_body(body, fault)
        except OSError:
            self.close_connection = True  # the client has had enough
        if sent["Content-Length"] != str(len(body)):
            self.close_connection = True

    def _send_body(self, body: bytes, fault: Fault | None) -> None:
        if fault is not None and fault.truncate is not None:
            body = body[: fault.truncate]
            self.close_connection = True
        size, seconds = fault.pace if fault is not None and fault.pace else (1 << 20, 0.0)
        for start in range(0, len(body), size):
            self.wfile.write(body[start : start + size])
            if seconds:
                self.wfile.flush()
                if self.server.stopped.wait(seconds):
                    return

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(iter(self._read_chunk, b""))
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _read_chunk(self) -> bytes:
        size = int(self.rfile.readline(128).split(b";")[0], 16)
        piece = self.rfile.read(size)
        self.rfile.readline(8)
        return piece

    def _start(self) -> int | None:
        """Where in the upload the body belongs, if the request says so."""
        span = re.match(r"(?:bytes )?([0-9]+)-", self.headers.get("Content-Range", ""))
        return int(span[1]) if span else None

    def _parameter(self, name: str) -> str:
        return self._query.get(name, [""])[0]
