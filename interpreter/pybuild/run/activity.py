"""Cancelling a build, and routing what its work reports to the one Reporter."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING

from pybuild.errors import BackendFailed, BuildCancelled, PybuildError, SourceRange
from pybuild.run.events import (
    Event,
    Reporter,
    StepFinished,
    StepLog,
    StepMissed,
    StepProgress,
    StepStarted,
    Warned,
)
from pybuild.run.output import OutputTail
from pybuild.values import dataclass, field

if TYPE_CHECKING:
    from pybuild.run.miss import Miss

_PROGRESS_INTERVAL = 0.1


@dataclass(slots=True)
class _Registration:
    callback: Callable[[], None]
    lock: threading.RLock = field(default_factory=threading.RLock)
    active: bool = True

    def fire(self) -> None:
        with self.lock:
            if self.active:
                self.active = False
                # One callback's failure must not keep the next process alive.
                with suppress(Exception):
                    self.callback()


class CancelToken:
    """Cancels a build from any thread. Cancelling is final and may be repeated.

    Don't call :meth:`cancel` from a signal handler: the callbacks take locks.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._registrations: list[_Registration] = []

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """Mark as cancelled and run the callbacks in this thread."""
        with self._lock:
            self._cancelled = True
            registrations, self._registrations = self._registrations, []
        for registration in registrations:
            registration.fire()

    def raise_if_cancelled(self) -> None:
        """Raise BuildCancelled once :meth:`cancel` was called."""
        if self._cancelled:
            raise BuildCancelled("the build was cancelled")

    @contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        """While the context lasts, call `callback` once on cancel; at once if that has been.

        When the context has ended, the callback isn't running any more.
        """
        registration = _Registration(callback)
        with self._lock:
            already = self._cancelled
            if not already:
                self._registrations.append(registration)
        if already:
            registration.fire()
        try:
            yield
        finally:
            with self._lock, suppress(ValueError):
                self._registrations.remove(registration)
            with registration.lock:
                registration.active = False


class Events:
    """The events of one build: numbers its units and serialises what all threads report."""

    def __init__(self, reporter: Reporter | None) -> None:
        self._reporter = reporter
        # A reporter may cancel the build, whose callbacks may report in turn.
        self._lock = threading.RLock()
        self._last_id = 0

    def send(self, event: Event) -> None:
        """Hand `event` to the reporter, from one thread at a time."""
        if self._reporter is not None:
            with self._lock:
                self._reporter.report(event)

    @contextmanager
    def unit(
        self,
        title: str,
        cancel: CancelToken,
        *,
        stage: str = "",
        position: str = "",
        where: SourceRange | None = None,
    ) -> Iterator[StepActivity]:
        """Report a unit of work: its start, and its end however it ends."""
        with self._lock:
            self._last_id += 1
            number = self._last_id
            if self._reporter is not None:
                self._reporter.report(StepStarted(number, title, stage, position, where))
        activity = StepActivity(number, self, cancel)
        try:
            yield activity
        except BuildCancelled as error:
            self._finish(activity, error)
            raise
        except PybuildError as error:
            if error.where is None:
                error.where = where
            if position and not error.step:
                error.step = title
            self._finish(activity, error)
            raise
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
            self._finish(activity, BackendFailed(text, where=where))
            raise
        self._finish(activity, None)

    def silent(self, cancel: CancelToken) -> StepActivity:
        """An activity for what is over in an instant and no unit of its own."""
        return StepActivity(0, self, cancel)

    def warn(
        self, message: str, *, where: SourceRange | None = None, hint: str | None = None
    ) -> None:
        """Report a warning that concerns no unit."""
        self.send(Warned(0, message, where, hint))

    def _finish(self, activity: StepActivity, error: PybuildError | None) -> None:
        cancelled = error is not None and (
            isinstance(error, BuildCancelled) or activity.cancel.cancelled
        )
        self.send(
            StepFinished(
                activity.id,
                activity.seconds,
                cached=activity.cached and error is None,
                error=error,
                cancelled=cancelled,
            )
        )


class StepActivity:
    """The :class:`~pybuild.backend.Activity` of one unit.

    ``tail`` keeps the last lines of output for a failure's message, shown or not. ``copy``,
    if there is one, gets all output, from one thread at a time.
    """

    def __init__(self, number: int, events: Events, cancel: CancelToken) -> None:
        self.id = number
        self.cancel = cancel
        self.cached = False
        self.tail = OutputTail()
        self.copy: Callable[[bytes], None] | None = None
        self._events = events
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._progressed: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Wall time since the unit began."""
        return time.monotonic() - self._began

    def log(self, stream: int, data: bytes) -> None:
        """Take output of a process: `stream` is 1 or 2, `data` any piece of it.

        Once the build is cancelled it isn't reported: the reader may be slower than the process.
        """
        if not data:
            return
        with self._lock:
            self.tail.feed(data)
            if self.copy is not None:
                self.copy(data)
        if not self.cancel.cancelled:
            self._events.send(StepLog(self.id, stream, data, self.seconds))

    def progress(self, item: str, done: int, total: int | None) -> None:
        """Tell how many bytes of `item` are done. Passed on ten times a second at most."""
        now = time.monotonic()
        finished = total is not None and done >= total
        with self._lock:
            if not finished and now - self._progressed.get(item, 0.0) < _PROGRESS_INTERVAL:
                return
            self._progressed[item] = now
        self._events.send(StepProgress(self.id, item, done, total))

    def missed(self, miss: Miss) -> None:
        """Tell why the step has to run."""
        self._events.send(StepMissed(self.id, miss))

    def note(self, text: str) -> None:
        """Report something done that has no size: ``naming to docker.io/library/app:1``."""
        self._events.send(StepProgress(self.id, text, 0, 0))

    def warn(self, message: str, hint: str | None = None) -> None:
        """Tell the user of something that isn't an error."""
        self._events.send(Warned(self.id, message, hint=hint))

    def raise_if_cancelled(self) -> None:
        """Raise BuildCancelled if the build was cancelled."""
        self.cancel.raise_if_cancelled()

    def on_cancel(self, callback: Callable[[], None]) -> AbstractContextManager[None]:
        """While the context lasts, call `callback` once from another thread on cancel."""
        return self.cancel.on_cancel(callback)
