"""What the memory backend trades with caches of other machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from types import TracebackType
from typing import Self

from pybuild.backend import Activity
from pybuild.cacheexchange import BlobSource, CacheExchange, ForeignStep
from pybuild.oci.descriptor import Descriptor, LayerDiff

AddLayer = Callable[[LayerDiff, bytes], None]
"""Stores a layer's blob. Raises InvalidImage for one that holds something else."""
Remember = Callable[[str, ForeignStep], None]
PackMount = Callable[[str], LayerDiff | None]


class MemoryExchange(CacheExchange):
    """Everything is fetched at once."""

    def __init__(
        self,
        blobs: Mapping[str, bytes],
        add_layer: AddLayer,
        remember: Remember,
        pack_mount: PackMount,
    ) -> None:
        """`blobs` are those that are here, by their digests."""
        self._blobs = blobs
        self._add_layer = add_layer
        self._remember = remember
        self._pack_mount = pack_mount

    def adopt(
        self, key: str, step: ForeignStep, source: BlobSource, activity: Activity, *, later: bool
    ) -> None:
        del later
        fetched: dict[str, bytes] = {}
        missing = [x.blob for x in step.foreign if x.blob.digest not in self._blobs]
        source.fetch(missing, lambda blob: _MemorySink(fetched, blob), activity)
        for layer in step.foreign:
            digest = layer.blob.digest
            self._add_layer(layer, fetched.get(digest) or self._blobs.get(digest, b""))
        self._remember(key, step)

    def forget_unfetched(self) -> bool:
        return False

    def pack_mount(self, ident: str, activity: Activity) -> LayerDiff | None:
        activity.raise_if_cancelled()
        return self._pack_mount(ident)


class _MemorySink:
    def __init__(self, fetched: dict[str, bytes], blob: Descriptor) -> None:
        self._fetched = fetched
        self._blob = blob
        self._content = BytesIO()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def write(self, piece: bytes, /) -> None:
        self._content.write(piece)

    def restart(self) -> None:
        self._content = BytesIO()

    def commit(self) -> None:
        self._fetched[self._blob.digest] = self._content.getvalue()
