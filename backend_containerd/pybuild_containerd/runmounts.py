"""What a RUN sees besides its root: bind mounts, tmpfs, /etc/hosts and /etc/resolv.conf.

Everything with files is a snapshot of our own: its path on the daemon's machine comes from
the snapshotter, so no string of a user ever becomes a mount's source, and it works where
this process shares no files with the daemon.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Hashable, Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pybuild.backend import (
    Activity,
    BindMount,
    CacheMount,
    Mount,
    Network,
    Process,
    SecretMount,
    SshMount,
    TmpfsMount,
)
from pybuild.files.keyedlocks import KeyedLocks
from pybuild.files.mountsource import TOP, copied, source_entry
from pybuild.files.namefiles import host_resolv_conf, hosts_file
from pybuild.files.trees import NewEntry, Tree
from pybuild.oci.compression import Compression
from pybuild.oci.descriptor import LayerDiff
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.layerwriter import write_layer
from pybuild.values import dataclass, replace
from pybuild_containerd.cachefolders import CacheFolders
from pybuild_containerd.client import Client
from pybuild_containerd.content import ContentStore
from pybuild_containerd.errors_table import CallFailed, NotFound
from pybuild_containerd.lentfiles import give, memory_folder, write_secret
from pybuild_containerd.mountpoints import (
    ANYONES_FOLDER,
    FOLDER,
    PLAIN_FILE,
    SYSTEM_MOUNTPOINTS,
    Mountpoint,
    Wanted,
    check_system_mountpoints,
    missing_entries,
    mounted_tree,
    resolve_mountpoints,
)
from pybuild_containerd.runtime_spec import SpecMount
from pybuild_containerd.snapshots import Mount as SnapshotMount
from pybuild_containerd.snapshots import Snapshots, bound_folder
from pybuild_containerd.unpack import Unpacker, apply_layer

_HOSTS = b"hosts"
_RESOLV_CONF = b"resolv.conf"
_RESOLV_CONF_THERE = "/etc/resolv.conf"
_BIND_OPTIONS = ("rbind", "nodev")
# the kernel takes one page of options, runc passes them as they are
_LONGEST_OPTIONS = 4000
_MOST_RETRIES = 4


@dataclass(frozen=True, slots=True)
class Places:
    """Where a RUN's mounts go: the files of names first, then what it asks for.

    ``missing`` is what its root lacks for them, ``tree`` what it shows with them.
    """

    hosts: Mountpoint
    resolv_conf: Mountpoint
    points: tuple[Mountpoint, ...]
    missing: tuple[Entry, ...]
    tree: Tree


def resolve_places(tree: Tree, mounts: Sequence[Mount]) -> Places:
    """Where `mounts` go in a root whose files are `tree`'s. Raises StepFailed."""
    check_system_mountpoints(tree)
    wanted = [Wanted("/etc/hosts", PLAIN_FILE), Wanted("/etc/resolv.conf", PLAIN_FILE)]
    wanted += map(_wanted, mounts)
    points = resolve_mountpoints(tree, wanted)
    missing = missing_entries(tree, [*SYSTEM_MOUNTPOINTS, *points])
    shown = mounted_tree(tree, wanted, points)
    return Places(points[0], points[1], tuple(points[2:]), missing, shown)


class RunMounts:
    """Makes the snapshots that RUNs mount. Safe in threads.

    Read-only ones are made once and kept until the session's lease goes.
    """

    def __init__(
        self,
        client: Client,
        content: ContentStore,
        snapshots: Snapshots,
        unpacker: Unpacker,
        *,
        locks: Path,
    ) -> None:
        """`locks` is a folder for those of cache mounts."""
        self._client = client
        self._content = content
        self._snapshots = snapshots
        self._unpacker = unpacker
        self._locks = KeyedLocks()
        # the tree is kept with its folder, so that its identity isn't used again
        self._copies: dict[tuple[int, bytes], tuple[Tree, str]] = {}
        self._folders: dict[Hashable, str] = {}
        self._caches = CacheFolders(client, snapshots, self.new_folder, locks)

    @contextlib.contextmanager
    def prepared(
        self, mounts: Sequence[Mount], places: Places, activity: Activity
    ) -> Iterator[tuple[SpecMount, ...]]:
        """The mounts that a RUN asks for, in their order; what was made for them ends."""
        with contextlib.ExitStack() as undo:
            caches = undo.enter_context(self._caches.taken(mounts, activity))
            lent = None
            if any(isinstance(mount, SecretMount) for mount in mounts):
                lent = undo.enter_context(memory_folder())
            made = []
            for mount, point in zip(mounts, places.points, strict=True):
                match mount:
                    case CacheMount(ident=ident, readonly=readonly, inside=inside):
                        bind = _bind(point, caches[ident], readonly=readonly)
                        made.append(replace(bind, inside=inside))
                    case SecretMount() | SshMount():
                        made.append(_lent(mount, point, lent))
                    case BindMount() | TmpfsMount():
                        made.append(self._mount(mount, point, undo, activity))
            yield tuple(made)

    def cache_folder(
        self, ident: str, activity: Activity
    ) -> contextlib.AbstractContextManager[tuple[SnapshotMount, ...] | None]:
        """See :meth:`.CacheFolders.first`."""
        return self._caches.first(ident, activity)

    def name_files(
        self, process: Process, places: Places, activity: Activity, *, near: bool
    ) -> tuple[SpecMount, SpecMount]:
        """The mounts of /etc/hosts and /etc/resolv.conf.

        `near` says that containerd is on this machine, so that its resolv.conf is ours.
        """
        files = self._name_files(process, activity)
        return (
            _bind(places.hosts, f"{files}/{_HOSTS.decode()}", readonly=True),
            _bind(places.resolv_conf, _resolv_conf(process, files, near=near), readonly=True),
        )

    def skeleton(self, missing: Sequence[Entry], activity: Activity) -> str:
        """A folder on the daemon's machine with empty files and folders as `missing` says."""
        return self._kept_folder(tuple(missing), [NewEntry(entry) for entry in missing], activity)

    def _mount(
        self,
        mount: BindMount | TmpfsMount,
        point: Mountpoint,
        undo: contextlib.ExitStack,
        activity: Activity,
    ) -> SpecMount:
        match mount:
            case TmpfsMount():
                size = () if mount.size is None else (f"size={mount.size}",)
                # runtimes give it the mode of the folder that it covers
                options = ("nosuid", "nodev", *size)
                return SpecMount(point.destination, "tmpfs", "tmpfs", options)
            case BindMount():
                whole = self._whole_layer(mount, point, undo, activity)
                if whole is not None:
                    return whole
                if mount.readonly:
                    return _bind(point, self._kept_copy(mount, activity), readonly=True)
                key, folder = self.new_folder(
                    copied(mount.tree, mount.path, mount.target), activity
                )
                undo.callback(self.remove_folder, key)
                return _bind(point, f"{folder}/{TOP.decode()}", readonly=False)

    def _whole_layer(
        self, mount: BindMount, point: Mountpoint, undo: contextlib.ExitStack, activity: Activity
    ) -> SpecMount | None:
        """A layer's own snapshot as a mount; None where its files have to be copied."""
        if mount.layer is None or mount.path or not mount.layer.diffs:
            return None
        chain = self._unpacker.ensure(mount.layer.diffs, activity)
        key = f"pybuild-{secrets.token_hex(16)}"
        make = self._snapshots.view if mount.readonly else self._snapshots.prepare
        mounts = make(key, chain)
        undo.callback(self.remove_folder, key)
        match mounts:
            case (SnapshotMount(type="bind" | "overlay") as only,) if (
                len(",".join(only.options)) < _LONGEST_OPTIONS
            ):
                return SpecMount(point.destination, only.type, only.source, only.options)
            case _:
                return None

    def _kept_copy(self, mount: BindMount, activity: Activity) -> str:
        """The path of a read-only copy of the mount's source, made once for each source."""
        key = (id(mount.tree), mount.path)
        with self._locks.holding(key):
            if key not in self._copies:
                _, folder = self.new_folder(copied(mount.tree, mount.path, mount.target), activity)
                self._copies[key] = mount.tree, f"{folder}/{TOP.decode()}"
            return self._copies[key][1]

    def _name_files(self, process: Process, activity: Activity) -> str:
        hosts = hosts_file(
            process.hostname, ((host.name, host.address) for host in process.extra_hosts)
        )
        resolv_conf = host_resolv_conf()
        entries = [small_file(_HOSTS, hosts), small_file(_RESOLV_CONF, resolv_conf)]
        return self._kept_folder((hosts, resolv_conf), entries, activity)

    def _kept_folder(self, key: Hashable, entries: Sequence[NewEntry], activity: Activity) -> str:
        with self._locks.holding(key):
            if key not in self._folders:
                self._folders[key] = self.new_folder(entries, activity)[1]
            return self._folders[key]

    def new_folder(
        self,
        entries: Iterable[NewEntry],
        activity: Activity,
        *,
        key: str = "",
        unique: bool = False,
    ) -> tuple[str, str]:
        """A new snapshot with these entries: its key, and its path on the daemon's machine.

        A `key` that nobody else uses is made unless one is given.
        `unique` says that nobody else has the same entries: then no blob of them is kept.
        """
        diff = self._written(list(entries), activity)
        key = key or f"pybuild-{secrets.token_hex(16)}"
        mounts = self._snapshots.prepare(key)
        try:
            apply_layer(self._client, diff, mounts, activity)
            if unique:
                self._content.delete(diff.blob.digest)
        except BaseException:
            self.remove_folder(key)
            raise
        return key, bound_folder(mounts)

    def _written(self, entries: Sequence[NewEntry], activity: Activity) -> LayerDiff:
        """The entries as a blob. An equal one of another build may be collected meanwhile."""
        for _ in range(_MOST_RETRIES):
            with contextlib.suppress(NotFound):
                return self._written_once(entries, activity)
        return self._written_once(entries, activity)

    def _written_once(self, entries: Sequence[NewEntry], activity: Activity) -> LayerDiff:
        with self._content.writer(activity=activity) as writer:
            diff = write_layer(entries, writer.write, Compression.NONE).diff
            writer.commit(diff.blob.digest, diff.blob.size)
        return diff

    def remove_folder(self, key: str) -> None:
        """Remove what `new_folder` made."""
        with contextlib.suppress(CallFailed):  # the session's lease removes it later
            self._snapshots.remove(key)


def _resolv_conf(process: Process, files: str, *, near: bool) -> str:
    """The path of resolv.conf on the daemon's machine, whose network a RUN is in."""
    if near or process.network is Network.NONE:
        return f"{files}/{_RESOLV_CONF.decode()}"
    return _RESOLV_CONF_THERE


def small_file(path: bytes, content: bytes) -> NewEntry:
    """A plain file with this content."""

    def open_content() -> BinaryIO:
        return BytesIO(content)

    return NewEntry(Entry(path, Kind.FILE, 0o644, size=len(content)), open_content)


def _wanted(mount: Mount) -> Wanted:
    match mount:
        case TmpfsMount():
            return Wanted(mount.target, ANYONES_FOLDER)
        case CacheMount():
            return Wanted(mount.target, FOLDER)
        case SecretMount() | SshMount():
            return Wanted(mount.target, PLAIN_FILE)
        case BindMount():
            stub = (
                FOLDER
                if source_entry(mount.tree, mount.path, mount.target).kind is Kind.DIRECTORY
                else PLAIN_FILE
            )
            return Wanted(mount.target, stub, mount.tree, mount.path)


def _lent(mount: SecretMount | SshMount, point: Mountpoint, folder: Path | None) -> SpecMount:
    """A secret, as a new file in `folder`, or an agent's socket."""
    if isinstance(mount, SshMount):
        path = mount.socket
        give(path, mount.mode, mount.uid, mount.gid, mount.target)
    else:
        assert folder is not None  # noqa: S101 - made for them
        path = write_secret(folder, mount)
    options = (*_BIND_OPTIONS, "nosuid", "noexec", "ro")
    return SpecMount(point.destination, "bind", str(path), options)


def _bind(point: Mountpoint, source: str, *, readonly: bool) -> SpecMount:
    mode = "ro" if readonly else "rw"
    return SpecMount(point.destination, "bind", source, (*_BIND_OPTIONS, mode))
