"""What a build keeps of a step that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pybuild.backend import Backend, Mount, Process, ROLayer, RWLayer
from pybuild.errors import PybuildError, RunFailed, StepFailed
from pybuild.run.activity import CancelToken, Events, StepActivity
from pybuild.values import dataclass, replace

if TYPE_CHECKING:
    from pybuild.run.failedruns import FailedRuns
    from pybuild.run.failedsteps import FailedSteps


@dataclass(frozen=True, slots=True)
class OnFailure:
    """Keep its files in `steps`, and all that its process printed in the folder `logs`.

    What `runs` gets of a process can be gone into.
    """

    steps: FailedSteps | None = None
    logs: Path | None = None
    runs: FailedRuns | None = None

    def fitting(self, backend: Backend) -> OnFailure:
        """What of this `backend` allows. Raises UnsupportedByBackend if the user counts on more."""
        return self if self.runs is None or self.runs.fits(backend) else replace(self, runs=None)

    @contextmanager
    def watching(self, title: str, layer: ROLayer, activity: StepActivity) -> Iterator[None]:
        """While the step `title` is done on `layer`; gives an error that ends it what is kept."""
        with self._logging(title, activity):
            try:
                yield
            except StepFailed as error:
                if self.steps is not None and error.kept is None:
                    self.steps.keep(error, layer.begin(runs=False))
                raise

    @contextmanager
    def begun(
        self,
        layer: ROLayer,
        newest: int | None,
        identified: Callable[[], Process],
        mounts: tuple[Mount, ...],
        activity: StepActivity,
    ) -> Iterator[tuple[RWLayer, Process]]:
        """A layer for a process: released at the end, or kept where RunFailed is raised.

        `identified` gives the process, when the backend has begun to do its part. `mounts` are
        those that it sees, with the sockets of the agents themselves.
        """
        with ExitStack() as stack:
            changed = stack.enter_context(layer.begin(runs=True, newest=newest))
            process = identified()
            try:
                yield changed, process
            except RunFailed as error:
                if self.runs is not None:
                    taken = self.runs.take(
                        error, changed, process, mounts, activity, committed=self.steps is not None
                    )
                    if taken is changed:
                        stack.pop_all()
                    elif self.steps is not None and isinstance(taken, ROLayer):
                        self.steps.keep(error, taken.begin(runs=False))
                elif self.steps is not None:
                    stack.pop_all()
                    self.steps.keep(error, changed)
                raise

    @contextmanager
    def afterwards(self, backend: Backend, events: Events, cancel: CancelToken) -> Iterator[None]:
        """While all steps are done; then nothing runs any more, and a failed one can be looked at."""
        try:
            yield
        except RunFailed as error:
            if self.runs is not None:
                self.runs.ended(error, backend, events.silent(cancel))
            raise
        finally:
            if self.runs is not None:
                self.runs.release()

    @contextmanager
    def _logging(self, title: str, activity: StepActivity) -> Iterator[None]:
        if self.logs is None:
            yield
            return
        from pybuild.run.logfile import LogFile  # noqa: PLC0415 - for those who ask for logs

        log = LogFile(self.logs, title, activity.warn)
        activity.copy = log.write
        ended_well = False
        try:
            yield
            ended_well = True
        except PybuildError as error:
            error.log = log.path
            raise
        finally:
            activity.copy = None
            log.close(keep=not ended_well)


KEEP_NOTHING = OnFailure()
"""What most builds want."""
