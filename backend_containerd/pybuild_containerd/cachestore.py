"""``pybuild df`` and ``pybuild prune``: the room that the step cache takes up in containerd.

Images are for the tools that come with containerd, which see them all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from pybuild.errors import UnsupportedByBackend
from pybuild.imagestore import (
    Fault,
    ImageStore,
    ListedImage,
    Pruned,
    PruneRequest,
    Usage,
    UsageKind,
)
from pybuild.oci.reference import Reference
from pybuild_containerd.client import Client
from pybuild_containerd.leases import collect_garbage
from pybuild_containerd.probe import usable_snapshotters
from pybuild_containerd.references import Node, References, look
from pybuild_containerd.stepcache import StepCache, StepRecord


class CacheStore(ImageStore):
    """The step cache of a namespace. What is said of images is refused.

    ``max_size`` of a :class:`PruneRequest` is of what the cache alone keeps: blobs, and
    unpacked layers, that no image, container or running build refers to. What is removed
    is gone with containerd's next garbage collection, at the latest when the backend closes.
    """

    def __init__(self, client: Client, steps: StepCache, snapshotter: str) -> None:
        self._client = client
        self._steps = steps
        self._snapshotter = snapshotter

    def location(self) -> Path:
        for snapshotter in usable_snapshotters(self._client):
            if snapshotter.name == self._snapshotter and Path(snapshotter.root).is_dir():
                return Path(snapshotter.root)
        raise UnsupportedByBackend(
            "the disk that containerd uses can't be seen from here",
            hint="say in bytes how much may stay, as in --max-size 20g",
        )

    def usage(self) -> Sequence[Usage]:
        found = look(self._client)
        records = self._steps.records()
        images = found.reachable(found.images)
        builds = found.reachable(found.builds) - images
        steps = found.reachable(map(_node, records)) - images - builds
        size = found.size(steps)
        return (
            Usage(UsageKind.IMAGES, len(found.images), found.size(images), 0),
            Usage(UsageKind.STEPS, len(records), size, size),
            Usage(UsageKind.WORK, len(builds), found.size(builds), 0),
        )

    def prune(self, request: PruneRequest) -> Pruned:
        if request.images or request.all_images:
            raise _for_others()
        records = self._steps.records()
        found = look(self._client)
        needed = found.reachable([*found.images, *found.builds])
        chosen, kept = _choose(records, found, needed, request)
        everything = found.reachable(map(_node, records)) - needed
        if chosen and not request.dry_run:
            for record in chosen:
                self._steps.forget(record)
            collect_garbage(self._client)
        left = found.size(kept)
        removed = tuple(f"step {record.key or record.digest}" for record in chosen)
        return Pruned(found.size(everything) - left, left, removed)

    def images(self) -> Sequence[ListedImage]:
        raise _for_others()

    def find(self, text: str) -> ListedImage:
        del text
        raise _for_others()

    def tag(self, text: str, name: Reference) -> None:
        del text, name
        raise _for_others()

    def remove(self, text: str) -> ListedImage:
        del text
        raise _for_others()

    def check(self, *, repair: bool) -> Sequence[Fault]:
        del repair
        raise _for_others()


def _choose(
    records: Sequence[StepRecord],
    found: References,
    needed: set[Node],
    request: PruneRequest,
) -> tuple[list[StepRecord], set[Node]]:
    """The records to remove, those used least recently first, and what the others keep."""
    spared = time.time() - (request.unused_for or 0)
    kept: set[Node] = set()
    chosen: list[StepRecord] = []
    for record in records:
        more = found.reachable([_node(record)]) - needed | kept
        fits = request.max_size is not None and found.size(more) <= request.max_size
        if (request.unused_for is not None and record.used >= spared) or (fits and not chosen):
            kept = more
        else:
            chosen.insert(0, record)
    return chosen, kept


def _node(record: StepRecord) -> Node:
    return "content", record.digest


def _for_others() -> UnsupportedByBackend:
    return UnsupportedByBackend(
        "pybuild sees to containerd's step cache alone: df and prune without images",
        hint="containerd's images are seen to by its own tools: ctr, nerdctl, docker",
    )
