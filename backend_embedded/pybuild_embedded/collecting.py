"""Making room: what to remove, and removing it while builds go on.

Rows go first, in one transaction; then, in another, what no row and no pin keeps is moved to
the trash, which is emptied at leisure. A kill between the two leaves garbage for the next
time, and what a build pins between them stays.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress

from pybuild.imagestore import Pruned, PruneRequest
from pybuild.keptlayers import LONGEST_KEPT
from pybuild_embedded.growth import remember
from pybuild_embedded.origins import forget_origins
from pybuild_embedded.references import Node, References
from pybuild_embedded.rootfolder import RESERVE, keep_reserve, release_reserve
from pybuild_embedded.sessions import Part
from pybuild_embedded.store import Store
from pybuild_embedded.trash import RemoveTrees
from pybuild_embedded.usage import MeasureTrees, OnDisk, index_name, look, measure_plainly

KEPT = "kept "
"""How the names begin of what failed steps left."""


def prune(
    store: Store, request: PruneRequest, remove: RemoveTrees, measure: MeasureTrees
) -> Pruned:
    """Remove what `request` says, and all garbage. Raises BackendFailed."""
    store.database.shorten_log()
    before = look(store.root, store.database, measure)
    [reserve] = measure_plainly([store.root / RESERVE])
    if not request.dry_run:
        release_reserve(store.root)  # removing rows takes room at first
    with store.database.writing() as connection:
        references = References(connection, store.session.live())
        chosen, freed = _choose(connection, references, before, request)
        removed = tuple(_described(connection, node) for node in chosen)
        if not request.dry_run:
            for node in chosen:
                _forget(connection, node)
            _forget_chains(connection, references)
            _forget_origins(connection, references)
    if request.dry_run:
        return Pruned(freed, before.total - freed, removed)
    sweep(store)
    store.trash.empty(remove)
    store.database.shorten_log()
    keep_reserve(store.root)
    after = look(store.root, store.database, measure)
    remember(store.database, after)
    store.database.shorten_log()
    left = after.total
    # on a full disk there was no reserve before
    gained = measure_plainly([store.root / RESERVE])[0] - reserve
    return Pruned(max(before.total - left + gained, 0), left, removed)


def sweep(store: Store) -> None:
    """Move what nobody refers to from its place to the trash."""
    root = store.root
    with store.database.writing() as connection:
        live = store.session.live()
        references = References(connection, live)
        begun = store.session.oldest(live)
        for path in (root / "blobs" / "sha256").glob("*/*"):
            if not references.keeps((Part.BLOB, f"sha256:{path.name}")):
                store.trash.put(path)
        for path in (root / "indexes").iterdir():
            if references.keeps((Part.INDEX, index_name(path))):
                continue
            with suppress(FileNotFoundError):
                # one that a build has just written gets its row a moment later
                if path.stat().st_mtime < begun:
                    store.trash.put(path)
        for part, folder in ((Part.FOLDER, "layers"), (Part.CACHE, "cachemounts")):
            for path in (root / folder).iterdir():
                if not references.keeps((part, path.name)):
                    store.trash.put(path)


def forget_image(connection: sqlite3.Connection, digest: str) -> None:
    """Remove an image's rows, and the names that lead to nothing any more."""
    connection.execute("DELETE FROM images WHERE digest=?", (digest,))
    connection.execute("DELETE FROM image_blobs WHERE image=?", (digest,))
    connection.execute("DELETE FROM targets WHERE image=?", (digest,))
    connection.execute("DELETE FROM names WHERE target NOT IN (SELECT target FROM targets)")


def _choose(
    connection: sqlite3.Connection, references: References, found: OnDisk, request: PruneRequest
) -> tuple[list[Node], int]:
    """The entries to remove, and how many bytes that frees, garbage included."""
    garbage = (size for node, size in found.parts.items() if not references.keeps(node))
    freed = found.trash + sum(garbage)
    chosen: list[Node] = []
    spared = time.time() - (request.unused_for or 0)
    for group in _candidates(connection, references, request):
        if request.max_size is not None and found.total - freed <= request.max_size:
            break
        if not references.pinned.isdisjoint(group):
            continue
        used = max(references.entries[node] for node in group)
        if request.unused_for is not None and used >= spared:
            continue
        chosen += group
        for node in group:
            freed += sum(found.parts.get(gone, 0) for gone in references.drop(node))
    return chosen, freed


def _candidates(
    connection: sqlite3.Connection, references: References, request: PruneRequest
) -> list[list[Node]]:
    """All that may be removed at all, in the order in which it goes.

    What only goes together is in one list: the images of an index.
    """
    # what has names by digest alone was asked for so, and can be again
    query = "SELECT image FROM targets JOIN names USING (target) WHERE name NOT LIKE '%@%'"
    named = {digest for (digest,) in connection.execute(query)}
    fetchable = _fetchable(connection) if request.unattended else set()
    ranks: dict[Node, int] = {}
    for node in references.entries:
        if node[0] is not Part.IMAGE:
            ranks[node] = 0
        elif request.unattended:
            if node[1] not in named or node[1] in fetchable:
                ranks[node] = 0
        elif node[1] not in named and (request.images or request.all_images):
            ranks[node] = 1
        elif request.all_images:
            ranks[node] = 2
    ranks |= dict.fromkeys(_outlived(connection), -1)
    ordered = sorted(ranks, key=lambda node: (ranks[node], references.entries[node], node))
    groups: dict[Node, list[Node]] = {node: [node] for node in ordered}
    for first, second in _in_one_index(connection):
        one, other = groups.get(first), groups.get(second)
        # an image that has a name of its own outlives an index without one
        if one is None or other is None or one is other or ranks[first] != ranks[second]:
            continue
        one += other
        groups |= dict.fromkeys(other, one)
    return list({id(group): group for group in groups.values()}.values())


def _outlived(connection: sqlite3.Connection) -> Iterator[Node]:
    """What failed steps left and nobody has asked for in time."""
    since = time.time() - LONGEST_KEPT
    for part, query in (
        (Part.STEP, "SELECT key, key FROM steps WHERE used<?"),
        (Part.FOLDER, "SELECT ident, chain FROM folders WHERE session IS NULL AND used<?"),
    ):
        for ident, name in connection.execute(query, (since,)):
            if name and name.removeprefix("single ").startswith(KEPT):
                yield part, ident


def _fetchable(connection: sqlite3.Connection) -> set[str]:
    """The images that were pulled, and have got no other name since."""
    query = (
        "SELECT images.digest FROM images JOIN origins ON origins.digest=config"
        " WHERE NOT EXISTS (SELECT 1 FROM targets JOIN names USING (target)"
        " WHERE targets.image=images.digest AND name<>origins.image AND name NOT LIKE '%@%')"
    )
    return {digest for (digest,) in connection.execute(query)}


def _in_one_index(connection: sqlite3.Connection) -> Iterator[tuple[Node, Node]]:
    """Pairs of images that the same index leads to, enough of them to tell all."""
    first_of: dict[str, str] = {}
    for target, image in connection.execute("SELECT target, image FROM targets"):
        first = first_of.setdefault(target, image)
        if first != image:
            yield (Part.IMAGE, first), (Part.IMAGE, image)


def _described(connection: sqlite3.Connection, node: Node) -> str:
    part, ident = node
    match part:
        case Part.IMAGE:
            query = "SELECT name FROM names JOIN targets USING (target) WHERE image=? ORDER BY name"
            names = [name for (name,) in connection.execute(query, (ident,))]
            return f"image {', '.join(names) or ident}"
        case Part.FOLDER:
            query = "SELECT chain, flavour FROM folders WHERE ident=?"
            chain, flavour = connection.execute(query, (ident,)).fetchone()
            return f"unpacked layer {chain} ({flavour})"
        case Part.CACHE:
            return f"cache mount {ident}"
        case _:
            return f"step {ident}"


def _forget(connection: sqlite3.Connection, node: Node) -> None:
    part, ident = node
    match part:
        case Part.IMAGE:
            forget_image(connection, ident)
        case Part.STEP:
            connection.execute("DELETE FROM steps WHERE key=?", (ident,))
        case Part.FOLDER:
            connection.execute("DELETE FROM folders WHERE ident=?", (ident,))
        case Part.CACHE:
            connection.execute("DELETE FROM caches WHERE ident=?", (ident,))
        case Part.CHAIN | Part.BLOB | Part.INDEX:
            raise AssertionError(f"{part} is no entry")


def _forget_origins(connection: sqlite3.Connection, references: References) -> None:
    blobs = [digest for (digest,) in connection.execute("SELECT digest FROM origins").fetchall()]
    forget_origins(connection, [x for x in blobs if not references.keeps((Part.BLOB, x))])


def _forget_chains(connection: sqlite3.Connection, references: References) -> None:
    chains = connection.execute("SELECT chain FROM chains").fetchall()
    gone = [row for row in chains if not references.keeps((Part.CHAIN, row[0]))]
    connection.executemany("DELETE FROM chains WHERE chain=?", gone)
