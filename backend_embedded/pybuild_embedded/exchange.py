"""Steps that other machines made, and cache mounts for them.

Layers that a registry has stay there until something needs them. Such steps are known to
this session alone; those whose layers were fetched after all are kept in the end.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from pybuild.cacheexchange import BlobSource, CacheExchange, ForeignStep
from pybuild.errors import PybuildError
from pybuild.oci.descriptor import LayerDiff
from pybuild.oci.http import Activity
from pybuild.values import dataclass, field
from pybuild_embedded.cachefolders import packed_cache
from pybuild_embedded.chains import CachedStep
from pybuild_embedded.fetching import StoreSink
from pybuild_embedded.layerchain import chain_of
from pybuild_embedded.layers import EmbeddedROLayer
from pybuild_embedded.space import Space

_Content = tuple[str, str]
"""A layer's diff id, and the digest of the blob that is said to hold it."""


@dataclass(frozen=True, slots=True)
class _Later:
    """A step of whose layers some may not be here; `activity` is that of who took it over."""

    step: CachedStep
    activity: Activity


@dataclass(slots=True)
class EmbeddedExchange(CacheExchange):
    """See :class:`pybuild.cacheexchange.CacheExchange`."""

    space: Space
    _steps: dict[str, _Later] = field(default_factory=dict)
    _unseen: set[_Content] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def adopt(
        self, key: str, step: ForeignStep, source: BlobSource, activity: Activity, *, later: bool
    ) -> None:
        store = self.space.store
        missing = [x.blob for x in step.foreign if not store.has_blob(x.blob.digest)]
        stays = later and bool(missing) and source.reference is not None
        if stays and source.reference is not None:
            store.origins.record(source.reference, missing)
            with self._lock:
                self._unseen.update(map(_content, step.foreign))
        else:
            source.fetch(missing, partial(StoreSink, store), activity)
            for layer in step.foreign:
                activity.raise_if_cancelled()
                self.space.files.verify(layer)
        chain = chain_of(step.layers)
        cached = CachedStep(chain.id, step.layers, step.own, step.made.timestamp())
        # what lies on something unseen isn't known to be good either
        if self._unseen_of(step.layers):
            store.record_layers(step.layers)
            with self._lock:
                self._steps[key] = _Later(cached, activity)
        else:
            self._keep(key, cached)

    def forget_unfetched(self) -> bool:
        with self._lock:
            self._steps.clear()
            found, self._unseen = self._unseen, set()
        return bool(found)

    def pack_mount(self, ident: str, activity: Activity) -> LayerDiff | None:
        return packed_cache(self.space, ident, activity)

    def unfetched(self, key: str) -> EmbeddedROLayer | None:
        """What a step made that was adopted with layers to be fetched; None if it wasn't."""
        with self._lock:
            found = self._steps.get(key)
        if found is None:
            return None
        chain = chain_of(found.step.layers)
        own = chain.layers[-1] if found.step.own else None
        fetch = partial(self._fetch, chain.layers, found.activity)
        return EmbeddedROLayer(self.space, chain, own, made=found.step.made_at, fetch=fetch)

    def settle(self) -> None:
        """Keep those steps, for later builds, whose layers are here now."""
        blobs = self.space.store.blobs
        with self._lock:
            found = dict(self._steps)
        for key, later in found.items():
            with suppress(PybuildError):  # a failing cache is a miss next time
                layers = self._unseen_of(later.step.layers)
                if all(blobs.size(x.blob.digest) == x.blob.size for x in layers):
                    self._see(layers, later.activity)
                    self._keep(key, later.step)

    def _fetch(self, layers: Sequence[LayerDiff], activity: Activity) -> None:
        """Have those of `layers` here, and checked, that weren't looked at yet."""
        unseen = self._unseen_of(layers)
        self.space.fetch(unseen, activity)
        self._see(unseen, activity)

    def _unseen_of(self, layers: Sequence[LayerDiff]) -> list[LayerDiff]:
        with self._lock:
            return [layer for layer in layers if _content(layer) in self._unseen]

    def _see(self, layers: Sequence[LayerDiff], activity: Activity) -> None:
        for layer in layers:
            activity.raise_if_cancelled()
            self.space.files.verify(layer)
            with self._lock:
                self._unseen.discard(_content(layer))

    def _keep(self, key: str, step: CachedStep) -> None:
        store = self.space.store
        store.record_layers(step.layers)
        store.record_step(self.space.own_key(key), step.chain, own=step.own, made=step.made)


def _content(layer: LayerDiff) -> _Content:
    return layer.diff_id, layer.blob.digest
