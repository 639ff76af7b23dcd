"""Images from a registry, into the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Self

from pybuild.oci.descriptor import Descriptor
from pybuild.oci.http import Activity
from pybuild.oci.layerindex import OnIndex
from pybuild.oci.ondemand import OnDemand
from pybuild.oci.platform import Platform
from pybuild.oci.reference import Reference
from pybuild_embedded.blobs import BlobWriter
from pybuild_embedded.store import Store

if TYPE_CHECKING:
    from pybuild.oci.pull import RemoteImage
    from pybuild.oci.registry import RegistryClient
    from pybuild_embedded.plaincopies import PlainCopies


class Fetcher:
    """Fetches what a registry has; `connect` is called when the first thing is fetched."""

    def __init__(self, connect: Callable[[], RegistryClient], store: Store) -> None:
        self._registry = OnDemand(connect)
        self._store = store

    def fetch(self, reference: Reference, platform: Platform, activity: Activity) -> RemoteImage:
        """Store the image's indexes, manifest and config.

        Raises as :func:`pybuild.oci.pull.fetch_image` does.
        """
        from pybuild.oci.pull import fetch_image  # noqa: PLC0415  (not in a cached build)

        image = fetch_image(self._registry.client(), reference, platform, activity)
        documents = [
            (image.config, image.config_bytes),
            (image.descriptor, image.manifest_bytes),
            *reversed(image.indexes),
        ]
        for descriptor, content in documents:
            self._store.write_blob(descriptor.digest, content)
        return image

    def fetch_layers(
        self,
        reference: Reference,
        layers: Sequence[Descriptor],
        activity: Activity,
        on_index: OnIndex | None = None,
        copies: PlainCopies | None = None,
    ) -> None:
        """Store these blobs, several at a time. Raises as `download_all` does.

        `on_index` gets the digest of each layer that was stored, with its diff id and index;
        then `copies` get it uncompressed, too.
        """
        from pybuild.oci.arriving import indexing  # noqa: PLC0415  (not in a cached build)
        from pybuild.oci.pull import download_all  # noqa: PLC0415  (as above)

        sinks = partial(StoreSink, self._store)
        copy = copies.copy if copies is not None else None
        open_sink = sinks if on_index is None else indexing(sinks, on_index, copy)
        download_all(self._registry.client(), reference, layers, open_sink, activity)

    def close(self) -> None:
        """End all connections. Idempotent."""
        self._registry.close()


class StoreSink:
    """A blob on its way into the store; dropped unless it is committed, by who has its digest."""

    def __init__(self, store: Store, blob: Descriptor) -> None:
        self._blob = blob
        self._writer: BlobWriter = store.blob_writer(hashed=True)

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._writer.__exit__(*exc)

    def write(self, piece: bytes, /) -> None:
        self._writer.write(piece)

    def restart(self) -> None:
        self._writer.restart()

    def commit(self) -> None:
        self._writer.commit(self._blob.digest, self._blob.size)
