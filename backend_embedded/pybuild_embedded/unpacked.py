"""Layers as folders that overlayfs can mount: unpacked when a process is to run on them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from pybuild.backend import Activity
from pybuild.errors import InvalidImage
from pybuild.values import replace
from pybuild_embedded.folders import LayerFolder
from pybuild_embedded.layerchain import LayerChain
from pybuild_embedded.space import Space
from pybuild_embedded.workers import Merge, Unpack

MOST_LOWERS = 400
"""Beyond that, layers are merged into one folder: overlayfs takes 500 in all."""

_MERGED = "merged-"


def unpacked(space: Space, chain: LayerChain, activity: Activity) -> tuple[LayerFolder, ...]:
    """The folders that show the layers of `chain` when mounted over each other, bottom first.

    What isn't unpacked yet is unpacked now, each layer by one process at a time.
    """
    store, flavour = space.store, space.machine.flavour
    folders: list[LayerFolder] = []
    bottom = 0
    if len(chain.layers) > MOST_LOWERS:
        # a merged folder shows all layers up to its own, which are more than could be mounted
        found = store.last_folder(chain.ids[MOST_LOWERS:], _MERGED + flavour)
        if found is not None:
            folders.append(found[1])
            bottom = MOST_LOWERS + found[0] + 1
    places = range(bottom, len(chain.layers))
    missing = [chain.layers[n] for n in places if store.folder(chain.ids[n], flavour) is None]
    space.fetch(missing, activity)
    for place in places:
        known = store.folder(chain.ids[place], flavour)
        folders.append(known or _unpacked_one(space, chain, place, folders, activity))
    return tuple(folders)


def _unpacked_one(
    space: Space, chain: LayerChain, place: int, below: Sequence[LayerFolder], activity: Activity
) -> LayerFolder:
    store, flavour, name = space.store, space.machine.flavour, chain.ids[place]
    with store.single_flight(f"unpack {flavour} {name}", activity):
        found = store.folder(name, flavour)
        if found is not None:
            return found
        activity.raise_if_cancelled()
        folder = store.new_folder()
        layer = chain.layers[place]
        with nullcontext() if space.copies is None else space.copies.taken(layer) as plain:
            request = Unpack(
                blob=store.blob_path(layer.blob.digest),
                diff_id=layer.diff_id,
                index=space.files.index_path(layer),
                parents=space.files.index_paths(chain.layers[:place]),
                lowers=tuple(lower.fs for lower in below),
                target=folder.fs,
                userxattr=space.machine.mapping().userxattr,
                owners=space.machine.keeps_owners,
                plain=plain,
            )
            try:
                size = space.machine.workers().unpack(request)
            except InvalidImage:
                if plain is None and not space.mend_blob(layer, activity):
                    raise
                size = space.machine.workers().unpack(replace(request, plain=None))
        store.record_layers(chain.layers[: place + 1])
        return store.settle(folder, name, flavour, size=size)


def merged(
    space: Space, chain: LayerChain, folders: Sequence[LayerFolder], activity: Activity
) -> LayerFolder:
    """One folder with all that `folders`, those of `chain`, show together."""
    store, flavour = space.store, _MERGED + space.machine.flavour
    with store.single_flight(f"merge {flavour} {chain.id}", activity):
        found = store.folder(chain.id, flavour)
        if found is not None:
            return found
        folder = store.new_folder()
        size = space.machine.workers().merge(
            Merge(
                indexes=space.files.index_paths(chain.layers),
                folders=tuple(each.fs for each in folders),
                target=folder.fs,
                owners=space.machine.keeps_owners,
            )
        )
        store.record_layers(chain.layers)
        return store.settle(folder, chain.id, flavour, size=size)
