"""Credentials for registries: Docker's config.json and its credential helpers.

Secrets are kept out of every repr, log line and error.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pybuild.errors import RegistryError, UsageError
from pybuild.values import dataclass, field

_MAX_CONFIG = 1 << 20
_MAX_ANSWER = 64 << 10
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# Docker stores the credentials of its Hub under this URL, a relic of its first protocol.
_HUB_KEY = "https://index.docker.io/v1/"
_HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_NOT_FOUND = ("credentials not found", "no credentials server url", "no credentials username")


@dataclass(frozen=True, slots=True)
class Credential:
    """A user's password, or an identity token (an OAuth2 refresh token) in its place."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


class Credentials(Protocol):
    """Finds the credential for a registry."""

    def for_host(self, host: str) -> Credential | None:
        """The credential for ``host[:port]``, None for anonymous access.

        Raises RegistryError if a place that should know can't be asked.
        """


class Anonymous:
    """Has no credentials."""

    def for_host(self, host: str) -> Credential | None:  # noqa: ARG002 -- the protocol's
        """None."""
        return None


class DockerCredentials:
    """The credentials that ``docker login`` left, in its config.json or in helpers.

    `config` is the file's path, which needn't exist, or its content. A helper is asked at
    most once for a host.
    """

    def __init__(
        self, config: str | Path | Mapping[str, Any] | None, *, helper_timeout: float = 30.0
    ) -> None:
        self._name = "the Docker configuration" if isinstance(config, Mapping) else str(config)
        self._config = config if isinstance(config, Mapping) else _read(config)
        self._helper_timeout = helper_timeout
        self._lock = threading.Lock()
        self._known: dict[str, Credential | None] = {}

    def __repr__(self) -> str:
        return f"DockerCredentials({self._name!r})"

    def for_host(self, host: str) -> Credential | None:
        """As :meth:`Credentials.for_host`; also raises UsageError for a malformed config."""
        host = "docker.io" if host in _HUB_NAMES else host
        with self._lock:
            if host not in self._known:
                self._known[host] = self._find(host)
            return self._known[host]

    def _find(self, host: str) -> Credential | None:
        helper = self._lookup("credHelpers", host) or self._config.get("credsStore")
        if helper:
            key = _HUB_KEY if host == "docker.io" else host
            found = _ask_helper(str(helper), key, self._helper_timeout)
            if found:
                return found
        entry = self._lookup("auths", host)
        if entry is None:
            return None
        if not isinstance(entry, dict):
            raise UsageError(f"{self._name}: the entry for {host} in auths is no object")
        return self._from_entry(entry, host)

    def _lookup(self, member: str, host: str) -> Any:
        table = self._config.get(member)
        if table is None:
            return None
        if not isinstance(table, dict):
            raise UsageError(f"{self._name}: {member} is no object")
        names = [_HUB_KEY, *sorted(_HUB_NAMES)] if host == "docker.io" else [host]
        for name in names:
            for key in (name, f"https://{name}", f"http://{name}"):
                for form in (key, f"{key}/", f"{key}/v1/", f"{key}/v2/"):
                    if form in table:
                        return table[form]
        return None

    def _from_entry(self, entry: dict[str, Any], host: str) -> Credential | None:
        texts = {
            key: entry.get(key) or "" for key in ("username", "password", "auth", "identitytoken")
        }
        if not all(isinstance(text, str) for text in texts.values()):
            raise UsageError(f"{self._name}: the entry for {host} in auths has non-strings")
        username, password = texts["username"], texts["password"]
        if texts["auth"]:
            try:
                decoded = base64.b64decode(texts["auth"], validate=True).decode("utf-8")
            except (binascii.Error, ValueError):
                raise UsageError(f"{self._name}: the auth of {host} is no base64") from None
            username, colon, password = decoded.partition(":")
            if not colon:
                raise UsageError(f"{self._name}: the auth of {host} is no user:password")
            password = password.rstrip("\0")
        if texts["identitytoken"]:
            return Credential(username, identity_token=texts["identitytoken"])
        return Credential(username, password) if username or password else None


def _read(path: str | Path | None) -> Mapping[str, Any]:
    if path is None:
        return {}
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_CONFIG + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from None
    try:
        config = json.loads(content) if len(content) <= _MAX_CONFIG else None
    except (ValueError, RecursionError):
        config = None  # not chained: the parser's message would show a part of the file
    if not isinstance(config, dict):
        raise UsageError(
            f"{path} is no valid Docker configuration",
            hint="repair or remove it, then run `docker login` again",
        )
    return config


def _ask_helper(name: str, server: str, timeout: float) -> Credential | None:
    """Run ``docker-credential-NAME get`` (docker-credential-helpers, README)."""
    if not _HELPER.fullmatch(name):
        raise UsageError(f"the Docker configuration names the invalid helper {name[:80]!r}")
    program = f"docker-credential-{name}"
    code, output = _run(program, server, timeout)
    text = output.decode("utf-8", "replace").strip()
    if code != 0:
        if text.lower().startswith(_NOT_FOUND):
            return None
        raise _helper_failed(program, f"ended with code {code}")
    try:
        answer = json.loads(text)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _helper_failed(program, "gave an answer that is no credential") from None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise _helper_failed(program, "gave an answer that is no credential")
    if username == "<token>":
        return Credential(identity_token=secret)
    return Credential(username, secret) if username or secret else None


def _run(program: str, text: str, timeout: float) -> tuple[int, bytes]:
    output: list[bytes] = []
    try:
        process = subprocess.Popen(
            [program, "get"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        raise _helper_failed(program, f"can't be run: {error.strerror}") from None
    with process:
        if process.stdin is None or process.stdout is None:
            raise _helper_failed(program, "has no pipes")
        stdout = process.stdout
        # A thread, because pipes have no timeout on Windows.
        reader = threading.Thread(
            target=lambda: output.append(stdout.read(_MAX_ANSWER + 1)), daemon=True
        )
        reader.start()
        try:
            process.stdin.write(text.encode())
            process.stdin.close()
        except OSError:
            pass  # it ended without reading; its code tells why
        reader.join(timeout)
        finished = not reader.is_alive() and len(output[0]) <= _MAX_ANSWER
        if not finished:
            process.kill()
            reader.join()
            raise _helper_failed(program, f"gave no short answer within {timeout:g} s")
    return process.returncode, output[0]


def _helper_failed(program: str, reason: str) -> RegistryError:
    return RegistryError(
        f"the credential helper {program} {reason}",
        hint="repair it, or remove it from Docker's config.json (credsStore, credHelpers)",
    )
