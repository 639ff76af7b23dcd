"""One checker of every promise that an image makes: each hash, size and count is recomputed.

It reads blobs through the backend, or a layout, and tars with the standard library, so that it shares no
code with what made them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from typing import Any, BinaryIO, Protocol

from pybuild.backend import Image, ROLayer
from pybuild.oci.compression import Decompressed
from pybuild.oci.descriptor import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
)

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


class BlobSource(Protocol):
    """A backend, or whatever else has an image's blobs."""

    def open_blob(self, digest: str, /) -> BinaryIO: ...


def validate(backend: BlobSource, image: Image, *, base_layers: int = 0) -> dict[str, Any]:
    """Check `image` in `backend`'s store, and return its config as JSON.

    The lowest `base_layers` layers come from elsewhere: their tars needn't be canonical.
    Raises AssertionError with everything that is wrong.
    """
    faults: list[str] = []
    manifest_bytes = _blob(backend, image.manifest.digest, image.manifest.size, faults)
    manifest = json.loads(manifest_bytes)
    if manifest.get("schemaVersion") != 2:
        faults.append("the manifest's schemaVersion is not 2")
    if manifest.get("mediaType", image.manifest.media_type) != image.manifest.media_type:
        faults.append("the manifest's media type is not its descriptor's")
    is_oci = image.manifest.media_type == OCI_MANIFEST
    if is_oci != (manifest["config"]["mediaType"] == OCI_CONFIG):
        faults.append("the manifest and its config are of two specifications")
    if manifest["config"]["digest"] != image.config_digest:
        faults.append("the manifest has another config than the image")
    config_bytes = _blob(backend, image.config_digest, manifest["config"]["size"], faults)
    config: dict[str, Any] = json.loads(config_bytes)
    faults += _config_faults(config, len(manifest["layers"]))
    for position, (layer, diff_id) in enumerate(
        zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=False)
    ):
        stored = _blob(backend, layer["digest"], layer["size"], faults)
        tar = _uncompressed(stored, layer["mediaType"])
        if f"sha256:{hashlib.sha256(tar).hexdigest()}" != diff_id:
            faults.append(f"layer {position} doesn't have its diff id")
        canonical = position >= base_layers
        faults += (f"layer {position}: {fault}" for fault in _tar_faults(tar, canonical=canonical))
    if faults:
        raise AssertionError(f"image {image.manifest.digest}: " + "; ".join(faults))
    return config


def validate_index(
    backend: BlobSource, index: Descriptor, *, base_layers: int = 0
) -> list[dict[str, Any]]:
    """Check an index and all its images, and return their configs as JSON, in its order.

    `base_layers` is as in :func:`validate`. Raises AssertionError with everything that is
    wrong with the index, or with the first image that something is wrong with.
    """
    faults: list[str] = []
    document = json.loads(_blob(backend, index.digest, index.size, faults))
    if document.get("schemaVersion") != 2:
        faults.append("its schemaVersion is not 2")
    if document.get("mediaType") != index.media_type or index.media_type not in INDEX_TYPES:
        faults.append("its media type is not its descriptor's, or no index's")
    configs = []
    for entry in document["manifests"]:
        manifest = Descriptor(entry["mediaType"], entry["digest"], entry["size"])
        if manifest.media_type not in MANIFEST_TYPES:
            faults.append(f"{manifest.digest} is no manifest")
        if (manifest.media_type == OCI_MANIFEST) != (index.media_type == OCI_INDEX):
            faults.append(f"{manifest.digest} is of another specification than the index")
        inner = json.loads(_blob(backend, manifest.digest, manifest.size, faults))
        config = validate(
            backend, Image(manifest, inner["config"]["digest"]), base_layers=base_layers
        )
        configs.append(config)
        faults += (
            f"{manifest.digest} has another {member} than the index says"
            for member in ("os", "architecture")
            if entry.get("platform", {}).get(member) != config[member]
        )
    if faults:
        raise AssertionError(f"index {index.digest}: " + "; ".join(faults))
    return configs


def layer_names(backend: BlobSource, layer: ROLayer) -> list[str]:
    """The names in the tar of the layer's own diff, as they stand there; folders end in /."""
    assert layer.diff is not None, "the layer changed nothing"
    with closing(backend.open_blob(layer.diff.blob.digest)) as stream:
        tar = _uncompressed(stream.read(), layer.diff.blob.media_type)
    with tarfile.open(fileobj=BytesIO(tar), errors="surrogateescape") as archive:
        return [member.name + "/" * member.isdir() for member in archive]


def _blob(backend: BlobSource, digest: str, size: int, faults: list[str]) -> bytes:
    with closing(backend.open_blob(digest)) as stream:
        data = stream.read()
    if len(data) != size:
        faults.append(f"blob {digest} has {len(data)} bytes instead of {size}")
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        faults.append(f"blob {digest} has another digest")
    return data


def _config_faults(config: dict[str, Any], layers: int) -> Iterator[str]:
    for member in ("architecture", "os"):
        if not config.get(member):
            yield f"the config has no {member}"
    rootfs = config.get("rootfs", {})
    if rootfs.get("type") != "layers":
        yield "rootfs isn't of type layers"
    if len(rootfs.get("diff_ids", [])) != layers:
        yield f"{len(rootfs.get('diff_ids', []))} diff ids for {layers} layers"
    history = config.get("history", [])
    with_layer = sum(not entry.get("empty_layer") for entry in history)
    if with_layer != layers:
        yield f"{with_layer} lines of history with a layer for {layers} layers"


def _uncompressed(stored: bytes, media_type: str) -> bytes:
    if media_type.endswith("gzip"):
        return gzip.decompress(stored)
    parts = []
    with Decompressed(BytesIO(stored)) as stream:
        while part := stream.read(1 << 20):
            parts.append(part)
    return b"".join(parts)


def _tar_faults(tar: bytes, *, canonical: bool) -> Iterator[str]:
    seen: set[str] = set()
    last = b""
    with tarfile.open(fileobj=BytesIO(tar), errors="surrogateescape") as archive:
        for member in archive:
            name = member.name.rstrip("/")
            if name.startswith("/") or ".." in name.split("/"):
                yield f"the name {name!r} leaves the root"
            if member.islnk() and member.linkname.rstrip("/") not in seen:
                yield f"the hard link {name!r} has no target before it"
            if not canonical:
                seen.add(name)
                continue
            if name in seen:
                yield f"{name!r} stands twice"
            seen.add(name)
            place = _place(name)
            if place < last:
                yield f"{name!r} isn't in order"
            last = place
            if member.uname or member.gname:
                yield f"{name!r} has the name of an owner"
            if member.mtime != int(member.mtime):
                yield f"{name!r} has parts of a second"
    if canonical and len(tar) % 512:
        yield "its length is no number of blocks"


def _place(name: str) -> bytes:
    """Where a member stands in a sorted layer: a removal where the removed file would."""
    parent, _, base = name.rpartition("/")
    if base == _OPAQUE:
        name = f"{parent}/"
    elif base.startswith(_WHITEOUT):
        name = f"{parent}/{base.removeprefix(_WHITEOUT)}".lstrip("/")
    return b"" if name == "." else name.encode("utf-8", "surrogateescape")
