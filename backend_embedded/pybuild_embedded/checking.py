"""Looking at everything in a store: what is damaged is named, and removed if asked to.

Blobs are hashed, indexes carry a checksum, chains are named by hashes, unpacked files are
compared with their layer's index as far as this user may read them. What isn't here isn't
damaged, unless something is worth nothing without it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

from pybuild.errors import BackendUnavailable, ImageError, InvalidImage
from pybuild.files.trees import shown
from pybuild.imagestore import Fault
from pybuild.oci.descriptor import chain_id, is_digest
from pybuild.oci.layerindex import Entry, Kind, LayerIndex
from pybuild.oci.manifest import MAX_CONFIG_SIZE, MAX_MANIFEST_SIZE, parse_manifest
from pybuild.values import dataclass
from pybuild_embedded.collecting import forget_image
from pybuild_embedded.database import DamagedDatabase
from pybuild_embedded.folders import LayerFolder, folder_in
from pybuild_embedded.references import References
from pybuild_embedded.rootfolder import locked
from pybuild_embedded.salvage import mend_database
from pybuild_embedded.sessions import Part
from pybuild_embedded.store import Store
from pybuild_embedded.usage import index_name

_NO_LINK = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class _Damage:
    """``mend`` removes it. It raises what the database does if that is damaged itself."""

    what: str
    problem: str
    mend: Callable[[], None]


def check(store: Store, *, repair: bool) -> list[Fault]:
    """All that is wrong. What is removed with `repair` is a miss for running builds as well."""
    faults = []
    # in this order: what a part is worth depends on those before it
    for look in (_database, _blobs, _indexes, _chains, _steps, _folders, _images):
        faults += [
            Fault(damage.what, damage.problem, repair and _mended(damage)) for damage in look(store)
        ]
    return faults


def _mended(damage: _Damage) -> bool:
    try:
        damage.mend()
    except (DamagedDatabase, BackendUnavailable):
        return False  # others have the database open
    return True


def _database(store: Store) -> Iterator[_Damage]:
    try:
        with store.database.reading() as connection:
            problem = str(connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
    except DamagedDatabase as error:
        problem = error.message
    if problem != "ok":
        damage = DamagedDatabase(problem)
        yield _Damage("the database", problem, partial(_mend_database, store, damage))


def _blobs(store: Store) -> Iterator[_Damage]:
    for path in sorted(store.blobs.folder.rglob("*")):
        if path.is_dir():
            continue
        digest = f"sha256:{path.name}"
        if not is_digest(digest) or path != store.blobs.path(digest):
            yield _Damage(f"the file {path}", "it is no blob's", partial(_drop, store, path))
            continue
        try:
            problem = None if _digest(path) == digest else "its bytes have another digest"
        except FileNotFoundError:
            continue  # just removed as garbage
        except OSError as error:
            problem = f"it can't be read: {error.strerror}"
        if problem is not None:
            yield _Damage(f"blob {digest}", problem, partial(_drop, store, path))


def _indexes(store: Store) -> Iterator[_Damage]:
    for path in sorted(store.index_folder.iterdir()):
        if not is_digest(index_name(path)):
            continue  # one that is being written, or what is left of that
        try:
            LayerIndex.from_bytes(path.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, InvalidImage) as error:
            yield _Damage(f"layer index {path.name}", str(error), partial(_drop, store, path))


def _chains(store: Store) -> Iterator[_Damage]:
    query = "SELECT chain, parent, diff_id, digest, size FROM chains"
    for chain, parent, diff_id, digest, size in _rows(store, query):
        problem = None
        if chain_id((parent, diff_id) if parent else (diff_id,)) != chain:
            problem = "its row names other layers"
        elif not is_digest(digest) or store.blobs.size(digest) not in {None, size}:
            problem = "its row names another blob"
        if problem is not None:
            forget = partial(_delete, store, "DELETE FROM chains WHERE chain=?", chain)
            yield _Damage(f"layers {chain}", problem, forget)


def _steps(store: Store) -> Iterator[_Damage]:
    rows = _rows(store, "SELECT chain, parent, digest FROM chains")
    chains = {chain: (parent, digest) for chain, parent, digest in rows}
    complete = {""}
    for key, top in _rows(store, "SELECT key, chain FROM steps"):
        seen = []
        chain: str | None = top
        while chain is not None and chain not in complete:
            seen.append(chain)
            parent, digest = chains.pop(chain, (None, ""))
            chain = parent if _is_obtainable(store, digest) else None
        if chain is None:
            forget = partial(_delete, store, "DELETE FROM steps WHERE key=?", key)
            yield _Damage(f"step {key}", "a layer of its result is missing", forget)
        else:
            complete.update(seen)


def _is_obtainable(store: Store, digest: str) -> bool:
    """Whether a blob is here, or it is known where it can be fetched."""
    return is_digest(digest) and (store.blobs.size(digest) is not None or digest in store.origins)


def _folders(store: Store) -> Iterator[_Damage]:
    query = (
        "SELECT ident, folders.chain, diff_id FROM folders LEFT JOIN chains USING (chain)"
        " WHERE session IS NULL"
    )
    for ident, chain, diff_id in _rows(store, query):
        folder = folder_in(store.root / "layers", ident)
        problem = _folder_problem(folder, store.index_folder / str(diff_id).replace(":", "-"))
        if problem is not None:
            yield _Damage(f"unpacked layer {chain}", problem, partial(_drop_folder, store, folder))


def _images(store: Store) -> Iterator[_Damage]:
    for (digest,) in _rows(store, "SELECT digest FROM images"):
        try:
            manifest = parse_manifest(store.blobs.read(digest, MAX_MANIFEST_SIZE))
            store.blobs.read(manifest.config.digest, MAX_CONFIG_SIZE)
        except ImageError as error:
            yield _Damage(f"image {digest}", error.message, partial(_drop_image, store, digest))
    for name, target in _rows(store, "SELECT name, target FROM names"):
        if not is_digest(target) or store.blobs.size(target) is None:
            forget = partial(_delete, store, "DELETE FROM names WHERE name=?", name)
            yield _Damage(f"image name {name}", "what it points to is missing", forget)


def _rows(store: Store, query: str) -> Sequence[Sequence[Any]]:
    try:
        with store.database.reading() as connection:
            return connection.execute(query).fetchall()
    except DamagedDatabase:
        return ()  # it is named already


def _mend_database(store: Store, damage: DamagedDatabase) -> None:
    with locked(store.root):
        mend_database(store.root, store.session, store.database, damage)


def _delete(store: Store, statement: str, ident: str) -> None:
    with store.database.writing() as connection:
        connection.execute(statement, (ident,))


def _drop(store: Store, path: Path) -> None:
    store.trash.put(path)


def _drop_image(store: Store, digest: str) -> None:
    with store.database.writing() as connection:
        forget_image(connection, digest)


def _drop_folder(store: Store, folder: LayerFolder) -> None:
    with store.database.writing() as connection:
        pins = References(connection, store.session.live()).pinned
        connection.execute("DELETE FROM folders WHERE ident=?", (folder.ident,))
        # pulling it from under a mount helps nobody: without a row nobody else will use it
        if (Part.FOLDER, folder.ident) not in pins:
            store.trash.put(folder.path)


def _folder_problem(folder: LayerFolder, index: Path) -> str | None:
    try:
        root = os.open(folder.fs, os.O_DIRECTORY | _NO_LINK)
    except PermissionError:
        return None
    except OSError as error:
        return f"its folder can't be opened: {error.strerror}"
    try:
        entries = LayerIndex.from_bytes(index.read_bytes())
    except (OSError, InvalidImage):
        return None  # there is nothing to compare with
    else:
        return next(filter(None, (_file_problem(root, entry) for entry in entries)), None)
    finally:
        os.close(root)


def _file_problem(root: int, entry: Entry) -> str | None:
    """How a file differs from its entry; None if it doesn't, or can't be read by this user."""
    if entry.kind is not Kind.FILE or entry.link or entry.digest is None:
        return None
    try:
        with _open_below(root, entry.path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return f"its file {shown(entry.path)} is missing"
    except OSError:
        return None  # another user's, or hidden by what isn't a folder
    return None if f"sha256:{found}" == entry.digest else f"its file {shown(entry.path)} differs"


def _open_below(root: int, path: bytes) -> BufferedReader:
    """A file below an open folder. No component may be a link."""
    *folders, name = path.split(b"/")
    with ExitStack() as stack:
        for folder in folders:
            root = os.open(folder, os.O_DIRECTORY | _NO_LINK, dir_fd=root)
            stack.callback(os.close, root)
        # a FIFO in the file's place must not be waited for
        flags, parent = os.O_NONBLOCK | _NO_LINK, root
        return open(name, "rb", opener=lambda path, _: os.open(path, flags, dir_fd=parent))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
