"""How a RUN is run: in a sandbox on the snapshot's folders, or as a task of containerd.

A sandbox takes milliseconds where a task takes more than a hundred. It needs root, and the
snapshots of an overlay on this machine; whether it works is found out by a try.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Iterator

from pybuild.errors import BackendError, BackendFailed, BackendUnavailable, PybuildError
from pybuild.files.trees import Tree
from pybuild.sandbox.client import Sandbox, SandboxFailed
from pybuild.sandbox.mapping import Kind, Mapping
from pybuild.sandbox.modes import try_runtime
from pybuild.sandbox.runtimes import RUNTIMES, find_runtime
from pybuild.sandbox.spec import Bind, Overlay, OverlayBind, RunSpec, Tmpfs
from pybuild.sandbox.spec import Mount as SandboxMount
from pybuild_containerd.runtime_spec import SpecMount
from pybuild_containerd.snapshots import Mount, Snapshots, layer_folders

_TMPFS_MODE = 0o1777
_SIZE = "size="
_IN_SANDBOX = ("sandbox", *RUNTIMES)


class Runners:
    """Starts the sandbox of a backend when the first process needs it. Safe in threads."""

    def __init__(self, wanted: str, snapshots: Snapshots, *, mounts_snapshots: bool) -> None:
        """`wanted` is auto, sandbox, task, or a runtime to start processes in the sandbox.

        `mounts_snapshots`: as root, on this machine.
        """
        self._wanted = wanted
        self._snapshots = snapshots
        self._mounts_snapshots = mounts_snapshots
        self._lock = threading.Lock()
        self._launched: Sandbox | None = None
        self._sandbox: Sandbox | None = None
        self._refusal: str | None = None

    def launch(self) -> None:
        """Begin to start the sandbox that `sandbox` gives, if one is to be tried."""
        with self._lock:
            is_known = self._sandbox is not None or self._refusal is not None
            if is_known or self._launched is not None or self._unwanted() is not None:
                return
            with contextlib.suppress(PybuildError):  # whoever needs it gets the error
                launched = self._unstarted()
                launched.launch()
                self._launched = launched

    def _unwanted(self) -> str | None:
        """Why no sandbox is even tried, if that is so."""
        if self._wanted == "task":
            return "as asked for"
        if not self._mounts_snapshots:
            return "this process can't mount containerd's snapshots"
        return None

    def _unstarted(self) -> Sandbox:
        # as the machine's own root: containerd's overlays have attributes that only it may set
        mapping = Mapping(Kind.INIT)
        runtime = find_runtime(self._wanted, mapping) if self._wanted in RUNTIMES else None
        return Sandbox(mapping, runtime=runtime)

    def sandbox(self) -> Sandbox | None:
        """The sandbox to run processes in; None if they are to be tasks.

        Raises BackendUnavailable if a sandbox or a runtime is wanted and doesn't work here.
        """
        with self._lock:
            if self._sandbox is None and self._refusal is None:
                self._refusal = self._start()
            if self._refusal is not None and self._wanted in _IN_SANDBOX:
                raise BackendUnavailable(
                    f"a RUN can't go through a sandbox: {self._refusal}",
                    hint="--runner=task has containerd run it",
                )
            return self._sandbox

    def describe(self) -> str:
        """Which way is taken, and why not the other."""
        sandbox = self.sandbox()
        if sandbox is None:
            return f"task ({self._refusal})"
        return "sandbox" if sandbox.runtime is None else f"{sandbox.runtime} in the sandbox"

    def close(self) -> None:
        """End what runs in the sandbox. Idempotent."""
        with self._lock:
            started = (self._sandbox, self._launched)
            self._sandbox = self._launched = None
            self._refusal = "the backend is closed"
        for sandbox in started:
            if sandbox is not None:
                sandbox.close()

    def _start(self) -> str | None:
        """Start the sandbox and try it on a snapshot; the reason if it can't be used."""
        unwanted = self._unwanted()
        if unwanted is not None:
            return unwanted
        sandbox, self._launched = self._launched or self._unstarted(), None
        try:
            sandbox.start()
            with _overlay_for_trial(self._snapshots) as root:
                if root is None:
                    sandbox.close()
                    return f"the snapshotter {self._snapshots.snapshotter} makes no plain overlays"
                sandbox.run(RunSpec(root, ()), lambda _stream, _piece: None)
            if sandbox.runtime is not None:
                try_runtime(sandbox)
        except SandboxFailed as failure:
            sandbox.close()
            return failure.message
        except BaseException:
            sandbox.close()
            raise
        self._sandbox = sandbox
        return None


def overlay_root(mounts: tuple[Mount, ...]) -> Overlay | None:
    """An active snapshot as the root of a sandbox; None if it isn't a plain overlay.

    fsync keeps its meaning: the snapshot outlives the build.
    """
    folders = layer_folders(mounts)
    if folders is None or folders.upper is None or folders.work is None or folders.unknown:
        return None
    lowers = tuple(map(os.fsencode, folders.lowers))
    ends = os.fsencode(folders.upper), os.fsencode(folders.work)
    return Overlay(lowers, *ends, volatile=False)


def sandbox_mount(mount: SpecMount, tree: Tree) -> SandboxMount:
    """A mount for runc as one for a sandbox with the files of `tree`."""
    match mount.type:
        case "tmpfs":
            covered = tree.get(os.fsencode(mount.destination.lstrip("/")))
            size = next((o.removeprefix(_SIZE) for o in mount.options if o.startswith(_SIZE)), None)
            mode = _TMPFS_MODE if covered is None else covered.mode
            return Tmpfs(mount.destination, None if size is None else int(size), mode)
        case "overlay":
            return _overlay_bind(mount)
        case _:
            readonly = "ro" in mount.options
            return Bind(mount.destination, os.fsencode(mount.source), readonly, mount.inside)


def _overlay_bind(mount: SpecMount) -> OverlayBind:
    """A snapshot of a whole layer. What is written goes with the snapshot."""
    folders = layer_folders((Mount(mount.type, mount.source, mount.options),))
    if folders is None or folders.unknown:
        raise BackendFailed(f"a layer for {mount.destination} is no plain overlay")
    return OverlayBind(
        mount.destination,
        tuple(map(os.fsencode, folders.lowers)),
        os.fsencode(folders.upper) if folders.upper else None,
        os.fsencode(folders.work) if folders.work else None,
        readonly=folders.upper is None,
    )


@contextlib.contextmanager
def _overlay_for_trial(snapshots: Snapshots) -> Iterator[Overlay | None]:
    """A new snapshot on an empty one, which are gone afterwards."""
    key = f"pybuild-trial-{secrets.token_hex(8)}"
    below = f"{key}-below"
    snapshots.prepare(key)
    snapshots.commit(key, below)
    try:
        yield overlay_root(snapshots.prepare(key, below))
    finally:
        with contextlib.suppress(BackendError):  # the session's lease removes them later
            snapshots.remove(key)
            snapshots.remove(below)
