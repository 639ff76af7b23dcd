"""A connection to containerd: the only module that knows grpc and the messages.

Requests are keyword arguments, with dicts for messages inside them; responses are messages
of ``_proto/containerd.proto``, read by attribute::

    with Client("/run/containerd/containerd.sock", "default") as client:
        made = client.call(rpcs.SNAPSHOT_PREPARE, snapshotter="overlayfs", key="k")
        made.mounts[0].type

A failed call raises an error of :mod:`pybuild_containerd.errors_table`. A process that uses
a client must not fork: start other programs with subprocess.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, Protocol, Self, cast
from urllib.parse import quote

import grpc

from pybuild.backend import Activity
from pybuild.errors import BackendUnavailable, UsageError
from pybuild_containerd import rpcs
from pybuild_containerd._proto import enum_value, message_class
from pybuild_containerd.address import check_socket, socket_path
from pybuild_containerd.errors_table import (
    CallCancelled,
    CallFailed,
    DaemonGone,
    TimedOut,
    Unimplemented,
    translate,
)
from pybuild_containerd.rpcs import Method

LARGEST_MESSAGE: Final = 16 << 20
"""Bytes of a message that containerd takes and that we take."""

LONGEST_SILENCE: Final = 300.0
"""Seconds without a message after which a stream is given up."""

_CONNECT_DEADLINE: Final = 10.0
_RETRY_PAUSES: Final = (0.2, 0.5, 1.0, 1.0, 1.0)
_QUEUE_DEPTH: Final = 8
_BYTES: Final = 2  # protobuf's wire type of fields with a length
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")

VIEW: Final = enum_value("SnapshotKind", "VIEW")
ACTIVE: Final = enum_value("SnapshotKind", "ACTIVE")
COMMITTED: Final = enum_value("SnapshotKind", "COMMITTED")
WRITE: Final = enum_value("WriteAction", "WRITE")
COMMIT: Final = enum_value("WriteAction", "COMMIT")
TASK_RUNNING: Final = enum_value("TaskStatus", "TASK_RUNNING")
TASK_STOPPED: Final = enum_value("TaskStatus", "TASK_STOPPED")


class _RunningCall(Protocol):
    """What grpc gives for a call under way; its stubs split this over several classes."""

    def result(self, timeout: float | None = None) -> Any: ...
    def cancel(self) -> bool: ...
    def done(self) -> bool: ...
    def add_done_callback(self, callback: Callable[[Any], None]) -> None: ...
    def __iter__(self) -> Iterator[Any]: ...


def encode(message: str, **fields: Any) -> bytes:
    """A message of containerd.proto as bytes, for the value of an Any."""
    encoded: bytes = message_class(message)(**fields).SerializeToString()
    return encoded


class Client:
    """A connection in one namespace, safe to use from several threads.

    Opening checks that containerd answers, and takes no longer than ten seconds to say that
    it doesn't. ``lease`` is sent with each call: what a call makes is kept by that lease.
    Raises BackendUnavailable.
    """

    def __init__(self, address: str, namespace: str, *, lease: str | None = None) -> None:
        """Connect to the unix socket at `address`; a ``unix://`` before the path is fine."""
        if len(namespace) > 76 or not _NAMESPACE.fullmatch(namespace):
            raise UsageError(
                f"{namespace!r} is no name for a containerd namespace",
                hint="use letters and digits, with single '.', '_' or '-' inside",
            )
        self.address = socket_path(address)
        self.namespace = namespace
        self.lease = lease
        check_socket(self.address)
        self._closed = False
        self._lock = threading.Lock()
        self._channels = [self._new_channel()]
        self._stubs: dict[tuple[str, str], Any] = {}
        try:
            self.version: str = self._greet()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection and every call under way on it. Idempotent."""
        with self._lock:
            self._closed = True
            for channel in self._channels:
                channel.close()

    def call(
        self,
        method: Method,
        /,
        *,
        deadline: float | None = None,
        activity: Activity | None = None,
        **fields: Any,
    ) -> Any:
        """Make a call and return its response.

        `deadline`, in seconds, replaces the method's own. With an `activity` the call ends
        when the build is cancelled, and BuildCancelled is raised. Calls that only read are
        tried again for some seconds when the connection breaks.
        """
        request = message_class(method.request)(**fields)
        pauses = iter(_RETRY_PAUSES if method.reads else ())
        while True:
            if activity is not None:
                activity.raise_if_cancelled()
            channel = self._channels[-1]
            try:
                return self._unary(method, request, deadline or method.deadline, activity)
            except DaemonGone:
                self._reconnect(channel)
                pause = next(pauses, None)
                if pause is None:
                    raise
                time.sleep(pause)

    def start(self, method: Method, /, **fields: Any) -> PendingCall:
        """Begin a call that lasts, as TASK_WAIT does, and return without its result."""
        request = message_class(method.request)(**fields)
        stub = self._stub("unary_unary", method)
        call = stub.future(request, timeout=method.deadline, metadata=self._metadata())
        return PendingCall(method, call)

    def stream(
        self, method: Method, /, *, activity: Activity | None = None, **fields: Any
    ) -> Stream:
        """Make a call that answers with many messages."""
        request = message_class(method.request)(**fields)
        stub = self._stub("unary_stream", method)
        return Stream(method, activity, lambda _: stub(request, metadata=self._metadata()))

    def duplex(
        self, method: Method, /, *, activity: Activity | None = None, bounded: bool = True
    ) -> Stream:
        """Open a stream in both directions; without `bounded`, it may be silent for ever."""
        stub = self._stub("stream_stream", method)
        return Stream(
            method,
            activity,
            lambda requests: stub(requests, metadata=self._metadata()),
            bounded=bounded,
        )

    def _new_channel(self) -> grpc.Channel:
        return grpc.insecure_channel(
            f"unix:{quote(os.fsencode(self.address))}",
            options=[
                ("grpc.default_authority", "localhost"),
                ("grpc.max_receive_message_length", LARGEST_MESSAGE + (1 << 16)),
                ("grpc.max_send_message_length", LARGEST_MESSAGE),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_http_proxy", 0),
            ],
        )

    def _reconnect(self, broken: grpc.Channel) -> None:
        """Replace a channel whose daemon went away; other threads' calls on it end by themselves.

        It would connect again too, but only after a pause that depends on grpc's version.
        """
        with self._lock:
            if not self._closed and self._channels[-1] is broken:
                self._channels.append(self._new_channel())
                self._stubs = {}

    def _metadata(self) -> list[tuple[str, str]]:
        metadata = [("containerd-namespace", self.namespace)]
        if self.lease is not None:
            metadata.append(("containerd-lease", self.lease))
        return metadata

    def _stub(self, kind: str, method: Method) -> Any:
        with self._lock:
            if self._closed:
                raise _cancelled(method, "the connection is closed")
            key = (kind, method.path)
            if key not in self._stubs:
                self._stubs[key] = getattr(self._channels[-1], kind)(
                    method.path,
                    request_serializer=_serialized,
                    response_deserializer=message_class(method.response).FromString,
                )
            return self._stubs[key]

    def _unary(
        self, method: Method, request: Any, deadline: float | None, activity: Activity | None
    ) -> Any:
        stub = self._stub("unary_unary", method)
        metadata = self._metadata()
        if activity is None:
            try:
                return stub(request, timeout=deadline, metadata=metadata)
            except grpc.RpcError as error:
                raise _translated(str(method), error) from None
        pending = PendingCall(method, stub.future(request, timeout=deadline, metadata=metadata))
        with activity.on_cancel(pending.cancel):
            try:
                return pending.result()
            except CallCancelled:
                activity.raise_if_cancelled()
                raise

    def _greet(self) -> str:
        """Ask for the version, as proof that this is containerd."""
        stub = self._stub("unary_unary", rpcs.VERSION)
        try:
            answer = stub(
                message_class("Empty")(), timeout=_CONNECT_DEADLINE, metadata=self._metadata()
            )
        except grpc.RpcError as error:
            failure = _translated("Version.Version", error)
            raise _stranger(self.address, failure) from None
        version: str = answer.version
        return version


def _serialized(message: Any) -> bytes:
    """What grpc sends of a message, which may be serialized already."""
    if isinstance(message, bytes):
        return message
    serialized: bytes = message.SerializeToString()
    return serialized


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _translated(call: str, error: grpc.RpcError) -> CallFailed | DaemonGone:
    """The error of ours for what grpc raised."""
    return translate(call, *_told(error))


def _told(error: grpc.RpcError) -> tuple[str, str | None]:
    """Its code and details."""
    if not isinstance(error, grpc.Call):
        return grpc.StatusCode.UNKNOWN.name, str(error)
    return error.code().name, error.details()


def _stranger(address: str, failure: CallFailed | DaemonGone) -> BackendUnavailable:
    """The error for a socket that takes connections, but doesn't speak as containerd."""
    match failure:
        case TimedOut():
            message = f"whatever listens at {address} doesn't answer as containerd does"
            hint = "see whether containerd hangs, or whether this is another program's socket"
        case Unimplemented() | DaemonGone():
            message = f"the program that listens at {address} isn't containerd"
            hint = (
                "give the address of containerd's own socket, which is not Docker's API socket: "
                "containerd started by Docker listens at /run/docker/containerd/containerd.sock"
            )
        case _:
            message = f"containerd at {address} can't be used: {failure.details}"
            hint = failure.hint or "containerd's own log may say why"
    return BackendUnavailable(message, hint=hint)


def _cancelled(method: Method, details: str) -> CallCancelled:
    return CallCancelled(f"{method} is over: {details}", call=str(method), details=details)


class PendingCall:
    """A call under way."""

    def __init__(self, method: Method, call: Any) -> None:
        self._method = method
        self._call = cast("_RunningCall", call)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the response, at most `timeout` seconds, then raise TimeoutError."""
        try:
            return self._call.result(timeout)
        except grpc.FutureTimeoutError:
            raise TimeoutError from None
        except grpc.FutureCancelledError:
            raise _cancelled(self._method, "cancelled") from None
        except grpc.RpcError as error:
            raise _translated(str(self._method), error) from None

    def done(self) -> bool:
        return self._call.done()

    def on_done(self, callback: Callable[[], None]) -> None:
        """Have `callback` called from another thread once there is a result or an error."""
        self._call.add_done_callback(lambda _: callback())

    def cancel(self) -> None:
        """Stop waiting; the daemon may have done its work nevertheless."""
        self._call.cancel()


class Stream:
    """A call that takes or gives many messages. Leaving its context cancels what is left.

    One thread may send while another receives. Both directions hold a few messages, so that
    neither side waits for the other with each one.
    """

    def __init__(
        self,
        method: Method,
        activity: Activity | None,
        begin: Callable[[Iterator[Any]], Any],
        *,
        bounded: bool = True,
    ) -> None:
        self._method = method
        self._bounded = bounded
        self._activity = activity
        self._message = message_class(method.request)
        self._changed = threading.Condition()
        self._outgoing: deque[Any] = deque()
        self._incoming: deque[Any] = deque()
        self._finished = False
        self._closed = False
        self._ended = False
        # makes the error: one that is kept keeps alive all that its traceback leads to
        self._error: Callable[[], CallFailed | DaemonGone] | None = None
        self._call = cast("_RunningCall", begin(self._requests()))
        self._cancelling = contextlib.ExitStack()
        if activity is not None:
            self._cancelling.enter_context(activity.on_cancel(self._break))
        threading.Thread(target=self._receive_all, name=f"pybuild-{method}", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[Any]:
        while (message := self.receive()) is not None:
            yield message

    def send(self, **fields: Any) -> None:
        """Send a message; waits while several are under way. Raises what ended the stream."""
        self._send(self._message(**fields))

    def send_data(self, field: str, pieces: Sequence[bytes], /, **fields: Any) -> None:
        """As :meth:`send`, with `pieces` after each other as the bytes of `field`.

        They are copied once: the message's other fields are serialized without them, which may
        stand in any order (protobuf's encoding specification).
        """
        number = self._message.DESCRIPTOR.fields_by_name[field].number
        length = sum(map(len, pieces))
        others = self._message(**fields).SerializeToString()
        self._send(b"".join([others, _varint(number << 3 | _BYTES), _varint(length), *pieces]))

    def _send(self, message: Any) -> None:
        with self._changed:
            self._wait(lambda: len(self._outgoing) < _QUEUE_DEPTH or self._ended)
            if self._ended:
                self._raise_error()
                raise _cancelled(self._method, "the stream has ended")
            self._outgoing.append(message)
            self._changed.notify_all()

    def finish(self) -> None:
        """Say that nothing more will be sent."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def receive(self) -> Any | None:
        """The next message, or None at the stream's end. Raises what ended the stream."""
        with self._changed:
            self._wait(lambda: bool(self._incoming) or self._ended)
            if self._incoming:
                message = self._incoming.popleft()
                self._changed.notify_all()
                return message
            self._raise_error()
            return None

    def has_received(self) -> bool:
        """Whether `receive` would return or raise at once."""
        with self._changed:
            return bool(self._incoming) or self._ended

    def cancel(self) -> None:
        """End the stream now, from any thread. Idempotent."""
        self._cancelling.close()
        self._break()

    def _break(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._call.cancel()

    def _raise_error(self) -> None:
        if self._error is None:
            return
        try:
            raise self._error()
        except CallCancelled:
            if self._activity is not None:
                self._activity.raise_if_cancelled()
            raise

    def _wait(self, ready: Callable[[], bool]) -> None:
        if not self._changed.wait_for(ready, LONGEST_SILENCE if self._bounded else None):
            self._call.cancel()
            raise TimedOut(
                f"containerd was silent for {LONGEST_SILENCE:.0f} seconds in {self._method}",
                call=str(self._method),
                details="silent",
                hint="containerd is overloaded or hangs; its own log may say why",
            )

    def _requests(self) -> Iterator[Any]:
        """What grpc takes its messages from, in a thread of its own."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._outgoing or self._finished or self._ended)
                if self._ended or not self._outgoing:
                    return
                message = self._outgoing.popleft()
                self._changed.notify_all()
            yield message

    def _receive_all(self) -> None:
        error: Callable[[], CallFailed | DaemonGone] | None = None
        try:
            for message in self._call:
                with self._changed:
                    self._incoming.append(message)
                    self._changed.notify_all()
                    self._changed.wait_for(
                        lambda: len(self._incoming) < _QUEUE_DEPTH or self._closed
                    )
        except grpc.RpcError as failure:
            error = partial(translate, str(self._method), *_told(failure))
        finally:
            with self._changed:
                self._ended = True
                self._error = error
                self._changed.notify_all()
