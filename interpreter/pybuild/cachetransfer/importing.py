"""Steps of other machines, found when the first is missed here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from weakref import WeakKeyDictionary

from pybuild.backend import Activity, Backend, BaseImage, Capability, ROLayer
from pybuild.cacheexchange import CacheExchange, ForeignStep
from pybuild.cachetransfer.document import CacheDocument, CachedStep
from pybuild.cachetransfer.mounts import MountSeeds, Offer, OfferedMount
from pybuild.cachetransfer.places import CacheImport, LocalImport, RegistryImport
from pybuild.cachetransfer.sources import LayoutPlace, Place, RegistryPlace, read_documents
from pybuild.errors import BackendError, BuildCancelled, ImageError, PybuildError
from pybuild.files.layout import open_layout
from pybuild.oci import http
from pybuild.oci.descriptor import LayerDiff
from pybuild.oci.platform import Platform
from pybuild.oci.reference import Reference
from pybuild.oci.registry import RegistryClient
from pybuild.run.activity import CancelToken, Events
from pybuild.run.execute import Prepared, PreparedFiles
from pybuild.values import dataclass, field


@dataclass(slots=True)
class _Cache:
    """One cache that was read. It is ``usable`` until something of it turns out wrong."""

    name: str
    place: Place
    documents: Sequence[CacheDocument]
    usable: bool = True
    adopted: set[str] = field(default_factory=set)


class RemoteSteps:
    """The steps and cache mounts of `imports`, for one build. Safe in threads.

    They are read when a step isn't found here for the first time. Each cache that can't be
    read, or of which something turns out to be wrong, is one warning, and asked no more.
    """

    def __init__(
        self,
        imports: Sequence[CacheImport],
        backend: Backend,
        client: Callable[[], RegistryClient],
        platforms: Sequence[Platform],
        *,
        events: Events,
        cancel: CancelToken,
    ) -> None:
        self._imports = imports
        self._backend = backend
        self._client = client
        self._platforms = platforms
        self._events = events
        self._cancel = cancel
        self._lock = threading.Lock()
        self._caches: list[_Cache] | None = None
        self._later = True
        self._layers: WeakKeyDictionary[ROLayer, tuple[LayerDiff, ...]] = WeakKeyDictionary()
        self._seeds = MountSeeds()
        self._resources = ExitStack()
        self._resources.callback(self._seeds.close)

    def close(self) -> None:
        """Close what was opened of the caches. Idempotent."""
        self._resources.close()

    def find(
        self, key: str, below: ROLayer, base: BaseImage | None, activity: Activity
    ) -> ROLayer | None:
        """See :class:`pybuild.run.elsewhere.Elsewhere`."""
        exchange = self._backend.cache_exchange()
        owners = Capability.FILE_OWNERS in self._backend.capabilities
        for cache in self._read() if exchange is not None else ():
            for document in cache.documents:
                step = document.find(key, owners=owners)
                foreign = None if step is None else self._foreign(step, below, base)
                if foreign is None or exchange is None:
                    continue
                if self._adopt(exchange, key, foreign, cache, activity):
                    found = self._backend.lookup(key)
                    if found is not None:
                        with self._lock:
                            self._layers[found] = foreign.layers
                        return found
        return None

    def _foreign(
        self, step: CachedStep, below: ROLayer, base: BaseImage | None
    ) -> ForeignStep | None:
        """The step with all its layers; None if it was made on another base image than this one.

        As far as they are those of the layer below, they are meant with the blobs that it has.
        """
        bottom = base.layers if base is not None else ()
        if step.base != tuple(layer.diff_id for layer in bottom):
            return None
        layers = (*bottom, *step.layers)
        # what was found here need not be waited for
        with self._lock:
            lower = self._layers.get(below)
        if lower is None:
            lower = below.diffs
        known = _same(layers, lower)
        return ForeignStep((*lower[:known], *layers[known:]), known, step.own, step.made)

    def seeded(self, prepared: Prepared, activity: Activity) -> Prepared:
        """See :class:`pybuild.run.elsewhere.Elsewhere`."""
        if isinstance(prepared, PreparedFiles) or not self._seeds.concerns(prepared):
            return prepared
        return self._seeds.seeded(prepared, self._offers(), activity)

    def mount(self, ident: str, activity: http.Activity) -> OfferedMount | None:
        """A cache mount by the backend's id, as the first of the caches has it."""
        activity.raise_if_cancelled()
        return self._seeds.offered(ident, self._offers())

    def start_over(self) -> bool:
        """After an error of a layer that was taken over unseen: whether a second try is worth it.

        Those layers are forgotten, and from now on each is looked at before it is taken.
        """
        exchange = self._backend.cache_exchange()
        if exchange is None or not exchange.forget_unfetched():
            return False
        self._later = False
        return True

    def blob_places(self) -> Mapping[str, Reference]:
        """By its digest, where each blob of an adopted step is at a registry."""
        return {
            digest: cache.place.reference
            for cache in self._caches or ()
            if cache.place.reference is not None
            for digest in cache.adopted
        }

    def _offers(self) -> list[Offer]:
        return [(cache.place, self._mounts(cache)) for cache in self._read()]

    def _mounts(self, cache: _Cache) -> Mapping[str, LayerDiff]:
        found: dict[str, LayerDiff] = {}
        for document in cache.documents if cache.usable else ():
            found = {**document.mounts, **found}
        return found

    def _adopt(
        self,
        exchange: CacheExchange,
        key: str,
        step: ForeignStep,
        cache: _Cache,
        activity: Activity,
    ) -> bool:
        """Have the backend take the step; whether it did."""
        if not cache.usable:
            return False
        try:
            exchange.adopt(key, step, cache.place, activity, later=self._later)
        except BuildCancelled:
            raise
        except (ImageError, BackendError) as error:
            activity.raise_if_cancelled()
            self._give_up(cache, error, activity)
            return False
        with self._lock:
            cache.adopted.update(layer.blob.digest for layer in step.foreign)
        return True

    def _give_up(self, cache: _Cache, error: PybuildError, activity: Activity) -> None:
        """Take nothing more from a cache, and say so once."""
        with self._lock:
            first, cache.usable = cache.usable, False
        if first and self._later:  # else the error that led to a second look has been told
            activity.warn(
                f"no more is taken from the build cache {cache.name}: {error.message}", error.hint
            )

    def _read(self) -> Sequence[_Cache]:
        """All caches that can be read, each read once."""
        with self._lock:
            if self._caches is None:
                found = [self._open(one) for one in self._imports]
                self._caches = [cache for cache in found if cache is not None]
            return self._caches

    def _open(self, wanted: CacheImport) -> _Cache | None:
        name = _shown(wanted)
        with self._events.unit(f"importing cache manifest from {name}", self._cancel) as activity:
            try:
                with _cleaned_up(self._resources) as opened:
                    place = self._place(wanted, opened)
                    documents = read_documents(place, self._platforms, activity)
                    return _Cache(name, place, documents)
            except BuildCancelled:
                raise
            except PybuildError as error:
                activity.warn(f"the build cache {name} isn't used: {error.message}", error.hint)
                return None

    def _place(self, wanted: CacheImport, opened: ExitStack) -> Place:
        match wanted:
            case RegistryImport(ref=reference):
                return RegistryPlace(self._client(), reference)
            case LocalImport(src=path, tag=tag, digest=digest):
                return LayoutPlace(opened.enter_context(open_layout(path)), tag, digest)


@contextmanager
def _cleaned_up(resources: ExitStack) -> Iterator[ExitStack]:
    """A stack whose contents go to `resources`, or end at once with an error."""
    with ExitStack() as stack:
        yield stack
        resources.push(stack.pop_all())


def _same(layers: Sequence[LayerDiff], others: Sequence[LayerDiff]) -> int:
    """How many layers, from the bottom, have the same content in both."""
    pairs = enumerate(zip(layers, others, strict=False))
    return next((n for n, (a, b) in pairs if a.diff_id != b.diff_id), min(len(layers), len(others)))


def _shown(wanted: CacheImport) -> str:
    match wanted:
        case RegistryImport(ref=reference):
            return str(reference)
        case LocalImport(src=path):
            return f"the layout {path}"
