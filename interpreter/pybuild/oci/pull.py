"""Pulling: from a reference to verified bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from hashlib import sha256
from typing import Self

from pybuild.errors import InvalidImage, PlatformMismatch
from pybuild.oci.descriptor import INDEX_TYPES, Descriptor, digest_of
from pybuild.oci.http import Activity, RequestFailed
from pybuild.oci.manifest import (
    MAX_CONFIG_SIZE,
    MAX_MANIFEST_SIZE,
    Index,
    Manifest,
    parse_index,
    parse_json_object,
    parse_manifest,
    select,
)
from pybuild.oci.platform import Platform, matches, normalise
from pybuild.oci.reference import Reference, familiar
from pybuild.oci.registry import BlobStream, RegistryClient
from pybuild.oci.session import wait
from pybuild.oci.sinks import OpenSink, Sink
from pybuild.oci.transfers import in_parallel
from pybuild.values import dataclass, replace

_PROGRESS_EACH = 1 << 20


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """An image for one platform at a registry; its layers aren't fetched yet.

    ``platform`` is the one that the index gives it, None without an index; the config, whose
    bytes are checked only against their digest, has its own. ``indexes`` are what was gone
    through to the manifest, outermost first.
    """

    reference: Reference
    descriptor: Descriptor
    manifest: Manifest
    manifest_bytes: bytes
    config_bytes: bytes
    indexes: tuple[tuple[Descriptor, bytes], ...] = ()
    platform: Platform | None = None

    @property
    def config(self) -> Descriptor:
        """The config's descriptor."""
        return self.manifest.config

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        """The layers' descriptors, bottom first."""
        return self.manifest.layers

    @property
    def target(self) -> Descriptor:
        """What the reference itself names: the outermost index, else the manifest."""
        return self.indexes[0][0] if self.indexes else self.descriptor


def fetch_image(
    client: RegistryClient, reference: Reference, platform: Platform, activity: Activity
) -> RemoteImage:
    """The image that `reference` names for `platform`: manifest and config.

    A reference to a manifest, not an index, gives that whatever its platform is. Raises
    PlatformMismatch, ImageNotFound, AuthenticationRequired, RegistryError, InvalidImage.
    """
    indexes: list[tuple[Descriptor, bytes]] = []
    chosen: Platform | None = None
    descriptor, document = client.manifest(reference, activity)
    while descriptor.media_type in INDEX_TYPES:
        if len(indexes) == 2:
            raise InvalidImage(f"{familiar(reference)} has indexes nested too deeply")
        indexes.append((descriptor, document))
        index = parse_index(document, descriptor.media_type)
        wanted = _select(index, platform, reference)
        chosen = next(named for entry, named in index.manifests if entry is wanted)
        descriptor, document = _fetch_manifest(client, reference, wanted, activity)
    manifest = parse_manifest(document, descriptor.media_type)
    config = fetch_blob(client, reference, manifest.config, MAX_CONFIG_SIZE, activity)
    if indexes and chosen is None:
        _check_config_platform(config, platform, reference)
    return RemoteImage(reference, descriptor, manifest, document, config, tuple(indexes), chosen)


def fetch_blob(
    client: RegistryClient,
    reference: Reference,
    descriptor: Descriptor,
    limit: int,
    activity: Activity,
) -> bytes:
    """A small blob's verified bytes. Raises InvalidImage if it has more than `limit`."""
    if descriptor.size > limit:
        raise InvalidImage(f"{descriptor.digest} has {descriptor.size} bytes, over {limit}")
    sink = _MemorySink()
    download(client, reference, descriptor, lambda _: sink, activity)
    return bytes(sink.content)


def download(
    client: RegistryClient,
    reference: Reference,
    descriptor: Descriptor,
    open_sink: OpenSink,
    activity: Activity,
) -> None:
    """Fetch one blob into a sink: verified, and continued where a connection broke.

    Bytes that turn out wrong are fetched once more, from another host if there is one.
    Progress is reported under the blob's digest. Raises InvalidImage, RegistryError,
    BuildCancelled; nothing is committed then.
    """
    transfer = _Transfer(client, reference, descriptor, activity)
    with open_sink(descriptor) as sink:
        try:
            transfer.run(sink)
        except InvalidImage:
            sink.restart()
            transfer.run(sink)
        sink.commit()


def download_all(
    client: RegistryClient,
    reference: Reference,
    descriptors: Iterable[Descriptor],
    open_sink: OpenSink,
    activity: Activity,
    *,
    workers: int = 4,
) -> None:
    """Fetch several blobs, each once, `workers` at a time. As :func:`download`.

    The first failure ends the other transfers.
    """
    distinct = {descriptor.digest: descriptor for descriptor in descriptors}.values()
    in_parallel(
        [partial(download, client, reference, descriptor, open_sink) for descriptor in distinct],
        activity,
        workers=workers,
    )


def _fetch_manifest(
    client: RegistryClient, reference: Reference, wanted: Descriptor, activity: Activity
) -> tuple[Descriptor, bytes]:
    if wanted.size > MAX_MANIFEST_SIZE:
        raise InvalidImage(f"a manifest has {wanted.size} bytes, over {MAX_MANIFEST_SIZE}")
    by_digest = replace(reference, tag=None, digest=wanted.digest)
    _, document = client.manifest(by_digest, activity)
    if len(document) != wanted.size or digest_of(document) != wanted.digest:
        raise InvalidImage(
            f"the manifest {wanted.digest} has {len(document)} bytes, not {wanted.size}"
        )
    return wanted, document


def _select(index: Index, platform: Platform, reference: Reference) -> Descriptor:
    try:
        return select(index, platform)
    except PlatformMismatch as error:
        message = f"{familiar(reference)} isn't made for {platform}"
        raise PlatformMismatch(message, hint=error.hint) from None


def _check_config_platform(config: bytes, platform: Platform, reference: Reference) -> None:
    document = parse_json_object(config, "the image config", MAX_CONFIG_SIZE)
    members = [document.get(key, "") for key in ("os", "architecture", "variant")]
    found = normalise(*(member if isinstance(member, str) else "" for member in members))
    if not matches(platform, found):
        raise PlatformMismatch(
            f"{familiar(reference)} isn't made for {platform}", hint=f"it is made for {found}"
        )


class _Transfer:
    """One blob on its way; remembers which endpoints were asked."""

    def __init__(
        self,
        client: RegistryClient,
        reference: Reference,
        descriptor: Descriptor,
        activity: Activity,
    ) -> None:
        self._client = client
        self._reference = reference
        self._descriptor = descriptor
        self._activity = activity
        self._used: set[str] = set()

    def run(self, sink: Sink) -> None:
        """Move all bytes, from the first. Raises InvalidImage if they are the wrong ones."""
        digest = sha256()
        position = failures = 0
        while True:
            began = position
            try:
                with self._open(position) as stream:
                    for piece in self._pieces(stream):
                        sink.write(piece)
                        digest.update(piece)
                        position += len(piece)
                break
            except RequestFailed as error:
                self._activity.raise_if_cancelled()
                failures = 1 if position - began >= _PROGRESS_EACH else failures + 1
                if not error.temporary or failures >= self._client.retry.attempts:
                    raise
                wait(self._client.retry.delay(failures - 1), self._activity)
        if f"sha256:{digest.hexdigest()}" != self._descriptor.digest:
            raise InvalidImage(
                f"{self._reference.registry} sends other bytes than {self._descriptor.digest} "
                f"names, for {familiar(self._reference)}"
            )

    def _open(self, position: int) -> BlobStream:
        stream = self._client.blob(
            self._reference, self._descriptor, position, self._activity, avoid=self._used
        )
        self._used.add(stream.source)  # if it fails, another endpoint comes first
        return stream

    def _pieces(self, stream: BlobStream) -> Iterator[bytes]:
        digest, size = self._descriptor.digest, self._descriptor.size
        reported = stream.position
        while piece := stream.read():
            self._activity.raise_if_cancelled()
            yield piece
            if stream.position - reported >= _PROGRESS_EACH:
                reported = stream.position
                self._activity.progress(digest, reported, size)
        self._activity.progress(digest, stream.position, size)


class _MemorySink:
    def __init__(self) -> None:
        self.content = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, piece: bytes, /) -> None:
        self.content += piece

    def restart(self) -> None:
        self.content.clear()

    def commit(self) -> None:
        pass
