"""The ceiling: a build that leaves the store larger than it may be makes room before it ends."""

from __future__ import annotations

from pybuild.imagestore import PruneRequest
from pybuild_embedded.growth import grown, remember
from pybuild_embedded.store import Store
from pybuild_embedded.trash import RemoveTrees
from pybuild_embedded.usage import MeasureTrees, look

_LOCK = "make room"
# of the ceiling, so that not every build has to make room
_LEFT = 0.9


def keep_below(store: Store, ceiling: int, remove: RemoveTrees, measure: MeasureTrees) -> None:
    """Prune the store if it takes up more than `ceiling` bytes. Raises BackendFailed.

    It is the session's last act: what only this session uses may be removed. A session that
    added nothing leaves everything as it is, and doesn't look.
    """
    growth = store.growth
    if growth.is_nothing:
        return
    folders = [store.root / "cachemounts" / ident for ident in growth.caches]
    caches = dict(zip(growth.caches, measure(folders), strict=True)) if folders else {}
    size = grown(store.database, growth.size, caches)
    if size is not None and size <= ceiling:
        return
    store.let_go()
    with store.alone(_LOCK):
        # whoever was first may have made room enough
        size = grown(store.database, 0, {})
        if size is not None and size <= ceiling:
            return
        found = look(store.root, store.database, measure)
        remember(store.database, found)
        if found.total > ceiling:
            from pybuild_embedded.collecting import prune  # noqa: PLC0415 - seldom needed

            prune(store, PruneRequest(int(ceiling * _LEFT), unattended=True), remove, measure)
