"""Authentication with a registry, without I/O: challenges, token requests, token answers.

After the distribution project's `spec/auth/token.md` and `oauth.md`, and RFC 9110, 11.6.1.
"""

from __future__ import annotations

import base64
import re
from urllib.parse import urlencode, urlsplit, urlunsplit

from pybuild.errors import InvalidImage, RegistryError
from pybuild.oci.auth import Credential
from pybuild.oci.http import Request, is_loopback, shown, split_url
from pybuild.oci.manifest import parse_json_object
from pybuild.values import dataclass

MAX_TOKEN_ANSWER = 1 << 20
_MAX_HEADER = 8192
_SCHEME = re.compile(r"\s*,?\s*([A-Za-z][A-Za-z0-9_-]*)(?:\s+(?!=)|$|(?=,))")
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))')
_TOKEN = re.compile(r"[\x21-\x7e]{1,131072}")
_CLIENT = "pybuild"


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way that a registry offers to log in: scheme ``basic`` or ``bearer``."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """The challenges of a WWW-Authenticate header that we can answer, bearer first."""
    header = header[:_MAX_HEADER]
    found: list[Challenge] = []
    position = 0
    while scheme := _SCHEME.match(header, position):
        position = scheme.end()
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(header, position):
            position = parameter.end()
            quoted = re.sub(r"\\(.)", r"\1", parameter[2] or "")
            parameters.setdefault(parameter[1].lower(), parameter[3] or quoted)
        name = scheme[1].lower()
        if name in {"basic", "bearer"}:
            words = (parameters.get(key, "") for key in ("realm", "service", "scope"))
            found.append(Challenge(name, *words))
    return tuple(sorted(found, key=lambda challenge: challenge.scheme != "bearer"))


def basic(credential: Credential) -> str:
    """The Authorization header for a user and password (RFC 7617)."""
    pair = f"{credential.username}:{credential.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def token_request(
    challenge: Challenge, credential: Credential | None, scope: str, registry_url: str
) -> Request:
    """The request that gets a token for `scope`, with the credential if there is one.

    Raises RegistryError for a realm to which credentials must not go: plain http, unless the
    registry at `registry_url` is itself reached so and the realm is on the same host or here.
    """
    realm = _checked_realm(challenge.realm, registry_url)
    scope = challenge.scope or scope
    if credential is not None and credential.identity_token:
        form = {
            "grant_type": "refresh_token",
            "service": challenge.service,
            "client_id": _CLIENT,
            "scope": scope,
            "refresh_token": credential.identity_token,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return Request("POST", realm, headers, urlencode(form).encode())
    query = {"service": challenge.service, "scope": scope}
    headers = {}
    if credential is not None:
        query["account"] = credential.username
        headers["Authorization"] = basic(credential)
    parts = urlsplit(realm)
    added = urlencode({key: value for key, value in query.items() if value})
    joined = f"{parts.query}&{added}" if parts.query else added
    return Request("GET", urlunsplit(parts._replace(query=joined, fragment="")), headers)


def parse_token(body: bytes, realm: str) -> str:
    """The Authorization header from a token server's answer. Raises RegistryError."""
    try:
        answer = parse_json_object(body, "the answer", MAX_TOKEN_ANSWER)
    except InvalidImage as error:
        raise RegistryError(f"{shown(realm)} gave no token: {error.message}") from None
    token = answer.get("token") or answer.get("access_token")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise RegistryError(f"{shown(realm)} gave no token")
    return f"Bearer {token}"


def _checked_realm(realm: str, registry_url: str) -> str:
    parts, registry = split_url(realm), split_url(registry_url)
    if parts is None or registry is None:
        raise RegistryError(f"{shown(registry_url)} names no valid token server")
    host = parts.hostname or ""
    near = host == registry.hostname or is_loopback(host)
    if parts.scheme != "https" and not (registry.scheme == "http" and near):
        raise RegistryError(
            f"{shown(registry_url)} asks for credentials to be sent to {shown(realm)} unencrypted",
            hint="the registry must name a token server with https",
        )
    return realm
