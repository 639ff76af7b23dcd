"""Applies a layer to a plain folder that shows the layers below it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress

from pybuild.files.safepath import Root
from pybuild.files.trees import parent_of
from pybuild.oci.layerindex import Entry
from pybuild.oci.layertar import allowed_xattrs
from pybuild.unpacking.contents import make_files
from pybuild.unpacking.layerplan import LayerPlan, LowerFile, plan_layer
from pybuild.unpacking.making import Making
from pybuild.unpacking.removing import clear, clear_folder, remove_name
from pybuild_embedded.inside.indexes import Indexes
from pybuild_embedded.requests import Apply

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def apply(request: Apply, indexes: Indexes) -> None:
    """See `Workers.apply`. Raises OSError for what isn't about one entry."""
    below = indexes.tree(request.parents)
    tree = indexes.tree((*request.parents, request.index))
    plan = plan_layer(indexes.get(request.index), tree, below)
    stage = os.open(request.stage, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with Root(request.target) as root:
            # before anything is removed: a layer may give a file another name
            _stage(root, plan.lower_files, stage)
            new = _make_way(root, plan)
        with (
            Making(request.target, owners=request.owners, devices=request.devices) as making,
            request.blob.open("rb", buffering=0) as blob,
        ):
            making.folders(new)
            make_files(blob, request.diff_id, plan, making)
            for number, file in enumerate(plan.lower_files):
                for entry in file.entries:
                    making.link(stage, b"%d" % number, entry.path)
            for entry in plan.others:
                making.other(entry)
            making.settle(plan.folders, frozenset(), "")
    finally:
        os.close(stage)
        clear(request.stage)


def _stage(root: Root, files: Sequence[LowerFile], stage: int) -> None:
    for number, file in enumerate(files):
        folder, _, name = file.path.rpartition(b"/")
        fd = root.open_folder(folder)
        try:
            os.link(name, b"%d" % number, src_dir_fd=fd, dst_dir_fd=stage, follow_symlinks=False)
        finally:
            os.close(fd)


def _make_way(root: Root, plan: LayerPlan) -> list[Entry]:
    """Remove what the layer removes or replaces; the folders that are to be made."""
    for path in plan.whiteouts:
        _remove(root, path)
    for path in plan.opaque:
        with suppress(FileNotFoundError, NotADirectoryError):
            fd = root.open_folder(path)
            try:
                clear_folder(fd)
            finally:
                os.close(fd)
    names = [entry.path for _, entries in plan.files for entry in entries]
    names += [entry.path for file in plan.lower_files for entry in file.entries]
    for path in (*names, *(entry.path for entry in plan.others)):
        _remove(root, path)
    return [folder for folder in plan.folders if folder.path and not _stays(root, folder.path)]


def _stays(root: Root, path: bytes) -> bool:
    """Whether there is a folder, without attributes then; what else is there is removed."""
    try:
        fd = root.open_folder(path)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        _remove(root, path)
        return False
    try:
        for name, _ in allowed_xattrs((name, b"") for name in os.listxattr(fd)):
            os.removexattr(fd, name)
    finally:
        os.close(fd)
    return True


def _remove(root: Root, path: bytes) -> None:
    """Remove what is at `path`, if anything is."""
    try:
        folder = root.open_folder(parent_of(path))
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return
    try:
        with suppress(FileNotFoundError):
            remove_name(folder, path.rpartition(b"/")[2])
    finally:
        os.close(folder)
