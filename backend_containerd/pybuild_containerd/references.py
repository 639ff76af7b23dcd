"""What containerd's garbage collection would keep in a namespace, for whose sake, and its size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from pybuild.values import dataclass, field
from pybuild_containerd import rpcs
from pybuild_containerd.client import Client
from pybuild_containerd.errors_table import NotFound
from pybuild_containerd.probe import usable_snapshotters
from pybuild_containerd.snapshots import Snapshots

Node = tuple[str, str]
"""What can be kept: a type as leases name it, ``content`` or ``snapshots/overlayfs``, and an id."""

_CONTENT: Final = "containerd.io/gc.ref.content"
_SNAPSHOT: Final = "containerd.io/gc.ref.snapshot."


@dataclass(slots=True)
class References:
    """A namespace at one moment.

    ``sizes`` are in bytes, of each blob as it is stored and of each snapshot without its
    parents; ``images`` and ``builds`` are what images, and leases and containers, begin at.
    """

    sizes: dict[Node, int] = field(default_factory=dict)
    images: list[Node] = field(default_factory=list)
    builds: list[Node] = field(default_factory=list)
    _below: dict[Node, tuple[Node, ...]] = field(default_factory=dict)

    def reachable(self, roots: Iterable[Node]) -> set[Node]:
        """All that is there at and below `roots`."""
        found: set[Node] = set()
        waiting = list(roots)
        while waiting:
            node = waiting.pop()
            if node in self.sizes and node not in found:
                found.add(node)
                waiting += self._below[node]
        return found

    def size(self, nodes: Iterable[Node]) -> int:
        return sum(self.sizes[node] for node in nodes)

    def add(self, node: Node, size: int, below: Iterable[Node]) -> None:
        self.sizes[node] = size
        self._below[node] = tuple(below)


def look(client: Client) -> References:
    """List everything in the client's namespace."""
    found = References()
    # what a build makes meanwhile is in its lease before it is anywhere else
    for lease in client.call(rpcs.LEASE_LIST).leases:
        try:
            resources = client.call(rpcs.LEASE_RESOURCES, id=lease.id).resources
        except NotFound:
            continue
        found.builds += [(resource.type, resource.id) for resource in resources]
    for container in client.call(rpcs.CONTAINER_LIST).containers:
        found.builds.append((f"snapshots/{container.snapshotter}", container.snapshot_key))
    images = client.call(rpcs.IMAGE_LIST).images
    found.images += [("content", image.target.digest) for image in images]
    with client.stream(rpcs.CONTENT_LIST) as pages:
        for blob in _flat(pages):
            found.add(("content", blob.digest), blob.size, _referred(blob.labels))
    for snapshotter in usable_snapshotters(client):
        _add_snapshots(found, Snapshots(client, snapshotter.name))
    return found


def _add_snapshots(found: References, snapshots: Snapshots) -> None:
    kind = f"snapshots/{snapshots.snapshotter}"
    for snapshot in list(snapshots.list()):
        try:
            size = snapshots.usage(snapshot.name).size
        except NotFound:
            continue
        below = [(kind, snapshot.parent)] if snapshot.parent else []
        found.add((kind, snapshot.name), size, [*below, *_referred(snapshot.labels)])


def _flat(pages: Iterable[Any]) -> Iterator[Any]:
    for page in pages:
        yield from page.info


def _referred(labels: Mapping[str, str]) -> Iterator[Node]:
    """What labels refer to, by the rules of containerd's documentation `garbage-collection.md`."""
    for label, value in labels.items():
        if label.startswith(_SNAPSHOT):
            yield f"snapshots/{label.removeprefix(_SNAPSHOT).partition('/')[0]}", value
        elif label == _CONTENT or label.startswith((f"{_CONTENT}.", f"{_CONTENT}/")):
            yield "content", value
