"""How processes run on this machine: the sandbox that works here, and the workers in it."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pybuild.errors import BackendUnavailable, PybuildError
from pybuild.sandbox.mapping import (
    Attempt,
    IdRange,
    Kind,
    Mapping,
    Probe,
    RootAttempt,
    RootKind,
)
from pybuild.values import dataclass
from pybuild_embedded.usage import measure_plainly

if TYPE_CHECKING:
    from pybuild.sandbox.client import Sandbox
    from pybuild.sandbox.runtimes import Runtime
    from pybuild_embedded.workers import Workers

_OWN = ("auto", "sandbox")  # runners that need no runtime
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SUBORDINATE = (Path("/etc/subuid"), Path("/etc/subgid"))
_RULES = (
    Path("/proc/self/uid_map"),
    Path("/proc/sys/user/max_user_namespaces"),
    Path("/proc/sys/kernel/unprivileged_userns_clone"),
    Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
)


@dataclass(frozen=True, slots=True)
class _Found:
    """How processes run here, and why not on overlays if they can't."""

    probe: Probe
    refusal: RootAttempt | None = None


class Machine:
    """Finds a sandbox that works and starts it when the first process is to run.

    What was found is kept in `folder`, the store's, until the machine boots again, or who
    may have which ids changes. `runner` may name a runtime that is to start the processes of
    steps. A context manager; safe in threads.
    """

    def __init__(self, folder: Path, runner: str, *, user_namespace: bool) -> None:
        self._folder = folder
        self._runner = runner
        # of the runtime; each build gets an error of its own, with its own place
        self._refusal: Callable[[], BackendUnavailable] | None = None
        self._tried = False
        self._note = folder / "machine.json"
        self._user_namespace = user_namespace
        self._lock = threading.RLock()
        self._found: _Found | None = None
        self._launched: Sandbox | None = None
        self._sandbox: Sandbox | None = None
        self._workers: Workers | None = None
        self._is_announced = False
        self._warming: threading.Thread | None = None
        self._closed = False

    def probe(self) -> Probe:
        """What this machine allows, and why not more."""
        return self._look_once().probe

    def overlay_refusal(self) -> RootAttempt | None:
        """Why layers in the store can't be mounted over each other, None if they can."""
        return self._look_once().refusal

    def root_kind(self) -> RootKind:
        """How a step sees its layers. Raises BackendUnavailable where none can run."""
        self.mapping()
        return RootKind.OVERLAY if self.overlay_refusal() is None else RootKind.COPY

    def _look_once(self) -> _Found:
        with self._lock:
            if self._found is None:
                self._found = self._recall() or self._look()
            return self._found

    def mapping(self) -> Mapping:
        """The ids of the sandbox. Raises BackendUnavailable where there can be none."""
        found = self.probe()
        if found.mapping is None:
            raise BackendUnavailable(f"RUN is not possible here: {found.reason}", hint=found.hint)
        return found.mapping

    @property
    def flavour(self) -> str:
        """What tells unpacked layers of one mapping from those of another."""
        mapping = self.mapping()
        if mapping.kind is Kind.RANGE:
            return f"range-{mapping.uids[1].outside}-{mapping.gids[1].outside}"
        return mapping.kind.name.lower()

    @property
    def keeps_owners(self) -> bool:
        """Whether a file can belong to any user; with one id, all belong to that."""
        return self.mapping().kind is not Kind.SINGLE

    def launch(self) -> None:
        """Begin to start the sandbox, for `sandbox`, which waits for it and has the errors."""
        with self._lock, contextlib.suppress(PybuildError):
            if self._closed or self._sandbox is not None or self._launched is not None:
                return
            launched = self._unstarted()
            launched.launch()
            self._launched = launched

    def sandbox(self) -> Sandbox:
        """The sandbox of this build, started now if it isn't yet. Raises BackendUnavailable."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the backend is closed")
            if self._sandbox is None:
                self._sandbox = self._started()
            return self._sandbox

    def step_sandbox(self) -> Sandbox:
        """The sandbox for processes of steps. Raises BackendUnavailable also for the runtime."""
        with self._lock:
            sandbox = self.sandbox()
            if sandbox.runtime is not None and not self._tried:
                from pybuild.sandbox.modes import try_runtime  # noqa: PLC0415 - seldom wanted

                self._tried = True
                try:
                    try_runtime(sandbox)
                except BackendUnavailable as error:
                    self._refusal = _again(error)
            if self._refusal is not None:
                raise self._refusal()
            return sandbox

    @property
    def has_own_runner(self) -> bool:
        """Whether processes are started by the sandbox alone, and not by a runtime."""
        return self._runner in _OWN

    @property
    def is_announced(self) -> bool:
        """Whether processes are going to run."""
        return self._is_announced

    def warm_up(self) -> None:
        """Start what a process will need, in the background, if one was required."""
        with self._lock:
            if self._is_announced and self._warming is None and not self._closed:
                self._warming = threading.Thread(target=self._warm, name="pybuild-warm-up")
                self._warming.start()

    def _warm(self) -> None:
        with contextlib.suppress(PybuildError):  # whoever needs it gets the error
            with self._lock:
                if self._closed:
                    return
                workers = self.workers()
            workers.warm_up()

    def require_runner(self) -> None:
        """Raises BackendUnavailable where the processes of steps can't be run as wanted."""
        self.mapping()
        self._is_announced = True
        if self._runner not in _OWN:
            self.step_sandbox()

    def describe_runner(self) -> str:
        """What starts the processes of steps."""
        if self._runner in _OWN:
            return "pybuild"
        try:
            return str(self.step_sandbox().runtime)
        except BackendUnavailable as error:
            return f"nothing: {error.message}"

    def workers(self) -> Workers:
        """The workers in the sandbox's user namespace."""
        with self._lock:
            sandbox = self.sandbox()
            if self._workers is None:
                from pybuild_embedded.workers import Workers  # noqa: PLC0415 - for a RUN

                self._workers = Workers(sandbox)
            return self._workers

    def remove(self, folders: Sequence[Path]) -> None:
        """Remove folders of the store with all in them, whoever it belongs to."""
        if not folders:
            return
        from pybuild_embedded.smallfolders import remove_small  # noqa: PLC0415 - after a RUN

        folders = [folder for folder in folders if not remove_small(folder)]
        if not folders:
            return
        if self.probe().mapping is not None:
            self.workers().remove(folders)
            return
        import shutil  # noqa: PLC0415 - seldom needed

        for folder in folders:  # without a sandbox, nothing in them can be another's
            shutil.rmtree(folder, ignore_errors=True)

    def measure(self, folders: Sequence[Path]) -> list[int]:
        """What folders of the store take up on the disk, in bytes."""
        if folders and self.probe().mapping is not None:
            return self.workers().measure(folders)
        return measure_plainly(folders)

    @property
    def running(self) -> bool:
        """Whether a sandbox has been started."""
        return self._sandbox is not None

    def close(self) -> None:
        """End every process. Idempotent."""
        with self._lock:
            self._closed = True
            workers, self._workers = self._workers, None
            started = (self._sandbox, self._launched)
            self._sandbox = self._launched = None
        for sandbox in started:
            if sandbox is not None:
                sandbox.close()  # its workers end with it
        if workers is not None:
            workers.close()
        if self._warming is not None:
            self._warming.join()

    def _started(self) -> Sandbox:
        sandbox, self._launched = self._launched or self._unstarted(), None
        try:
            sandbox.start()
        except PybuildError:
            # what was found before may have been forbidden since
            self._note.unlink(missing_ok=True)
            self._found = self._look()
            sandbox = self._unstarted()
            sandbox.start()
        return sandbox

    def _unstarted(self) -> Sandbox:
        from pybuild.sandbox.client import Sandbox  # noqa: PLC0415 - for a RUN

        return Sandbox(self.mapping(), runtime=self._runtime())

    def _runtime(self) -> Runtime | None:
        """The runtime that is wanted; a sandbox without one still serves the workers."""
        if self._runner in _OWN:
            return None
        from pybuild.sandbox.runtimes import find_runtime  # noqa: PLC0415 - seldom wanted

        try:
            return find_runtime(self._runner, self.mapping())
        except BackendUnavailable as error:
            self._refusal = _again(error)
            return None

    def _look(self) -> _Found:
        from pybuild.sandbox.modes import probe, probe_root  # noqa: PLC0415 - once a boot

        found = _Found(probe(self._folder, namespace_for_root=self._user_namespace))
        if found.probe.mapping is not None:
            root = probe_root(self._folder, found.probe.mapping, fuse=False)
            if root.kind is not RootKind.OVERLAY:
                found = _Found(found.probe, root.refused[0])
        self._remember(found)
        return found

    def _circumstances(self) -> list[object]:
        """What the outcome of a probe depends on."""
        texts = [path.read_text() if path.exists() else "" for path in (_BOOT_ID, *_RULES)]
        changed = [path.stat().st_mtime_ns if path.exists() else 0 for path in _SUBORDINATE]
        return [2, os.geteuid(), os.getegid(), self._user_namespace, *texts, *changed]

    def _recall(self) -> _Found | None:
        try:
            circumstances, mapping, reason, hint, refused, overlay = json.loads(
                self._note.read_bytes()
            )
            if circumstances != self._circumstances():
                return None
            attempts = tuple(Attempt(Kind(kind), why, what) for kind, why, what in refused)
            refusal = overlay and RootAttempt(RootKind.OVERLAY, *overlay)
            return _Found(Probe(mapping and _mapping(mapping), reason, hint, attempts), refusal)
        except (OSError, ValueError, TypeError, KeyError):
            return None  # nothing known, which a probe mends

    def _remember(self, found: _Found) -> None:
        from dataclasses import asdict  # noqa: PLC0415 - once a boot
        from tempfile import mkstemp  # noqa: PLC0415 - as above

        probed, refusal = found.probe, found.refusal
        mapping = probed.mapping and asdict(probed.mapping) | {"kind": probed.mapping.kind.value}
        refused = [(each.kind.value, each.reason, each.hint) for each in probed.refused]
        overlay = refusal and (refusal.reason, refusal.hint)
        text = json.dumps(
            [self._circumstances(), mapping, probed.reason, probed.hint, refused, overlay]
        )
        with contextlib.suppress(OSError):  # then the next build probes again
            number, name = mkstemp(dir=self._folder, prefix=".machine-")
            with open(number, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor, not a path
                file.write(text)
            os.replace(name, self._note)  # noqa: PTH105 - pairs with mkstemp


def _mapping(found: dict[str, object]) -> Mapping:
    def ranges(name: str) -> tuple[IdRange, ...]:
        lines = found[name]
        assert isinstance(lines, list)  # noqa: S101 - TypeError would do as well
        return tuple(IdRange(**line) for line in lines)

    return Mapping(
        Kind(found["kind"]),
        ranges("uids"),
        ranges("gids"),
        str(found["newuidmap"]),
        str(found["newgidmap"]),
    )


def _again(error: BackendUnavailable) -> Callable[[], BackendUnavailable]:
    """What makes the same error anew."""
    return partial(BackendUnavailable, error.message, hint=error.hint)
