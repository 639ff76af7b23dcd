"""Copies what a chain of layers shows into one folder."""

from __future__ import annotations

from contextlib import ExitStack

from pybuild.files.safepath import Root
from pybuild_embedded.inside.indexes import Indexes
from pybuild_embedded.inside.layerplan import plan_copy
from pybuild_embedded.inside.making import Making, copied
from pybuild_embedded.requests import Merge


def merge(request: Merge, indexes: Indexes) -> int:
    """See `Workers.merge`. Raises OSError for what isn't about one entry."""
    folders, files, others = plan_copy(indexes.tree(request.indexes))
    with (
        ExitStack() as stack,
        Making(request.target, owners=request.owners, devices=False) as making,
    ):
        roots: dict[int, Root] = {}
        making.folders(folders)
        for file in files:
            if file.layer not in roots:
                roots[file.layer] = stack.enter_context(Root(request.folders[file.layer]))
            making.file(file.entries, copied(roots[file.layer], file.path))
        for entry in others:
            making.other(entry)
        making.settle(folders, frozenset(), "")
        return making.allocated
