"""What the registry client needs of HTTP: the interface between its policy and its transport.

Nothing here does I/O; :mod:`pybuild.oci.transport` implements it with urllib3.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

from pybuild.errors import InvalidImage, RegistryError
from pybuild.values import dataclass, field

_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052


class Activity(Protocol):
    """The part of :class:`pybuild.backend.Activity` that transfers use."""

    def progress(self, item: str, done: int, total: int | None) -> None: ...

    def raise_if_cancelled(self) -> None: ...

    def on_cancel(self, callback: Callable[[], None]) -> AbstractContextManager[None]: ...


class NoActivity:
    """An activity that nobody watches or cancels."""

    def progress(self, item: str, done: int, total: int | None) -> None:
        """Ignore it."""

    def raise_if_cancelled(self) -> None:
        """Never raise."""

    def on_cancel(
        self,
        callback: Callable[[], None],  # noqa: ARG002 -- the protocol's
    ) -> AbstractContextManager[None]:
        """Never call back."""
        return nullcontext()


class RequestFailed(RegistryError):
    """A request got no answer, or one that broke off.

    ``temporary`` says whether the same request may work later; ``connected`` whether the
    server was reached at all; ``untrusted`` that its certificate was refused.
    """

    def __init__(
        self,
        message: str,
        *,
        temporary: bool,
        connected: bool = True,
        untrusted: bool = False,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.temporary = temporary
        self.connected = connected
        self.untrusted = untrusted


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """How a server is trusted, and how we prove who we are. PEM files.

    ``ca_files`` add to the system's authorities; a client pair without a key has it in the
    certificate's file.
    """

    ca_files: tuple[Path, ...] = ()
    client_pairs: tuple[tuple[Path, Path | None], ...] = ()
    skip_verify: bool = False


DEFAULT_TLS = TlsOptions()


@dataclass(frozen=True, slots=True)
class Body:
    """`size` bytes that are sent while `pieces` gives them; once more for each request."""

    size: int
    pieces: Callable[[], Generator[bytes]]


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; headers may hold secrets, so they stay out of the repr."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | Body | None = field(default=None, repr=False)
    tls: TlsOptions = DEFAULT_TLS
    connect_timeout: float | None = None


class Response(Protocol):
    """An answer whose body is read as it comes. Close it in any case."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Names are compared without regard to case."""

    def read(self, size: int) -> bytes:
        """From 1 to `size` bytes, ``b""`` at the end; raises RequestFailed."""

    def close(self) -> None: ...


class Transport(Protocol):
    """Sends requests; follows no redirect, repeats nothing, keeps no secret."""

    def send(self, request: Request, activity: Activity) -> Response:
        """Raises RequestFailed, or BuildCancelled soon after the activity's cancel."""

    def close(self) -> None: ...


def split_url(url: str) -> SplitResult | None:
    """The parts of an http or https URL with a host, or None; without user and password."""
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or 0 < parts.port < 65536
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or not port_is_valid:
        return None
    return None if "@" in parts.netloc or not url.isprintable() or " " in url else parts


def origin(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port: what must agree for credentials to be sent (RFC 6454)."""
    parts = split_url(url)
    if parts is None:
        return None
    return parts.scheme, parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme]


def shown(url: str) -> str:
    """`url` for messages: without its query, which may hold a signature or token."""
    parts = split_url(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"[:300] if parts else "an invalid URL"


def is_loopback(host: str) -> bool:
    """Whether `host` (no port, brackets allowed) is this machine: localhost, 127/8, [::1]."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, not of a machine or a private network."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        # what leads to an IPv4 address may lead to a private one
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if found in _NAT64 or found.sixtofour is not None or found.teredo is not None:
            return False
    return found.is_global and not found.is_multicast


def read_body(response: Response, url: str, limit: int, deadline: float) -> bytes:
    """The whole body, of at most `limit` bytes and within `deadline` seconds.

    Raises InvalidImage if it is longer, RequestFailed if it takes longer or breaks off.
    """
    end = time.monotonic() + deadline
    pieces: list[bytes] = []
    left = limit
    while piece := response.read(min(left + 1, 65536)):
        left -= len(piece)
        if left < 0:
            raise InvalidImage(f"the answer from {shown(url)} has more than {limit} bytes")
        if time.monotonic() > end:
            raise RequestFailed(f"{shown(url)} answers too slowly", temporary=True)
        pieces.append(piece)
    return b"".join(pieces)
