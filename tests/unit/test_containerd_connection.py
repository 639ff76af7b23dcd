"""The client against servers of the test's own: what containerd doesn't do at will."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from promptness import AT_ONCE
from pybuild.errors import BackendUnavailable, BuildCancelled, UsageError
from pybuild_containerd import client as client_module
from pybuild_containerd import rpcs
from pybuild_containerd._proto import message_class
from pybuild_containerd.client import Client
from pybuild_containerd.errors_table import CallCancelled, CallFailed, DaemonGone, TimedOut

Behaviour = Callable[..., Any]


class Cancellable:
    """An activity that the test cancels."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self._callbacks: list[Callable[[], None]] = []

    def cancel(self) -> None:
        self.cancelled.set()
        for callback in list(self._callbacks):
            callback()

    def cancel_after(self, event: threading.Event) -> None:
        event.wait()
        self.cancel()

    def log(self, stream: int, data: bytes) -> None: ...
    def progress(self, item: str, done: int, total: int | None) -> None: ...
    def warn(self, message: str, hint: str | None = None) -> None: ...

    def raise_if_cancelled(self) -> None:
        if self.cancelled.is_set():
            raise BuildCancelled("the build was cancelled")

    def on_cancel(self, callback: Callable[[], None]) -> AbstractContextManager[None]:
        @contextmanager
        def registered() -> Iterator[None]:
            self._callbacks.append(callback)
            if self.cancelled.is_set():
                callback()
            try:
                yield
            finally:
                self._callbacks.remove(callback)

        return registered()


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs alone
    def __init__(self, behaviours: dict[rpcs.Method, Behaviour]) -> None:
        self._behaviours = {method.path: (method, run) for method, run in behaviours.items()}

    def service(self, details: Any) -> Any:
        found = self._behaviours.get(details.method)
        if found is None:
            return None
        method, behaviour = found
        kind = {rpcs.CONTENT_READ: "unary_stream", rpcs.CONTENT_WRITE: "stream_stream"}
        make = getattr(grpc, f"{kind.get(method, 'unary_unary')}_rpc_method_handler")
        return make(
            behaviour,
            request_deserializer=message_class(method.request).FromString,
            response_serializer=message_class(method.response).SerializeToString,
        )


def respond(method: rpcs.Method, **fields: Any) -> Any:
    return message_class(method.response)(**fields)


@contextmanager
def serving(path: Path, behaviours: dict[rpcs.Method, Behaviour]) -> Iterator[str]:
    greeting = {rpcs.VERSION: lambda _request, _context: respond(rpcs.VERSION, version="v9")}
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(
            pool, options=[("grpc.max_receive_message_length", client_module.LARGEST_MESSAGE)]
        )
        server.add_generic_rpc_handlers((_Handlers({**greeting, **behaviours}),))
        server.add_insecure_port(f"unix:{path}")
        server.start()
        try:
            yield str(path)
        finally:
            server.stop(None).wait()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.sock"


def test_the_client_knows_the_servers_version(path: Path) -> None:
    with serving(path, {}) as address, Client(f"unix://{address}", "default") as client:
        assert client.version == "v9"


def test_a_path_with_signs_that_mean_something_in_addresses_works(tmp_path: Path) -> None:
    # grpc's own server takes such a path only in encoded form: serve beside it, then move
    odd = tmp_path / "a %41#?ü"
    odd.mkdir()
    with serving(tmp_path / "c.sock", {}):
        (tmp_path / "c.sock").rename(odd / "c.sock")
        with Client(str(odd / "c.sock"), "default") as client:
            assert client.version == "v9"


@pytest.mark.parametrize("namespace", ["", "a/b", "-a", "a..b", "a\n", "ü", "x" * 77])
def test_a_namespace_that_containerd_would_refuse_is_a_usage_error(namespace: str) -> None:
    with pytest.raises(UsageError):
        Client("/nowhere", namespace)


def test_a_missing_socket_is_told_at_once(path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(BackendUnavailable, match="there is no socket"):
        Client(str(path), "default")
    assert time.monotonic() - started < AT_ONCE


def test_another_grpc_server_is_not_taken_for_containerd(path: Path) -> None:
    with serving(path, {}) as address, pytest.MonkeyPatch.context() as patch:
        other = rpcs.Method("/other.Service/Version", "Empty", "VersionResponse")
        patch.setattr(rpcs, "VERSION", other)
        with pytest.raises(BackendUnavailable, match="isn't containerd"):
            Client(address, "default")


@contextmanager
def answering(path: Path, answer: bytes | None) -> Iterator[str]:
    """A server that isn't grpc: it answers every connection with `answer`, or never."""
    with socket.socket(socket.AF_UNIX) as server, contextlib.ExitStack() as connections:
        server.bind(str(path))
        server.listen(16)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = connections.enter_context(server.accept()[0])
                    if answer is not None:
                        with contextlib.suppress(OSError):
                            connection.recv(65536)
                            connection.sendall(answer)
                            connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield str(path)
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", b"", b"\x00\xff" * 400],
    ids=["docker", "hangs-up", "noise"],
)
def test_a_server_without_grpc_is_not_taken_for_containerd(path: Path, answer: bytes) -> None:
    started = time.monotonic()
    with answering(path, answer) as address, pytest.raises(BackendUnavailable) as caught:
        Client(address, "default")
    assert time.monotonic() - started < 12
    assert caught.value.hint


def test_a_server_that_never_answers_is_given_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_CONNECT_DEADLINE", 0.3)
    with (
        answering(path, None) as address,
        pytest.raises(BackendUnavailable, match="doesn't answer as containerd"),
    ):
        Client(address, "default")


def test_namespace_and_lease_go_with_each_call(path: Path) -> None:
    seen: list[dict[str, str]] = []

    def get(_request: Any, context: Any) -> Any:
        seen.append(dict(context.invocation_metadata()))
        return respond(rpcs.IMAGE_GET)

    with serving(path, {rpcs.IMAGE_GET: get}) as address, Client(address, "mine") as client:
        client.call(rpcs.IMAGE_GET, name="a")
        client.lease = "l1"
        client.call(rpcs.IMAGE_GET, name="a")
    assert [headers["containerd-namespace"] for headers in seen] == ["mine", "mine"]
    assert [headers.get("containerd-lease") for headers in seen] == [None, "l1"]


def test_a_call_over_its_deadline_times_out(path: Path) -> None:
    released = threading.Event()

    def hang(_request: Any, _context: Any) -> Any:
        released.wait(10)
        return respond(rpcs.IMAGE_GET)

    with serving(path, {rpcs.IMAGE_GET: hang}) as address, Client(address, "default") as client:
        with pytest.raises(TimedOut):
            client.call(rpcs.IMAGE_GET, deadline=0.2, name="a")
        released.set()


@pytest.mark.parametrize("kind", ["call", "stream", "duplex"])
def test_cancelling_the_build_ends_a_call_under_way(path: Path, kind: str) -> None:
    entered, released = threading.Event(), threading.Event()

    def hang(_request: Any, _context: Any) -> Any:
        entered.set()
        released.wait(10)
        return respond(rpcs.IMAGE_GET)

    def hang_stream(_request: Any, _context: Any) -> Iterator[Any]:
        entered.set()
        released.wait(10)
        yield from ()

    behaviours = {
        rpcs.IMAGE_GET: hang,
        rpcs.CONTENT_READ: hang_stream,
        rpcs.CONTENT_WRITE: hang_stream,
    }
    activity = Cancellable()
    with serving(path, behaviours) as address, Client(address, "default") as client:
        canceller = threading.Thread(target=activity.cancel_after, args=(entered,))
        canceller.start()
        started = time.monotonic()
        with pytest.raises(BuildCancelled):  # noqa: PT012  # what follows is one act
            match kind:
                case "call":
                    client.call(rpcs.IMAGE_GET, activity=activity, name="a")
                case "stream":
                    with client.stream(rpcs.CONTENT_READ, activity=activity, digest="d") as stream:
                        stream.receive()
                case _:
                    with client.duplex(rpcs.CONTENT_WRITE, activity=activity) as stream:
                        stream.receive()
        assert time.monotonic() - started < AT_ONCE
        released.set()
        canceller.join()


def test_a_read_is_tried_again_when_the_daemon_was_away_and_a_write_is_not(path: Path) -> None:
    calls: list[str] = []

    def away(name: str, method: rpcs.Method) -> Behaviour:
        def behave(_request: Any, context: Any) -> Any:
            calls.append(name)
            if calls.count(name) < 3:
                context.abort(grpc.StatusCode.UNAVAILABLE, "connection refused")
            return respond(method)

        return behave

    behaviours = {
        rpcs.IMAGE_GET: away("read", rpcs.IMAGE_GET),
        rpcs.IMAGE_CREATE: away("write", rpcs.IMAGE_CREATE),
    }
    with serving(path, behaviours) as address, Client(address, "default") as client:
        client.call(rpcs.IMAGE_GET, name="a")
        with pytest.raises(DaemonGone):
            client.call(rpcs.IMAGE_CREATE)
    assert calls == ["read", "read", "read", "write"]


def test_a_message_of_sixteen_mebibytes_can_be_received(path: Path) -> None:
    data = b"x" * (16 << 20)

    def read(_request: Any, _context: Any) -> Iterator[Any]:
        yield respond(rpcs.CONTENT_READ, data=data)

    with (
        serving(path, {rpcs.CONTENT_READ: read}) as address,
        Client(address, "default") as client,
        client.stream(rpcs.CONTENT_READ, digest="d") as stream,
    ):
        assert [len(message.data) for message in stream] == [len(data)]


def test_a_stream_doesnt_run_ahead_of_its_reader(path: Path) -> None:
    sent = 0

    def read(_request: Any, context: Any) -> Iterator[Any]:
        nonlocal sent
        while context.is_active():
            sent += 1
            yield respond(rpcs.CONTENT_READ, data=b"x" * (1 << 20))

    with (
        serving(path, {rpcs.CONTENT_READ: read}) as address,
        Client(address, "default") as client,
        client.stream(rpcs.CONTENT_READ, digest="d") as stream,
    ):
        stream.receive()
        time.sleep(0.5)
        assert sent < 40


def test_a_sender_is_told_of_the_error_that_ended_its_stream(path: Path) -> None:
    def refuse(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        next(requests)
        context.abort(grpc.StatusCode.UNKNOWN, "no space left on device")
        yield respond(rpcs.CONTENT_WRITE)

    with (  # noqa: PT012  # what follows is one act
        serving(path, {rpcs.CONTENT_WRITE: refuse}) as address,
        Client(address, "default") as client,
        client.duplex(rpcs.CONTENT_WRITE) as stream,
        pytest.raises(CallFailed, match="no space left"),
    ):
        for _ in range(1000):
            stream.send(data=b"x" * (1 << 20))


def test_a_silent_stream_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def hang(_request: Any, _context: Any) -> Iterator[Any]:
        released.wait(10)
        yield from ()

    monkeypatch.setattr(client_module, "LONGEST_SILENCE", 0.2)
    with (
        serving(path, {rpcs.CONTENT_READ: hang}) as address,
        Client(address, "default") as client,
        client.stream(rpcs.CONTENT_READ, digest="d") as stream,
    ):
        with pytest.raises(TimedOut, match="silent"):
            stream.receive()
        released.set()


def test_a_started_call_is_waited_for_or_cancelled(path: Path) -> None:
    released = threading.Event()

    def wait(_request: Any, _context: Any) -> Any:
        released.wait(10)
        return respond(rpcs.TASK_WAIT, exit_status=7)

    with serving(path, {rpcs.TASK_WAIT: wait}) as address, Client(address, "default") as client:
        done = threading.Event()
        kept = client.start(rpcs.TASK_WAIT, container_id="c")
        kept.on_done(done.set)
        dropped = client.start(rpcs.TASK_WAIT, container_id="c")
        dropped.cancel()
        with pytest.raises(CallCancelled):
            dropped.result()
        with pytest.raises(TimeoutError):
            kept.result(0.05)
        assert not kept.done()
        released.set()
        assert kept.result().exit_status == 7
        assert done.wait(5)


def test_a_closed_client_refuses_calls_as_an_error_of_ours(path: Path) -> None:
    with serving(path, {}) as address:
        client = Client(address, "default")
        client.close()
        client.close()
        with pytest.raises(CallCancelled, match="closed"):
            client.call(rpcs.VERSION)
