"""The files of steps that failed, for whoever wants to look at them afterwards."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pybuild.backend import ROLayer, RWLayer
from pybuild.errors import StepFailed, UsageError
from pybuild.files.filesystem import FileSystem
from pybuild.files.trees import Tree
from pybuild.run.activity import CancelToken, Events

MOST_KEPT = 16
"""As many failed steps are kept, the last ones."""


class FailedSteps:
    """Keeps the files of the last :data:`MOST_KEPT` steps that failed, until it is closed.

    Their backend must be closed later. Safe in threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[_Kept] = deque()

    def keep(self, error: StepFailed, layer: RWLayer) -> None:
        """Take `layer` over, and give its files to `error`."""
        kept = _Kept(layer)
        error.kept = FileSystem(kept.use)
        with self._lock:
            self._kept.append(kept)
            over = self._kept.popleft() if len(self._kept) > MOST_KEPT else None
        if over is not None:
            over.release()

    def close(self) -> None:
        """Give the files back. Idempotent."""
        with self._lock, ExitStack() as releasing:
            while self._kept:
                releasing.callback(self._kept.popleft().release)


class _Kept:
    """The layer of a step. It is committed when somebody wants to see it: few do."""

    def __init__(self, layer: RWLayer) -> None:
        self._lock = threading.Lock()
        self._layer: RWLayer | ROLayer | None = layer

    @contextmanager
    def use(self) -> Iterator[Tree]:
        with self._lock:
            if isinstance(self._layer, RWLayer):
                changed, self._layer = self._layer, None
                with changed:
                    self._layer = changed.commit(None, Events(None).silent(CancelToken()))
            if self._layer is None:
                raise UsageError(
                    "the files of the failed step aren't kept any more",
                    hint=f"a Builder keeps those of {MOST_KEPT} steps, until it is closed",
                )
            yield self._layer.tree()

    def release(self) -> None:
        with self._lock:
            layer, self._layer = self._layer, None
        if layer is not None:
            layer.release()
