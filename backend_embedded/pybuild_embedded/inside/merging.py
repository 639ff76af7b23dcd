"""Copies what a chain of layers shows into one folder."""

from __future__ import annotations

from pybuild.unpacking.layerplan import plan_copy
from pybuild.unpacking.making import Making, make_copies
from pybuild_embedded.inside.indexes import Indexes
from pybuild_embedded.requests import Merge


def merge(request: Merge, indexes: Indexes) -> int:
    """See `Workers.merge`. Raises OSError for what isn't about one entry."""
    folders, files, others = plan_copy(indexes.tree(request.indexes))
    with Making(request.target, owners=request.owners, devices=False) as making:
        making.folders(folders)
        make_copies(making, files, request.folders, len(request.indexes))
        for entry in others:
            making.other(entry)
        making.settle(folders, frozenset(), "")
        return making.allocated
