"""RUNs that failed, to be gone into: their files as they left them, and what they saw."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from pybuild.backend import (
    Activity,
    Backend,
    Capability,
    Mount,
    Process,
    ROLayer,
    RWLayer,
)
from pybuild.errors import BuildCancelled, PybuildError, RunFailed, UnsupportedByBackend
from pybuild.run.activity import StepActivity
from pybuild.run.lending import with_own_sockets
from pybuild.values import dataclass, replace

_HINT = "pybuild debug opens a shell where it failed"


@dataclass(frozen=True, slots=True)
class FailedRun:
    """The files that ``process`` left are in ``layer``; it saw ``mounts`` besides."""

    layer: ROLayer
    process: Process
    mounts: tuple[Mount, ...] = ()

    def run(
        self,
        args: Sequence[str],
        activity: Activity,
        *,
        mounts: Sequence[Mount] = (),
        terminal: int | None = None,
    ) -> int:
        """Run `args` where the process was, as its user and with its variables; the exit code.

        `mounts` are more of them, `terminal` is as in :class:`~pybuild.backend.Process`. What
        is changed in ``layer`` is thrown away. Raises StepFailed, BackendError, BuildCancelled.
        """
        env = self.process.env
        if terminal is not None and "TERM" not in dict(env):
            env = (*env, ("TERM", "xterm"))
        process = replace(self.process, args=tuple(args), env=env, terminal=terminal)
        with (
            with_own_sockets((*self.mounts, *mounts)) as seen,
            self.layer.begin(runs=True) as changed,
        ):
            return changed.run(process, seen, activity)


@dataclass(frozen=True, slots=True)
class TakenRun:
    """A RUN that failed by ``error``, until it is known whether somebody wants to see it."""

    error: RunFailed
    layer: RWLayer | ROLayer
    process: Process
    mounts: tuple[Mount, ...]


OpenShell = Callable[[FailedRun, Activity], object]
"""Has somebody look at the failed process's files, before the build gives everything back."""


class FailedRuns:
    """What becomes of the RUNs of one build that fail. Safe in threads.

    The one that ended the build is kept for ``pybuild debug``, and given to `shell`.
    """

    def __init__(self, shell: OpenShell | None = None) -> None:
        self._shell = shell
        self._lock = threading.Lock()
        self._taken: list[TakenRun] = []

    def fits(self, backend: Backend) -> bool:
        """Whether anything can be kept. Raises UnsupportedByBackend if a shell is wanted."""
        if Capability.DEBUG in backend.capabilities:
            return True
        if self._shell is None:
            return False
        raise UnsupportedByBackend(
            f'the backend "{backend.name}" opens no shell in a failed step',
            hint="build with --backend embedded and pybuild's own sandbox",
        )

    def take(
        self,
        error: RunFailed,
        changed: RWLayer,
        process: Process,
        mounts: tuple[Mount, ...],
        activity: StepActivity,
        *,
        committed: bool,
    ) -> RWLayer | ROLayer | None:
        """Take over `changed`, in which `process` left its files, or `committed` what it is then.

        None, and a warning, if it can't be committed.
        """
        layer: RWLayer | ROLayer = changed
        if committed or self._shell is not None:
            try:
                layer = changed.commit(None, activity)
            except BuildCancelled:
                return None
            except PybuildError as reason:
                activity.warn(_not_kept(reason), reason.hint)
                return None
        with self._lock:
            self._taken.append(TakenRun(error, layer, process, mounts))
        return layer

    def ended(self, error: RunFailed, backend: Backend, activity: StepActivity) -> None:
        """The build ended by `error`, and nothing of it runs any more. Raises BuildCancelled."""
        from pybuild.run.keptruns import KeptRuns  # noqa: PLC0415 - for a build that fails

        with self._lock:
            run = next((run for run in self._taken if run.error is error), None)
        if run is None:
            return
        try:
            if KeptRuns(backend).add(run, activity) and error.hint is None:
                error.hint = _HINT
        except (PybuildError, OSError) as reason:
            activity.raise_if_cancelled()
            activity.warn(_not_kept(reason))
        if self._shell is not None and isinstance(run.layer, ROLayer):
            self._shell(FailedRun(run.layer, run.process, run.mounts), activity)

    def release(self) -> None:
        """Let go of all files. Idempotent."""
        with self._lock:
            taken, self._taken = self._taken, []
        for run in taken:
            run.layer.release()


def _not_kept(reason: Exception) -> str:
    return f"the failed step isn't kept for pybuild debug: {reason}"
