"""Images from a registry, into containerd's content store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Self

from pybuild.backend import Activity
from pybuild.oci.descriptor import Descriptor
from pybuild.oci.layerindex import OnIndex
from pybuild.oci.ondemand import OnDemand
from pybuild.oci.platform import Platform
from pybuild.oci.reference import Reference
from pybuild_containerd.content import BlobWriter, ContentStore, gc_labels

if TYPE_CHECKING:
    from pybuild.oci.arriving import PlainSink
    from pybuild.oci.pull import RemoteImage
    from pybuild.oci.registry import RegistryClient

_SOURCE_LABEL = "containerd.io/distribution.source"


class Puller:
    """Fetches what a registry has; `connect` is called when the first thing is fetched."""

    def __init__(self, connect: Callable[[], RegistryClient], content: ContentStore) -> None:
        self._registry = OnDemand(connect)
        self._content = content

    def fetch(self, reference: Reference, platform: Platform, activity: Activity) -> RemoteImage:
        """Store the image's indexes, manifest and config, labelled for the garbage collector.

        Raises as :func:`pybuild.oci.pull.fetch_image` does.
        """
        from pybuild.oci.pull import fetch_image  # noqa: PLC0415 - no build of known images needs it

        image = fetch_image(self._registry.client(), reference, platform, activity)
        source = _source_label(reference)
        layers = tuple(layer.digest for layer in image.layers)
        self._content.write_small(image.config_bytes, image.config.digest, source)
        self._content.write_small(
            image.manifest_bytes,
            image.descriptor.digest,
            source | gc_labels(image.config.digest, layers),
        )
        below = image.descriptor.digest
        for index, document in reversed(image.indexes):
            labels = source | {"containerd.io/gc.ref.content.m.0": below}
            self._content.write_small(document, index.digest, labels)
            below = index.digest
        return image

    def fetch_layers(
        self,
        reference: Reference,
        layers: Sequence[Descriptor],
        activity: Activity,
        on_index: OnIndex,
        plain: Callable[[Descriptor], PlainSink | None] | None,
    ) -> None:
        """Store these blobs, several at a time. Raises as `download_all` does.

        `on_index` gets the digest of each layer that was stored, with its diff id and index, and
        what `plain` gives for it, if anything, takes it uncompressed.
        """
        from pybuild.oci.arriving import indexing  # noqa: PLC0415 - as above
        from pybuild.oci.pull import download_all  # noqa: PLC0415 - as above

        labels = _source_label(reference)

        def open_sink(blob: Descriptor) -> StoreSink:
            return StoreSink(self._content, blob, labels, activity)

        sinks = indexing(open_sink, on_index, plain)
        download_all(self._registry.client(), reference, layers, sinks, activity)

    def scheme(self, reference: Reference) -> str:
        """How the image's registry was reached: https or http."""
        return self._registry.client().scheme(reference.registry)

    def close(self) -> None:
        """End all connections. Idempotent."""
        self._registry.close()


class StoreSink:
    """A blob on its way into the content store; dropped unless it is committed."""

    def __init__(
        self,
        content: ContentStore,
        blob: Descriptor,
        labels: Mapping[str, str],
        activity: Activity,
    ) -> None:
        self._content = content
        self._blob = blob
        self._labels = labels
        self._activity = activity
        self._writer = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._writer.__exit__(*exc)

    def write(self, piece: bytes, /) -> None:
        self._writer.write(piece)

    def restart(self) -> None:
        self._writer.abort()
        self._writer = self._open()

    def commit(self) -> None:
        self._writer.commit(self._blob.digest, self._blob.size, self._labels)

    def _open(self) -> BlobWriter:
        # a ref of its own: another build may fetch the same blob, and either may fail
        return self._content.writer(total=self._blob.size, activity=self._activity)


def _source_label(reference: Reference) -> dict[str, str]:
    """What tells containerd where a blob came from, so that a push can mount it there."""
    return {f"{_SOURCE_LABEL}.{reference.registry}": reference.repository}
