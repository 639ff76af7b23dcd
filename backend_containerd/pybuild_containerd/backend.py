"""The containerd backend: images, layers and processes of one containerd namespace."""

from __future__ import annotations

import contextlib
import functools
import os
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
from pybuild.cacheexchange import CacheExchange
from pybuild.errors import BackendError, ImageError, ImageNotFound
from pybuild.files.layerfiles import LayerFiles
from pybuild.imagestore import ImageStore
from pybuild.oci.blobs import Blob
from pybuild.oci.compression import Packing
from pybuild.oci.descriptor import Descriptor, LayerDiff
from pybuild.oci.hosts import Hosts, load_hosts
from pybuild.oci.image_config import parse_config
from pybuild.oci.platform import Platform, host_platform, matches
from pybuild.oci.reference import Reference, familiar, with_default_tag
from pybuild.sandbox.profile import possible_capabilities, thermal_counters
from pybuild.values import dataclass
from pybuild_containerd import moby
from pybuild_containerd.address import choose_address
from pybuild_containerd.cachestore import CacheStore
from pybuild_containerd.client import Client
from pybuild_containerd.content import ContentStore
from pybuild_containerd.errors_table import NotFound
from pybuild_containerd.exchange import ContainerdExchange
from pybuild_containerd.images import Images, base_image, not_here
from pybuild_containerd.layers import UNCOMPRESSED_LABEL, ContainerdROLayer
from pybuild_containerd.leases import Session, sweep
from pybuild_containerd.options import Options, parse_options
from pybuild_containerd.outputs import Outputs
from pybuild_containerd.probe import Probe, probe
from pybuild_containerd.pulling import Puller
from pybuild_containerd.runmounts import RunMounts
from pybuild_containerd.runners import Runners
from pybuild_containerd.runtime_spec import Machine
from pybuild_containerd.singleflight import remove_dead_locks, single_flight
from pybuild_containerd.snapshots import Snapshots
from pybuild_containerd.stepcache import StepCache
from pybuild_containerd.transferring import TransferService, WantedImage
from pybuild_containerd.unpack import Unpacker, chain_ids
from pybuild_containerd.workfolder import WorkFolder
from pybuild_containerd.workspace import Workspace

if TYPE_CHECKING:
    from pybuild.files.layout import LayoutImage
    from pybuild.oci.auth import DockerCredentials
    from pybuild.oci.registry import RegistryClient

# the kernel's PROC_USER_INIT_INO
_FIRST_USER_NAMESPACE = 0xEFFFFFFD


def open_backend(options: Mapping[str, object]) -> Backend:
    """Connect to containerd; :class:`.options.Options` names what `options` may hold.

    What killed builds left is removed first. Raises UsageError for a wrong option,
    BackendUnavailable where there is no containerd, or none that can be used.
    """
    parsed = parse_options(options)
    address = choose_address(parsed.address, parsed.environment_address, parsed.xdg_runtime_dir)
    resources = contextlib.ExitStack()
    try:
        folder = resources.enter_context(WorkFolder())
        client = resources.enter_context(Client(address, parsed.namespace))
        sweep(client)
        session = resources.enter_context(Session(client))
        found = probe(client, parsed.snapshotter)
        return ContainerdBackend(client, session, found, parsed, folder, resources=resources)
    except BaseException:
        resources.close()
        raise


def _usual_cache() -> Path:
    from platformdirs import user_cache_path  # noqa: PLC0415 - not where it is given

    return user_cache_path("pybuild", appauthor=False)


class ContainerdBackend(Backend):
    """See :func:`open_backend`. Everything made here is kept by one lease until it is closed."""

    name = "containerd"

    def __init__(
        self,
        client: Client,
        session: Session,
        found: Probe,
        options: Options,
        folder: WorkFolder,
        *,
        resources: contextlib.ExitStack,
    ) -> None:
        """`resources` hold the client, the session and the folder, and are closed at the end."""
        self._resources = resources
        self._options = options
        self._probe = found
        self._client = client
        self.platforms = found.platforms or (host_platform(),)
        self.capabilities = frozenset(Capability) - {Capability.DEBUG}
        self._content = ContentStore(client)
        self._images = Images(client, self._content)
        cache = options.cache_dir or _usual_cache()
        self._notes = cache / "contexts"
        self._files = LayerFiles(self._content.open, cache / "indexes", folder.new_folder("layers"))
        # read by the first pull: a build without one needs no configuration of Docker
        credentials = functools.cache(functools.partial(_logins, options))
        hosts = load_hosts(options.hosts_dir)
        self._puller = Puller(lambda: _connected(hosts, credentials(), options), self._content)
        self._transfer = (
            TransferService(client, hosts, credentials, same_host=found.shared_fs)
            if _may_transfer(options, found)
            else None
        )
        snapshots = Snapshots(client, found.snapshotter)
        own = found.shared_fs and _is_root()
        unpacker = self._unpacker(snapshots, fills=own and _has_all_ids())
        self._locks = cache / "locks"
        resources.callback(remove_dead_locks, self._locks)
        mounts = RunMounts(client, self._content, snapshots, unpacker, locks=self._locks)
        mountable = found.can_mount and own
        runners = Runners(options.runner, snapshots, mounts_snapshots=mountable)
        resources.callback(runners.close)
        if options.runner not in ("auto", "task"):
            runners.sandbox()  # or say at once that there is none
        self._space = Workspace(
            folder=folder,
            client=client,
            content=self._content,
            snapshots=snapshots,
            unpacker=unpacker,
            steps=StepCache(client, self._content, found.snapshotter),
            files=self._files,
            mounts=mounts,
            outputs=Outputs(client, self._content, mounts, folder),
            runners=runners,
            machine=_machine(self.platforms[0]),
            runtime=options.runtime,
            reads_snapshots=own,
            session_labels=session.labels,
        )
        resources.callback(self._puller.close)
        resources.callback(self._shrink_cache)
        self._moby = (
            options.namespace == moby.NAMESPACE
            if options.moby_labels is None
            else options.moby_labels
        )
        self._lock = threading.Lock()
        self._exchange: ContainerdExchange | None = None
        # blobs that are known to be here and to be kept by the session's lease
        self._kept: set[str] = set()
        # what pulled images' records will point to, once the layers of these manifests are here
        self._unrecorded: dict[str, list[_Unrecorded]] = {}

    def _unpacker(self, snapshots: Snapshots, *, fills: bool) -> Unpacker:
        # of other snapshotters, some copy what is below
        early = self._options.unpack and snapshots.snapshotter == "overlayfs"
        files = self._files
        unpacker = Unpacker(
            self._client, snapshots, self._content, files, fills=fills, fills_early=early
        )
        self._resources.callback(unpacker.close)
        return unpacker

    def require(self, capabilities: frozenset[Capability], *, certain: bool = False) -> None:
        if certain and Capability.RUN in capabilities:
            self._space.runners.launch()

    def executes(self, platform: Platform) -> bool | None:
        # another machine's kernel can't be asked
        here = self._probe.shared_fs
        if super().executes(platform):
            return True
        from pybuild.sandbox import emulation  # noqa: PLC0415 - for a foreign RUN

        return emulation.executes(platform.architecture) if here else None

    def resolve(
        self,
        reference: Reference,
        platform: Platform,
        pull_policy: PullPolicy,
        activity: Activity,
    ) -> BaseImage:
        activity.raise_if_cancelled()
        reference = with_default_tag(reference)
        found: BaseImage | None = None
        match pull_policy:
            case PullPolicy.ALWAYS:
                pass
            case PullPolicy.NEVER:
                stored = self._images.find(reference, platform)
                if stored is None:
                    recorded = self._images.target(reference) is not None
                    raise not_here(reference, platform, recorded=recorded)
                found = stored.base
            case PullPolicy.MISSING:
                # an image for another platform, or a broken one, is fetched again
                with contextlib.suppress(ImageError):
                    stored = self._images.find(reference, platform)
                    found = stored.base if stored else None
        if found is None:
            found = self._pull(reference, platform, activity)
        if not matches(platform, found.config.platform):
            activity.warn(
                f"{familiar(reference)} was asked for as {platform}, but its config says "
                f"{found.config.platform}: most likely a bug in the build that made the image",
                "tell the image's author to correct its config",
            )
        return found

    def import_image(self, image: LayoutImage, activity: Activity) -> BaseImage:
        blobs = {layer.blob.digest: layer.blob for layer in image.layers}
        for digest, blob in blobs.items():
            if self._has(digest):
                continue
            with self._content.writer(total=blob.size, activity=activity) as writer:
                image.layout.copy(blob, writer.write, activity)
                writer.commit(digest, blob.size)
            with self._lock:
                self._kept.add(digest)
        return BaseImage(image.reference, image.descriptor.digest, image.config, image.layers)

    def checkout(self, base: BaseImage | None, activity: Activity, *, runs: bool = True) -> ROLayer:
        if base is None:
            return ContainerdROLayer(self._space, (), None)
        self._fetch_missing(base, activity, runs=runs)
        return ContainerdROLayer(self._space, base.layers, None)

    def lookup(self, key: str) -> ROLayer | None:
        step = self._space.steps.find(key)
        if step is None or not all(map(self._keeps, step.layers)):
            return None if self._exchange is None else self._exchange.arriving(key)
        own = step.layers[-1] if step.own else None
        return ContainerdROLayer(self._space, step.layers, own, made=step.made)

    def single_flight(self, key: str, activity: Activity) -> AbstractContextManager[None]:
        def is_done() -> bool:
            return self._space.steps.find(key) is not None

        return single_flight(self._client, key, activity, is_done, self._locks)

    def create_image(self, spec: ImageSpec, top: ROLayer, activity: Activity) -> Image:
        if tuple(layer.diff_id for layer in top.diffs) != spec.config.diff_ids:
            raise RuntimeError("the image's config names other layers than its top layer has")
        return self._write_image(spec, activity)

    def load_image(
        self, spec: ImageSpec, open_blob: Callable[[str], BinaryIO], activity: Activity
    ) -> Image:
        for layer in spec.layers:
            digest, size = layer.blob.digest, layer.blob.size
            if self._has(digest):
                continue
            with self._content.writer(total=size, activity=activity) as writer:
                for piece in Blob(layer.blob, functools.partial(open_blob, digest)).pieces(
                    activity
                ):
                    writer.write(piece)
                writer.commit(digest, size, {UNCOMPRESSED_LABEL: layer.diff_id})
        return self._write_image(spec, activity)

    def _write_image(self, spec: ImageSpec, activity: Activity) -> Image:
        labels: dict[str, str] = {}
        if self._options.unpack and spec.layers and self._is_run_here(spec):
            self._space.unpacker.ensure(spec.layers, activity)
            key = f"containerd.io/gc.ref.snapshot.{self._probe.snapshotter}"
            labels[key] = chain_ids(spec.layers)[-1]
        activity.raise_if_cancelled()
        written = self._images.write(spec, labels, moby=self._moby)
        names = tuple(with_default_tag(name) for name in spec.names)
        if not spec.for_index:
            self._record(names, written.manifest, written.labels)
        return Image(written.manifest, written.config_digest, names)

    def create_index(self, spec: IndexSpec, activity: Activity) -> Descriptor:
        activity.raise_if_cancelled()
        index = self._images.write_index(spec)
        self._record([with_default_tag(name) for name in spec.names], index, {})
        return index

    def _is_run_here(self, spec: ImageSpec) -> bool:
        """Whether it is worth unpacking: of an index, containerd unpacks what its machine runs."""
        own = any(matches(native, spec.config.platform) for native in self.platforms)
        return own or not spec.for_index

    def _record(
        self, names: Sequence[Reference], target: Descriptor, labels: Mapping[str, str]
    ) -> None:
        records = [str(name) for name in names]
        for record in records or [moby.dangling_name(target.digest, moby=self._moby)]:
            self._images.record(record, target, labels)

    def recompress(self, layer: LayerDiff, wanted: Packing, activity: Activity) -> LayerDiff:
        from pybuild.oci.repack import is_packed, repack  # noqa: PLC0415 - for some outputs

        if is_packed(layer, wanted):
            return layer
        with (
            self.open_blob(layer.blob.digest) as blob,
            self._content.writer(activity=activity) as writer,
        ):
            made = repack(layer, blob, wanted, writer.write)
            labels = {UNCOMPRESSED_LABEL: layer.diff_id}
            writer.commit(made.blob.digest, made.blob.size, labels)
        return made

    def open_blob(self, digest: str) -> BinaryIO:
        try:
            return self._content.open(digest)
        except NotFound:
            raise ImageNotFound(f"there is no blob {digest} in containerd's store") from None

    def cache_exchange(self) -> CacheExchange:
        with self._lock:
            if self._exchange is None:
                self._exchange = ContainerdExchange(self._space, self._has)
                self._resources.callback(self._exchange.close)
            return self._exchange

    def image_store(self) -> ImageStore:
        return CacheStore(self._client, self._space.steps, self._probe.snapshotter)

    def close(self) -> None:
        self._resources.close()

    def describe(self) -> Sequence[tuple[str, str]]:
        """What was found out about this containerd, as pairs of a label and its value."""
        found = self._probe
        yes_no = {True: "yes", False: "no"}
        return (
            ("address", self._client.address),
            ("version", found.version),
            ("namespace", self._client.namespace),
            ("snapshotter", f"{found.snapshotter} of {', '.join(found.snapshotters)}"),
            ("platforms", ", ".join(map(str, self.platforms))),
            ("reads snapshots itself", yes_no[self._space.reads_snapshots]),
            ("a RUN is run as", self._space.runners.describe()),
            ("transfer service", yes_no[found.transfer]),
            ("images are pulled by", "containerd" if self._transfer else "pybuild"),
        )

    def notes_folder(self) -> Path:
        return self._notes

    def _shrink_cache(self) -> None:
        with contextlib.suppress(BackendError):  # the next build does it
            self._space.steps.shrink()

    def _pull(self, reference: Reference, platform: Platform, activity: Activity) -> BaseImage:
        image = self._puller.fetch(reference, platform, activity)
        config = parse_config(image.config_bytes)
        base = base_image(reference, image.descriptor.digest, image.manifest, config)
        with self._lock:
            self._unrecorded.setdefault(base.digest, []).append(
                _Unrecorded(reference, image.target, image.platform or config.platform)
            )
        return base

    def _fetch_missing(self, base: BaseImage, activity: Activity, *, runs: bool) -> None:
        """Have every layer's blob in the store, and the records of an image that was pulled."""
        with self._lock:
            unrecorded = tuple(self._unrecorded.get(base.digest, ()))
        missing = self._missing(base)
        if missing and unrecorded and self._transfer is not None:
            self._transfer.pull(self._wanted(unrecorded[0], missing), activity)
            missing = self._missing(base)
        if missing:
            self._puller.fetch_layers(
                base.reference,
                missing,
                activity,
                self._files.on_arrival(base.layers),
                functools.partial(self._space.unpacker.arriving, base.layers) if runs else None,
            )
            with self._lock:
                self._kept.update(blob.digest for blob in missing)
        for image in unrecorded:
            self._images.record(str(image.reference), image.target, {})
        if unrecorded:
            with self._lock:
                left = self._unrecorded.get(base.digest, [])
                self._unrecorded[base.digest] = [one for one in left if one not in unrecorded]

    def _missing(self, base: BaseImage) -> list[Descriptor]:
        """The blobs of layers that aren't in the store, each once."""
        blobs = {layer.blob.digest: layer.blob for layer in base.layers}
        return [blob for digest, blob in blobs.items() if not self._has(digest)]

    def _wanted(self, image: _Unrecorded, missing: Sequence[Descriptor]) -> WantedImage:
        return WantedImage(
            image.reference,
            image.target.digest,
            image.platform,
            self._puller.scheme(image.reference),
            {blob.digest: blob.size for blob in missing},
            self._images.labels(image.reference),
        )

    def _has(self, digest: str) -> bool:
        return self._is_kept(digest, self._content.exists)

    def _keeps(self, layer: LayerDiff) -> bool:
        """Whether the blob is here of a layer that was here when its step was recorded."""
        return self._is_kept(layer.blob.digest, self._content.keep)

    def _is_kept(self, digest: str, look: Callable[[str], bool]) -> bool:
        with self._lock:
            if digest in self._kept:
                return True
        if not look(digest):
            return False
        with self._lock:
            self._kept.add(digest)
        return True


@dataclass(frozen=True, slots=True)
class _Unrecorded:
    """A pulled image whose layers aren't here yet, for the platform that its index names."""

    reference: Reference
    target: Descriptor
    platform: Platform


def _logins(options: Options) -> DockerCredentials:
    from pybuild.oci.auth import DockerCredentials  # noqa: PLC0415 - for a pull

    return DockerCredentials(options.docker_config)


def _connected(hosts: Hosts, credentials: DockerCredentials, options: Options) -> RegistryClient:
    from pybuild.oci.registry import RegistryClient  # noqa: PLC0415 - as above

    return RegistryClient(hosts, credentials, proxies=options.proxies)


def _may_transfer(options: Options, found: Probe) -> bool:
    """Whether containerd may pull: it can't be told of a proxy."""
    proxied = any(scheme != "no" for scheme in options.proxies)
    return found.transfer and options.pull != "own" and not proxied


def _machine(platform: Platform) -> Machine:
    """What this machine, whose kernel the daemon's processes run on, adds to a specification."""
    return Machine(
        architecture=platform.architecture,
        masked=thermal_counters(),
        capabilities=possible_capabilities(),
        cgroup_namespace=Path("/sys/fs/cgroup/cgroup.controllers").exists(),
    )


def _is_root() -> bool:
    """Only root sees the attributes by which overlayfs marks a replaced folder."""
    geteuid: Callable[[], int] | None = getattr(os, "geteuid", None)
    return geteuid is not None and geteuid() == 0


def _has_all_ids() -> bool:
    """Whether this process is in the machine's first user namespace."""
    with contextlib.suppress(OSError):
        return Path("/proc/self/ns/user").stat().st_ino == _FIRST_USER_NAMESPACE
    return False
