"""Steps that other machines made, and cache mounts for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pybuild.backend import Activity
from pybuild.cacheexchange import BlobSource, CacheExchange, ForeignStep
from pybuild.files.trees import MemoryTree
from pybuild.oci.descriptor import Descriptor, LayerDiff
from pybuild_containerd.changes import changes_of
from pybuild_containerd.layers import write_blob
from pybuild_containerd.pulling import StoreSink
from pybuild_containerd.stepcache import CachedStep
from pybuild_containerd.workspace import Workspace


class ContainerdExchange(CacheExchange):
    """See :class:`pybuild.cacheexchange.CacheExchange`. Everything is fetched at once."""

    def __init__(self, space: Workspace, has: Callable[[str], bool]) -> None:
        """`has` tells whether a blob is in the store, which keeps it then."""
        self._space = space
        self._has = has

    def adopt(
        self, key: str, step: ForeignStep, source: BlobSource, activity: Activity, *, later: bool
    ) -> None:
        del later
        missing = [x.blob for x in step.foreign if not self._has(x.blob.digest)]
        self._fetch(missing, source, activity)
        for layer in step.foreign:
            activity.raise_if_cancelled()
            self._space.files.verify(layer)
            self._space.files.check(layer)
        self._space.steps.record(key, CachedStep(step.layers, step.own, step.made))

    def forget_unfetched(self) -> bool:
        return False

    def pack_mount(self, ident: str, activity: Activity) -> LayerDiff | None:
        with self._space.mounts.cache_folder(ident, activity) as mounts:
            if mounts is None:
                return None
            nothing = MemoryTree([])
            changes = changes_of(self._space, "", nothing, mounts, activity, missing=())
            return changes.written or write_blob(self._space, changes.entries, activity)

    def _fetch(self, blobs: Sequence[Descriptor], source: BlobSource, activity: Activity) -> None:
        content = self._space.content
        source.fetch(blobs, lambda blob: StoreSink(content, blob, {}, activity), activity)
