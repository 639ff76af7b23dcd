"""The contract between the interpreter and a backend.

Vocabulary
----------
A *base image* is what a FROM names, resolved to a digest and a platform; nothing of it need
be on this machine yet. A *read-only layer* (:class:`ROLayer`) is a file system that never
changes: a base image, scratch, or what a step left. A *read-write layer*
(:class:`RWLayer`) is begun on a read-only one, changed by one step, and committed, which
makes the next read-only layer. A layer's *diff* is the blob with its changes. A *tree* is
the merged view of a layer's file system, readable without a mount.

The life of a layer
-------------------
For ``FROM busybox``, ``COPY a /a``, ``RUN make``::

    image = backend.resolve(reference, platform, PullPolicy.MISSING, activity)
    with backend.checkout(image, activity) as base:          # nothing is unpacked yet
        with base.begin(runs=False) as rw:                   # COPY: blob and index only
            rw.put(entries, activity)
            copied = rw.commit(None, activity)
        with copied, copied.begin(runs=True) as rw:          # RUN: files are made now
            code = rw.run(process, mounts, activity)
            made = rw.commit(None, activity)                 # or release() if code != 0
        with made:
            made.diffs                                       # base's layers, /a, make's
            backend.create_image(spec, made, activity)

Of several platforms, each one's image is made ``for_index``, and ``create_index`` joins them.

An RWLayer that is released without a commit leaves nothing behind. Releasing is idempotent
and never raises for what is already gone. A released ROLayer can't be begun on, but layers
and images made from it stay valid.

Every method may be called from several threads; two threads don't share an RWLayer. Long
calls take an :class:`Activity` and raise :class:`~pybuild.errors.BuildCancelled` soon after
it is cancelled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from enum import Enum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self

from pybuild.errors import UnsupportedByBackend
from pybuild.files.trees import NewEntry, Tree
from pybuild.imagestore import ImageStore
from pybuild.oci.compression import Packing
from pybuild.oci.descriptor import Descriptor, LayerDiff
from pybuild.oci.image_config import ImageConfig
from pybuild.oci.layerindex import LayerIndex
from pybuild.oci.manifest import ImageDocuments, IndexDocument, image_documents, index_document
from pybuild.oci.platform import Platform, matches
from pybuild.oci.reference import Reference
from pybuild.values import dataclass, field

if TYPE_CHECKING:
    from pybuild.cacheexchange import CacheExchange
    from pybuild.files.layout import LayoutImage
    from pybuild.keptlayers import KeptLayers


class Capability(StrEnum):
    """What a backend may be able to do beyond FROM and COPY."""

    RUN = "run"
    NETWORK_NONE = "network-none"
    NETWORK_HOST = "network-host"
    BIND_MOUNT = "bind-mount"
    TMPFS_MOUNT = "tmpfs-mount"
    CACHE_MOUNT = "cache-mount"
    SECRET_MOUNT = "secret-mount"  # noqa: S105 - the name of a capability
    SSH_MOUNT = "ssh-mount"
    INSECURE = "insecure"
    CGROUP_PARENT = "cgroup-parent"
    STEP_CACHE = "step-cache"
    DEBUG = "debug"  # a failed RUN can be kept and gone into, also with a terminal
    FILE_OWNERS = "file-owners"  # of several users; otherwise one has all that a process sees


class PullPolicy(Enum):
    """When a base image is fetched: if it isn't here, always, or never."""

    MISSING = "missing"
    ALWAYS = "always"
    NEVER = "never"


class Network(Enum):
    """The network that a RUN sees."""

    DEFAULT = "default"
    NONE = "none"
    HOST = "host"


class Sharing(Enum):
    """Steps that want one cache at the same time share it, get another one, or wait."""

    SHARED = "shared"
    PRIVATE = "private"
    LOCKED = "locked"


class Activity(Protocol):
    """What a long call reports to, and what may cancel it."""

    def log(self, stream: int, data: bytes) -> None:
        """Take output of a process: `stream` is 1 or 2, `data` any piece of it."""

    def progress(self, item: str, done: int, total: int | None) -> None:
        """Tell how many bytes of `item` are done; `total` is None where unknown."""

    def warn(self, message: str, hint: str | None = None) -> None:
        """Tell the user of something that isn't an error."""

    def raise_if_cancelled(self) -> None:
        """Raise BuildCancelled if the build was cancelled."""

    def on_cancel(self, callback: Callable[[], None]) -> AbstractContextManager[None]:
        """While the context lasts, call `callback` once from another thread on cancel.

        If the build is already cancelled, it is called at once.
        """


@dataclass(frozen=True, slots=True)
class BaseImage:
    """An image that a FROM, or ``--from``, names.

    ``digest`` is of the manifest for ``config.platform``; ``layers`` are bottom first.
    """

    reference: Reference
    digest: str
    config: ImageConfig
    layers: tuple[LayerDiff, ...]


@dataclass(frozen=True, slots=True)
class User:
    """Numeric identity of a process. ``groups`` are the supplementary ones, primary included."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class HostEntry:
    """A line of /etc/hosts."""

    name: str
    address: str


@dataclass(frozen=True, slots=True)
class Ulimit:
    """A resource limit, named as in ``docker build --ulimit`` (nofile, core); -1 is none."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Process:
    """What a RUN executes. ``cwd`` is absolute; ``env`` is complete and ordered.

    The process gets no standard input but that of the ``terminal``, a descriptor that becomes
    its controlling terminal and all its streams; no capability beyond Docker's default set, and a
    hostname; /etc/hosts and /etc/resolv.conf are the builder's, not the image's.
    ``shm_size`` is in bytes, None for 64 MiB. ``secret_env`` are variables besides ``env``
    whose values must not get to any disk, log or argument list. An ``insecure`` process has
    all capabilities that the backend has, every system call, and /proc and /sys unmasked.
    ``cgroup_parent`` is the path of the control group above it, None for the backend's own.
    """

    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str
    user: User = User()
    network: Network = Network.DEFAULT
    hostname: str = "buildkitsandbox"
    extra_hosts: tuple[HostEntry, ...] = ()
    shm_size: int | None = None
    ulimits: tuple[Ulimit, ...] = ()
    secret_env: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    insecure: bool = False
    cgroup_parent: str | None = None
    terminal: int | None = None


@dataclass(frozen=True, slots=True)
class BindMount:
    """Files of `tree` below `path` (a folder or one file) shown at the absolute `target`.

    ``path`` is resolved: no component of it is a symlink. Writes, where allowed, are
    discarded after the step. ``layer`` is the layer whose tree it is, if any: a backend may
    mount that instead of copying.
    """

    target: str
    tree: Tree
    path: bytes = b""
    readonly: bool = True
    layer: ROLayer | None = None


@dataclass(frozen=True, slots=True)
class TmpfsMount:
    """An empty file system in memory at the absolute `target`; `size` in bytes, None for no limit."""

    target: str
    size: int | None = None


@dataclass(frozen=True, slots=True)
class CacheMount:
    """A folder at the absolute `target` that the backend keeps from build to build.

    ``ident`` is any text: the same one is the same folder. When it is made it belongs to
    ``uid`` and ``gid`` with ``mode``; with a `tree` it begins as a copy of the folder at its
    resolved `path` instead. ``inside`` is the folder in it that is shown, b"" for all of it;
    it exists, and no link in it is followed. Two mounts of one step with one ``ident`` show
    the same folder.
    """

    target: str
    ident: str
    sharing: Sharing = Sharing.SHARED
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    readonly: bool = False
    tree: Tree | None = None
    path: bytes = b""
    inside: bytes = b""


@dataclass(frozen=True, slots=True)
class SecretMount:
    """A read-only file at the absolute `target` that is in memory only, and only for this step."""

    target: str
    content: bytes = field(repr=False)
    mode: int = 0o400
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class SshMount:
    """The Unix socket `socket` of this machine shown at the absolute `target`.

    It is this step's alone, in a folder that nobody else may enter: the backend gives it
    owner and mode.
    """

    target: str
    socket: Path
    mode: int = 0o600
    uid: int = 0
    gid: int = 0


Mount = BindMount | TmpfsMount | CacheMount | SecretMount | SshMount


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The image to be made. ``config`` is final: diff ids and history agree with ``layers``.

    ``base`` is the image that the target's chain of stages starts from, None for scratch.
    An empty ``names`` makes an image known by its digest alone. With ``docker_media_types``
    manifest, config and layers are called what Docker called them before OCI. An image that
    is made ``for_index`` has no names and is kept only as long as this build, or as the
    index that it goes into.
    """

    config: ImageConfig
    layers: tuple[LayerDiff, ...]
    names: tuple[Reference, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    base: BaseImage | None = None
    docker_media_types: bool = False
    for_index: bool = False

    def documents(self) -> ImageDocuments:
        """The image's config and manifest: the same bytes in every backend."""
        return image_documents(
            self.config,
            [layer.blob for layer in self.layers],
            self.annotations,
            docker=self.docker_media_types,
        )


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the backend's store: its manifest's descriptor and its config's digest."""

    manifest: Descriptor
    config_digest: str
    names: tuple[Reference, ...] = ()


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """The index to be made of images that :meth:`Backend.create_image` made, in this order.

    An empty ``names`` makes an index known by its digest alone. With ``docker_media_types``
    it is a Docker manifest list.
    """

    images: tuple[tuple[Image, Platform], ...]
    names: tuple[Reference, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    docker_media_types: bool = False

    def document(self) -> IndexDocument:
        """The index: the same bytes in every backend."""
        return index_document(
            [(image.manifest, platform) for image, platform in self.images],
            self.annotations,
            docker=self.docker_media_types,
        )


class _Layer(ABC):
    """What both kinds of layer share: they are context managers over `release`."""

    @abstractmethod
    def release(self) -> None:
        """Let go of the layer. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


class ROLayer(_Layer):
    """A file system that never changes."""

    @property
    @abstractmethod
    def diff(self) -> LayerDiff | None:
        """What the commit that made this layer changed; waits until it is known.

        None for a base image, scratch, or a commit that changed nothing.
        """

    @property
    def made(self) -> datetime | None:
        """When the step ran that made it, the same for the commit and each later lookup.

        None where the backend doesn't know.
        """
        return None

    @property
    @abstractmethod
    def diffs(self) -> tuple[LayerDiff, ...]:
        """All layers of this file system, bottom first, the base image's included; waits."""

    def contents(self) -> tuple[LayerIndex | None, ...]:
        """What is in each of :attr:`diffs`; None for a layer that would have to be fetched first."""
        return (None,) * len(self.diffs)

    @abstractmethod
    def begin(self, *, runs: bool, newest: int | None = None) -> RWLayer:
        """Start a read-write layer on this one. With `runs` False only `put` may follow.

        With `newest`, in seconds since 1970, what the layer records as modified later is
        recorded as modified then (SOURCE_DATE_EPOCH of reproducible-builds.org).
        """

    @abstractmethod
    def tree(self) -> Tree:
        """The merged file system. Its blobs may be fetched by this call."""


class RWLayer(_Layer):
    """A file system that one step changes. Releasing it uncommitted discards the changes."""

    @abstractmethod
    def tree(self) -> Tree:
        """The file system that the layer was begun on."""

    @abstractmethod
    def put(self, entries: Iterable[NewEntry], activity: Activity) -> None:
        """Add or replace entries. Their paths are resolved: no parent is a symlink.

        Called at most once on a layer, and not together with `run`. Parents that don't
        exist must be among the entries. No entry is a hard link to a lower layer's file.
        """

    @abstractmethod
    def run(self, process: Process, mounts: Sequence[Mount], activity: Activity) -> int:
        """Run a process on the file system and return its exit code (128+n for signal n).

        Mount points that don't exist are made for the time of the process and leave no
        trace in the layer. On cancel every process in it is killed within two seconds.
        """

    @abstractmethod
    def commit(self, key: str | None, activity: Activity) -> ROLayer:
        """Freeze the layer. With a `key`, :meth:`Backend.lookup` finds it from now on."""


class Backend(ABC):
    """Where images live and steps run. A context manager over `close`."""

    name: str
    platforms: tuple[Platform, ...]
    """What its machine runs natively; the first is the default build platform."""
    capabilities: frozenset[Capability]

    def require(self, capabilities: frozenset[Capability], *, certain: bool = False) -> None:  # noqa: B027 - most backends know when they open
        """Get ready for steps that need these, a subset of ``capabilities``.

        Called once a build, before its first step; with `certain`, all of them will be done.
        Raises BackendUnavailable, with what to do, if this machine doesn't allow them.
        """

    def executes(self, platform: Platform) -> bool | None:
        """Whether its machine runs programs for `platform`; None where it can't tell.

        Of this machine, :func:`pybuild.sandbox.emulation.executes` knows.
        """
        return any(matches(native, platform) for native in self.platforms) or None

    @abstractmethod
    def resolve(
        self,
        reference: Reference,
        platform: Platform,
        pull_policy: PullPolicy,
        activity: Activity,
    ) -> BaseImage:
        """Find the image and its config. Layers may be fetched later.

        Raises ImageNotFound, PlatformMismatch, RegistryError, InvalidImage.
        """

    @abstractmethod
    def import_image(self, image: LayoutImage, activity: Activity) -> BaseImage:
        """Have the layers of an image in a layout as if it had been pulled, under no name.

        Its reference finds nothing afterwards; it is kept as long as this build, and as the
        images made from it. Raises InvalidImage for blobs that aren't what they should be.
        """

    @abstractmethod
    def checkout(self, base: BaseImage | None, activity: Activity, *, runs: bool = True) -> ROLayer:
        """The file system of an image; of scratch for None. Without `runs` it is only read."""

    @abstractmethod
    def lookup(self, key: str) -> ROLayer | None:
        """The layer committed under `key`; None if there is none, or without STEP_CACHE."""

    def single_flight(self, key: str, activity: Activity) -> AbstractContextManager[None]:
        """While the context lasts, no other build makes the step with this key.

        Others wait, and look it up afterwards; within, commit the layer under `key`. A backend
        whose builds share no steps need not do anything. Raises BuildCancelled.
        """
        del key, activity
        return nullcontext()

    @abstractmethod
    def create_image(self, spec: ImageSpec, top: ROLayer, activity: Activity) -> Image:
        """Write config, manifest and names. `top` is the layer that `spec` describes.

        Its diff ids are those of ``spec.layers``, whose blobs may be others than its own:
        those that :meth:`recompress` made.
        """

    @abstractmethod
    def create_index(self, spec: IndexSpec, activity: Activity) -> Descriptor:
        """Write an image index and its names, and return its descriptor.

        From now on the index keeps its images, and :meth:`resolve` of such a name chooses
        among them. Its images were made with ``for_index``.
        """

    @abstractmethod
    def recompress(self, layer: LayerDiff, wanted: Packing, activity: Activity) -> LayerDiff:
        """The same layer as another blob in the backend's store, kept as long as this build.

        A blob that is compressed as wanted is not necessarily written again.
        """

    @abstractmethod
    def open_blob(self, digest: str) -> BinaryIO:
        """The stored bytes of a blob of an image or of a layer here. Raises ImageNotFound.

        May fetch a base image's blob that nothing needed so far.
        """

    def load_image(
        self, spec: ImageSpec, open_blob: Callable[[str], BinaryIO], activity: Activity
    ) -> Image:
        """Store an image that another backend built; `open_blob` opens its layers' blobs.

        Raises UnsupportedByBackend where that can't be done.
        """
        del spec, open_blob, activity
        raise UnsupportedByBackend(
            f'the backend "{self.name}" takes no images from elsewhere',
            hint="write an archive with --output type=oci, and import that",
        )

    def notes_folder(self) -> Path | None:
        """Where a build may keep what it learned of contexts and steps, for later ones; None if
        nowhere. The folder needn't exist yet, is this user's alone, and may be emptied any time.
        """
        return None

    def image_store(self) -> ImageStore | None:
        """What the user may do with the images here; None if other tools are there for that."""
        return None

    def cache_exchange(self) -> CacheExchange | None:
        """What trades steps and cache mounts with other machines; None if nothing does."""
        return None

    def kept_layers(self) -> KeptLayers | None:
        """What keeps the layers of failed steps; None if they are committed for it."""
        return None

    def describe(self) -> Sequence[tuple[str, str]]:
        """What it found out about its machine, as labels and values for ``pybuild doctor``."""
        return ()

    @abstractmethod
    def close(self) -> None:
        """Give back everything that isn't an image. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
