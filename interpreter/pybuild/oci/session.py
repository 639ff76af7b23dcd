"""One request to one endpoint: authentication, redirects, repetition, and errors in words."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from urllib.parse import quote, urlencode, urljoin

from pybuild.errors import (
    AuthenticationRequired,
    ImageNotFound,
    InvalidImage,
    RegistryError,
)
from pybuild.oci.auth import Credentials
from pybuild.oci.hosts import Endpoint
from pybuild.oci.http import (
    Activity,
    Body,
    Request,
    RequestFailed,
    Response,
    TlsOptions,
    Transport,
    origin,
    read_body,
    shown,
    split_url,
)
from pybuild.oci.tokens import (
    MAX_TOKEN_ANSWER,
    Challenge,
    basic,
    parse_challenges,
    parse_token,
    token_request,
)
from pybuild.values import dataclass, replace

_MAX_REDIRECTS = 10
_MAX_DIAGNOSTIC = 64 << 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TEMPORARY = frozenset({408, 429, 500, 502, 503, 504})
_WRITING = frozenset({"POST", "PUT", "PATCH"})
_BODY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how fast a request is repeated. Delays are seconds.

    The delay doubles from `first_delay` up to `longest_delay`, with jitter. A registry's
    Retry-After counts instead, but one over `longest_wait` is an error at once.
    """

    attempts: int = 5
    first_delay: float = 0.5
    longest_delay: float = 8.0
    longest_wait: float = 60.0

    def delay(self, attempt: int) -> float:
        """The delay after `attempt`, which counts from 0."""
        full: float = min(self.longest_delay, self.first_delay * 2**attempt)
        return full * random.uniform(0.5, 1.0)  # noqa: S311 -- to spread load, not to hide


class Session:
    """Sends requests to endpoints, as often and with what credentials it takes.

    Remembers tokens, and whether a local registry speaks https or plain http. Safe in threads.
    """

    def __init__(self, transport: Transport, credentials: Credentials, retry: Retry) -> None:
        self._transport = transport
        self._credentials = credentials
        self._retry = retry
        self._lock = threading.Lock()
        self._authorizations: dict[tuple[str, str], str] = {}
        self._schemes: dict[str, str] = {}

    def scheme(self, endpoint: Endpoint) -> str:
        """``https`` or ``http``: how `endpoint` was reached, else how it is tried first."""
        with self._lock:
            known = self._schemes.get(endpoint.url)
        return known or endpoint.url.partition("://")[0]

    def request(
        self,
        endpoint: Endpoint,
        repository: str,
        path: str,
        activity: Activity,
        *,
        method: str = "GET",
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        hurry: bool = False,
    ) -> Response:
        """Ask for `path` below the repository. The answer has a status from 200 to 299.

        With `hurry`, a server that can't be reached isn't tried again.

        Raises ImageNotFound for a 404 on GET and HEAD, AuthenticationRequired for 401 and
        403, and RegistryError for the rest and for a server that can't be reached.
        """
        url = f"{endpoint.url}/{repository}/{path}"
        request = _request(endpoint, method, url, headers or {}, body)
        asked = {"ns": endpoint.namespace} if endpoint.namespace else {}
        asked |= query or {}
        if asked:
            request = replace(request, url=f"{request.url}?{urlencode(asked, quote_via=quote)}")
        attempt = 0
        while True:
            try:
                response = self._send_once(endpoint, repository, request, activity)
            except RequestFailed as error:
                attempt += 1
                hopeless = hurry and not error.connected
                if not error.temporary or hopeless or attempt >= self._retry.attempts:
                    error.temporary = False  # it was repeated enough
                    raise
                wait(self._retry.delay(attempt - 1), activity)
                continue
            if 200 <= response.status < 300:
                return response
            with closing(response):
                pause = self.pause(response, attempt)
                attempt += 1
                if pause is None or attempt >= self._retry.attempts:
                    raise self.error(response, endpoint, repository, path, method)
            wait(pause, activity)

    def exchange_at(
        self,
        endpoint: Endpoint,
        repository: str,
        location: str,
        activity: Activity,
        *,
        method: str,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
    ) -> Response:
        """Send one request, once, to a `location` that `endpoint` gave in a header.

        The answer may have any status. No credentials go to another host. Raises RequestFailed
        where there is no answer, RegistryError for a location where nothing may be sent.
        """
        root = endpoint.url
        if self.scheme(endpoint) == "http":
            root = root.replace("https://", "http://", 1)
        here = replace(endpoint, url=root)
        request = redirected(_request(here, method, f"{root}/", headers or {}, body), location)
        if origin(request.url) != origin(root):
            return self._followed(request, activity)[0]
        return self._authorized(here, repository, request, activity)

    def document(
        self,
        endpoint: Endpoint,
        repository: str,
        path: str,
        activity: Activity,
        *,
        limit: int,
        headers: Mapping[str, str],
        hurry: bool = False,
    ) -> tuple[Mapping[str, str], bytes]:
        """The headers and the whole body, of at most `limit` bytes. As :meth:`request`."""
        attempt = 0
        while True:
            response = self.request(
                endpoint, repository, path, activity, headers=headers, hurry=hurry
            )
            try:
                with closing(response):
                    body = read_body(response, endpoint.url, limit, _BODY_SECONDS)
                    return response.headers, body
            except RequestFailed as error:
                attempt += 1
                if not error.temporary or attempt >= self._retry.attempts:
                    raise
            wait(self._retry.delay(attempt - 1), activity)

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def _send_once(
        self, endpoint: Endpoint, repository: str, request: Request, activity: Activity
    ) -> Response:
        with self._lock:
            scheme = self._schemes.get(endpoint.url)
        if scheme != "http":
            try:
                response = self._authorized(endpoint, repository, request, activity)
            except RequestFailed as error:
                if not endpoint.plain_fallback or error.untrusted or scheme == "https":
                    raise
            else:
                with self._lock:
                    self._schemes[endpoint.url] = "https"
                return response
        url = endpoint.url.replace("https://", "http://", 1)
        plain = replace(request, url=request.url.replace("https://", "http://", 1))
        response = self._authorized(replace(endpoint, url=url), repository, plain, activity)
        with self._lock:
            self._schemes[endpoint.url] = "http"
        return response

    def _authorized(
        self, endpoint: Endpoint, repository: str, request: Request, activity: Activity
    ) -> Response:
        key = (endpoint.url, repository)
        with self._lock:
            known = self._authorizations.get(key)
        response, url = self._followed(_with_authorization(request, known), activity)
        if response.status != 401 or origin(url) != origin(request.url):
            return response
        challenges = parse_challenges(response.headers.get("WWW-Authenticate", ""))
        try:
            fresh = self._authorization(
                endpoint, repository, challenges, activity, method=request.method
            )
        except BaseException:
            response.close()
            raise
        if fresh is None:
            return response
        response.close()
        with self._lock:
            self._authorizations[key] = fresh
        return self._followed(_with_authorization(request, fresh), activity)[0]

    def _authorization(
        self,
        endpoint: Endpoint,
        repository: str,
        challenges: tuple[Challenge, ...],
        activity: Activity,
        *,
        method: str,
    ) -> str | None:
        if not challenges:
            return None
        credential = self._credentials.for_host(endpoint.host)
        for challenge in challenges:
            if challenge.scheme == "bearer":
                scope = f"repository:{repository}:pull{',push' if method in _WRITING else ''}"
                request = token_request(challenge, credential, scope, endpoint.url)
                request = replace(request, tls=_tls_for(request.url, endpoint.url, endpoint.tls))
                return self._token(endpoint, request, activity)
            if credential is not None and credential.password:
                return basic(credential)
        return None

    def _token(self, endpoint: Endpoint, request: Request, activity: Activity) -> str:
        response, url = self._followed(request, activity)
        with closing(response):
            if response.status in _TEMPORARY:
                raise RequestFailed(f"{shown(url)} answered {response.status}", temporary=True)
            if response.status in {400, 401, 403}:
                with_login = "Authorization" in request.headers or request.body is not None
                raise _login_refused(endpoint.host, with_login=with_login)
            if response.status != 200:
                raise RegistryError(f"{shown(url)} answered {response.status}, not with a token")
            body = read_body(response, url, MAX_TOKEN_ANSWER, _BODY_SECONDS)
        return parse_token(body, url)

    def _followed(self, request: Request, activity: Activity) -> tuple[Response, str]:
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._transport.send(request, activity)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or location is None:
                return response, request.url
            response.close()
            if request.method in _WRITING:
                what = "a login" if request.method == "POST" else "an upload"
                raise RegistryError(f"{shown(request.url)} redirects {what}, which isn't followed")
            request = redirected(request, location)
        raise RegistryError(f"{shown(request.url)} redirects in a loop")

    def pause(self, response: Response, attempt: int) -> float | None:
        """Seconds to wait before the request is repeated, None if it shouldn't be."""
        if response.status not in _TEMPORARY:
            return None
        asked = _seconds(response.headers.get("Retry-After"))
        if asked is None:
            return self._retry.delay(attempt)
        return asked if asked <= self._retry.longest_wait else None

    def error(
        self, response: Response, endpoint: Endpoint, repository: str, path: str, method: str
    ) -> RegistryError | ImageNotFound:
        """What an answer without success means, in words."""
        status, host = response.status, endpoint.host
        writes = method in _WRITING
        if status in {401, 403}:
            login = " to your login" if self._credentials.for_host(host) else " without a login"
            refused = f"to push to {repository}" if writes else repository
            otherwise = "" if writes else ", or there is no such image"
            return AuthenticationRequired(
                f"{host} refuses {refused}{login}{otherwise}",
                hint=f"check the name, or run `docker login {host}`",
            )
        if status == 404 and writes:
            return RegistryError(
                f"{host} has no repository {repository} to push to",
                hint="check the name; some registries want it to be created first",
            )
        if status == 404:
            version = path.rpartition("/")[2]
            name = f"{host}/{repository}{'@' if ':' in version else ':'}{version}"
            return ImageNotFound(f"{name} doesn't exist", hint="check the name and the tag")
        with self._lock:
            secrets = list(self._authorizations.values())
        diagnostic = _diagnostic(response, secrets)
        if status == 429:
            return RegistryError(
                f"{host} allows no more requests for now{diagnostic}",
                hint=f"wait, or raise your limit with `docker login {host}`",
            )
        return RegistryError(f"{host} answered {status} for {repository}{diagnostic}")


def redirected(request: Request, location: str) -> Request:
    """`request` sent on to `location`. No credentials go to another scheme, host or port.

    Raises RegistryError for a URL that isn't http or https, and from https to http.
    """
    try:
        url = urljoin(request.url, location)
    except ValueError:
        url = ""
    here, there = split_url(request.url), split_url(url)
    if here is None or there is None:
        raise RegistryError(f"{shown(request.url)} redirects to an invalid URL")
    if here.scheme == "https" and there.scheme != "https":
        raise RegistryError(f"{shown(request.url)} redirects from https to {shown(url)}")
    if origin(url) == origin(request.url):
        return replace(request, url=url)
    # Only what describes the content goes on: a hosts.toml's headers may be secrets too.
    kept = {"accept", "range", "user-agent", "content-type", "content-range"}
    headers = {name: value for name, value in request.headers.items() if name.lower() in kept}
    tls = _tls_for(url, request.url, request.tls)
    return replace(request, url=url, headers=headers, tls=tls)


def wait(seconds: float, activity: Activity) -> None:
    """Sleep, but raise BuildCancelled at once on cancel."""
    cancelled = threading.Event()
    with activity.on_cancel(cancelled.set):
        cancelled.wait(seconds)
    activity.raise_if_cancelled()


def _tls_for(url: str, original: str, tls: TlsOptions) -> TlsOptions:
    """What of the TLS options for `original` holds for `url`: elsewhere, only authorities."""
    here, there = split_url(original), split_url(url)
    if here and there and here.hostname == there.hostname:
        return tls
    return replace(tls, client_pairs=(), skip_verify=False)


def _request(
    endpoint: Endpoint,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | Body | None,
) -> Request:
    return Request(
        method,
        url,
        {**endpoint.headers, **headers, "User-Agent": "pybuild"},
        body,
        tls=endpoint.tls,
        connect_timeout=endpoint.connect_timeout,
    )


def _with_authorization(request: Request, value: str | None) -> Request:
    if value is None:
        return request
    return replace(request, headers={**request.headers, "Authorization": value})


def _login_refused(host: str, *, with_login: bool) -> AuthenticationRequired:
    if with_login:
        message = f"{host} refuses your login"
    else:
        message = f"{host} gives no access without a login"
    return AuthenticationRequired(message, hint=f"run `docker login {host}`")


def _seconds(retry_after: str | None) -> float | None:
    """The seconds that a Retry-After header means (RFC 9110, 10.2.3): a number or a date."""
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:9])
    from email.utils import parsedate_to_datetime  # noqa: PLC0415  (slow, and seldom needed)

    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _diagnostic(response: Response, secrets: list[str]) -> str:
    """What the registry says of an error, as text to append; empty if it says nothing fit."""
    try:
        document = json.loads(read_body(response, "", _MAX_DIAGNOSTIC, _BODY_SECONDS))
        first = document["errors"][0]
        words = [first.get(key) for key in ("code", "message")]
        text = ": ".join(word for word in words if isinstance(word, str) and word)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    except (RequestFailed, InvalidImage):
        return ""
    printable = "".join(character if character.isprintable() else " " for character in text)
    if not printable or any(secret.split()[-1] in printable for secret in secrets):
        return ""
    return f" ({printable[:200]})"
