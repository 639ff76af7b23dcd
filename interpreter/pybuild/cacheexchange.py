"""What a backend takes from, and gives to, caches that several machines share.

Like the rest of the contract in :mod:`pybuild.backend`; a backend that has none of it offers
no :class:`CacheExchange`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from pybuild.oci import http
from pybuild.oci.descriptor import Descriptor, LayerDiff
from pybuild.oci.reference import Reference
from pybuild.oci.sinks import OpenSink
from pybuild.values import dataclass

if TYPE_CHECKING:
    from pybuild.backend import Activity


@dataclass(frozen=True, slots=True)
class ForeignStep:
    """What a step made on another machine: all layers, bottom first.

    With ``own`` the topmost is what the step changed. The first ``known`` layers are those of
    a layer here; the others may not be here yet. ``made`` is when it ran.
    """

    layers: tuple[LayerDiff, ...]
    known: int
    own: bool
    made: datetime

    @property
    def foreign(self) -> tuple[LayerDiff, ...]:
        """The layers that come from the other machine."""
        return self.layers[self.known :]


class BlobSource(Protocol):
    """Where the blobs of a cache are."""

    @property
    def reference(self) -> Reference | None:
        """The registry's image from which they can be fetched later; None if there is none."""

    def fetch(
        self, blobs: Sequence[Descriptor], open_sink: OpenSink, activity: http.Activity
    ) -> None:
        """Write each blob into a sink of its own, several at a time; digests are checked.

        Raises ImageError, BuildCancelled.
        """


class CacheExchange(ABC):
    """Steps and cache mounts of other machines. Safe in threads."""

    @abstractmethod
    def adopt(
        self, key: str, step: ForeignStep, source: BlobSource, activity: Activity, *, later: bool
    ) -> None:
        """From now on :meth:`Backend.lookup` finds what the step made under `key`.

        The blobs of its foreign layers come from `source`. They are checked, what is in them
        as well; with `later` they may be fetched when something needs them, which raises
        ImageError then. Raises ImageError and keeps nothing for blobs that can't be had or
        aren't what they should be; BuildCancelled.
        """

    @abstractmethod
    def forget_unfetched(self) -> bool:
        """Let `lookup` no longer find steps that were adopted with `later`; whether there are any."""

    @abstractmethod
    def pack_mount(self, ident: str, activity: Activity) -> LayerDiff | None:
        """The folder of the cache mount `ident` as a layer, its blob kept as long as this build.

        It is called :data:`pybuild.files.mountsource.TOP` there. Waits until no step uses it.
        None if there is no such folder. Raises BuildCancelled, CopyFailed, BackendError.
        """
