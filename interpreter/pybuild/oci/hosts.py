"""Where the images of a registry are fetched: containerd's ``hosts.toml`` files.

A folder holds one folder per registry, named ``host``, ``host:port`` or ``host_port_``, and
perhaps ``_default``; each has a ``hosts.toml`` (containerd, `docs/hosts.md`). Without one,
docker.io is fetched from registry-1.docker.io, and any other registry from itself by https.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path, PurePath
from typing import Any

from pybuild.errors import UsageError
from pybuild.oci.http import DEFAULT_TLS, TlsOptions, is_loopback, split_url
from pybuild.values import dataclass, field

_MAX_FILE = 1 << 20
_DURATION = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)(ms|s|m)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0}
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_MEMBERS = frozenset(
    {"capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"}
)


class HostCapability(StrEnum):
    """What a host is trusted with. Resolving means to say which digest a tag has."""

    PULL = "pull"
    RESOLVE = "resolve"
    PUSH = "push"
    REFERRERS = "referrers"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server of the distribution API for some registry.

    ``url`` is the API's root without a final slash (``https://mirror.example/v2``).
    ``namespace`` is the registry that it stands in for, None if it is that registry.
    ``plain_fallback`` allows http where https can't be spoken, which only this machine's own
    registries get.
    """

    url: str
    capabilities: frozenset[HostCapability] = frozenset(HostCapability)
    tls: TlsOptions = DEFAULT_TLS
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    connect_timeout: float | None = None
    namespace: str | None = None
    plain_fallback: bool = False

    @property
    def host(self) -> str:
        """Host and port, as users write it in ``docker login``."""
        parts = split_url(self.url)
        host = parts.netloc if parts else ""
        return "docker.io" if host == "registry-1.docker.io" else host


@dataclass(frozen=True, slots=True)
class Hosts:
    """The endpoints of every registry, read from `directory` when they are asked for."""

    directory: Path | None = None

    def endpoints(self, registry: str) -> tuple[Endpoint, ...]:
        """The endpoints to try for `registry` (``host[:port]``), in order. Raises UsageError."""
        path = self._file(registry)
        if path is None:
            return (default_endpoint(registry),)
        return parse_hosts(_read(path), registry, path.parent, str(path))

    def names(self, registry: str) -> bool:
        """Whether the directory has a file for `registry`, or one for all."""
        return self._file(registry) is not None

    def _file(self, registry: str) -> Path | None:
        if self.directory is None:
            return None
        # Windows can't have a colon in a name, hence the form with underscores.
        host, colon, port = registry.rpartition(":")
        names = [f"{host}_{port}_"] if colon and port.isdigit() else []
        for name in (*names, registry, "_default"):
            path = self.directory / name / "hosts.toml"
            if PurePath(name).name == name and path.is_file():
                return path
        return None


def load_hosts(directory: str | Path | None) -> Hosts:
    """The hosts of a folder such as ``/etc/containerd/certs.d``; it needn't exist."""
    return Hosts(None if directory is None else Path(directory))


def default_endpoint(registry: str) -> Endpoint:
    """Where a registry is without a hosts file."""
    if registry == "docker.io":
        return Endpoint("https://registry-1.docker.io/v2")
    parts = split_url(f"https://{registry}/v2")
    if parts is None:
        raise UsageError(f"{registry!r} is no registry")
    local = is_loopback(parts.hostname or "")
    if local and parts.port == 80:
        return Endpoint(f"http://{registry}/v2")
    return Endpoint(f"https://{registry}/v2", plain_fallback=local and parts.port != 443)


def parse_hosts(text: str, registry: str, folder: Path, name: str) -> tuple[Endpoint, ...]:
    """The endpoints in the text of a hosts.toml: its hosts in order, then its server.

    Relative paths are looked up in `folder`; `name` is for messages. Raises UsageError.
    """
    import tomllib  # noqa: PLC0415  (few machines have such a file)

    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is no valid TOML: {error}") from None
    hosts = document.pop("host", {})
    if not isinstance(hosts, dict):
        raise UsageError(f"{name}: host must be a table")
    server = document.pop("server", "")
    if not isinstance(server, str):
        raise UsageError(f"{name}: server must be a string")
    reader = _Reader(registry, folder, name)
    endpoints = [reader.endpoint(url, table) for url, table in hosts.items()]
    if server:
        endpoints.append(reader.endpoint(server, document))
    else:
        default = default_endpoint(registry)
        # A file that sets anything about the server has the last word on how it is reached.
        endpoints.append(reader.endpoint(default.url, document) if document else default)
    return tuple(endpoints)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads tables of one hosts.toml."""

    registry: str
    folder: Path
    name: str

    def endpoint(self, url: str, table: Any) -> Endpoint:
        if not isinstance(table, dict):
            raise self._error(url, "is no table")
        unknown = sorted(table.keys() - _MEMBERS)
        if unknown:
            raise self._error(url, f"has the unknown member {unknown[0]!r}")
        root = self._root(url, table)
        own = default_endpoint(self.registry).url
        return Endpoint(
            url=root,
            capabilities=self._capabilities(url, table),
            tls=TlsOptions(
                ca_files=self._paths(url, "ca", table.get("ca", [])),
                client_pairs=self._pairs(url, table.get("client", [])),
                skip_verify=self._flag(url, "skip_verify", table),
            ),
            headers=self._headers(url, table),
            connect_timeout=self._timeout(url, table),
            namespace=None if root == own else self.registry,
        )

    def _root(self, url: str, table: dict[str, Any]) -> str:
        full = url if "://" in url else f"https://{url}"
        parts = split_url(full)
        if parts is None or parts.query or parts.fragment:
            raise self._error(url, "is no URL of a server")
        root = full.rstrip("/")
        if self._flag(url, "override_path", table) or parts.path.rstrip("/").endswith("/v2"):
            return root
        return f"{root}/v2"

    def _capabilities(self, url: str, table: dict[str, Any]) -> frozenset[HostCapability]:
        names = table.get("capabilities") or list(HostCapability)
        try:
            return frozenset(HostCapability(name.lower()) for name in names)
        except (ValueError, AttributeError, TypeError):
            raise self._error(url, "has an unknown capability") from None

    def _paths(self, url: str, member: str, value: Any) -> tuple[Path, ...]:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(one, str) and one for one in names):
            raise self._error(url, f"has a {member} that is no path or list of paths")
        return tuple(self.folder / one for one in names)

    def _pairs(self, url: str, value: Any) -> tuple[tuple[Path, Path | None], ...]:
        pairs: list[tuple[Path, Path | None]] = []
        for one in [value] if isinstance(value, str) else value if isinstance(value, list) else [0]:
            pair = [one, ""] if isinstance(one, str) else one
            if (
                not isinstance(pair, list)
                or len(pair) != 2
                or not all(isinstance(path, str) for path in pair)
                or not pair[0]
            ):
                raise self._error(url, "has a client that is no path, list of paths or of pairs")
            pairs.append((self.folder / pair[0], self.folder / pair[1] if pair[1] else None))
        return tuple(pairs)

    def _headers(self, url: str, table: dict[str, Any]) -> dict[str, str]:
        headers: dict[str, str] = {}
        value = table.get("header", {})
        for key, values in value.items() if isinstance(value, dict) else [("", None)]:
            texts = [values] if isinstance(values, str) else values
            if (
                not _HEADER_NAME.fullmatch(key)
                or not isinstance(texts, list)
                or not all(isinstance(text, str) and text.isprintable() for text in texts)
            ):
                raise self._error(url, "has a header that isn't printable text")
            headers[key] = ", ".join(texts)
        return headers

    def _flag(self, url: str, member: str, table: dict[str, Any]) -> bool:
        value = table.get(member, False)
        if not isinstance(value, bool):
            raise self._error(url, f"has a {member} that is neither true nor false")
        return value

    def _timeout(self, url: str, table: dict[str, Any]) -> float | None:
        text = table.get("dial_timeout", "")
        if text == "":
            return None
        match = _DURATION.fullmatch(text) if isinstance(text, str) else None
        if match is None or float(match[1]) <= 0:
            raise self._error(url, 'has a dial_timeout that is no duration such as "5s"')
        return float(match[1]) * _SECONDS[match[2]]

    def _error(self, url: str, reason: str) -> UsageError:
        without_login = re.sub(r"//[^/]*@", "//", url)
        return UsageError(f"{self.name}: host {without_login!r} {reason}")


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE + 1)
        if len(content) > _MAX_FILE:
            raise UsageError(f"{path} is larger than {_MAX_FILE} bytes")
        return content.decode("utf-8")
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} isn't UTF-8") from None
