"""What a containerd can do, found out once at the start."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pybuild.errors import BackendUnavailable
from pybuild.oci.platform import Platform
from pybuild.values import dataclass
from pybuild_containerd import rpcs
from pybuild_containerd.client import Client
from pybuild_containerd.errors_table import CallFailed, NotFound, Unimplemented
from pybuild_containerd.snapshots import Snapshots, layer_folders

_SNAPSHOTTERS: Final = "io.containerd.snapshotter.v1"
_TRANSFER: Final = "io.containerd.transfer.v1"
_RUNTIMES: Final = ("io.containerd.runtime.v2", "io.containerd.differ.v1")
_DEFAULT_LABEL: Final = "containerd.io/defaults/snapshotter"
_DEFAULT_SNAPSHOTTER: Final = "overlayfs"
_CAP_SYS_ADMIN: Final = 1 << 21
_CLOCK_GRAIN: Final = 0.05  # seconds that a file's time may lag behind the clock


@dataclass(frozen=True, slots=True)
class Snapshotter:
    """A snapshotter that works; ``root`` is its folder where containerd runs."""

    name: str
    capabilities: frozenset[str]
    root: str


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found out.

    ``snapshotter`` is the chosen one of ``snapshotters``; ``rebase`` says that it can commit
    onto a parent given late. ``shared_fs``: this process reads and writes the very files of
    a snapshot, with the owners they have for it; ``can_mount``: and may mount them. ``pidns`` is the inode of the daemon's pid
    namespace, None where it doesn't tell. ``platforms`` are those that it runs.
    """

    version: str
    transfer: bool
    rebase: bool
    snapshotters: tuple[str, ...]
    snapshotter: str
    shared_fs: bool
    can_mount: bool
    pidns: int | None
    platforms: tuple[Platform, ...]


def probe(client: Client, snapshotter: str | None = None) -> Probe:
    """Ask containerd, and try a tiny snapshot.

    Without `snapshotter` the namespace's own default is taken, else overlayfs. Call it
    inside a session, so that a kill in between leaves nothing. Raises BackendUnavailable if
    the snapshotter isn't usable, with those that are.
    """
    plugins = client.call(rpcs.PLUGINS).plugins
    usable = {found.name: found for found in _usable(plugins)}
    chosen = usable.get(wanted := snapshotter or _namespace_default(client))
    if chosen is None:
        raise BackendUnavailable(
            f"containerd at {client.address} has no usable snapshotter {wanted!r}",
            hint=_snapshotter_hint(usable),
        )
    shared = _shares_files(Snapshots(client, chosen.name))
    return Probe(
        version=client.version,
        transfer=any(plugin.type == _TRANSFER and not plugin.init_err.code for plugin in plugins),
        rebase="rebase" in chosen.capabilities,
        snapshotters=tuple(usable),
        snapshotter=chosen.name,
        shared_fs=shared,
        can_mount=shared and _may_mount(),
        pidns=_server_pid_namespace(client),
        platforms=_platforms(plugins),
    )


def usable_snapshotters(client: Client) -> tuple[Snapshotter, ...]:
    """The snapshotters that were loaded without an error."""
    return _usable(client.call(rpcs.PLUGINS, filters=[f"type=={_SNAPSHOTTERS}"]).plugins)


def _usable(plugins: Iterable[Any]) -> tuple[Snapshotter, ...]:
    return tuple(
        Snapshotter(plugin.id, frozenset(plugin.capabilities), plugin.exports.get("root", ""))
        for plugin in plugins
        if plugin.type == _SNAPSHOTTERS and not plugin.init_err.code
    )


def _snapshotter_hint(usable: Mapping[str, Snapshotter]) -> str:
    if not usable:
        return "containerd's log says why none could be loaded"
    return f"choose one of {', '.join(sorted(usable))}, or mend it in containerd's configuration"


def _namespace_default(client: Client) -> str:
    try:
        response = client.call(rpcs.NAMESPACE_GET, name=client.namespace)
    except NotFound:
        return _DEFAULT_SNAPSHOTTER
    return response.namespace.labels.get(_DEFAULT_LABEL) or _DEFAULT_SNAPSHOTTER


def _server_pid_namespace(client: Client) -> int | None:
    try:
        return client.call(rpcs.SERVER).pidns or None
    except Unimplemented:
        return None


def _platforms(plugins: Iterable[Any]) -> tuple[Platform, ...]:
    found: dict[Platform, None] = {}
    for wanted in _RUNTIMES:
        for plugin in plugins:
            if plugin.type == wanted and not plugin.init_err.code:
                for platform in plugin.platforms:
                    found[Platform(platform.os, platform.architecture, platform.variant)] = None
    return tuple(found)


def _shares_files(snapshots: Snapshots) -> bool:
    """Whether a new snapshot's folder is here too: empty, ours to use, and just made.

    The same path may exist on another machine than containerd's, or in another mount
    namespace: its age tells them apart.
    """
    key = f"pybuild-probe-{secrets.token_hex(8)}"
    before = time.time() - _CLOCK_GRAIN
    try:
        mounts = snapshots.prepare(key)
        try:
            folders = layer_folders(mounts)
            return (
                folders is not None
                and folders.upper is not None
                and _is_new(Path(folders.upper), before)
            )
        finally:
            snapshots.remove(key)
    except CallFailed as error:
        raise BackendUnavailable(
            f"the snapshotter {snapshots.snapshotter} doesn't work: {error.details}",
            hint="choose another snapshotter; containerd's log may say more",
        ) from error


def _is_new(folder: Path, since: float) -> bool:
    with contextlib.suppress(OSError):
        usable = os.access(folder, os.R_OK | os.W_OK | os.X_OK)
        status = folder.stat()
        # seen from outside of containerd's user namespace, files have other owners
        ours = status.st_uid == 0 and status.st_ctime >= since
        return usable and ours and not any(folder.iterdir())
    return False


def _may_mount() -> bool:
    """Whether this process has the capability SYS_ADMIN."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) & _CAP_SYS_ADMIN)
    return False
