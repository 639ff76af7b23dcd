"""The cache key of a step once its files are known: plan key, parent's key, file digests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pybuild.backend import Activity, BindMount, CacheMount
from pybuild.files.context import ContextTree
from pybuild.files.copying import plain_path
from pybuild.files.trees import Tree
from pybuild.oci.layerindex import Kind
from pybuild.plan.cachekey import chained_key, copy_key, mount_key
from pybuild.plan.steps import (
    ContextSource,
    CopyStep,
    PlannedBind,
    PlannedCache,
    PlannedScript,
    PlannedTmpfs,
    RunStep,
    Source,
    Step,
)
from pybuild.run.digests import digested, with_digests
from pybuild.run.execute import Prepared, PreparedFiles, tree_path
from pybuild.run.misses import KeyFiles, remembered
from pybuild.values import dataclass


@dataclass(frozen=True, slots=True)
class ContentKey:
    """The key under which a step's layer is kept and found, and the files that it counts.

    The key is empty where no results are kept. ``files`` may have to read much.
    """

    text: str = ""
    files: Callable[[], KeyFiles] = dict


def content_key(step: Step, parent: str, prepared: Prepared, activity: Activity) -> ContentKey:
    """The key of the layer that `step` makes.

    Reads every file whose digest isn't known yet. Raises BuildCancelled.
    """
    if isinstance(prepared, PreparedFiles):
        entries = with_digests(prepared.entries, activity)
        paths = [new.source for new in prepared.entries]
        return ContentKey(
            copy_key(step.key, entries, parent=parent), remembered({"": (entries, paths)})
        )
    files = {
        mount.target: digested(mount.tree, mount.path, activity)
        for mount in prepared.mounts
        if isinstance(mount, BindMount | CacheMount) and mount.tree is not None
    }
    if not files:
        return ContentKey(chained_key(step.key, parent))
    counted = {
        target: (entries, [entry.path for entry in entries]) for target, entries in files.items()
    }
    return ContentKey(mount_key(step.key, files, parent=parent), remembered(counted))


def context_reads(
    step: Step, contexts: Mapping[str | None, Tree]
) -> Sequence[tuple[ContextTree, bytes]]:
    """All that the step reads, if that is folders of contexts and maybe files beside them.

    Empty otherwise, as where patterns select some files of a folder that may be large.
    """
    wanted: list[tuple[Source, str | None]] = []
    match step:
        case CopyStep(remotes=(), exclude=(), parents=False):
            wanted = [(step.source, plain_path(pattern)) for pattern in step.patterns]
        case RunStep():
            for mount in step.mounts:
                match mount:
                    case PlannedBind():
                        wanted.append((mount.source, mount.path))
                    case PlannedTmpfs() | PlannedScript() | PlannedCache(source=None):
                        pass
                    case _:
                        return ()
        case _:
            return ()
    reads = []
    is_folder = False
    for source, path in wanted:
        tree = contexts.get(source.name) if isinstance(source, ContextSource) else None
        if path is None or not isinstance(tree, ContextTree):
            return ()
        name = tree_path(path)
        entry = tree.get(name)
        is_folder |= entry is not None and entry.kind is Kind.DIRECTORY
        reads.append((tree, name))
    return reads if is_folder else ()
