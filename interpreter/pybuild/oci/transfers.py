"""Several transfers at a time, of which the first failure ends the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import ExitStack, contextmanager

from pybuild.errors import BuildCancelled
from pybuild.oci.http import Activity

Transfer = Callable[[Activity], object]


def in_parallel(transfers: Sequence[Transfer], activity: Activity, *, workers: int = 4) -> None:
    """Run `transfers`, `workers` at a time. Raises what the first failure did."""
    if len(transfers) < 2:
        for transfer in transfers:
            transfer(activity)
        return
    group = _Group(activity)
    with ThreadPoolExecutor(min(workers, len(transfers)), "transfer") as pool:
        futures = [pool.submit(transfer, group) for transfer in transfers]
        try:
            wait_for(futures, return_when=FIRST_EXCEPTION)
        finally:
            for future in futures:
                future.cancel()
            group.stop()
    errors = [future.exception() for future in futures if not future.cancelled()]
    activity.raise_if_cancelled()
    # A transfer that was stopped for another's sake isn't the cause.
    causes = [error for error in errors if error and not isinstance(error, BuildCancelled)]
    for error in (*causes, *(error for error in errors if error)):
        raise error


class _Group:
    """The activity of several transfers, of which the first failure stops the others."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity
        self._lock = threading.Lock()
        self._stopped = False
        self._callbacks: list[Callable[[], None]] = []

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()

    def progress(self, item: str, done: int, total: int | None) -> None:
        self._activity.progress(item, done, total)

    def raise_if_cancelled(self) -> None:
        self._activity.raise_if_cancelled()
        if self._stopped:
            raise BuildCancelled("another transfer of the image failed")

    @contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self._activity.on_cancel(callback))
            with self._lock:
                self._callbacks.append(callback)
                stopped = self._stopped
            stack.callback(self._forget, callback)
            if stopped:
                callback()
            yield

    def _forget(self, callback: Callable[[], None]) -> None:
        with self._lock:
            self._callbacks.remove(callback)
