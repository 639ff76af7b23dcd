"""Layers: blobs with an index first, snapshots when a process must run on them."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pybuild.backend import Activity, Mount, Process, ROLayer, RWLayer
from pybuild.errors import BackendError, BackendFailed
from pybuild.files.latertree import LaterTree
from pybuild.files.trees import NewEntry, Tree
from pybuild.oci.descriptor import LayerDiff
from pybuild.oci.layerindex import Entry, LayerIndex
from pybuild.oci.layerwriter import write_layer
from pybuild.sandbox.client import Sandbox
from pybuild.sandbox.process import name_files, run_process, run_spec
from pybuild.sandbox.spec import Overlay
from pybuild.values import dataclass, replace
from pybuild_containerd.changes import changes_of
from pybuild_containerd.lentfiles import refuse_for_task, with_secret_variables
from pybuild_containerd.mountpoints import resolve_cwd
from pybuild_containerd.runmounts import Places, resolve_places
from pybuild_containerd.runners import overlay_root, sandbox_mount
from pybuild_containerd.runtime_spec import any_machine, runtime_spec
from pybuild_containerd.snapshots import Mount as SnapshotMount
from pybuild_containerd.snapshots import in_user_namespace, layer_folders
from pybuild_containerd.stepcache import CachedStep
from pybuild_containerd.tasks import OutputNotShared, Task, run_task
from pybuild_containerd.unpack import chain_ids
from pybuild_containerd.workspace import Workspace

UNCOMPRESSED_LABEL = "containerd.io/uncompressed"
# overlayfs takes 500 lower folders
_MOST_LOWERS = 499
# bytes: of a layer, and of its files on average
_MUCH = 4 << 20
_LARGE = 4 << 10


class ContainerdROLayer(ROLayer):
    """A chain of layers whose blobs are in the content store."""

    def __init__(
        self,
        space: Workspace,
        diffs: tuple[LayerDiff, ...],
        own: LayerDiff | None,
        *,
        made: datetime | None = None,
        wait: Callable[[], None] | None = None,
    ) -> None:
        """`wait` waits until the blobs are here, and raises what is wrong with them."""
        self._made = made
        self._wait = wait
        self._space = space
        self._diffs = diffs
        self._own = own
        self._tree: Tree | None = None
        self._released = False

    @property
    def diff(self) -> LayerDiff | None:
        self._arrived()
        return self._own

    @property
    def diffs(self) -> tuple[LayerDiff, ...]:
        self._arrived()
        return self._diffs

    @property
    def is_here(self) -> bool:
        """Whether no blob has to be waited for."""
        return self._wait is None

    def _arrived(self) -> None:
        if self._wait is not None:
            self._wait()
            self._wait = None

    @property
    def made(self) -> datetime | None:
        return self._made

    def contents(self) -> tuple[LayerIndex | None, ...]:
        return tuple(map(self._space.files.known, self.diffs))

    def begin(self, *, runs: bool, newest: int | None = None) -> RWLayer:
        if self._released:
            raise RuntimeError("a layer was begun on a released one")
        return ContainerdRWLayer(self._space, self, runs=runs, newest=newest)

    def tree(self) -> Tree:
        # two threads may both make one, which costs time only
        if self._tree is None:
            if self._wait is not None:
                return LaterTree(lambda: self._space.files.tree(self.diffs))
            self._tree = self._space.files.tree(self._diffs)
        return self._tree

    def release(self) -> None:
        # the session's lease keeps blobs and snapshots: layers made from this one need them
        self._released = True


@dataclass(slots=True)
class _Active:
    """The snapshot that processes run on. ``missing`` is what its root lacked for mounts."""

    key: str
    mounts: tuple[SnapshotMount, ...]
    missing: dict[bytes, Entry]


class ContainerdRWLayer(RWLayer):
    """What one step changes: a blob after `put`, a snapshot after `run`."""

    def __init__(
        self, space: Workspace, below: ContainerdROLayer, *, runs: bool, newest: int | None
    ) -> None:
        self._space = space
        self._below = below
        self._runs = runs
        self._newest = newest
        self._written: LayerDiff | None = None
        self._active: _Active | None = None
        # the key of the snapshot that has what was put
        self._filled: str | None = None
        self._over = False

    def tree(self) -> Tree:
        return self._below.tree()

    def put(self, entries: Iterable[NewEntry], activity: Activity) -> None:
        if self._over or self._written is not None or self._active is not None:
            raise RuntimeError("a layer takes entries once, and none after a process ran")
        entries = list(entries)
        begun = None
        if _are_large(entries) and self._below.is_here:
            begun = self._space.unpacker.begin_early(self._below.diffs)
        if begun is None:
            self._written = write_blob(self._space, entries, activity, newest=self._newest)
        else:
            self._filled, upper = begun
            self._put_alongside(upper, entries, activity)

    def _put_alongside(self, upper: Path, entries: list[NewEntry], activity: Activity) -> None:
        from pybuild.unpacking.failures import translated  # noqa: PLC0415 - for large files
        from pybuild_containerd.alongside import FilesAlongside  # noqa: PLC0415 - as above

        with translated("make files", upper), FilesAlongside(upper, self._newest) as files:
            watched = files.watched(entries)
            self._written = write_blob(self._space, watched, activity, newest=self._newest)
            whole = self._written is not None and files.finish(
                self._space.unpacker.stacked((*self._below.diffs, self._written))
            )
        if not whole:
            self._drop_filled()

    def run(self, process: Process, mounts: Sequence[Mount], activity: Activity) -> int:
        if self._over or not self._runs or self._written is not None:
            raise RuntimeError("a process was run on a layer begun without runs, or after put")
        # a sandbox has no control group of its own
        sandbox = None if process.cgroup_parent else self._space.runners.sandbox()
        if sandbox is None:
            process, variables = with_secret_variables(process)
            mounts = mounts if variables is None else [*mounts, variables]
        places = resolve_places(self.tree(), mounts)
        resolve_cwd(places.tree, process.cwd)
        if sandbox is not None:
            return self._run_in(sandbox, process, mounts, places, activity)
        if self._space.outputs.shared:
            with contextlib.suppress(OutputNotShared):
                return self._run_task(process, mounts, places, activity)
            self._space.outputs.give_up_sharing()
        return self._run_task(process, mounts, places, activity)

    def _run_in(
        self,
        sandbox: Sandbox,
        process: Process,
        mounts: Sequence[Mount],
        places: Places,
        activity: Activity,
    ) -> int:
        tree = self.tree()
        names = (places.hosts.destination, places.resolv_conf.destination)
        with self._space.mounts.prepared(mounts, places, activity) as prepared:
            made = [*name_files(process, *names), *(sandbox_mount(m, tree) for m in prepared)]
            made.sort(key=lambda mount: _depth(mount.target))
            active = self._prepare(activity)
            with self._overlay(active, activity) as root:
                return run_process(sandbox, run_spec(process, root, made), activity)

    def _run_task(
        self, process: Process, mounts: Sequence[Mount], places: Places, activity: Activity
    ) -> int:
        space = self._space
        near = space.outputs.shared
        refuse_for_task(mounts, near=near)
        with (
            space.mounts.prepared(mounts, places, activity) as prepared,
            space.outputs.open(activity, shared=near) as output,
        ):
            made = [*space.mounts.name_files(process, places, activity, near=near), *prepared]
            made.sort(key=lambda mount: _depth(mount.destination))
            active = self._prepare(activity)
            active.missing.update((entry.path, entry) for entry in places.missing)
            container = f"pybuild-{secrets.token_hex(16)}"
            machine = space.machine if near else any_machine(space.machine)
            machine = replace(machine, rootless=in_user_namespace(active.mounts))
            task = Task(
                id=container,
                spec=runtime_spec(process, container, made, machine),
                rootfs=self._root(active, places.missing, activity),
                runtime=space.runtime,
                snapshotter=space.snapshots.snapshotter,
                snapshot_key=active.key,
                labels=space.session_labels,
            )
            return run_task(space.client, task, output, activity)

    def commit(self, key: str | None, activity: Activity) -> ROLayer:
        if self._over:
            raise RuntimeError("a layer was committed twice, or after its release")
        below = self._below.diffs
        own = self._written
        if self._active is not None:
            own = self._commit_active(self._active, activity)
        self._over = True
        layers = below if own is None else (*below, own)
        if self._filled is not None:
            self._commit_filled(self._filled, chain_ids(layers)[-1])
        step = CachedStep(layers, own is not None, datetime.now(UTC))
        if key is not None:
            activity.raise_if_cancelled()
            try:
                self._space.steps.record(key, step)
            except BackendFailed as error:
                activity.warn(f"the step isn't kept in the cache: {error.message}", error.hint)
        return ContainerdROLayer(self._space, layers, own, made=step.made)

    def _commit_filled(self, key: str, chain: str) -> None:
        # without it, the layer is unpacked once it is needed
        with contextlib.suppress(BackendError):
            self._space.unpacker.commit(key, chain)
            self._filled = None
        self._drop_filled()

    def _drop_filled(self) -> None:
        key, self._filled = self._filled, None
        if key is not None:
            with contextlib.suppress(BackendError):  # the session's lease removes it later
                self._space.snapshots.remove(key)

    def release(self) -> None:
        self._over = True
        self._drop_filled()
        active, self._active = self._active, None
        if active is not None:
            with contextlib.suppress(BackendError):  # the session's lease removes it later
                self._space.snapshots.remove(active.key)

    def _prepare(self, activity: Activity) -> _Active:
        if self._active is None:
            chain = self._space.unpacker.ensure(self._below.diffs, activity)
            key = f"pybuild-{secrets.token_hex(16)}"
            self._active = _Active(key, self._space.snapshots.prepare(key, chain), {})
        return self._active

    @contextlib.contextmanager
    def _overlay(self, active: _Active, activity: Activity) -> Iterator[Overlay]:
        """The snapshot's folders for a sandbox."""
        root = overlay_root(active.mounts)
        if root is not None:
            yield root
            return
        folders = layer_folders(active.mounts)
        if folders is None or folders.upper is None or folders.lowers or folders.unknown:
            raise BackendFailed(f"a snapshot of {self._space.snapshots.snapshotter} is no overlay")
        # a snapshot on nothing is a plain folder
        key, work = self._space.mounts.new_folder((), activity)
        try:
            ends = os.fsencode(folders.upper), os.fsencode(work)
            yield Overlay((), *ends, volatile=False)
        finally:
            self._space.mounts.remove_folder(key)

    def _root(
        self, active: _Active, missing: Sequence[Entry], activity: Activity
    ) -> list[Mapping[str, Any]]:
        """The snapshot's mounts, with what is missing for other mounts shown from below."""
        mounts = active.mounts
        if missing and _takes_another_lower(mounts):
            mounts = with_lowest(mounts, self._space.mounts.skeleton(missing, activity))
        return [mount.fields() for mount in mounts]

    def _commit_active(self, active: _Active, activity: Activity) -> LayerDiff | None:
        space = self._space
        missing = [active.missing[path] for path in sorted(active.missing)]
        chain = "".join(chain_ids(self._below.diffs)[-1:])
        changes = changes_of(
            space,
            chain,
            self.tree(),
            active.mounts,
            activity,
            missing=missing,
            newest=self._newest,
        )
        own = changes.written or write_blob(space, changes.entries, activity, newest=self._newest)
        if own is not None and changes.whole:
            space.unpacker.commit(active.key, chain_ids((*self._below.diffs, own))[-1])
        else:
            space.snapshots.remove(active.key)
        self._active = None
        return own


def write_blob(
    space: Workspace,
    entries: Iterable[NewEntry],
    activity: Activity,
    *,
    newest: int | None = None,
) -> LayerDiff | None:
    """Write a layer straight into the content store; None if there are no entries."""
    rest = iter(entries)
    first = next(rest, None)
    if first is None:
        return None
    with space.content.writer(activity=activity) as writer:
        layer = write_layer(itertools.chain((first,), rest), writer.write, newest=newest)
        blob = layer.diff.blob
        writer.commit(blob.digest, blob.size, {UNCOMPRESSED_LABEL: layer.diff.diff_id})
    space.files.remember(layer.diff.diff_id, layer.index)
    return layer.diff


def _are_large(entries: Sequence[NewEntry]) -> bool:
    """Whether to make these files along with their layer takes clearly less than to do it later.

    It does unless most are tiny. With those it comes to the same, but a layer that is only
    copied from needs no files at all.
    """
    size = sum(new.entry.size for new in entries if new.content is not None)
    return size >= _MUCH and size >= _LARGE * len(entries)


def _depth(destination: str) -> int:
    """The order to mount in: outer before inner, and of two at one place the later is seen."""
    return destination.count("/")


def _takes_another_lower(mounts: tuple[SnapshotMount, ...]) -> bool:
    folders = layer_folders(mounts)
    return (
        folders is not None
        and folders.upper is not None
        and not folders.unknown
        and 0 < len(folders.lowers) < _MOST_LOWERS
    )


def with_lowest(mounts: tuple[SnapshotMount, ...], folder: str) -> tuple[SnapshotMount, ...]:
    """Overlay mounts with `folder` below all other layers."""
    return tuple(
        replace(
            mount,
            options=tuple(
                f"{option}:{folder}" if option.startswith("lowerdir=") else option
                for option in mount.options
            ),
        )
        for mount in mounts
    )
