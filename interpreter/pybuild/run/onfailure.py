"""What a build keeps of a step that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pybuild.backend import ROLayer, RWLayer
from pybuild.errors import PybuildError, RunFailed, StepFailed
from pybuild.run.activity import StepActivity
from pybuild.values import dataclass

if TYPE_CHECKING:
    from pybuild.run.failedsteps import FailedSteps


@dataclass(frozen=True, slots=True)
class OnFailure:
    """Keep its files in `steps`, and all that its process printed in the folder `logs`."""

    steps: FailedSteps | None = None
    logs: Path | None = None

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
    def begun(self, layer: ROLayer, newest: int | None) -> Iterator[RWLayer]:
        """A layer for a process: released at the end, or kept where RunFailed is raised."""
        with ExitStack() as stack:
            changed = stack.enter_context(layer.begin(runs=True, newest=newest))
            try:
                yield changed
            except RunFailed as error:
                if self.steps is not None:
                    stack.pop_all()
                    self.steps.keep(error, changed)
                raise

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
