"""The reporter that writes a page about a build when that has ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from pybuild.errors import PybuildError, UsageError
from pybuild.files.wholefiles import write_whole
from pybuild.htmlreport.page import page
from pybuild.htmlreport.recording import Recording
from pybuild.run.events import Event, Reporter, Warned


class HtmlReport:
    """A :class:`~pybuild.run.events.Reporter` of one build, and a context manager around it.

    When the context ends, the file `path` becomes a page about the build, also of one that
    failed; what was at `path` before is replaced at once or not at all. `then` gets every event
    as well. Entering raises UsageError where the file can't be written; leaving does so too, but
    never instead of what the build raised: `then` is warned.
    """

    def __init__(
        self,
        path: str | Path,
        then: Reporter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = Path(path)
        self._then = then
        self._clock = clock
        self._began = clock()
        self._recording = Recording(datetime.now(UTC))

    def __enter__(self) -> Self:
        if self._path.is_dir() or not os.access(self._path.parent, os.W_OK | os.X_OK):
            raise UsageError(
                f'can\'t write the report "{self._path}"', hint="name a file in a folder of yours"
            )
        self._began = self._clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        recording = self._recording
        recording.seconds = self._clock() - self._began
        if isinstance(error, PybuildError):
            recording.error = error
        elif kind is not None:
            recording.error = PybuildError(f"{kind.__name__}: {error}")
        try:
            content = page(recording).encode("utf-8", "backslashreplace")
            # a link stays one, and what it leads to is replaced
            write_whole(self._path.resolve(), content, 0o644)
        except OSError as failure:
            message = f'can\'t write the report "{self._path}": {failure.strerror or failure}'
            if error is None:
                raise UsageError(message) from failure
            if self._then is not None:
                self._then.report(Warned(0, message))

    def report(self, event: Event) -> None:
        """Note what `event` says, and pass it on."""
        self._recording.take(event, self._clock() - self._began)
        if self._then is not None:
            self._then.report(event)
