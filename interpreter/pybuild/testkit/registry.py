"""A real registry in memory, on this machine, for tests.

It speaks the OCI distribution specification over HTTP (or HTTPS): pull with ranges, push in
one piece, in chunks and by mounting, tags, and optionally basic or token authentication::

    with Registry() as registry:
        registry.add_image("team/app:1", config, layers=[blob])
        ...  # pull f"{registry.address}/team/app:1"

Faults make it misbehave for the next requests that match. Every request is recorded.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import ssl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from pybuild.errors import InvalidImage
from pybuild.oci.descriptor import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    digest_of,
)
from pybuild.oci.manifest import (
    CONFIG_TYPES,
    canonical_json,
    descriptor_as_json,
    make_manifest,
    parse_index,
    parse_manifest,
)
from pybuild.oci.platform import Platform, platform_as_json
from pybuild.testkit.registry_http import (
    Fault,
    RecordedRequest,
    RegistryProblem,
    RegistryServer,
    serve,
)

__all__ = ["Fault", "RecordedRequest", "Registry", "RegistryProblem"]


@dataclass(slots=True)
class _Repository:
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Registry:
    """The registry; a context manager that serves while it lasts.

    With `username` and `password`, every request needs them: as basic authentication, or,
    with `tokens`, traded for a bearer token at the registry's own ``/token``;
    `identity_token` is accepted there too. `tls` makes it an HTTPS server. ``closed`` are
    repositories that no login may use, ``read_only`` those that none may push to.
    """

    def __init__(
        self,
        *,
        username: str | None = None,
        password: str | None = None,
        identity_token: str | None = None,
        tokens: bool = False,
        anonymous_pull: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._username = username
        self._password = password
        self._identity_token = identity_token
        self._uses_tokens = tokens
        self._anonymous_pull = anonymous_pull
        self._tls = tls
        self._lock = threading.RLock()
        self._repositories: dict[str, _Repository] = {}
        self._uploads: dict[str, bytearray] = {}
        self._valid_tokens: dict[str, frozenset[tuple[str, str]]] = {}
        self._faults: list[Fault] = []
        self._server: RegistryServer | None = None
        self.realm: str | None = None
        self.closed: set[str] = set()
        self.read_only: set[str] = set()
        self.requests: list[RecordedRequest] = []

    def __enter__(self) -> Self:
        self._server = serve(self, self._tls)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.stop()

    @property
    def address(self) -> str:
        """Host and port, as the first part of an image name."""
        if self._server is None:
            raise RuntimeError("the registry isn't entered")
        return f"127.0.0.1:{self._server.port}"

    @property
    def url(self) -> str:
        """The scheme and address, for a hosts.toml."""
        return f"{'https' if self._tls else 'http'}://{self.address}"

    # Content, put in directly

    def add_blob(self, repository: str, content: bytes) -> str:
        """Store a blob; give its digest."""
        digest = digest_of(content)
        with self._lock:
            self._repository(repository).blobs[digest] = content
        return digest

    def add_manifest(self, name: str, content: bytes, media_type: str = OCI_MANIFEST) -> Descriptor:
        """Store a manifest or index, unchecked, under `name` (``repository[:tag]``)."""
        repository, _, tag = name.partition(":")
        descriptor = Descriptor(media_type, digest_of(content), len(content))
        with self._lock:
            stored = self._repository(repository)
            stored.manifests[descriptor.digest] = media_type, content
            if tag:
                stored.tags[tag] = descriptor.digest
        return descriptor

    def add_image(
        self,
        name: str,
        config: bytes | Mapping[str, Any],
        layers: Sequence[bytes] = (),
        *,
        layer_type: str = OCI_LAYER_GZIP,
        config_type: str = OCI_CONFIG,
        media_type: str = OCI_MANIFEST,
    ) -> Descriptor:
        """Store an image of a config and layer blobs as they are; give its manifest.

        A config given as a mapping is stored as canonical JSON.
        """
        repository = name.partition(":")[0]
        content = config if isinstance(config, bytes) else canonical_json(config)
        blob = Descriptor(config_type, self.add_blob(repository, content), len(content))
        stored = [
            Descriptor(layer_type, self.add_blob(repository, layer), len(layer)) for layer in layers
        ]
        manifest = make_manifest(blob, stored, media_type=media_type)
        return self.add_manifest(name, manifest, media_type)

    def add_index(
        self,
        name: str,
        manifests: Sequence[tuple[Descriptor, Platform | None]],
        *,
        media_type: str = OCI_INDEX,
    ) -> Descriptor:
        """Store an index of manifests that are there already."""
        entries = []
        for descriptor, platform in manifests:
            entry = descriptor_as_json(descriptor)
            if platform is not None:
                entry["platform"] = platform_as_json(platform)
            entries.append(entry)
        document = {"schemaVersion": 2, "mediaType": media_type, "manifests": entries}
        return self.add_manifest(name, canonical_json(document), media_type)

    def read_manifest(self, name: str) -> tuple[Descriptor, bytes]:
        """The manifest stored under `name` (``repository:tag``). Raises KeyError."""
        repository, _, tag = name.partition(":")
        with self._lock:
            stored = self._repositories[repository]
            digest = stored.tags[tag]
            media_type, content = stored.manifests[digest]
        return Descriptor(media_type, digest, len(content)), content

    def blobs(self, repository: str) -> Mapping[str, bytes]:
        """The blobs of a repository by digest."""
        with self._lock:
            return dict(self._repository(repository).blobs)

    # Faults and what came

    def add_fault(self, fault: Fault) -> None:
        """Make requests go wrong; of several faults that match, the first one happens."""
        with self._lock:
            self._faults.append(fault)

    def expire_tokens(self) -> None:
        """Make every token given so far invalid."""
        with self._lock:
            self._valid_tokens.clear()

    def requested(self, method: str, path: str) -> list[RecordedRequest]:
        """The requests of `method` whose path contains the regular expression `path`."""
        with self._lock:
            requests = list(self.requests)
        return [one for one in requests if one.method == method and re.search(path, one.path)]

    # Asked by the server

    def record(self, request: RecordedRequest) -> Fault | None:
        """Remember a request; give the fault that it meets."""
        with self._lock:
            self.requests.append(request)
            for fault in self._faults:
                if fault.method != request.method or not re.search(fault.path, request.path):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                if fault.times is None:
                    return fault
                if fault.times:
                    fault.times -= 1
                    return fault
        return None

    def challenge(self, request: RecordedRequest, repository: str, source: str = "") -> str | None:
        """The WWW-Authenticate header if `request` lacks what this registry wants.

        `source` is the repository that a blob is to be mounted from. Raises RegistryProblem
        where no login would help.
        """
        reads = request.method in {"GET", "HEAD"} and "/blobs/uploads/" not in request.path
        if not reads and repository in self.read_only:
            raise RegistryProblem(403, "DENIED", "requested access to the resource is denied")
        if self._username is None:
            return None
        if self._anonymous_pull and not self._uses_tokens and reads:
            return None
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        if not self._uses_tokens:
            expected = self._basic()
            return None if (scheme, value) == ("Basic", expected) else 'Basic realm="test"'
        needed = {(repository, "pull" if reads else "push")} if repository else set()
        needed |= {(source, "pull")} if source else set()
        with self._lock:
            granted = self._valid_tokens.get(value) if scheme == "Bearer" else None
        if granted is not None and needed <= granted:
            return None
        realm = self.realm or f"{self.url}/token"
        actions = "pull" if reads else "pull,push"
        scope = f"repository:{repository}:{actions}" if repository else ""
        scope += f" repository:{source}:pull" if source else ""
        asked = f',scope="{scope}"' if scope else ""
        return f'Bearer realm="{realm}",service="{self.address}"{asked}'

    def issue_token(
        self, authorization: str, scope: str, refresh_token: str | None
    ) -> dict[str, Any]:
        """Answer a request for a token. Raises RegistryProblem."""
        by_login = authorization == f"Basic {self._basic()}"
        by_token = refresh_token is not None and refresh_token == self._identity_token
        anonymous = self._anonymous_pull and not authorization and refresh_token is None
        if not (by_login or by_token or anonymous):
            raise RegistryProblem(401, "UNAUTHORIZED", "wrong credentials")
        granted = {
            (repository, action)
            for _, _, rest in (one.partition(":") for one in scope.split())
            for repository, _, actions in (rest.rpartition(":"),)
            for action in actions.split(",")
            if repository not in self.closed and (action == "pull" or not anonymous)
        }
        token = secrets.token_urlsafe(24)
        with self._lock:
            self._valid_tokens[token] = frozenset(granted)
        return {"access_token" if by_token else "token": token, "expires_in": 300}

    def find_manifest(self, repository: str, version: str) -> tuple[str, str, bytes]:
        """Digest, media type and bytes. Raises RegistryProblem."""
        with self._lock:
            stored = self._repositories.get(repository)
            if stored is None:
                raise RegistryProblem(404, "NAME_UNKNOWN")
            digest = stored.tags.get(version, version)
            if digest not in stored.manifests:
                raise RegistryProblem(404, "MANIFEST_UNKNOWN")
            return digest, *stored.manifests[digest]

    def find_blob(self, repository: str, digest: str) -> bytes:
        """A blob's bytes. Raises RegistryProblem."""
        with self._lock:
            stored = self._repositories.get(repository, _Repository())
            if digest not in stored.blobs:
                raise RegistryProblem(404, "BLOB_UNKNOWN")
            return stored.blobs[digest]

    def tags(self, repository: str) -> list[str]:
        """The tags of a repository. Raises RegistryProblem."""
        with self._lock:
            if repository not in self._repositories:
                raise RegistryProblem(404, "NAME_UNKNOWN")
            return sorted(self._repositories[repository].tags)

    def push_manifest(self, repository: str, version: str, content: bytes, media_type: str) -> str:
        """Check and store a manifest; give its digest. Raises RegistryProblem."""
        try:
            needed = self._needed(content, media_type)
        except InvalidImage as error:
            raise RegistryProblem(400, "MANIFEST_INVALID", error.message) from error
        except (ValueError, AttributeError, TypeError) as error:
            raise RegistryProblem(400, "MANIFEST_INVALID", str(error)) from error
        digest = digest_of(content)
        if ":" in version and version != digest:
            raise RegistryProblem(400, "DIGEST_INVALID")
        with self._lock:
            stored = self._repository(repository)
            if not needed <= stored.blobs.keys() | stored.manifests.keys():
                raise RegistryProblem(400, "MANIFEST_BLOB_UNKNOWN")
            stored.manifests[digest] = media_type, content
            if ":" not in version:
                stored.tags[version] = digest
        return digest

    def begin_upload(self) -> str:
        """Open an upload; give its id."""
        upload = secrets.token_hex(8)
        with self._lock:
            self._uploads[upload] = bytearray()
        return upload

    def append_upload(self, upload: str, piece: bytes, start: int | None) -> int:
        """Add a chunk that begins at `start`; give the size so far. Raises RegistryProblem."""
        with self._lock:
            content = self._uploads.get(upload)
            if content is None:
                raise RegistryProblem(404, "BLOB_UPLOAD_UNKNOWN")
            if start is not None and start != len(content):
                raise RegistryProblem(416, "BLOB_UPLOAD_INVALID")
            content += piece
            return len(content)

    def cancel_upload(self, upload: str) -> None:
        """Forget an upload. Raises RegistryProblem."""
        with self._lock:
            if self._uploads.pop(upload, None) is None:
                raise RegistryProblem(404, "BLOB_UPLOAD_UNKNOWN")

    def finish_upload(self, repository: str, upload: str, digest: str) -> None:
        """Store an upload as a blob. Raises RegistryProblem."""
        with self._lock:
            content = self._uploads.pop(upload, None)
            if content is None:
                raise RegistryProblem(404, "BLOB_UPLOAD_UNKNOWN")
            if digest_of(bytes(content)) != digest:
                raise RegistryProblem(400, "DIGEST_INVALID")
            self._repository(repository).blobs[digest] = bytes(content)

    def mount(self, repository: str, digest: str, source: str) -> bool:
        """Take a blob over from another repository, if it is there."""
        with self._lock:
            content = self._repositories.get(source, _Repository()).blobs.get(digest)
            if content is not None:
                self._repository(repository).blobs[digest] = content
        return content is not None

    def _repository(self, name: str) -> _Repository:
        return self._repositories.setdefault(name, _Repository())

    def _basic(self) -> str:
        return base64.b64encode(f"{self._username}:{self._password}".encode()).decode()

    @staticmethod
    def _needed(content: bytes, media_type: str) -> set[str]:
        if media_type in INDEX_TYPES:
            return {descriptor.digest for descriptor, _ in parse_index(content).manifests}
        if media_type in MANIFEST_TYPES:
            # like other registries, this one holds artifacts of any kind
            config = json.loads(content).get("config", {}).get("mediaType", "")
            manifest = parse_manifest(content, media_type, config_types={*CONFIG_TYPES, config})
            return {manifest.config.digest, *(layer.digest for layer in manifest.layers)}
        raise InvalidImage(f"{media_type} is no manifest")
