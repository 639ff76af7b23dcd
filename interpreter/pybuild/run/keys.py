"""The cache key of a step once its files are known: plan key, parent's key, file digests."""

from __future__ import annotations

from pybuild.backend import Activity, BindMount, CacheMount
from pybuild.plan.cachekey import chained_key, copy_key, mount_key
from pybuild.plan.steps import Step
from pybuild.run.digests import digested, with_digests
from pybuild.run.execute import Prepared, PreparedFiles
from pybuild.run.misses import KeyFiles
from pybuild.values import dataclass, field


@dataclass(frozen=True, slots=True)
class ContentKey:
    """The key under which a step's layer is kept and found, and the files that it counts.

    The key is empty where no results are kept.
    """

    text: str = ""
    files: KeyFiles = field(default_factory=dict)


def content_key(step: Step, parent: str, prepared: Prepared, activity: Activity) -> ContentKey:
    """The key of the layer that `step` makes.

    Reads every file whose digest isn't known yet. Raises BuildCancelled.
    """
    if isinstance(prepared, PreparedFiles):
        entries = with_digests(prepared.entries, activity)
        paths = [new.source for new in prepared.entries]
        return ContentKey(copy_key(step.key, entries, parent=parent), {"": (entries, paths)})
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
    return ContentKey(mount_key(step.key, files, parent=parent), counted)
