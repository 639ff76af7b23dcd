"""The registry client: manifests and blobs by the OCI distribution specification.

What it promises: bytes are what their digest says; nothing is larger than announced; logins
never leave for another host; a mirror that fails is followed by the next and at last by the
registry itself.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Protocol, Self, TypeVar

from pybuild.errors import ImageError, InvalidImage, RegistryError
from pybuild.oci.auth import Anonymous, Credentials
from pybuild.oci.descriptor import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    digest_of,
    is_digest,
)
from pybuild.oci.hosts import Endpoint, HostCapability, Hosts
from pybuild.oci.http import Activity, NoActivity, RequestFailed, Response, Transport
from pybuild.oci.manifest import MAX_MANIFEST_SIZE, media_type_of
from pybuild.oci.reference import Reference, version
from pybuild.oci.session import Retry, Session
from pybuild.oci.uploads import RepositoryWriter

_ACCEPT = (OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST)
_SLOWEST = 1024  # bytes a second, on average over the patience
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/(?:([0-9]{1,19})|\*)")
_NOBODY = NoActivity()
_T = TypeVar("_T")
_Result_co = TypeVar("_Result_co", covariant=True)


class _Call(Protocol[_Result_co]):
    def __call__(self, endpoint: Endpoint, *, hurry: bool) -> _Result_co: ...


class RegistryClient:
    """Reads images from registries, and writes to them; a context manager, safe in threads.

    `proxies` is as :class:`pybuild.oci.transport.Urllib3Transport` takes it. A blob that
    comes slower than 1 KiB/s over `patience` seconds counts as broken off. `transport`
    replaces the network.
    """

    def __init__(
        self,
        hosts: Hosts | None = None,
        credentials: Credentials | None = None,
        *,
        proxies: Mapping[str, str] | None = None,
        retry: Retry | None = None,
        read_timeout: float = 30.0,
        patience: float = 60.0,
        transport: Transport | None = None,
    ) -> None:
        self._hosts = hosts or Hosts()
        self._credentials = credentials or Anonymous()
        self._proxies = proxies
        self.retry = retry or Retry()
        self._read_timeout = read_timeout
        self._patience = patience
        self._transport = transport
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._closed = False
        self._unreachable: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. Idempotent."""
        with self._lock:
            self._closed = True
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def manifest(
        self, reference: Reference, activity: Activity = _NOBODY
    ) -> tuple[Descriptor, bytes]:
        """The manifest or index that `reference` names, by digest if it has one.

        Raises ImageNotFound, AuthenticationRequired, RegistryError, InvalidImage.
        """

        def fetch(endpoint: Endpoint, *, hurry: bool) -> tuple[Descriptor, bytes]:
            headers, body = self._connected().document(
                endpoint,
                reference.repository,
                f"manifests/{version(reference)}",
                activity,
                limit=MAX_MANIFEST_SIZE,
                headers={"Accept": ", ".join(_ACCEPT)},
                hurry=hurry,
            )
            return _checked_manifest(reference, endpoint, headers, body), body

        return self._from_any(reference, self._capability(reference), activity, fetch)

    def resolve(self, reference: Reference, activity: Activity = _NOBODY) -> Descriptor:
        """The descriptor of what `reference` names now, mostly without fetching it.

        Errors as :meth:`manifest`.
        """

        def ask(endpoint: Endpoint, *, hurry: bool) -> Descriptor | None:
            response = self._connected().request(
                endpoint,
                reference.repository,
                f"manifests/{version(reference)}",
                activity,
                method="HEAD",
                headers={"Accept": ", ".join(_ACCEPT)},
                hurry=hurry,
            )
            response.close()
            headers = response.headers
            digest, size = headers.get("Docker-Content-Digest", ""), _content_length(headers)
            media_type = _media_type(headers)
            known = media_type is not None and is_digest(digest) and size is not None
            if not known or media_type not in _ACCEPT:
                return None
            if reference.digest and digest != reference.digest:
                raise InvalidImage(f"{endpoint.host} gives {digest} for {reference}")
            return Descriptor(media_type or "", digest, size or 0)

        found = self._from_any(reference, self._capability(reference), activity, ask)
        return found or self.manifest(reference, activity)[0]

    def blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        offset: int = 0,
        activity: Activity = _NOBODY,
        *,
        avoid: Collection[str] = (),
    ) -> BlobStream:
        """The blob's bytes from `offset` on, to be read and closed; digest not checked here.

        `avoid` holds :attr:`BlobStream.source` of earlier streams that went wrong; those
        endpoints come last. Errors as :meth:`manifest`.
        """
        if not is_digest(descriptor.digest):
            raise InvalidImage(f"{descriptor.digest[:100]!r} is no digest")

        def fetch(endpoint: Endpoint, *, hurry: bool) -> BlobStream:
            response = self._connected().request(
                endpoint,
                reference.repository,
                f"blobs/{descriptor.digest}",
                activity,
                headers={"Range": f"bytes={offset}-"} if offset else {},
                hurry=hurry,
            )
            try:
                start = _check_blob_head(response, endpoint, descriptor, offset)
                stream = BlobStream(response, endpoint, descriptor, start, self._patience)
                while stream.position < offset:
                    stream.read(min(65536, offset - stream.position))
            except BaseException:
                response.close()
                raise
            return stream

        return self._from_any(reference, HostCapability.PULL, activity, fetch, avoid)

    def writer(self, reference: Reference) -> RepositoryWriter:
        """What writes to the repository of `reference`. Raises RegistryError if nothing may."""
        registry = reference.registry
        for endpoint in self._hosts.endpoints(registry):
            if HostCapability.PUSH in endpoint.capabilities:
                return RepositoryWriter(
                    self._connected(), endpoint, reference.repository, self.retry
                )
        raise RegistryError(
            f"no host of {registry} may push", hint="its hosts.toml gives none the capability"
        )

    def scheme(self, registry: str) -> str:
        """How `registry` itself, not a mirror, is reached as far as is known: https or http."""
        return self._connected().scheme(self._hosts.endpoints(registry)[-1])

    def _from_any(
        self,
        reference: Reference,
        capability: HostCapability,
        activity: Activity,
        call: _Call[_T],
        avoid: Collection[str] = (),
    ) -> _T:
        endpoints = [
            endpoint
            for endpoint in self._hosts.endpoints(reference.registry)
            if capability in endpoint.capabilities
        ]
        if not endpoints:
            raise RegistryError(
                f"no host of {reference.registry} may {capability}",
                hint="its hosts.toml gives none the capability",
            )
        with self._lock:
            late = self._unreachable | set(avoid)
        errors: dict[str, ImageError] = {}
        for endpoint in sorted(endpoints, key=lambda endpoint: endpoint.url in late):
            try:
                return call(endpoint, hurry=len(endpoints) > 1)
            except ImageError as error:
                activity.raise_if_cancelled()
                errors[endpoint.url] = error
                if isinstance(error, RequestFailed) and not error.connected:
                    with self._lock:
                        self._unreachable.add(endpoint.url)
        # The registry itself knows best why; its mirrors come before it.
        raise errors[endpoints[-1].url]

    def _connected(self) -> Session:
        with self._lock:
            if self._closed:
                raise RegistryError("the registry client was closed")
            if self._session is None:
                transport = self._transport or self._make_transport()
                self._session = Session(transport, self._credentials, self.retry)
            return self._session

    def _make_transport(self) -> Transport:
        # Imported here so that a build without a pull needs no HTTP client.
        from pybuild.oci.transport import Urllib3Transport  # noqa: PLC0415

        return Urllib3Transport(self._proxies, read_timeout=self._read_timeout)

    @staticmethod
    def _capability(reference: Reference) -> HostCapability:
        # Whoever serves a digest needn't be trusted; who says what a tag is, must be.
        return HostCapability.PULL if reference.digest else HostCapability.RESOLVE


class BlobStream:
    """A blob being read. It ends exactly at the descriptor's size, or raises.

    ``source`` names the endpoint for :meth:`RegistryClient.blob`'s `avoid`; ``position`` is
    the offset in the blob of the next byte.
    """

    def __init__(
        self,
        response: Response,
        endpoint: Endpoint,
        descriptor: Descriptor,
        position: int,
        patience: float,
    ) -> None:
        self._response = response
        self._host = endpoint.host
        self._descriptor = descriptor
        self._patience = patience
        self._since = time.monotonic()
        self._recent = 0
        self.source = endpoint.url
        self.position = position

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def read(self, size: int = 1 << 18) -> bytes:
        """From 1 to `size` bytes; ``b""`` at the end of the blob.

        Raises RequestFailed where the connection breaks off or crawls, InvalidImage where
        there is more than the descriptor says.
        """
        left = self._descriptor.size - self.position
        piece = self._response.read(max(1, min(size, left + 1)))
        if len(piece) > left:
            raise InvalidImage(
                f"{self._host} sends more than {self._descriptor.size} bytes "
                f"for {self._descriptor.digest}"
            )
        if not piece and left:
            raise RequestFailed(
                f"{self._host} broke off {self._descriptor.digest} at byte {self.position}",
                temporary=True,
            )
        self.position += len(piece)
        self._check_pace(len(piece))
        return piece

    def close(self) -> None:
        """Give the connection back. Idempotent."""
        self._response.close()

    def _check_pace(self, size: int) -> None:
        self._recent += size
        seconds = time.monotonic() - self._since
        if seconds < self._patience:
            return
        if self._recent < _SLOWEST * seconds and self.position < self._descriptor.size:
            raise RequestFailed(f"{self._host} sends too slowly", temporary=True)
        self._since, self._recent = time.monotonic(), 0


def _checked_manifest(
    reference: Reference, endpoint: Endpoint, headers: Mapping[str, str], data: bytes
) -> Descriptor:
    digest = digest_of(data)
    announced = reference.digest or headers.get("Docker-Content-Digest") or digest
    if digest != announced:
        raise InvalidImage(
            f"{endpoint.host} sent a manifest with digest {digest} for "
            f"{reference.repository}, which should have {announced[:100]}"
        )
    return Descriptor(media_type_of(data, _media_type(headers)), digest, len(data))


def _check_blob_head(
    response: Response, endpoint: Endpoint, descriptor: Descriptor, offset: int
) -> int:
    """Check that the answer holds the rest of the blob; say where it starts."""
    length = _content_length(response.headers)
    start = 0
    if response.status == 206:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        first, last = (int(match[1]), int(match[2])) if match else (-1, -1)
        total = int(match[3]) if match and match[3] else descriptor.size
        if (first, last, total) != (offset, descriptor.size - 1, descriptor.size):
            raise RequestFailed(
                f"{endpoint.host} sent the wrong range of {descriptor.digest}", temporary=True
            )
        start = offset
    if length is not None and length != descriptor.size - start:
        raise RequestFailed(
            f"{endpoint.host} sends {length} bytes for {descriptor.digest}, "
            f"which should have {descriptor.size - start}",
            temporary=True,
        )
    return start


def _content_length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"[0-9]{1,19}", text) else None


def _media_type(headers: Mapping[str, str]) -> str | None:
    return headers.get("Content-Type", "").partition(";")[0].strip() or None
