"""Pushing: an image, or an index with its images, to the registries that its names say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import BinaryIO

from pybuild.oci.blobs import image_blobs
from pybuild.oci.http import Activity
from pybuild.oci.manifest import Documents
from pybuild.oci.reference import Reference, version
from pybuild.oci.registry import RegistryClient
from pybuild.oci.transfers import in_parallel


def push_image(
    client: RegistryClient,
    documents: Documents,
    open_blob: Callable[[str], BinaryIO],
    names: Sequence[Reference],
    activity: Activity,
    *,
    known: Mapping[str, Reference] | None = None,
) -> None:
    """Push an image or index under each of `names`, a digest among them naming just that.

    `open_blob` opens a layer's blob by its digest. `known` says by digest where a blob
    was pulled from: within one registry it is mounted from there. Each manifest comes after
    its blobs, and an index after its manifests, so that nobody sees half an image. Raises AuthenticationRequired,
    RegistryError, InvalidImage for a damaged blob, BuildCancelled.
    """
    blobs = image_blobs(documents, open_blob)
    sources = {
        (origin.registry, digest): origin.repository for digest, origin in (known or {}).items()
    }
    for first, *others in _by_repository(names):
        writer = client.writer(first)
        in_parallel(
            [
                partial(writer.send, blob, sources.get((first.registry, blob.descriptor.digest)))
                for blob in blobs
            ],
            activity,
        )
        for image in documents.images if documents.index else ():
            digest = image.manifest.digest
            writer.put_manifest(image.manifest, image.manifest_bytes, digest, activity)
        for name in (first, *others):
            writer.put_manifest(documents.descriptor, documents.content, version(name), activity)
        sources |= {(first.registry, blob.descriptor.digest): first.repository for blob in blobs}


def _by_repository(names: Sequence[Reference]) -> list[list[Reference]]:
    groups: dict[tuple[str, str], list[Reference]] = {}
    for name in names:
        groups.setdefault((name.registry, name.repository), []).append(name)
    return list(groups.values())
