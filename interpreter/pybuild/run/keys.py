"""The cache key of a step once its files are known: plan key, parent's key, file digests."""

from __future__ import annotations

from pybuild.backend import Activity, BindMount, CacheMount
from pybuild.plan.cachekey import chained_key, copy_key, mount_key
from pybuild.plan.steps import Step
from pybuild.run.digests import digested, with_digest
from pybuild.run.execute import Prepared, PreparedFiles


def content_key(step: Step, parent: str, prepared: Prepared, activity: Activity) -> str:
    """The key under which the layer that `step` makes is kept and found.

    Reads every file whose digest isn't known yet. Raises BuildCancelled.
    """
    if isinstance(prepared, PreparedFiles):
        entries = (with_digest(new, activity) for new in prepared.entries)
        return copy_key(step.key, entries, parent=parent)
    files = {
        mount.target: digested(mount.tree, mount.path, activity)
        for mount in prepared.mounts
        if isinstance(mount, BindMount | CacheMount) and mount.tree is not None
    }
    if not files:
        return chained_key(step.key, parent)
    return mount_key(step.key, files, parent=parent)
