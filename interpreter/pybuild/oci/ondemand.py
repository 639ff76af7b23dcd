"""A client that is made when it is first asked for, so that who needs none connects nowhere."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class _Closable(Protocol):
    def close(self) -> None: ...


_Client = TypeVar("_Client", bound=_Closable)


class OnDemand(Generic[_Client]):
    """Calls `connect` with the first :meth:`client`, and closes what it gave. Safe in threads."""

    def __init__(self, connect: Callable[[], _Client]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._client: _Client | None = None

    def client(self) -> _Client:
        """The client: the same one until it is closed."""
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def close(self) -> None:
        """Close the client if there is one. Idempotent."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()
