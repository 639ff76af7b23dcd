"""Layers that failed steps left, kept for a while in case somebody asks for them.

Like the rest of the contract in :mod:`pybuild.backend`; a backend where a commit costs little
offers no :class:`KeptLayers`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pybuild.backend import Activity, ROLayer, RWLayer

LONGEST_KEPT = 24 * 60 * 60
"""Seconds after which such a layer is the first to be removed where room is needed."""


class KeptLayers(ABC):
    """Layers under names. Safe in threads and among builds that use different names."""

    @abstractmethod
    def keep(self, name: str, layer: RWLayer | ROLayer, activity: Activity) -> None:
        """Have :meth:`open` find `layer`, with which nothing else is done from then on.

        What had the name before is garbage then. Where room is needed, so is this: after
        :data:`LONGEST_KEPT` before anything else. Raises BackendError, BuildCancelled.
        """

    @abstractmethod
    def open(self, name: str, activity: Activity) -> ROLayer | None:
        """What is kept under `name`, packed now if it wasn't; None if there is nothing."""
