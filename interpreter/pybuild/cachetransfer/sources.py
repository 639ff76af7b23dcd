"""Caches that were written before, at a registry or in a layout: their documents and blobs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial

from pybuild.cacheexchange import BlobSource
from pybuild.cachetransfer.document import (
    CACHE_ANNOTATION,
    CACHE_CONFIG,
    CacheDocument,
    parse_document,
)
from pybuild.errors import InvalidImage, PlatformMismatch
from pybuild.files.layout import ImageLayout
from pybuild.oci.descriptor import INDEX_TYPES, Descriptor
from pybuild.oci.http import Activity
from pybuild.oci.manifest import (
    CONFIG_TYPES,
    MAX_CONFIG_SIZE,
    MAX_MANIFEST_SIZE,
    parse_index,
    parse_manifest,
    select,
)
from pybuild.oci.platform import Platform
from pybuild.oci.pull import download_all, fetch_blob
from pybuild.oci.reference import Reference
from pybuild.oci.registry import RegistryClient
from pybuild.oci.sinks import OpenSink
from pybuild.oci.transfers import in_parallel
from pybuild.values import replace


class Place(BlobSource, ABC):
    """Something under one name: an artifact, an image, or an index of images."""

    @abstractmethod
    def top(self, activity: Activity) -> tuple[Descriptor, bytes]:
        """The manifest or index, verified. Raises ImageError."""

    @abstractmethod
    def manifest(self, descriptor: Descriptor, activity: Activity) -> bytes:
        """A manifest that an index names, verified. Raises ImageError."""

    @abstractmethod
    def blob(self, descriptor: Descriptor, activity: Activity) -> bytes:
        """A config, verified. Raises ImageError."""


class RegistryPlace(Place):
    """What `reference` names at its registry."""

    def __init__(self, client: RegistryClient, reference: Reference) -> None:
        self._client = client
        self._reference = reference

    @property
    def reference(self) -> Reference:
        return self._reference

    def top(self, activity: Activity) -> tuple[Descriptor, bytes]:
        return self._client.manifest(self._reference, activity)

    def manifest(self, descriptor: Descriptor, activity: Activity) -> bytes:
        named = replace(self._reference, tag=None, digest=descriptor.digest)
        return self._client.manifest(named, activity)[1]

    def blob(self, descriptor: Descriptor, activity: Activity) -> bytes:
        return fetch_blob(self._client, self._reference, descriptor, MAX_CONFIG_SIZE, activity)

    def fetch(self, blobs: Sequence[Descriptor], open_sink: OpenSink, activity: Activity) -> None:
        download_all(self._client, self._reference, blobs, open_sink, activity)


class LayoutPlace(Place):
    """What a tag or a digest names in an image layout, which stays open meanwhile."""

    reference = None

    def __init__(self, layout: ImageLayout, tag: str | None, digest: str | None) -> None:
        self._layout = layout
        self._tag = tag
        self._digest = digest

    def top(self, activity: Activity) -> tuple[Descriptor, bytes]:
        found = self._layout.named(tag=self._tag, digest=self._digest)
        return found, self.manifest(found, activity)

    def manifest(self, descriptor: Descriptor, activity: Activity) -> bytes:
        activity.raise_if_cancelled()
        return self._layout.read(descriptor, MAX_MANIFEST_SIZE)

    def blob(self, descriptor: Descriptor, activity: Activity) -> bytes:
        activity.raise_if_cancelled()
        return self._layout.read(descriptor, MAX_CONFIG_SIZE)

    def fetch(self, blobs: Sequence[Descriptor], open_sink: OpenSink, activity: Activity) -> None:
        distinct = {blob.digest: blob for blob in blobs}.values()
        in_parallel([partial(self._copy, blob, open_sink) for blob in distinct], activity)

    def _copy(self, blob: Descriptor, open_sink: OpenSink, activity: Activity) -> None:
        with open_sink(blob) as sink:
            self._layout.copy(blob, sink.write, activity)
            sink.commit()


def read_documents(
    place: Place, platforms: Sequence[Platform], activity: Activity
) -> tuple[CacheDocument, ...]:
    """The caches in what `place` names: of an index, those of the images for `platforms`.

    Raises ImageError, InvalidImage where there is none; BuildCancelled.
    """
    descriptor, content = place.top(activity)
    manifests = [(descriptor, content)]
    if descriptor.media_type in INDEX_TYPES:
        index = parse_index(content, descriptor.media_type)
        chosen: dict[str, Descriptor] = {}
        for platform in platforms:
            try:
                one = select(index, platform)
            except PlatformMismatch:
                continue
            chosen[one.digest] = one
        manifests = [(one, place.manifest(one, activity)) for one in chosen.values()]
    found = [_document(place, one, content, activity) for one, content in manifests]
    documents = tuple(one for one in found if one is not None)
    if not documents:
        raise InvalidImage("there is no build cache in it")
    return documents


def _document(
    place: Place, descriptor: Descriptor, content: bytes, activity: Activity
) -> CacheDocument | None:
    """The cache that a manifest is, or that an image's manifest has in it."""
    if descriptor.media_type in INDEX_TYPES:
        raise InvalidImage("it has indexes nested too deeply")
    known = {*CONFIG_TYPES, CACHE_CONFIG}
    manifest = parse_manifest(content, descriptor.media_type, config_types=known)
    if manifest.config.media_type == CACHE_CONFIG:
        return parse_document(place.blob(manifest.config, activity), manifest.layers)
    text = manifest.annotations.get(CACHE_ANNOTATION)
    if text is None:
        return None
    # JSON may have halves of characters; they are refused with the rest
    return parse_document(text.encode("utf-8", "surrogatepass"), manifest.layers)
