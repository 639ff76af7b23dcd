"""HTTP over urllib3: connections, TLS, proxies, and urllib3's errors in our words.

The only importer of urllib3; import this module only when a request is about to be made.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import sys
import threading
import urllib.request
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import urllib3
from urllib3 import exceptions as foreign
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from pybuild.errors import UsageError
from pybuild.oci.http import (
    Activity,
    Body,
    Request,
    RequestFailed,
    TlsOptions,
    is_loopback,
    is_public,
    shown,
    split_url,
)
from pybuild.values import dataclass

# A registry answers an upload once it has stored, and perhaps hashed, all of it.
_STORING_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    temporary: bool
    connected: bool = True


_BROKEN = _Failure("the connection broke", temporary=True)
_MALFORMED = _Failure("the answer isn't valid HTTP", temporary=True)
_SLOW = _Failure("the server didn't answer in time", temporary=True)
_BAD_URL = _Failure("the URL is invalid", temporary=False, connected=False)
_BAD_PROXY = _Failure("the proxy's URL is invalid", temporary=False, connected=False)
_UNREACHABLE = _Failure("the server can't be reached", temporary=True, connected=False)
_HINT_UNREACHABLE = "check the name of the registry, the network, and the proxy if there is one"
_INTERNAL = _Failure("the request failed", temporary=False)

# Looked up along an exception's bases, so that classes of later versions are covered too.
FAILURES: Mapping[type[Exception], _Failure] = MappingProxyType(
    {
        foreign.HTTPError: _INTERNAL,
        foreign.PoolError: _INTERNAL,
        foreign.RequestError: _INTERNAL,
        foreign.MaxRetryError: _INTERNAL,
        foreign.HostChangedError: _INTERNAL,
        foreign.EmptyPoolError: _INTERNAL,
        foreign.FullPoolError: _INTERNAL,
        foreign.ClosedPoolError: _Failure("the client was closed", temporary=False),
        foreign.UnrewindableBodyError: _INTERNAL,
        foreign.TimeoutStateError: _INTERNAL,
        foreign.SSLError: _Failure("TLS failed", temporary=False, connected=False),
        foreign.ProxyError: _Failure("the proxy can't be reached", temporary=True, connected=False),
        foreign.DecodeError: _MALFORMED,
        foreign.ResponseError: _MALFORMED,
        foreign.ProtocolError: _BROKEN,
        foreign.IncompleteRead: _BROKEN,
        foreign.InvalidChunkLength: _BROKEN,
        foreign.ResponseNotChunked: _MALFORMED,
        foreign.BodyNotHttplibCompatible: _MALFORMED,
        foreign.HeaderParsingError: _MALFORMED,
        foreign.InvalidHeader: _MALFORMED,
        foreign.TimeoutError: _SLOW,
        foreign.ReadTimeoutError: _SLOW,
        foreign.ConnectTimeoutError: _Failure(
            "the connection timed out", temporary=True, connected=False
        ),
        foreign.NewConnectionError: _UNREACHABLE,
        foreign.NameResolutionError: _Failure(
            "its name can't be resolved", temporary=True, connected=False
        ),
        foreign.LocationValueError: _BAD_URL,
        foreign.LocationParseError: _BAD_URL,
        foreign.URLSchemeUnknown: _BAD_URL,
        foreign.ProxySchemeUnknown: _BAD_PROXY,
        foreign.ProxySchemeUnsupported: _BAD_PROXY,
        # What the standard library raises through urllib3.
        OSError: _BROKEN,
        http.client.HTTPException: _MALFORMED,
        UnicodeError: _BAD_URL,
    }
)


def failure_of(error: Exception, url: str) -> RequestFailed | None:
    """`error` of urllib3 in our words, or None if it isn't one of a request."""
    failure = next((FAILURES[base] for base in type(error).__mro__ if base in FAILURES), None)
    if failure is None:
        return None
    certificate = _certificate_problem(error)
    if certificate:
        return RequestFailed(
            f"the certificate of {shown(url)} isn't trusted: {certificate}",
            temporary=False,
            connected=False,
            untrusted=True,
            hint="name its authority as ca in the registry's hosts.toml",
        )
    return RequestFailed(
        f"can't read from {shown(url)}: {failure.reason}",
        temporary=failure.temporary,
        connected=failure.connected,
        hint=None if failure.connected else _HINT_UNREACHABLE,
    )


class Urllib3Transport:
    """Sends requests over pooled connections; safe in threads.

    `proxies` maps ``http`` and ``https`` to the URL of a proxy, ``no`` to the hosts that are
    reached without (as :func:`urllib.request.getproxies` gives them). Timeouts are seconds;
    `read_timeout` is for each wait on the server, not for a whole answer. With `public_only`
    no connection is made to an address that isn't public (:func:`pybuild.oci.http.is_public`).
    """

    def __init__(
        self,
        proxies: Mapping[str, str] | None = None,
        *,
        connect_timeout: float = 10.0,
        read_timeout: float = 30.0,
        public_only: bool = False,
    ) -> None:
        self._proxies = dict(proxies or {})
        self._public_only = public_only
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._lock = threading.Lock()
        self._pools: dict[tuple[TlsOptions, str | None], urllib3.PoolManager] = {}

    def send(self, request: Request, activity: Activity) -> Urllib3Response:
        """Send `request`, wait for the answer's head. As :class:`pybuild.oci.http.Transport`."""
        read = self._read_timeout
        if isinstance(request.body, Body):
            read = max(read, _STORING_SECONDS)
        timeout = urllib3.Timeout(
            connect=request.connect_timeout or self._connect_timeout, read=read
        )
        interrupt = _Interrupt()
        with ExitStack() as stack, _translated(request.url, activity):
            activity.raise_if_cancelled()
            stack.enter_context(activity.on_cancel(interrupt.trigger))
            token = _interrupt.set(interrupt)
            try:
                raw = self._request(request, timeout)
            finally:
                _interrupt.reset(token)
            return Urllib3Response(raw, request.url, activity, stack.pop_all())

    def _request(self, request: Request, timeout: urllib3.Timeout) -> urllib3.BaseHTTPResponse:
        headers = {"Accept-Encoding": "identity", **request.headers}
        body: bytes | Generator[bytes] | None
        with ExitStack() as stack:
            if isinstance(request.body, Body):
                headers["Content-Length"] = str(request.body.size)
                body = stack.enter_context(closing(request.body.pieces()))
            else:
                body = request.body
            return self._pool(request).request(
                request.method,
                request.url,
                body=body,
                headers=headers,
                timeout=timeout,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )

    def close(self) -> None:
        """Close all connections. Idempotent."""
        with self._lock:
            pools = list(self._pools.values())
            self._pools.clear()
        for pool in pools:
            pool.clear()

    def _pool(self, request: Request) -> urllib3.PoolManager:
        proxy = self._proxy(request.url)
        with self._lock:
            key = (request.tls, proxy)
            if key not in self._pools:
                self._pools[key] = _make_pool(request.tls, proxy, public_only=self._public_only)
            return self._pools[key]

    def _proxy(self, url: str) -> str | None:
        parts = split_url(url)
        if parts is None or is_loopback(parts.hostname or ""):
            return None
        if urllib.request.proxy_bypass_environment(parts.netloc, self._proxies):  # type: ignore[attr-defined]
            return None
        return self._proxies.get(parts.scheme)


class Urllib3Response:
    """An answer on a pooled connection. As :class:`pybuild.oci.http.Response`."""

    def __init__(
        self, raw: urllib3.BaseHTTPResponse, url: str, activity: Activity, stack: ExitStack
    ) -> None:
        self._raw = raw
        self._url = url
        self._activity = activity
        self._stack = stack

    @property
    def status(self) -> int:
        """The status code."""
        return self._raw.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, whose names are compared without regard to case."""
        return self._raw.headers

    def read(self, size: int) -> bytes:
        """What has come, at most `size` bytes; waits only if nothing has."""
        with _translated(self._url, self._activity):
            return self._raw.read1(size)

    def close(self) -> None:
        """Give the connection back, or close it if the body wasn't read. Idempotent."""
        self._stack.close()
        self._raw.close()
        self._raw.release_conn()


class _Interrupt:
    """Breaks the connections of one request from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._triggered = False
        self._socket: socket.socket | None = None

    def watch(self, connection: socket.socket | None) -> None:
        with self._lock:
            self._socket = connection
            if self._triggered:
                self._shut_down()

    def trigger(self) -> None:
        with self._lock:
            self._triggered = True
            self._shut_down()

    def _shut_down(self) -> None:
        if self._socket is None:
            return
        with suppress(OSError):  # it may not be connected any more
            # Not SSLSocket's own method, which takes the TLS state from under a reader.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


_interrupt: ContextVar[_Interrupt | None] = ContextVar("interrupt", default=None)


def _watch(connection: socket.socket | None) -> None:
    interrupt = _interrupt.get()
    if interrupt is not None:
        interrupt.watch(connection)


class _Connection(HTTPConnection):
    public_only = False

    def _new_conn(self) -> socket.socket:
        return _dial(self, public_only=self.public_only)

    def putrequest(self, *args: Any, **kwargs: Any) -> None:
        _watch(self.sock)  # a connection that is used again
        super().putrequest(*args, **kwargs)


class _SecureConnection(HTTPSConnection):
    public_only = False

    def _new_conn(self) -> socket.socket:
        return _dial(self, public_only=self.public_only)

    def connect(self) -> None:
        super().connect()
        _watch(self.sock)
        if self.ssl_context is not None and self.ssl_context.verify_mode == ssl.CERT_NONE:
            # The user's hosts.toml asked for it, so urllib3 has nothing to warn of.
            self.is_verified = True

    def putrequest(self, *args: Any, **kwargs: Any) -> None:
        _watch(self.sock)
        super().putrequest(*args, **kwargs)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _PublicConnection(_Connection):
    public_only = True


class _PublicSecureConnection(_SecureConnection):
    public_only = True


class _PublicPool(_Pool):
    ConnectionCls = _PublicConnection


class _PublicSecurePool(_SecurePool):
    ConnectionCls = _PublicSecureConnection


def _dial(connection: HTTPConnection, *, public_only: bool) -> socket.socket:
    """As HTTPConnection._new_conn, but a cancel ends even a connect that nobody answers."""
    timeout = connection.timeout if isinstance(connection.timeout, int | float) else None
    host = connection._dns_host.strip("[]")  # noqa: SLF001 -- what _new_conn uses
    try:
        addresses = socket.getaddrinfo(host, connection.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise foreign.NameResolutionError(connection.host, connection, error) from error
    problem: Exception = foreign.NewConnectionError(connection, "it has no address")
    for family, kind, protocol, _, address in addresses:
        if public_only and not is_public(str(address[0])):
            raise RequestFailed(
                f"{connection.host} is {address[0]}, which is no public address",
                temporary=False,
                connected=False,
                hint="only public addresses may be read from in this build",
            )
        candidate = socket.socket(family, kind, protocol)
        try:
            _watch(candidate)
            candidate.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            candidate.settimeout(timeout)
            candidate.connect(address)
        except TimeoutError:
            problem = foreign.ConnectTimeoutError(connection, "the connection timed out")
        except OSError as error:
            problem = foreign.NewConnectionError(connection, str(error))
        else:
            sys.audit("http.client.connect", connection, connection.host, connection.port)
            return candidate
        candidate.close()
    raise problem


def _make_pool(tls: TlsOptions, proxy: str | None, *, public_only: bool) -> urllib3.PoolManager:
    context = _tls_context(tls)
    if proxy is None:
        pool = urllib3.PoolManager(num_pools=32, maxsize=8, ssl_context=context)
    else:
        credentials = urllib3.util.parse_url(proxy).auth
        headers = urllib3.make_headers(proxy_basic_auth=credentials) if credentials else None
        pool = urllib3.ProxyManager(
            proxy, num_pools=32, maxsize=8, proxy_headers=headers, ssl_context=context
        )
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
    if public_only:
        pool.pool_classes_by_scheme = {"http": _PublicPool, "https": _PublicSecurePool}
    return pool


def _tls_context(tls: TlsOptions) -> ssl.SSLContext:
    context = ssl.create_default_context()
    path = None
    try:
        for path in tls.ca_files:
            context.load_verify_locations(cafile=path)
        for path, key in tls.client_pairs:
            # An encrypted key must fail here, not ask on the terminal.
            context.load_cert_chain(path, key, password=lambda: b"")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no PEM certificate"
        raise UsageError(
            f"can't use the certificate {path}: {reason}", hint="it is named in a hosts.toml"
        ) from None
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@contextmanager
def _translated(url: str, activity: Activity) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        activity.raise_if_cancelled()  # then the break was ours
        failure = failure_of(error, url)
        if failure is None:
            raise
        raise failure from error


def _certificate_problem(error: Exception) -> str | None:
    for cause in (error, *error.args, getattr(error, "original_error", None)):
        inner = (cause, *cause.args) if isinstance(cause, Exception) else ()
        for one in inner:
            if isinstance(one, ssl.SSLCertVerificationError):
                return one.verify_message or "it doesn't verify"
    return None
