"""A whole backend in memory: for tests of the interpreter, without privileges or a daemon.

Layers, trees, configs, manifests and names are real, and every rule of the contract in
:mod:`pybuild.backend` is checked, so that a caller's mistake fails here first. Only
processes are simulated, by a *runner*; the default is :func:`pybuild.testkit.toyshell.run`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pybuild.backend import (
    Activity,
    Backend,
    BaseImage,
    Capability,
    Image,
    ImageSpec,
    IndexSpec,
    Mount,
    Process,
    PullPolicy,
    ROLayer,
    RWLayer,
)
from pybuild.cacheexchange import CacheExchange, ForeignStep
from pybuild.errors import ImageNotFound, InvalidImage, PlatformMismatch, UsageError
from pybuild.files.layertree import LayerTree
from pybuild.files.layout import LayoutImage
from pybuild.files.trees import NewEntry, Tree, parent_of
from pybuild.oci.compression import Decompressed, Packing
from pybuild.oci.descriptor import Descriptor, LayerDiff, digest_of
from pybuild.oci.image_config import HistoryEntry, ImageConfig, parse_config
from pybuild.oci.layerindex import NO_NAMES, Entry, Kind, LayerIndex
from pybuild.oci.layertar import read_index
from pybuild.oci.layerwriter import write_layer
from pybuild.oci.manifest import ImageDocuments, image_documents, parse_manifest
from pybuild.oci.platform import Platform, best, host_platform
from pybuild.oci.reference import Reference, familiar, parse_reference, with_default_tag
from pybuild.oci.repack import is_packed, repack
from pybuild.oci.tarformat import Limits
from pybuild.testkit.memorycaches import MemoryCaches
from pybuild.testkit.memoryexchange import MemoryExchange
from pybuild.testkit.toyshell import RunOutcome
from pybuild.testkit.toyshell import run as toyshell_run

__all__ = ["MemoryBackend", "RunOutcome", "Runner", "open_backend"]

Runner = Callable[[Process, Tree, Sequence[Mount], Activity], RunOutcome]
"""Stands in for a process: gets the file system, returns an exit code and what changed."""

_REMOVALS = (Kind.WHITEOUT, Kind.OPAQUE)


class MemoryBackend(Backend):
    """Images and layers in memory. ``live_layers`` counts those not yet released.

    Using it against the contract (a put through a symlink, a begin on a released layer, a
    spec whose layers aren't the top's) raises RuntimeError.
    """

    name = "memory"

    def __init__(
        self,
        *,
        runner: Runner = toyshell_run,
        platforms: Sequence[Platform] = (),
        capabilities: Iterable[Capability] = tuple(Capability),
        notes: Path | None = None,
    ) -> None:
        """`notes` is what :meth:`notes_folder` gives."""
        self.platforms = tuple(platforms) or (host_platform(),)
        self.capabilities = frozenset(capabilities)
        self.runner = runner
        self.live_layers = 0
        self._notes = notes
        self._store = _Store()
        self._local: dict[Reference, dict[Platform, BaseImage]] = {}
        self._remote: dict[Reference, dict[Platform, BaseImage]] = {}
        self._cache: dict[str, tuple[tuple[LayerDiff, ...], LayerDiff | None, datetime]] = {}
        self._caches = MemoryCaches()
        self._lock = threading.Lock()
        self._closed = False

    def add_image(
        self,
        reference: str | Reference,
        config: ImageConfig | None = None,
        entries: Iterable[NewEntry] = (),
        *more_layers: Iterable[NewEntry],
        local: bool = True,
    ) -> BaseImage:
        """Register an image, one layer for each iterable of entries that isn't empty.

        Its registry has it from now on, and, if `local`, so has this backend. ``diff_ids``
        are filled in, and history where there is none. A second platform of one name is
        added to the first.
        """
        name = _named(reference)
        layers = []
        for layer in (entries, *more_layers):
            found = list(layer)
            if found:
                layers.append(self._store.add_layer(found))
        config = config or ImageConfig(self.platforms[0])
        history = config.history or tuple(HistoryEntry(created_by="layer") for _ in layers)
        config = replace(config, diff_ids=tuple(x.diff_id for x in layers), history=history)
        documents = image_documents(config, [layer.blob for layer in layers])
        manifest, _ = self._store.add_documents(documents)
        image = BaseImage(name, manifest.digest, config, tuple(layers))
        with self._lock:
            for names in (self._remote, self._local) if local else (self._remote,):
                names.setdefault(name, {})[config.platform] = image
        return image

    def resolve(
        self,
        reference: Reference,
        platform: Platform,
        pull_policy: PullPolicy,
        activity: Activity,
    ) -> BaseImage:
        activity.raise_if_cancelled()
        name = _named(reference)
        with self._lock:
            here, there = self._find(self._local, name), self._find(self._remote, name)
            found = here
            if pull_policy is PullPolicy.ALWAYS:
                found = there
            elif pull_policy is PullPolicy.MISSING and best(platform, here) is None:
                found = there or here
            if not found:
                raise ImageNotFound(f"no image {familiar(name)}")
            fitting = best(platform, found)
            if fitting is None:
                raise PlatformMismatch(
                    f"{familiar(name)} is not for {platform}",
                    hint="it is for " + ", ".join(sorted(map(str, found))),
                )
            image = found[fitting]
            self._local.setdefault(name, {})[fitting] = image
        config = parse_config(self._store.blob(_config_digest(self._store, image)))
        return replace(image, reference=reference, config=config)

    def import_image(self, image: LayoutImage, activity: Activity) -> BaseImage:
        for layer in image.layers:
            parts: list[bytes] = []
            image.layout.copy(layer.blob, parts.append, activity)
            self._store.add_blob(layer, b"".join(parts))
        self._store.add(image.manifest_bytes)
        self._store.add(image.config_bytes)
        return BaseImage(image.reference, image.descriptor.digest, image.config, image.layers)

    @staticmethod
    def _find(
        names: Mapping[Reference, Mapping[Platform, BaseImage]], name: Reference
    ) -> dict[Platform, BaseImage]:
        if name.digest is None:
            return dict(names.get(name, {}))
        return {
            platform: image
            for candidates in names.values()
            for platform, image in candidates.items()
            if image.digest == name.digest
        }

    def checkout(
        self,
        base: BaseImage | None,
        activity: Activity,
        *,
        runs: bool = True,  # noqa: ARG002 - nothing is unpacked
    ) -> ROLayer:
        activity.raise_if_cancelled()
        return _MemoryLayer(self, base.layers if base else (), None)

    def lookup(self, key: str) -> ROLayer | None:
        if Capability.STEP_CACHE not in self.capabilities:
            return None
        with self._lock:
            found = self._cache.get(key)
        return None if found is None else _MemoryLayer(self, *found)

    def create_image(self, spec: ImageSpec, top: ROLayer, activity: Activity) -> Image:
        activity.raise_if_cancelled()
        if [x.diff_id for x in spec.layers] != [x.diff_id for x in top.diffs]:
            raise RuntimeError("the image's layers are not those of its top layer")
        if spec.config.diff_ids != tuple(layer.diff_id for layer in spec.layers):
            raise RuntimeError("the config's diff ids are not those of the layers")
        return self._add_image(spec)

    def load_image(
        self, spec: ImageSpec, open_blob: Callable[[str], BinaryIO], activity: Activity
    ) -> Image:
        for layer in spec.layers:
            activity.raise_if_cancelled()
            with closing(open_blob(layer.blob.digest)) as stream:
                data = stream.read()
            self._store.add_blob(layer, data)
        return self._add_image(spec)

    def _add_image(self, spec: ImageSpec) -> Image:
        if spec.for_index and spec.names:
            raise RuntimeError("an image for an index has no names of its own")
        for layer in spec.layers:
            self._store.blob(layer.blob.digest)
        documents = spec.documents()
        manifest, config_digest = self._store.add_documents(documents)
        layers = tuple(map(LayerDiff, spec.config.diff_ids, documents.layers))
        for name in spec.names:
            image = BaseImage(name, manifest.digest, spec.config, layers)
            with self._lock:
                self._local[_named(name)] = {spec.config.platform: image}
        return Image(manifest, config_digest, spec.names)

    def create_index(self, spec: IndexSpec, activity: Activity) -> Descriptor:
        activity.raise_if_cancelled()
        document = spec.document()
        self._store.add(document.index_bytes)
        for name in spec.names:
            images = {platform: self._made_image(name, image) for image, platform in spec.images}
            with self._lock:
                self._local[_named(name)] = images
        return document.index

    def _made_image(self, name: Reference, image: Image) -> BaseImage:
        """What a FROM of `name` finds in an image that was made here."""
        manifest = parse_manifest(self._store.blob(image.manifest.digest))
        config = parse_config(self._store.blob(image.config_digest))
        layers = tuple(map(LayerDiff, config.diff_ids, manifest.layers))
        return BaseImage(name, image.manifest.digest, config, layers)

    def recompress(self, layer: LayerDiff, wanted: Packing, activity: Activity) -> LayerDiff:
        activity.raise_if_cancelled()
        if is_packed(layer, wanted):
            return layer
        parts: list[bytes] = []
        made = repack(layer, self.open_blob(layer.blob.digest), wanted, parts.append)
        self._store.add(b"".join(parts))
        return made

    def open_blob(self, digest: str) -> BinaryIO:
        return BytesIO(self._store.blob(digest))

    def cache_exchange(self) -> CacheExchange:
        store = self._store
        return MemoryExchange(store.blobs, store.add_blob, self._adopt, self._pack_mount)

    def _adopt(self, key: str, step: ForeignStep) -> None:
        own = step.layers[-1] if step.own else None
        self._remember(key, step.layers, own, step.made)

    def _pack_mount(self, ident: str) -> LayerDiff | None:
        entries = self._caches.entries(ident)
        return None if entries is None else self._store.add_layer(entries)

    def notes_folder(self) -> Path | None:
        return self._notes

    def describe(self) -> Sequence[tuple[str, str]]:
        return (("made for", "tests: processes are simulated, images vanish"),)

    def close(self) -> None:
        self._closed = True

    def _opened(self) -> None:
        if self._closed:
            raise RuntimeError("the backend is closed")
        with self._lock:
            self.live_layers += 1

    def _released(self) -> None:
        with self._lock:
            self.live_layers -= 1

    def _tree(self, layers: Sequence[LayerDiff]) -> LayerTree:
        diff_ids = [layer.diff_id for layer in layers]

        def open_file(position: int, entry: Entry, offset: int) -> BinaryIO:
            return BytesIO(self._store.tar(diff_ids[position])[offset : offset + entry.size])

        return LayerTree([self._store.index(diff_id) for diff_id in diff_ids], open_file)

    def _remember(
        self, key: str, layers: tuple[LayerDiff, ...], diff: LayerDiff | None, made: datetime
    ) -> None:
        with self._lock:
            self._cache[key] = (layers, diff, made)


@dataclass(slots=True)
class _Store:
    """Blobs by digest, and layers by diff id. Only grows, so readers need no lock."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    layers: dict[str, tuple[str, LayerIndex]] = field(default_factory=dict)

    def add(self, data: bytes) -> str:
        digest = digest_of(data)
        self.blobs[digest] = data
        return digest

    def add_layer(self, entries: Iterable[NewEntry], newest: int | None = None) -> LayerDiff:
        parts: list[bytes] = []
        written = write_layer(_last_ones(entries), parts.append, newest=newest)
        digest = self.add(b"".join(parts))
        self.layers[written.diff.diff_id] = (digest, written.index)
        return written.diff

    def add_blob(self, layer: LayerDiff, blob: bytes) -> None:
        """Add a layer that was made elsewhere. Raises InvalidImage."""
        diff_id, index = read_index(BytesIO(blob), Limits(compressed_size=len(blob)))
        if diff_id != layer.diff_id:
            raise InvalidImage(f"layer {layer.blob.digest} holds {diff_id}, not {layer.diff_id}")
        self.layers[diff_id] = (self.add(blob), index)

    def add_documents(self, documents: ImageDocuments) -> tuple[Descriptor, str]:
        self.add(documents.manifest_bytes)
        return documents.manifest, self.add(documents.config_bytes)

    def blob(self, digest: str) -> bytes:
        try:
            return self.blobs[digest]
        except KeyError:
            raise ImageNotFound(f"no blob {digest}") from None

    def index(self, diff_id: str) -> LayerIndex:
        return self.layers[diff_id][1]

    def tar(self, diff_id: str) -> bytes:
        parts = []
        with Decompressed(BytesIO(self.blobs[self.layers[diff_id][0]])) as stream:
            while part := stream.read(1 << 20):
                parts.append(part)
        return b"".join(parts)


class _MemoryLayer(ROLayer):
    def __init__(
        self,
        backend: MemoryBackend,
        layers: tuple[LayerDiff, ...],
        diff: LayerDiff | None,
        made: datetime | None = None,
    ) -> None:
        self._made = made
        self._backend = backend
        self._layers = layers
        self._diff = diff
        self._released = _Once()
        backend._opened()  # noqa: SLF001  (one class in three parts)

    @property
    def diff(self) -> LayerDiff | None:
        return self._diff

    @property
    def made(self) -> datetime | None:
        return self._made

    @property
    def diffs(self) -> tuple[LayerDiff, ...]:
        return self._layers

    def contents(self) -> tuple[LayerIndex | None, ...]:
        store = self._backend._store  # noqa: SLF001  (as above)
        return tuple(store.index(layer.diff_id) for layer in self._layers)

    def begin(self, *, runs: bool, newest: int | None = None) -> RWLayer:
        if self._released:
            raise RuntimeError("the layer is released")
        return _MemoryRWLayer(self._backend, self._layers, runs=runs, newest=newest)

    def tree(self) -> Tree:
        return self._backend._tree(self._layers)  # noqa: SLF001  (as above)

    def release(self) -> None:
        if self._released.first():
            self._backend._released()  # noqa: SLF001  (as above)


class _MemoryRWLayer(RWLayer):
    def __init__(
        self,
        backend: MemoryBackend,
        layers: tuple[LayerDiff, ...],
        *,
        runs: bool,
        newest: int | None,
    ) -> None:
        self._backend = backend
        self._layers = layers
        self._runs = runs
        self._newest = newest
        self._entries: list[NewEntry] | None = None
        self._ended = _Once()
        self._released = _Once()
        backend._opened()  # noqa: SLF001  (as above)

    def tree(self) -> Tree:
        return self._backend._tree(self._layers)  # noqa: SLF001  (as above)

    def put(self, entries: Iterable[NewEntry], activity: Activity) -> None:
        self._start()
        tree = self.tree()
        added = list(entries)
        made = {new.entry.path: new.entry for new in added}
        for new in added:
            _check_put(new, tree, made)
        activity.raise_if_cancelled()
        self._entries = added

    def run(self, process: Process, mounts: Sequence[Mount], activity: Activity) -> int:
        if not self._runs:
            raise RuntimeError("the layer was begun for put only")
        if Capability.RUN not in self._backend.capabilities:
            raise RuntimeError("the backend can't run processes")
        self._start()
        activity.raise_if_cancelled()
        if process.terminal is not None:
            activity = _OnTerminal(activity, process.terminal)
        with self._backend._caches.shown(mounts, activity) as shown:  # noqa: SLF001  (as above)
            outcome = self._backend.runner(process, self.tree(), shown.mounts, activity)
            shown.keep(outcome.caches)
        activity.raise_if_cancelled()
        self._entries = list(outcome.entries)
        return outcome.exit_code

    def _start(self) -> None:
        if self._ended or self._released:
            raise RuntimeError("the layer is committed or released")
        if self._entries is not None:
            raise RuntimeError("the layer has had its step")
        self._entries = []

    def commit(self, key: str | None, activity: Activity) -> ROLayer:
        activity.raise_if_cancelled()
        if self._released or not self._ended.first():
            raise RuntimeError("the layer is committed or released")
        diff = None
        layers = self._layers
        if self._entries:
            diff = self._backend._store.add_layer(  # noqa: SLF001  (as above)
                self._entries, self._newest
            )
            layers = (*layers, diff)
        made = datetime.now(UTC)
        if key is not None:
            self._backend._remember(key, layers, diff, made)  # noqa: SLF001  (as above)
        return _MemoryLayer(self._backend, layers, diff, made)

    def release(self) -> None:
        if self._released.first():
            self._backend._released()  # noqa: SLF001  (as above)


class _OnTerminal:
    """An activity whose output goes to a terminal."""

    def __init__(self, activity: Activity, terminal: int) -> None:
        self.progress = activity.progress
        self.warn = activity.warn
        self.raise_if_cancelled = activity.raise_if_cancelled
        self.on_cancel = activity.on_cancel
        self._terminal = terminal

    def log(self, _stream: int, data: bytes) -> None:
        os.write(self._terminal, data)


class _Once:
    """A flag that one thread only may raise."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._raised = False

    def first(self) -> bool:
        """Raise the flag; True if it was down."""
        with self._lock:
            was, self._raised = self._raised, True
        return not was

    def __bool__(self) -> bool:
        return self._raised


def _check_put(new: NewEntry, tree: Tree, made: Mapping[bytes, Entry]) -> None:
    """Hold the caller to what :meth:`pybuild.backend.RWLayer.put` says of entries."""
    entry = new.entry
    if entry.path and not NO_NAMES.isdisjoint(entry.path.split(b"/")):
        raise RuntimeError(f"{entry.path!r} is not a clean relative path")
    folder = parent_of(entry.path)
    parent = made.get(folder) or tree.get(folder)
    if folder and (parent is None or parent.kind is not Kind.DIRECTORY):
        raise RuntimeError(f"the parent of {entry.path!r} is no folder")
    if entry.kind is Kind.FILE and entry.link and entry.link not in made:
        raise RuntimeError(f"{entry.path!r} is a hard link to a lower layer's file")
    if (new.content is not None) != (entry.kind is Kind.FILE and not entry.link):
        raise RuntimeError(f"{entry.path!r} has content without being a file, or none being one")


def _last_ones(entries: Iterable[NewEntry]) -> list[NewEntry]:
    """Of entries with one path the last, in the order of paths; removals come first."""
    last = {(new.entry.path, new.entry.kind in _REMOVALS): new for new in entries}
    return [last[key] for key in sorted(last, key=lambda key: (key[0], not key[1]))]


def _named(reference: str | Reference) -> Reference:
    if isinstance(reference, str):
        reference = parse_reference(reference)
    reference = with_default_tag(reference)
    return replace(reference, tag=None) if reference.digest else reference


def _config_digest(store: _Store, image: BaseImage) -> str:

    return parse_manifest(store.blob(image.digest)).config.digest


def open_backend(options: Mapping[str, object] | None = None) -> Backend:
    """A memory backend without images. It has no options; raises UsageError for any."""
    given = [name for name, value in (options or {}).items() if value is not None]
    if given:
        raise UsageError(f"the memory backend has no option {given[0]}")
    return MemoryBackend()
