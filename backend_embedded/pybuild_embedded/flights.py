"""Which steps this backend is making, so that no other build makes them at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pybuild.backend import Activity
from pybuild_embedded.store import Store


class Flights:
    """The steps being made, by their keys. Safe in threads.

    What a step leaves is packed and recorded after it, so whoever commits a layer takes its
    step's flight over and ends it when the step can be looked up.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._held: dict[str, ExitStack] = {}

    @contextmanager
    def holding(self, key: str, activity: Activity) -> Iterator[None]:
        """Be the only one who makes the step. Raises BuildCancelled while waiting for others."""
        with ExitStack() as flight:
            flight.enter_context(self._store.single_flight(f"step {key}", activity))
            with self._lock:
                self._held[key] = flight
            try:
                yield
            finally:
                with self._lock:
                    self._held.pop(key, None)

    def taken_over(self, key: str) -> ExitStack:
        """The flight of a step, to be closed; an empty one if the step isn't in flight."""
        with self._lock:
            flight = self._held.pop(key, None)
        return ExitStack() if flight is None else flight.pop_all()
