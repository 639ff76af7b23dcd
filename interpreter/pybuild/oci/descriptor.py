"""Descriptors and media types, after the OCI image specification, `descriptor.md`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256

from pybuild.values import dataclass, field

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_TAR = "application/vnd.docker.image.rootfs.diff.tar"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})

# Only sha256 is accepted: it is the one algorithm that every implementation must have.
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Whether `text` is a sha256 digest in its canonical form."""
    return _DIGEST.fullmatch(text) is not None


def digest_of(data: bytes) -> str:
    """The digest of `data`, as ``sha256:…``."""
    return f"sha256:{sha256(data).hexdigest()}"


def chain_id(diff_ids: tuple[str, ...]) -> str:
    """The chain id of the layers with these diff ids, bottom first (OCI `config.md`, ChainID).

    An empty tuple gives the empty string: scratch has no chain id.
    """
    chain = ""
    for diff_id in diff_ids:
        chain = digest_of(f"{chain} {diff_id}".encode()) if chain else diff_id
    return chain


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob's media type, digest (of the stored bytes) and size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LayerDiff:
    """One layer of an image: the digest of its uncompressed tar, and its stored blob."""

    diff_id: str
    blob: Descriptor
