"""Steps that other machines made, and cache mounts for them.

Blobs are fetched behind the build's back, those of several steps at a time: whoever needs a
step's layers waits for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

from pybuild.backend import Activity
from pybuild.cacheexchange import BlobSource, CacheExchange, ForeignStep
from pybuild.errors import BackendError, BuildCancelled, ImageError
from pybuild.files.trees import MemoryTree
from pybuild.oci.descriptor import LayerDiff
from pybuild.values import dataclass, field
from pybuild_containerd.changes import changes_of
from pybuild_containerd.layers import ContainerdROLayer, write_blob
from pybuild_containerd.pulling import StoreSink
from pybuild_containerd.stepcache import CachedStep
from pybuild_containerd.workspace import Workspace

_AT_A_TIME = 4


@dataclass(frozen=True, slots=True)
class _Arriving:
    """A step whose ``foreign`` layers are being fetched and checked."""

    step: CachedStep
    foreign: frozenset[tuple[str, str]]
    future: Future[None]

    def wait(self) -> None:
        """Raises what the fetching did."""
        try:
            self.future.result()
        except CancelledError:
            raise BuildCancelled("the build was cancelled") from None

    @property
    def is_good(self) -> bool:
        """Whether it is known already that nothing is wrong."""
        done = self.future.done() and not self.future.cancelled()
        return done and self.future.exception() is None


@dataclass(slots=True)
class ContainerdExchange(CacheExchange):
    """See :class:`pybuild.cacheexchange.CacheExchange`.

    ``has`` tells whether a blob is in the store, which keeps it then.
    """

    space: Workspace
    has: Callable[[str], bool]
    _arriving: dict[str, _Arriving] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_AT_A_TIME, "pybuild-cache")
    )

    def adopt(
        self, key: str, step: ForeignStep, source: BlobSource, activity: Activity, *, later: bool
    ) -> None:
        cached = CachedStep(step.layers, step.own, step.made)
        with self._lock:
            contents = set(map(_content, step.layers[: step.known]))
            # they come first, so that they never wait for a thread that waits for them
            below = [x for x in self._arriving.values() if x.foreign & contents]
            if later:
                future = self._threads.submit(self._fetch, key, step, source, activity, below=below)
                foreign = frozenset(map(_content, step.foreign))
                self._arriving[key] = _Arriving(cached, foreign, future)
                return
        self._fetch(key, step, source, activity, below=below)

    def forget_unfetched(self) -> bool:
        with self._lock:
            found, self._arriving = self._arriving, {}
        return not all(each.is_good for each in found.values())

    def pack_mount(self, ident: str, activity: Activity) -> LayerDiff | None:
        with self.space.mounts.cache_folder(ident, activity) as mounts:
            if mounts is None:
                return None
            nothing = MemoryTree([])
            changes = changes_of(self.space, "", nothing, mounts, activity, missing=())
            return changes.written or write_blob(self.space, changes.entries, activity)

    def arriving(self, key: str) -> ContainerdROLayer | None:
        """What a step made whose blobs are on their way; None if there are none."""
        with self._lock:
            found = self._arriving.get(key)
        if found is None:
            return None
        step = found.step
        own = step.layers[-1] if step.own else None
        return ContainerdROLayer(self.space, step.layers, own, made=step.made, wait=found.wait)

    def close(self) -> None:
        """Give up what is on its way. Idempotent."""
        self._threads.shutdown(cancel_futures=True)

    def _fetch(
        self,
        key: str,
        step: ForeignStep,
        source: BlobSource,
        activity: Activity,
        *,
        below: Sequence[_Arriving],
    ) -> None:
        """Have the step's blobs here, checked, and keep the step. Raises ImageError.

        It is kept once what it lies on is known to be good.
        """
        content = self.space.content
        try:
            missing = [x.blob for x in step.foreign if not self.has(x.blob.digest)]
            source.fetch(missing, lambda x: StoreSink(content, x, {}, activity), activity)
            for layer in step.foreign:
                activity.raise_if_cancelled()
                self.space.files.verify(layer)
                self.space.files.check(layer)
            for each in below:
                each.wait()
            self.space.steps.record(key, CachedStep(step.layers, step.own, step.made))
        except BackendError as error:
            activity.raise_if_cancelled()
            raise ImageError(error.message, hint=error.hint) from error


def _content(layer: LayerDiff) -> tuple[str, str]:
    """A layer's diff id, and the digest of the blob that is said to hold it."""
    return layer.diff_id, layer.blob.digest
