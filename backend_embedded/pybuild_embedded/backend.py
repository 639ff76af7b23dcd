"""The embedded backend: a store in a folder, processes in a sandbox, no daemon and no root."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pybuild.backend import (
    Activity,
    Backend,
    BaseImage,
    Capability,
    Image,
    ImageSpec,
    IndexSpec,
    PullPolicy,
    ROLayer,
)
from pybuild.errors import BackendError, BackendUnavailable, ImageError, ImageNotFound, InvalidImage
from pybuild.files.layerfiles import LayerFiles
from pybuild.imagestore import ImageStore
from pybuild.oci.compression import Packing
from pybuild.oci.descriptor import Descriptor, LayerDiff
from pybuild.oci.http import NoActivity
from pybuild.oci.image_config import parse_config
from pybuild.oci.platform import Platform, host_platform, matches
from pybuild.oci.reference import Reference, familiar, with_default_tag
from pybuild.sandbox.mapping import Kind
from pybuild_embedded.fetching import Fetcher
from pybuild_embedded.flights import Flights
from pybuild_embedded.images import Images
from pybuild_embedded.layerchain import LayerChain, chain_of
from pybuild_embedded.layers import EmbeddedROLayer
from pybuild_embedded.machine import Machine
from pybuild_embedded.options import Options, parse_options
from pybuild_embedded.rootfolder import NOTES
from pybuild_embedded.space import Space
from pybuild_embedded.store import Store

if TYPE_CHECKING:
    from pybuild.cacheexchange import CacheExchange
    from pybuild.files.layout import LayoutImage
    from pybuild.keptlayers import KeptLayers
    from pybuild.oci.registry import RegistryClient
    from pybuild_embedded.exchange import EmbeddedExchange

CopyBlob = Callable[[Descriptor, Callable[[bytes], object], Activity], None]
"""Writes a blob piece by piece."""

_PIECE = 1 << 20


def open_backend(options: Mapping[str, object]) -> Backend:
    """Open the store; :class:`.options.Options` names what `options` may hold.

    Nothing is started yet. Raises UsageError for a wrong option, BackendUnavailable where
    the store can't be used.
    """
    parsed = parse_options(options)
    if sys.platform != "linux":
        raise BackendUnavailable(
            "the embedded backend needs Linux", hint="use the containerd backend on a Linux machine"
        )
    return EmbeddedBackend(Store.open(parsed.root or _usual_root()), parsed)


def _usual_root() -> Path:
    from platformdirs import user_cache_path  # noqa: PLC0415 - seldom needed

    return user_cache_path("pybuild", appauthor=False) / "store"


def _connected(options: Options) -> RegistryClient:
    """For the first pull: a build without one needs neither this nor Docker's configuration."""
    from pybuild.oci.auth import DockerCredentials  # noqa: PLC0415 - as said
    from pybuild.oci.hosts import load_hosts  # noqa: PLC0415 - as said
    from pybuild.oci.registry import RegistryClient  # noqa: PLC0415 - as said

    credentials = DockerCredentials(options.docker_config)
    return RegistryClient(load_hosts(options.hosts_dir), credentials, proxies=options.proxies)


class EmbeddedBackend(Backend):
    """See :func:`open_backend`. What it uses is kept by the store's session until it is closed."""

    name = "embedded"

    def __init__(self, store: Store, options: Options) -> None:
        """Takes over `store` and closes it."""
        self.platforms = (host_platform(),)
        self._store = store
        machine = Machine(store.root, options.runner, user_namespace=options.user_namespace)
        self._images = Images(store, machine.remove, machine.measure)
        fetcher = Fetcher(functools.partial(_connected, options), store)
        files = LayerFiles(
            self.open_blob,
            store.index_folder,
            store.scratch_folder,
            lambda layer: self._space.mend_blob(layer, NoActivity()),
            store.growth.add,
        )
        self._space = Space(store, machine, files, fetcher, Flights(store))
        self._max_size = options.max_size
        self._lock = threading.Lock()
        self._exchange: EmbeddedExchange | None = None
        self._closed = False

    @property
    def capabilities(self) -> frozenset[Capability]:  # type: ignore[override]  # found out when asked
        mapping = self._space.machine.probe().mapping
        single = mapping is not None and mapping.kind is Kind.SINGLE
        lacking = {Capability.CGROUP_PARENT} | ({Capability.FILE_OWNERS} if single else set())
        if not self._space.machine.has_own_runner:
            lacking |= {Capability.DEBUG}
        return frozenset(Capability) - lacking

    def require(self, capabilities: frozenset[Capability], *, certain: bool = False) -> None:
        if Capability.RUN in capabilities:
            self._space.machine.require_runner()
            if certain:
                self._space.machine.launch()

    def executes(self, platform: Platform) -> bool | None:
        if super().executes(platform):
            return True
        from pybuild.sandbox import emulation  # noqa: PLC0415 - for a foreign RUN

        return emulation.executes(platform.architecture)

    def resolve(
        self,
        reference: Reference,
        platform: Platform,
        pull_policy: PullPolicy,
        activity: Activity,
    ) -> BaseImage:
        activity.raise_if_cancelled()
        reference = with_default_tag(reference)
        found = self._found(reference, platform, pull_policy)
        if found is None:
            found = self._pull(reference, platform, activity)
        if not matches(platform, found.config.platform):
            activity.warn(
                f"{familiar(reference)} was asked for as {platform}, but its config says "
                f"{found.config.platform}: most likely a bug in the build that made the image",
                "tell the image's author to correct its config",
            )
        return found

    def _found(
        self, reference: Reference, platform: Platform, policy: PullPolicy
    ) -> BaseImage | None:
        """The image in the store, if the policy allows to look there."""
        match policy:
            case PullPolicy.ALWAYS:
                return None
            case PullPolicy.NEVER:
                found = self._images.find_base(reference, platform)
                if found is None:
                    raise ImageNotFound(
                        f"{familiar(reference)} is not in the store for {platform}",
                        hint="it may be pulled with --pull",
                    )
                return found
            case PullPolicy.MISSING:
                # an image for another platform, or a broken one, is fetched again
                with contextlib.suppress(ImageError):
                    return self._images.find_base(reference, platform)
                return None

    def _pull(self, reference: Reference, platform: Platform, activity: Activity) -> BaseImage:
        image = self._space.fetcher.fetch(reference, platform, activity)
        config = parse_config(image.config_bytes)
        if len(config.diff_ids) != len(image.layers):
            raise InvalidImage(
                f"{familiar(reference)} has {len(image.layers)} layers, "
                f"but its config names {len(config.diff_ids)}"
            )
        # by its config, what was pulled is told from what was built on it
        self._store.origins.record(reference, [*image.layers, image.config])
        self._images.record((reference,), image.target, image.descriptor, image.config.digest)
        layers = tuple(map(LayerDiff, config.diff_ids, image.layers))
        return BaseImage(reference, image.descriptor.digest, config, layers)

    def import_image(self, image: LayoutImage, activity: Activity) -> BaseImage:
        for layer in image.layers:
            self._copy_blob(layer.blob, image.layout.copy, activity)
        return BaseImage(image.reference, image.descriptor.digest, image.config, image.layers)

    def _copy_blob(self, blob: Descriptor, copy: CopyBlob, activity: Activity) -> None:
        """Have a blob here that `copy` writes, if it isn't. Raises InvalidImage."""
        if self._store.has_blob(blob.digest):
            return
        with self._store.blob_writer() as writer:
            copy(blob, writer.write, activity)
            writer.commit(blob.digest, blob.size)

    def checkout(self, base: BaseImage | None, activity: Activity, *, runs: bool = True) -> ROLayer:
        if base is None:
            return EmbeddedROLayer(self._space, LayerChain())
        unknown = [layer for layer in base.layers if not self._space.files.knows(layer)]
        if unknown and runs:
            self._space.machine.warm_up()
        self._space.fetch(unknown, activity, runs=runs)
        for layer in unknown:
            activity.raise_if_cancelled()
            self._space.files.index(layer)
        chain = chain_of(base.layers)
        self._store.record_layers(chain.layers)
        return EmbeddedROLayer(self._space, chain)

    def single_flight(self, key: str, activity: Activity) -> AbstractContextManager[None]:
        return self._space.flights.holding(self._space.own_key(key), activity)

    def lookup(self, key: str) -> ROLayer | None:
        found = self._store.step(self._space.own_key(key), self._store.origins)
        if found is None:
            return None if self._exchange is None else self._exchange.unfetched(key)
        chain = chain_of(found.layers)
        own = chain.layers[-1] if found.own else None
        return EmbeddedROLayer(self._space, chain, own, made=found.made_at)

    def cache_exchange(self) -> CacheExchange:
        from pybuild_embedded.exchange import EmbeddedExchange  # noqa: PLC0415 - seldom asked for

        with self._lock:
            if self._exchange is None:
                self._exchange = EmbeddedExchange(self._space)
            return self._exchange

    def create_image(self, spec: ImageSpec, top: ROLayer, activity: Activity) -> Image:
        if tuple(layer.diff_id for layer in top.diffs) != spec.config.diff_ids:
            raise RuntimeError("the image's config names other layers than its top layer has")
        return self._write_image(spec, activity)

    def load_image(
        self, spec: ImageSpec, open_blob: Callable[[str], BinaryIO], activity: Activity
    ) -> Image:
        def copy(blob: Descriptor, write: Callable[[bytes], object], activity: Activity) -> None:
            with open_blob(blob.digest) as stream:
                while piece := stream.read(_PIECE):
                    activity.raise_if_cancelled()
                    write(piece)

        for layer in spec.layers:
            self._copy_blob(layer.blob, copy, activity)
        return self._write_image(spec, activity)

    def _write_image(self, spec: ImageSpec, activity: Activity) -> Image:
        activity.raise_if_cancelled()
        documents = spec.documents()
        config, manifest = documents.config, documents.manifest
        self._store.write_blob(config.digest, documents.config_bytes)
        self._store.write_blob(manifest.digest, documents.manifest_bytes)
        names = tuple(with_default_tag(name) for name in spec.names)
        if not spec.for_index:
            self._images.record(names, manifest, manifest, config.digest)
        return Image(manifest, config.digest, names)

    def create_index(self, spec: IndexSpec, activity: Activity) -> Descriptor:
        activity.raise_if_cancelled()
        document = spec.document()
        self._store.write_blob(document.index.digest, document.index_bytes)
        names = tuple(with_default_tag(name) for name in spec.names)
        self._images.record_index(names, document.index, [image for image, _ in spec.images])
        return document.index

    def recompress(self, layer: LayerDiff, wanted: Packing, activity: Activity) -> LayerDiff:
        from pybuild.oci.repack import is_packed, repack  # noqa: PLC0415 - for some outputs

        if is_packed(layer, wanted):
            return layer
        with (
            self.open_blob(layer.blob.digest) as blob,
            self._store.blob_writer(hashed=True) as writer,
        ):

            def sink(piece: bytes) -> None:
                activity.raise_if_cancelled()
                writer.write(piece)

            made = repack(layer, blob, wanted, sink)
            writer.commit(made.blob.digest, made.blob.size)
        return made

    def open_blob(self, digest: str) -> BinaryIO:
        try:
            return self._store.open_blob(digest)
        except ImageNotFound:
            origin = self._store.origins.find(digest)
            if origin is None:
                raise
        self._space.fetcher.fetch_layers(origin[0], [origin[1]], NoActivity())
        return self._store.open_blob(digest)

    def notes_folder(self) -> Path:
        return self._store.root / NOTES

    def image_store(self) -> ImageStore:
        return self._images

    def kept_layers(self) -> KeptLayers:
        from pybuild_embedded.keptlayers import EmbeddedKeptLayers  # noqa: PLC0415 - for a failed RUN

        return EmbeddedKeptLayers(self._space)

    def describe(self) -> Sequence[tuple[str, str]]:
        found = self._space.machine.probe()
        overlay = self._space.machine.overlay_refusal()
        shown = "overlayfs" if overlay is None else f"copies, which are slow: {overlay.reason}"
        refused = [
            (f"not {each.kind.name.lower()}", ": ".join(filter(None, (each.reason, each.hint))))
            for each in found.refused
        ]
        return (
            ("store", str(self._store.root)),
            ("processes run as", found.reason),
            *([("processes run on", shown)] if found.mapping is not None else []),
            ("processes are started by", self._space.machine.describe_runner()),
            *refused,
        )

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        with contextlib.ExitStack() as stack:
            stack.callback(self._store.close)
            stack.callback(self._space.machine.close)
            stack.callback(self._keep_below_ceiling)
            stack.callback(self._space.fetcher.close)
            stack.callback(self._space.tidy)
            if self._exchange is not None:
                stack.callback(self._exchange.settle)

    def _keep_below_ceiling(self) -> None:
        if self._store.growth.is_nothing:
            return
        from pybuild.imagestore import usual_ceiling  # noqa: PLC0415 - for what was added
        from pybuild_embedded.ceiling import keep_below  # noqa: PLC0415 - as above

        machine, root = self._space.machine, self._store.root
        if isinstance(self._max_size, int):
            ceiling = self._max_size
        else:
            ceiling = usual_ceiling(root, self._max_size)
        with contextlib.suppress(BackendError):  # the next build does it
            keep_below(self._store, ceiling, machine.remove, machine.measure)
