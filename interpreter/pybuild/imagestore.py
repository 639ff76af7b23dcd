"""What a backend that keeps images itself lets its user do with them.

A backend on a daemon leaves to the daemon's tools what they can do, and refuses it with
UnsupportedByBackend. Sizes are in bytes, times in UTC. Everything is safe while builds run
on the same store, in this process or in others: nothing is removed that a running build uses.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from pybuild.oci.descriptor import LayerDiff
from pybuild.oci.image_config import ImageConfig
from pybuild.oci.reference import Reference
from pybuild.values import dataclass

USUAL_SHARE = 10
"""Percent of its disk that a store may take up where nothing else is said."""
_LEAST = 2_000_000_000
_SHARE = re.compile(r"(\d{1,3})%")


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image in the store, for one platform.

    ``digest`` is the manifest's. ``size`` is that of its stored blobs, whether or not others
    share them; None if some haven't been fetched. ``made`` is when it came into the store.
    """

    digest: str
    config_digest: str
    config: ImageConfig
    layers: tuple[LayerDiff, ...]
    names: tuple[Reference, ...]
    size: int | None
    made: datetime


class UsageKind(StrEnum):
    """What takes up room in a store."""

    IMAGES = "images"
    STEPS = "steps"
    LAYERS = "unpacked layers"
    INDEXES = "layer indexes"
    CACHE_MOUNTS = "cache mounts"
    WORK = "running and unfinished builds"
    OTHER = "database and locks"


@dataclass(frozen=True, slots=True)
class Usage:
    """One line of ``pybuild df``: together they are what is on disk.

    ``reclaimable`` is what :meth:`ImageStore.prune` could free at the most.
    """

    kind: UsageKind
    count: int
    size: int
    reclaimable: int


@dataclass(frozen=True, slots=True)
class PruneRequest:
    """What to remove: the least recently used first, until ``max_size`` holds.

    Without ``max_size`` everything that is not an image's goes. With ``images`` unnamed
    images go as well, with ``all_images`` named ones too. ``unused_for`` spares, in seconds,
    what was used since. ``unattended`` is what builds do by themselves: unnamed images go
    as all else does, and so do those that can be pulled again.
    """

    max_size: int | None = None
    images: bool = False
    all_images: bool = False
    unused_for: int | None = None
    unattended: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Pruned:
    """What :meth:`ImageStore.prune` removed, or would remove, and what is left on disk."""

    freed: int
    left: int
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong in a store. ``mended`` says that it has been removed or put right."""

    what: str
    problem: str
    mended: bool


class ImageStore(ABC):
    """The images of a backend, and the room that it takes up. Safe in threads."""

    @abstractmethod
    def location(self) -> Path:
        """A folder on the disk whose room the store takes up.

        Raises UnsupportedByBackend where that disk isn't this machine's.
        """

    @abstractmethod
    def images(self) -> Sequence[ListedImage]:
        """All images, the newest first."""

    @abstractmethod
    def find(self, text: str) -> ListedImage:
        """The image that `text` names: a reference, a digest, or the beginning of one.

        Raises ImageNotFound, also where several images fit, and says which.
        """

    @abstractmethod
    def tag(self, text: str, name: Reference) -> None:
        """Give the image that `text` names one more name, taking it from another image.

        Raises ImageNotFound.
        """

    @abstractmethod
    def remove(self, text: str) -> ListedImage:
        """Remove the name `text`, and the image with its last name; a digest removes all names.

        Raises ImageNotFound. The room is given back by :meth:`prune`.
        """

    @abstractmethod
    def usage(self) -> Sequence[Usage]:
        """What takes up room, a line for each :class:`UsageKind`."""

    @abstractmethod
    def prune(self, request: PruneRequest) -> Pruned:
        """Make room. Images' blobs and what running builds use stay, whatever the request."""

    @abstractmethod
    def check(self, *, repair: bool) -> Sequence[Fault]:
        """Look at everything on disk, each blob's digest included; nothing found is an empty list.

        With `repair`, what is damaged is removed, so that it will be made or fetched again.
        """


def parse_share(text: str) -> int | None:
    """The percents of ``15%``; None where the text is something else, or more than all."""
    found = _SHARE.fullmatch(text)
    return int(found[1]) if found and int(found[1]) <= 100 else None


def usual_ceiling(folder: Path, share: str | None = None) -> int:
    """How many bytes the store in `folder` may take up, as a share of its disk.

    Without `share`, as ``15%``, it is the usual one, and 2 GB at least.
    """
    disk = os.statvfs(folder)
    total = disk.f_blocks * disk.f_frsize
    percent = parse_share(share) if share else None
    return max(total * USUAL_SHARE // 100, _LEAST) if percent is None else total * percent // 100
