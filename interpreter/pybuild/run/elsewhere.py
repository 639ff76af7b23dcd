"""What stages take from caches of other machines, and leave for them."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from pybuild.backend import Activity, BaseImage, ROLayer
from pybuild.oci.descriptor import LayerDiff
from pybuild.run.execute import Prepared
from pybuild.values import dataclass


@dataclass(frozen=True, slots=True)
class KeptStep:
    """A step under its cache key, and all layers that it left, bottom first.

    The first ``base`` of them are the base image's; with ``own`` the topmost is what the step
    changed. ``made`` is when it ran.
    """

    key: str
    layers: tuple[LayerDiff, ...]
    base: int
    own: bool
    made: datetime


class Elsewhere(Protocol):
    """Caches of other machines. Safe in threads; what goes wrong there is a warning and a miss."""

    def find(
        self, key: str, below: ROLayer, base: BaseImage | None, activity: Activity
    ) -> ROLayer | None:
        """The backend's layer of the step with this key, which is done on `below`.

        `base` is the image that its stage began with. Raises BuildCancelled.
        """

    def seeded(self, prepared: Prepared, activity: Activity) -> Prepared:
        """The same, whose cache mounts begin with what they held there if they aren't here yet."""
