"""Layers as folders that overlayfs can mount: unpacked when a process is to run on them."""

from __future__ import annotations

from collections.abc import Sequence

from pybuild.backend import Activity
from pybuild.oci.descriptor import LayerDiff
from pybuild_embedded.space import Space
from pybuild_embedded.store import LayerFolder
from pybuild_embedded.workers import Merge, Unpack

MOST_LOWERS = 400
"""Beyond that, layers are merged into one folder: overlayfs takes 500 in all."""

_MERGED = "merged-"


def unpacked(
    space: Space, layers: Sequence[LayerDiff], chains: Sequence[str], activity: Activity
) -> tuple[LayerFolder, ...]:
    """The folders that show `layers` when mounted over each other, bottom first.

    ``chains[i]`` is the chain id of layer i and those below. What isn't unpacked yet is
    unpacked now, each layer by one process at a time.
    """
    flavour = space.machine.flavour
    folders: list[LayerFolder] = []
    bottom = len(layers)
    while bottom:
        # a merged folder shows all layers up to its own
        merged = space.store.folder(chains[bottom - 1], _MERGED + flavour)
        if merged is not None:
            folders.append(merged)
            break
        bottom -= 1
    missing: list[int] = []
    for place in range(bottom, len(layers)):
        if space.store.folder(chains[place], flavour) is None:
            missing.append(place)
    if missing:
        space.fetch([layers[place] for place in missing], activity)
    for place in range(bottom, len(layers)):
        folders.append(_unpacked_one(space, layers, chains, place, folders, activity))
    return tuple(folders)


def _unpacked_one(
    space: Space,
    layers: Sequence[LayerDiff],
    chains: Sequence[str],
    place: int,
    below: Sequence[LayerFolder],
    activity: Activity,
) -> LayerFolder:
    store, flavour, chain = space.store, space.machine.flavour, chains[place]
    found = store.folder(chain, flavour)
    if found is not None:
        return found
    with store.single_flight(f"unpack {flavour} {chain}", activity):
        found = store.folder(chain, flavour)
        if found is not None:
            return found
        activity.raise_if_cancelled()
        folder = store.new_folder()
        layer = layers[place]
        size = space.machine.workers().unpack(
            Unpack(
                blob=store.blob_path(layer.blob.digest),
                diff_id=layer.diff_id,
                index=space.files.index_path(layer),
                parents=space.index_paths(layers[:place]),
                lowers=tuple(lower.fs for lower in below),
                target=folder.fs,
                userxattr=space.machine.mapping().userxattr,
                owners=space.machine.keeps_owners,
            )
        )
        store.record_layers(layers[: place + 1])
        return store.settle(folder, chain, flavour, size)


def merged(
    space: Space,
    layers: Sequence[LayerDiff],
    chain: str,
    folders: Sequence[LayerFolder],
    activity: Activity,
) -> LayerFolder:
    """One folder with all that `folders`, those of `layers`, show together."""
    store, flavour = space.store, _MERGED + space.machine.flavour
    with store.single_flight(f"merge {flavour} {chain}", activity):
        found = store.folder(chain, flavour)
        if found is not None:
            return found
        folder = store.new_folder()
        size = space.machine.workers().merge(
            Merge(
                indexes=space.index_paths(layers),
                folders=tuple(each.fs for each in folders),
                target=folder.fs,
                owners=space.machine.keeps_owners,
            )
        )
        store.record_layers(layers)
        return store.settle(folder, chain, flavour, size)
