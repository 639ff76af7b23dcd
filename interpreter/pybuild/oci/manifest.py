"""Manifests and indexes: bytes of a registry to checked values, and back.

After OCI `manifest.md` and `image-index.md`, and Docker's "image manifest version 2,
schema 2", which differ in media types only. What passes here is safe to build paths from:
every digest is sha256 in its canonical form, every size is a sensible number, and a document
is either a manifest or an index (CVE-2021-41190).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pybuild.errors import InvalidImage, PlatformMismatch
from pybuild.oci.compression import Compression, compression_of
from pybuild.oci.descriptor import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_TAR,
    DOCKER_MANIFEST,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_LAYER_TAR,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Descriptor,
    digest_of,
    is_digest,
)
from pybuild.oci.image_config import ImageConfig, serialize_config
from pybuild.oci.platform import Platform, normalise, platform_as_json, rank
from pybuild.values import dataclass, field, replace

MAX_MANIFEST_SIZE = 4 << 20  # the distribution specification's limit; for indexes too
MAX_CONFIG_SIZE = 8 << 20
MAX_LAYERS = 4096
MAX_BLOB_SIZE = (1 << 63) - 1

DOCKER_LAYER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
LAYER_TYPES = frozenset(
    {
        OCI_LAYER_TAR,
        OCI_LAYER_GZIP,
        OCI_LAYER_ZSTD,
        DOCKER_LAYER_TAR,
        DOCKER_LAYER_GZIP,
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        # "Foreign" layers hold the same archives; only their urls are refused.
        DOCKER_LAYER_FOREIGN,
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    }
)
# Docker never named zstd: those who use it there take OCI's name.
_AS_DOCKER = {Compression.GZIP: DOCKER_LAYER_GZIP, Compression.NONE: DOCKER_LAYER_TAR}
# Docker 1.10 pushed configs as application/octet-stream.
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG, "application/octet-stream"})
_SCHEMA1_TYPES = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one platform. ``layers`` are bottom first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)
    media_type: str = OCI_MANIFEST


@dataclass(frozen=True, slots=True)
class Index:
    """Images for several platforms; a platform is None where the index names none."""

    manifests: tuple[tuple[Descriptor, Platform | None], ...]
    annotations: Mapping[str, str] = field(default_factory=dict)
    media_type: str = OCI_INDEX


def parse_manifest(
    data: bytes, media_type: str | None = None, *, config_types: Collection[str] = CONFIG_TYPES
) -> Manifest:
    """The manifest in `data`. `media_type` is what a descriptor or registry declared.

    `config_types` are what its config may be: other ones make it an artifact. Raises
    InvalidImage.
    """
    document = _parse_document(data)
    found = _document_type(document, media_type)
    if found not in MANIFEST_TYPES:
        raise InvalidImage(f"expected an image manifest, found {found}")
    config = _parse_descriptor(document.get("config"), "config")
    if config.media_type not in config_types:
        raise InvalidImage(f"this is an artifact of type {config.media_type[:100]!r}, not an image")
    if config.size > MAX_CONFIG_SIZE:
        raise InvalidImage(f"the image config has {config.size} bytes, over {MAX_CONFIG_SIZE}")
    layers = _list(document.get("layers"), "layers", MAX_LAYERS)
    parsed = tuple(_parse_layer(layer, position) for position, layer in enumerate(layers))
    _check_sizes_agree((config, *parsed))
    return Manifest(config, parsed, _annotations(document), found)


def parse_index(data: bytes, media_type: str | None = None) -> Index:
    """The index (or Docker manifest list) in `data`. Raises InvalidImage."""
    document = _parse_document(data)
    found = _document_type(document, media_type)
    if found not in INDEX_TYPES:
        raise InvalidImage(f"expected an image index, found {found}")
    entries = _list(document.get("manifests"), "manifests", MAX_LAYERS)
    manifests = tuple(
        (_parse_descriptor(entry, f"manifests[{position}]"), _parse_platform(entry))
        for position, entry in enumerate(entries)
    )
    _check_sizes_agree([descriptor for descriptor, _ in manifests])
    return Index(manifests, _annotations(document), found)


def media_type_of(data: bytes, declared: str | None = None) -> str:
    """The media type of a manifest or index that was `declared` so by a registry.

    Registries that declare something general, such as text/plain, are forgiven if the document
    says or shows what it is. Raises InvalidImage if the two contradict each other.
    """
    return _document_type(_parse_document(data), declared)


def select(index: Index, platform: Platform) -> Descriptor:
    """The manifest (or nested index) for `platform`: the best by :func:`platform.rank`.

    Entries without a platform come last, as in containerd. Raises PlatformMismatch, which
    names the platforms that there are.
    """
    best: tuple[int, Descriptor] | None = None
    for descriptor, candidate in index.manifests:
        if descriptor.media_type not in MANIFEST_TYPES | INDEX_TYPES:
            continue
        place = MAX_LAYERS if candidate is None else rank(platform, candidate)
        if place is not None and (best is None or place < best[0]):
            best = place, descriptor
    if best is None:
        raise PlatformMismatch(f"the image has no manifest for {platform}", hint=_available(index))
    return best[1]


def platforms(index: Index) -> tuple[Platform, ...]:
    """The platforms that an index names, without those of attestations."""
    named = dict.fromkeys(platform for _, platform in index.manifests if platform is not None)
    return tuple(one for one in named if "unknown" not in (one.os, one.architecture))


def make_manifest(
    config: Descriptor,
    layers: Sequence[Descriptor],
    annotations: Mapping[str, str] | None = None,
    media_type: str = OCI_MANIFEST,
) -> bytes:
    """A manifest as canonical JSON: equal arguments give equal bytes."""
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": descriptor_as_json(config),
        "layers": [descriptor_as_json(layer) for layer in layers],
    }
    if annotations:
        document["annotations"] = dict(sorted(annotations.items()))
    return canonical_json(document)


@dataclass(frozen=True, slots=True)
class ImageDocuments:
    """What describes an image: two documents and their descriptors."""

    config: Descriptor
    config_bytes: bytes
    manifest: Descriptor
    manifest_bytes: bytes
    layers: tuple[Descriptor, ...]
    """As the manifest names them."""


def image_documents(
    config: ImageConfig,
    layers: Sequence[Descriptor],
    annotations: Mapping[str, str] | None = None,
    *,
    docker: bool = False,
) -> ImageDocuments:
    """The documents of an image made of these blobs; equal arguments give equal bytes.

    Media types are OCI's, or with `docker` those that Docker used before.
    """
    config_bytes = serialize_config(config)
    config_type, manifest_type = OCI_CONFIG, OCI_MANIFEST
    if docker:
        config_type, manifest_type = DOCKER_CONFIG, DOCKER_MANIFEST
    named = tuple(replace(blob, media_type=_layer_type(blob, docker=docker)) for blob in layers)
    described = Descriptor(config_type, digest_of(config_bytes), len(config_bytes))
    manifest = make_manifest(described, named, annotations, manifest_type)
    return ImageDocuments(
        described,
        config_bytes,
        Descriptor(manifest_type, digest_of(manifest), len(manifest)),
        manifest,
        named,
    )


@dataclass(frozen=True, slots=True)
class IndexDocument:
    """What names images of several platforms: a document and its descriptor."""

    index: Descriptor
    index_bytes: bytes


@dataclass(frozen=True, slots=True)
class Documents:
    """All documents of what is known by one digest: of an image, or of an index and its images.

    Without an ``index`` there is one image.
    """

    images: tuple[ImageDocuments, ...]
    index: IndexDocument | None = None

    @property
    def descriptor(self) -> Descriptor:
        """The index, or the manifest of the only image."""
        return self.images[0].manifest if self.index is None else self.index.index

    @property
    def content(self) -> bytes:
        """The bytes that :attr:`descriptor` describes."""
        return self.images[0].manifest_bytes if self.index is None else self.index.index_bytes


def index_document(
    manifests: Sequence[tuple[Descriptor, Platform]],
    annotations: Mapping[str, str] | None = None,
    *,
    docker: bool = False,
) -> IndexDocument:
    """The index of these manifests, in this order; equal arguments give equal bytes.

    It is an OCI image index, or with `docker` what came before it, a Docker manifest list.
    """
    media_type = DOCKER_INDEX if docker else OCI_INDEX
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "manifests": [
            {**descriptor_as_json(manifest), "platform": platform_as_json(platform)}
            for manifest, platform in manifests
        ],
    }
    if annotations:
        document["annotations"] = dict(sorted(annotations.items()))
    data = canonical_json(document)
    return IndexDocument(Descriptor(media_type, digest_of(data), len(data)), data)


def _layer_type(blob: Descriptor, *, docker: bool) -> str:
    """The name of the blob's format: the same bytes have several."""
    compression = compression_of(blob.media_type)
    return _AS_DOCKER.get(compression, compression.value) if docker else compression.value


def descriptor_as_json(descriptor: Descriptor) -> dict[str, Any]:
    """The JSON object of a descriptor, in the specification's member order."""
    document: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.annotations:
        document["annotations"] = dict(sorted(descriptor.annotations.items()))
    return document


def canonical_json(document: Any) -> bytes:
    """UTF-8 JSON without spaces, members in the order given."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def parse_json_object(data: bytes, what: str, limit: int) -> dict[str, Any]:
    """The JSON object in `data`, at most `limit` bytes; a member may stand in it only once.

    Raises InvalidImage, whose message begins with `what`.
    """
    if len(data) > limit:
        raise InvalidImage(f"{what} has {len(data)} bytes, over {limit}")
    try:
        document = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InvalidImage(f"{what} is no valid JSON: {reason}") from None
    if not isinstance(document, dict):
        raise InvalidImage(f"{what} is no JSON object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Parsers differ in which of two equal members counts, so a check could be deceived.
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member occurs twice")
    return members


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _parse_document(data: bytes) -> dict[str, Any]:
    document = parse_json_object(data, "the manifest", MAX_MANIFEST_SIZE)
    schema = document.get("schemaVersion")
    if schema == 1 or "fsLayers" in document:
        raise _schema1()
    if isinstance(schema, bool) or schema != 2:
        raise InvalidImage(f"the manifest has schemaVersion {str(schema)[:20]!r} instead of 2")
    return document


def _document_type(document: dict[str, Any], declared: str | None) -> str:
    own = document.get("mediaType", "")
    if not isinstance(own, str):
        raise InvalidImage("the manifest's mediaType is no string")
    if own in _SCHEMA1_TYPES or declared in _SCHEMA1_TYPES:
        raise _schema1()
    known = MANIFEST_TYPES | INDEX_TYPES
    if own and own not in known:
        raise InvalidImage(f"the manifest has the unknown media type {own[:100]!r}")
    if own and declared in known and own != declared:
        raise InvalidImage(f"the manifest says that it is {own}, but was declared as {declared}")
    is_index = "manifests" in document
    if is_index and ("config" in document or "layers" in document):
        raise InvalidImage("the manifest claims to be an index as well")
    fallback = OCI_INDEX if is_index else OCI_MANIFEST
    found = own or (declared if declared in known else None) or fallback
    if is_index != (found in INDEX_TYPES):
        shape = "an index" if is_index else "a manifest"
        raise InvalidImage(f"the document is {shape}, but was declared as {found}")
    return found


def _parse_layer(value: Any, position: int) -> Descriptor:
    what = f"layers[{position}]"
    layer = _parse_descriptor(value, what)
    if layer.media_type not in LAYER_TYPES:
        raise InvalidImage(f"{what} has the unknown media type {layer.media_type[:100]!r}")
    return layer


def _parse_descriptor(value: Any, what: str) -> Descriptor:
    if not isinstance(value, dict):
        raise InvalidImage(f"{what} of the manifest is no descriptor")
    media_type, digest, size = value.get("mediaType"), value.get("digest"), value.get("size")
    if not isinstance(media_type, str) or not media_type:
        raise InvalidImage(f"{what} has no media type")
    if not isinstance(digest, str) or not is_digest(digest):
        raise InvalidImage(f"{what} has the invalid digest {str(digest)[:100]!r}")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_BLOB_SIZE:
        raise InvalidImage(f"{what} has the invalid size {str(size)[:30]!r}")
    if value.get("urls"):
        # They lead to hosts of the image author's choice, with our digest as only guard.
        raise InvalidImage(
            f"{what} is kept outside the registry, at a URL of its own, which is never followed"
        )
    return Descriptor(media_type, digest, size, _annotations(value))


def _parse_platform(entry: Any) -> Platform | None:
    value = entry.get("platform")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidImage("a platform in the index is no object")
    members = [value.get(key, "") for key in ("os", "architecture", "variant", "os.version")]
    if not all(isinstance(member, str) and len(member) < 128 for member in members):
        raise InvalidImage("a platform in the index has members that are no short strings")
    return normalise(*members)


def _annotations(document: dict[str, Any]) -> dict[str, str]:
    value = document.get("annotations")
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise InvalidImage("the annotations of the manifest aren't all strings")
    return value


def _list(value: Any, what: str, limit: int) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidImage(f"{what} of the manifest is no list")
    if len(value) > limit:
        raise InvalidImage(f"the manifest has {len(value)} {what}, over {limit}")
    return value


def _check_sizes_agree(descriptors: Sequence[Descriptor]) -> None:
    # The same blob may stand twice (Docker's empty layer does), but it has one size.
    sizes: dict[str, int] = {}
    for descriptor in descriptors:
        if sizes.setdefault(descriptor.digest, descriptor.size) != descriptor.size:
            raise InvalidImage(f"the manifest gives two sizes for {descriptor.digest}")


def _schema1() -> InvalidImage:
    return InvalidImage(
        "the image is in Docker's schema 1 format, which was retired in 2017",
        hint="pull and push it again with a newer Docker, or choose a newer tag",
    )


def _available(index: Index) -> str:
    named = [str(platform) for platform in platforms(index)]
    if not named:
        return "it names no platform at all"
    shown = ", ".join(named[:20]) + (", …" if len(named) > 20 else "")
    return f"it has {shown}"
