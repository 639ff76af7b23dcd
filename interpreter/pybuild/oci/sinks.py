"""Where the bytes of a blob go that comes from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from pybuild.oci.descriptor import Descriptor


class Sink(Protocol):
    """Takes the bytes of one blob."""

    def write(self, piece: bytes, /) -> object:
        """Append `piece`."""

    def restart(self) -> None:
        """Drop all that was written: the bytes were wrong and come again."""

    def commit(self) -> None:
        """Keep the blob; its digest and size are verified. Called once, last."""


OpenSink = Callable[[Descriptor], AbstractContextManager[Sink]]
"""Opens a sink for a blob. Leaving the context without a commit must store nothing."""
