"""Unpacks a layer into a folder for overlayfs."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from pybuild.errors import InvalidImage
from pybuild.oci.compression import CHUNK
from pybuild.unpacking.contents import finish_layer, make_files, write_all
from pybuild.unpacking.layerplan import LayerPlan, plan_layer
from pybuild.unpacking.making import Making, make_copies
from pybuild_embedded.inside.indexes import Indexes
from pybuild_embedded.inside.sharing import cut, share
from pybuild_embedded.requests import Unpack

_COST = 40_000  # of a file, in bytes that are copied in the same time
_LEAST = 500 * _COST


def unpack(request: Unpack, indexes: Indexes) -> int:
    """See `Workers.unpack`. Raises OSError for what isn't about one entry."""
    index = indexes.get(request.index)
    below = indexes.tree(request.parents)
    tree = indexes.tree((*request.parents, request.index))
    plan = plan_layer(index, tree, below)
    with Making(request.target, owners=request.owners, devices=not request.userxattr) as making:
        making.folders(plan.folders)
        if request.plain is None:
            with request.blob.open("rb", buffering=0) as blob:
                make_files(blob, request.diff_id, plan, making)
        else:
            copy_files(request.plain, plan, making)
        make_copies(making, plan.lower_files, request.lowers, len(request.parents))
        space = "user" if request.userxattr else "trusted"
        finish_layer(plan, making, opaque=f"{space}.overlay.opaque")
        return making.allocated


def copy_files(path: Path, plan: LayerPlan, making: Making) -> None:
    """Make the files of a layer from its plain tar, which was checked before."""
    shares = cut(plan.files, [_COST + entries[0].size for _, entries in plan.files], _LEAST)
    with path.open("rb", buffering=0) as plain:
        source = plain.fileno()

        def make(number: int) -> int:
            before = making.allocated
            with making.failing():
                for offset, entries in shares[number]:
                    making.file(entries, partial(_copy, source, offset, entries[0].size))
            return making.allocated - before

        if shares:
            _, *others = share(make, len(shares))
            making.allocated += sum(others)


def _copy(source: int, offset: int, size: int, fd: int) -> None:
    """Write `size` bytes of the open file `source`, from `offset` on, to `fd`."""
    end = offset + size
    while offset < end:
        piece = os.pread(source, min(end - offset, CHUNK), offset)
        if not piece:
            raise InvalidImage("the layer's copy ends too early")
        offset += len(piece)
        write_all(fd, piece)
