"""Snapshots of one snapshotter, and what their mounts say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pybuild.errors import StepFailed
from pybuild.values import dataclass, field
from pybuild_containerd import rpcs
from pybuild_containerd.client import ACTIVE, COMMITTED, VIEW, Client
from pybuild_containerd.errors_table import AlreadyExists, NotFound
from pybuild_containerd.leases import keep_snapshot

_KINDS: Final = {VIEW: "view", ACTIVE: "active", COMMITTED: "committed"}
_BIND_OPTIONS: Final = frozenset({"rw", "ro", "bind", "rbind"})
# none of these changes what a file in the upper folder means; redirect_dir and metacopy do
_PLAIN_OVERLAY_OPTIONS: Final = frozenset(
    {
        "rw",
        "ro",
        "index=off",
        "userxattr",
        "volatile",
        "xino=off",
        "redirect_dir=off",
        "metacopy=off",
    }
)


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount as containerd describes it; ``options`` are those of fstab."""

    type: str
    source: str
    options: tuple[str, ...] = ()
    target: str = ""

    def fields(self) -> dict[str, Any]:
        """As a field of a request."""
        return {
            "type": self.type,
            "source": self.source,
            "target": self.target,
            "options": list(self.options),
        }


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """``parent`` is empty for the lowest; ``kind`` is view, active or committed."""

    name: str
    parent: str
    kind: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot takes without its parents; ``size`` in bytes."""

    size: int
    inodes: int


@dataclass(frozen=True, slots=True)
class LayerFolders:
    """The folders behind a snapshot's mounts, as paths where containerd runs.

    ``upper`` takes the changes, None for a view; ``lowers`` are topmost first; ``work`` is
    an overlay's. With ``unknown`` options the upper folder may not mean what it seems to.
    """

    upper: str | None
    lowers: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    work: str | None = None


class Snapshots:
    """The snapshots of one snapshotter in the client's namespace."""

    def __init__(self, client: Client, snapshotter: str) -> None:
        self._client = client
        self.snapshotter = snapshotter

    def prepare(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> tuple[Mount, ...]:
        """Make an active snapshot on the committed `parent`. Raises AlreadyExists, NotFound.

        With the label ``containerd.io/snapshot.ref`` AlreadyExists also means that the
        snapshot named there is committed.
        """
        return self._new(rpcs.SNAPSHOT_PREPARE, key, parent, labels)

    def view(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> tuple[Mount, ...]:
        """Make a read-only snapshot of the committed `parent`. Raises as `prepare` does."""
        return self._new(rpcs.SNAPSHOT_VIEW, key, parent, labels)

    def mounts(self, key: str) -> tuple[Mount, ...]:
        """The mounts of an active snapshot or a view. Raises NotFound, FailedPrecondition."""
        response = self._client.call(rpcs.SNAPSHOT_MOUNTS, snapshotter=self.snapshotter, key=key)
        return mounts_of(response.mounts)

    def commit(self, key: str, name: str, labels: Mapping[str, str] | None = None) -> bool:
        """Commit the active snapshot `key` as `name`.

        False if another build has made `name` meanwhile: `key` is removed then, and our
        lease keeps `name`.
        """
        try:
            self._client.call(
                rpcs.SNAPSHOT_COMMIT,
                snapshotter=self.snapshotter,
                key=key,
                name=name,
                labels=dict(labels or {}),
            )
        except AlreadyExists:
            keep_snapshot(self._client, self.snapshotter, name)
            self.stat(name)
            self.remove(key)
            return False
        return True

    def stat(self, name: str) -> SnapshotInfo:
        """Raises NotFound."""
        response = self._client.call(rpcs.SNAPSHOT_STAT, snapshotter=self.snapshotter, key=name)
        return _info(response.info)

    def exists(self, name: str) -> bool:
        """Whether `name` is committed; if so, our lease keeps it from now on."""
        try:
            self.stat(name)
            keep_snapshot(self._client, self.snapshotter, name)
            # a garbage collection may have come before the lease did
            return self.stat(name).kind == "committed"
        except NotFound:
            return False

    def usage(self, name: str) -> Usage:
        """Raises NotFound."""
        response = self._client.call(rpcs.SNAPSHOT_USAGE, snapshotter=self.snapshotter, key=name)
        return Usage(response.size, response.inodes)

    def remove(self, key: str) -> None:
        """Remove a snapshot without children; what is gone already is fine."""
        with contextlib.suppress(NotFound):
            self._client.call(rpcs.SNAPSHOT_REMOVE, snapshotter=self.snapshotter, key=key)

    def update_labels(self, name: str, labels: Mapping[str, str]) -> None:
        """Set these labels and leave the others; an empty value unsets one. Raises NotFound."""
        if labels:
            self._client.call(
                rpcs.SNAPSHOT_UPDATE,
                snapshotter=self.snapshotter,
                info={"name": name, "labels": dict(labels)},
                update_mask={"paths": [f"labels.{label}" for label in labels]},
            )

    def list(self, *filters: str) -> Iterator[SnapshotInfo]:
        """Snapshots that one of the filters selects, in containerd's filter syntax."""
        with self._client.stream(
            rpcs.SNAPSHOT_LIST, snapshotter=self.snapshotter, filters=list(filters)
        ) as pages:
            for page in pages:
                yield from map(_info, page.info)

    def _new(
        self, method: rpcs.Method, key: str, parent: str, labels: Mapping[str, str] | None
    ) -> tuple[Mount, ...]:
        response = self._client.call(
            method,
            snapshotter=self.snapshotter,
            key=key,
            parent=parent,
            labels=dict(labels or {}),
        )
        return mounts_of(response.mounts)


def layer_folders(mounts: Sequence[Mount]) -> LayerFolders | None:
    """The folders behind `mounts`; None unless it is one bind or one overlay mount."""
    if len(mounts) != 1:
        return None
    mount = mounts[0]
    match mount.type:
        case "bind":
            unknown = tuple(option for option in mount.options if option not in _BIND_OPTIONS)
            if "ro" in mount.options:
                return LayerFolders(None, (mount.source,), unknown)
            return LayerFolders(mount.source, (), unknown)
        case "overlay":
            return _overlay_folders(mount.options)
        case _:
            return None


def bound_folder(mounts: Sequence[Mount]) -> str:
    """The folder of a snapshot without a parent, which every snapshotter shows by a bind."""
    match mounts:
        case (Mount(type="bind", source=source),):
            return source
        case _:
            raise StepFailed(
                "this containerd's snapshotter can't show files to a RUN",
                hint="use the overlayfs or native snapshotter",
            )


def in_user_namespace(mounts: Sequence[Mount]) -> bool:
    """Whether containerd is rootless, as its overlays show."""
    return any(m.type.startswith("fuse") or "userxattr" in m.options for m in mounts)


def _overlay_folders(options: Sequence[str]) -> LayerFolders:
    upper: str | None = None
    work: str | None = None
    lowers: tuple[str, ...] = ()
    unknown: list[str] = []
    for option in options:
        name, _, value = option.partition("=")
        match name:
            case "upperdir":
                upper = value
            case "lowerdir" if "\\" in value or "::" in value:
                unknown.append(option)  # escaped colons, or data-only layers
            case "lowerdir":
                lowers = tuple(value.split(":"))
            case "workdir":
                work = value
            case _ if option not in _PLAIN_OVERLAY_OPTIONS:
                unknown.append(option)
            case _:
                pass
    return LayerFolders(upper, lowers, tuple(unknown), work)


def mounts_of(messages: Sequence[Any]) -> tuple[Mount, ...]:
    """The mounts of a response."""
    return tuple(
        Mount(message.type, message.source, tuple(message.options), message.target)
        for message in messages
    )


def _info(message: Any) -> SnapshotInfo:
    return SnapshotInfo(
        message.name, message.parent, _KINDS.get(message.kind, "unknown"), dict(message.labels)
    )
