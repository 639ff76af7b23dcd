"""Files fetched over http and https, for ADD and for contexts."""

from __future__ import annotations

import hashlib
import threading
import time
from base64 import b64encode
from collections.abc import Mapping
from contextlib import closing
from email.utils import parsedate_to_datetime
from typing import BinaryIO

from pybuild.errors import FetchFailed, RegistryError
from pybuild.files.spool import Spool
from pybuild.files.trees import MemoryTree, NewEntry, Tree
from pybuild.oci.http import Activity, Request, RequestFailed, Response, Transport, split_url
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.session import Retry, redirected, wait
from pybuild.remotes.locations import WebLocation
from pybuild.remotes.options import RemoteOptions
from pybuild.secrets import Secret
from pybuild.values import dataclass

_MAX_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TEMPORARY = frozenset({408, 429, 500, 502, 503, 504})
_CHUNK = 1 << 18
_SLOWEST = 100  # bytes a second
_MODE = 0o600


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file that was fetched. ``digest`` is by sha256; ``mtime`` in seconds, 0 if not told."""

    name: str
    size: int
    digest: str
    mtime: int
    spool: Spool

    def open(self) -> BinaryIO:
        """Its bytes, until the spool is closed."""
        return self.spool.open(0, self.size)

    def tree(self, name: str | None = None) -> Tree:
        """A tree of this file alone: root's, mode 0600 (BuildKit's `source/http`)."""
        path = (name or self.name).encode("utf-8", "surrogateescape")
        entry = Entry(path, Kind.FILE, _MODE, size=self.size, mtime=self.mtime, digest=self.digest)
        return MemoryTree([NewEntry(entry, self.open)])


class WebClient:
    """Fetches files. Safe in threads; close it at the end."""

    def __init__(
        self,
        options: RemoteOptions,
        secrets: Mapping[str, Secret],
        transport: Transport | None = None,
        retry: Retry | None = None,
    ) -> None:
        self._options = options
        self._secrets = secrets
        self._transport = transport
        self._retry = retry or Retry(attempts=3)
        self._lock = threading.Lock()

    def fetch(self, location: WebLocation, activity: Activity) -> WebFile:
        """The file, whole and with the right checksum.

        Redirects are followed to http and https alone; a login goes to the URL's own host only.
        Raises FetchFailed, BuildCancelled.
        """
        attempt = 0
        while True:
            try:
                return self._fetch_once(location, activity)
            except RequestFailed as error:
                attempt += 1
                if not error.temporary or attempt >= self._retry.attempts:
                    raise FetchFailed(error.message, hint=_hint(error)) from error
            except RegistryError as error:
                raise FetchFailed(error.message, hint=error.hint) from error
            wait(self._retry.delay(attempt - 1), activity)

    def close(self) -> None:
        """End all connections. Idempotent."""
        with self._lock:
            transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def _fetch_once(self, location: WebLocation, activity: Activity) -> WebFile:
        spool = Spool()
        try:
            with closing(self._get(location, activity)) as response:
                return self._receive(location, response, spool, activity)
        except BaseException:
            spool.close()
            raise

    def _get(self, location: WebLocation, activity: Activity) -> Response:
        request = Request("GET", location.url, self._headers(location))
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._connected().send(request, activity)
            target = response.headers.get("Location")
            if response.status not in _REDIRECTS or target is None:
                if 200 <= response.status < 300:
                    return response
                response.close()
                raise _refused(location, response.status)
            response.close()
            request = redirected(request, target)
        raise FetchFailed(f"{_shown(location)} redirects in a loop")

    def _headers(self, location: WebLocation) -> dict[str, str]:
        headers = {"User-Agent": "pybuild", "Accept": "*/*"}
        parts = split_url(location.url)
        host = (parts.hostname if parts else None) or ""
        authorization = ""
        if location.login:
            authorization = f"Basic {b64encode(location.login.encode()).decode()}"
        if secret := self._secrets.get(f"HTTP_AUTH_HEADER_{host}"):
            authorization = header_value(secret, host)
        if secret := self._secrets.get(f"HTTP_AUTH_TOKEN_{host}"):
            authorization = f"Bearer {header_value(secret, host)}"
        if authorization:
            headers["Authorization"] = authorization
        return headers

    def _receive(
        self, location: WebLocation, response: Response, spool: Spool, activity: Activity
    ) -> WebFile:
        text = response.headers.get("Content-Length", "")
        total = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
        most = self._options.max_bytes
        too_large = FetchFailed(f"{_shown(location)} has more than {most} bytes")
        if total is not None and total > most:
            raise too_large
        plain, size = hashlib.sha256(), 0
        algorithm, _, wanted = location.checksum.partition(":")
        other = hashlib.new(algorithm) if algorithm not in {"", "sha256"} else plain
        pace = _Pace(location, self._options.patience)
        while piece := response.read(_CHUNK):
            activity.raise_if_cancelled()
            size += len(piece)
            if size > most:
                raise too_large
            plain.update(piece)
            if other is not plain:
                other.update(piece)
            spool.write(piece)
            activity.progress(_shown(location), size, total)
            pace.check(len(piece))
        if total is not None and size != total:
            raise RequestFailed(f"{_shown(location)} broke off at byte {size}", temporary=True)
        if wanted and other.hexdigest() != wanted:
            raise FetchFailed(
                f"digest mismatch for {_shown(location)}: {algorithm}:{other.hexdigest()} "
                f"(expected: {location.checksum})",
                hint="the file was changed, or the checksum is of another one",
            )
        mtime = _seconds(response.headers.get("Last-Modified", ""))
        return WebFile(location.name, size, f"sha256:{plain.hexdigest()}", mtime, spool)

    def _connected(self) -> Transport:
        with self._lock:
            if self._transport is None:
                # Imported here so that a build without such a source needs no HTTP client.
                from pybuild.oci.transport import Urllib3Transport  # noqa: PLC0415

                proxies = {} if self._options.public_only else self._options.proxies
                self._transport = Urllib3Transport(
                    proxies,
                    read_timeout=self._options.patience,
                    public_only=self._options.public_only,
                )
            return self._transport


class _Pace:
    """Refuses a body that comes too slowly to be meant."""

    def __init__(self, location: WebLocation, patience: float) -> None:
        self._location = location
        self._patience = patience
        self._since = time.monotonic()
        self._recent = 0

    def check(self, size: int) -> None:
        self._recent += size
        seconds = time.monotonic() - self._since
        if seconds < self._patience:
            return
        if self._recent < _SLOWEST * seconds:
            raise RequestFailed(f"{_shown(self._location)} sends too slowly", temporary=False)
        self._since, self._recent = time.monotonic(), 0


def header_value(secret: Secret, host: str) -> str:
    """A secret as part of a header, without the line end of its file. Raises FetchFailed."""
    text = secret.value.decode("utf-8", "replace").strip()
    if not text.isprintable():
        raise FetchFailed(f"the secret for {host} can't stand in a header")
    return text


def _refused(location: WebLocation, status: int) -> FetchFailed | RequestFailed:
    message = f"{_shown(location)} answered {status}"
    if status in _TEMPORARY:
        return RequestFailed(message, temporary=True)
    hint = None
    if status in {401, 403}:
        hint = "a secret HTTP_AUTH_TOKEN_<host> or HTTP_AUTH_HEADER_<host> is sent as a login"
    return FetchFailed(message, hint=hint)


def _hint(error: RequestFailed) -> str | None:
    if error.untrusted:
        return "the authorities that are trusted are the system's"
    if not error.connected:
        return error.hint or "check the URL, the network, and the proxy if there is one"
    return error.hint


def _shown(location: WebLocation) -> str:
    return location.url.partition("?")[0][:300]


def _seconds(last_modified: str) -> int:
    """The time in a Last-Modified header; the beginning of time where there is none."""
    try:
        return max(0, int(parsedate_to_datetime(last_modified).timestamp()))
    except (ValueError, TypeError, OverflowError):
        return 0
