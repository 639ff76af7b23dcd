"""The store of the embedded backend: everything that outlives a build, in one folder.

::

    format, lock, reserve        what kind of folder this is; held while it is opened
    db.sqlite                    what belongs together, and what was used when
    blobs/sha256/<xx>/<digest>   layers as stored, manifests, configs
    indexes/                     the index of each layer, by diff id
    layers/<ident>/{fs,work}     unpacked layers
    cachemounts/<ident>/{fs,work}
    sessions/<ident>             locked by whoever uses the store now
    ingest/<ident>/              files of that session that aren't finished
    locks/                       work that is done by one process only, now
    trash/                       what is to be removed

Many processes use it at once. Killing one at any moment leaves what was there before or what
was to be there after; what it had begun is removed by the next that opens the store.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Self, cast

from pybuild.backend import Activity
from pybuild.files.locks import holding
from pybuild.oci.descriptor import LayerDiff
from pybuild_embedded.blobs import Blobs, BlobWriter
from pybuild_embedded.chains import CachedStep, Chains
from pybuild_embedded.database import DamagedDatabase, Database
from pybuild_embedded.folders import Folders, LayerFolder
from pybuild_embedded.growth import Growth
from pybuild_embedded.origins import Origins
from pybuild_embedded.rootfolder import (
    NoRoom,
    check_format,
    failing,
    keep_reserve,
    locked,
    prepare_root,
    release_reserve,
    unavailable,
)
from pybuild_embedded.salvage import mend_database, open_database
from pybuild_embedded.sessions import Session, end_sessions
from pybuild_embedded.trash import RemoveTrees, Trash


class Store:
    """One session with a store: what it used stays at least until `close`. Safe in threads.

    Digests are of stored bytes, ``sha256:…``; chains are named by their chain ids, ``""`` is
    scratch. Everything raises BackendFailed where the disk fails or is full.
    """

    def __init__(self, root: Path, session: Session, database: Database) -> None:
        self.root = root
        self.index_folder = root / "indexes"
        """Where :class:`pybuild.files.layerfiles.LayerFiles` keeps its indexes."""
        self.session = session
        self.database = database
        self.trash = Trash(root)
        self.growth = Growth()
        """What this session has added."""
        self.blobs = Blobs(root, database, session, self.growth)
        self.origins = Origins(database)
        """Where blobs can be fetched from, if they are missing."""
        self._chains = Chains(database, self.blobs, session)
        self._folders = Folders(root, database, session, self.trash, self.growth)
        self._closed = False

    @classmethod
    def open(cls, root: Path) -> Store:
        """Open the store in the folder `root`, which is made if it isn't there.

        Raises BackendUnavailable, with what to do, for a folder that can't be one,
        BackendFailed where there is no room for it.
        """
        root = root.absolute()
        prepare_root(root)
        try:
            return cls._open(root)
        except NoRoom:
            release_reserve(root)
        return cls._open(root)

    @classmethod
    def _open(cls, root: Path) -> Store:
        with unavailable(root), locked(root):
            check_format(root)
            with ExitStack() as undoing:
                session = Session(root)
                undoing.callback(session.end)
                database = open_database(root, session)
                undoing.callback(database.close)
                store = cls(root, session, database)
                try:
                    store._tidy()
                except DamagedDatabase as error:
                    mend_database(root, session, database, error)
                    store._tidy()
                undoing.pop_all()
            keep_reserve(root)
        return store

    def _tidy(self) -> None:
        """Remove what is left of processes and machines that died."""
        dead = self.session.dead()
        if dead:
            for work in self._folders.worked_in(dead):
                self.trash.put(work)
            self.session.bury(dead, self.database, self.trash)
        self._folders.drop_unsynced()

    def close(self) -> None:
        """End the session: drop its pins and what it hasn't settled. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            # whatever is in it, it doesn't outlive the session
            with suppress(DamagedDatabase):
                self._folders.sync()
                for folder in end_sessions(self.database, [self.session.ident]):
                    self.trash.put(folder)
        finally:
            self.database.close()
            self.session.end()

    def let_go(self) -> None:
        """Use nothing any more: what this session alone keeps may go."""
        self.session.let_go(self.database)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def has_blob(self, digest: str) -> bool:
        """Whether the blob is here; it is pinned if it is. Raises InvalidImage for no digest."""
        return self.blobs.has(digest)

    def open_blob(self, digest: str) -> BinaryIO:
        """The blob's stored bytes; it is pinned. Raises ImageNotFound."""
        return self.blobs.open(digest)

    def open_part(self, digest: str, offset: int, size: int) -> BinaryIO:
        """`size` stored bytes of a blob that is known to be here, from `offset` on."""
        from pybuild.files.filepart import FilePart  # noqa: PLC0415 - for a COPY

        return cast("BinaryIO", FilePart(self.blobs.path(digest), offset, size))

    def blob_path(self, digest: str) -> Path:
        """The file of a blob that is known to be here."""
        return self.blobs.path(digest)

    def blob_writer(self, *, hashed: bool = False) -> BlobWriter:
        """A new blob, kept once it is committed. Of one that the caller has `hashed` the digest is trusted."""
        return self.blobs.writer(hashed=hashed)

    def write_blob(self, digest: str, content: bytes) -> None:
        """Have a small blob here, pinned. Raises InvalidImage if its digest is another."""
        if self.has_blob(digest):
            return
        with self.blob_writer() as writer:
            writer.write(content)
            writer.commit(digest, len(content))

    @property
    def scratch_folder(self) -> Path:
        """A folder for files that are of use to this session alone; it vanishes with it."""
        return self.new_file().parent

    def new_file(self) -> Path:
        """A path, free yet, for a file that vanishes with the session unless it is adopted."""
        return self.session.new_file()

    def adopt_blob(self, path: Path, digest: str, size: int) -> None:
        """Make a file under a path of `new_file` a blob, pinned and durable.

        Its size in bytes is checked, its digest is trusted. Raises BackendFailed.
        """
        self.blobs.adopt(path, digest, size)

    def record_layers(self, layers: Sequence[LayerDiff]) -> str:
        """Remember a chain of layers, bottom first, and all its beginnings; its chain id.

        It is pinned with the blobs that are here. A chain that is known keeps the blobs it
        has as long as they are here; the other ones stay usable in this session.
        """
        return self._chains.record(layers)

    def layers(self, chain: str) -> tuple[LayerDiff, ...] | None:
        """The layers of a chain, bottom first, pinned; None if it isn't recorded."""
        return self._chains.layers(chain)

    def new_folder(self) -> LayerFolder:
        """An empty folder for a layer, of this session alone until it is settled."""
        return self._folders.new()

    def settle(
        self,
        folder: LayerFolder,
        chain: str,
        flavour: str,
        *,
        size: int | None = None,
        lasting: bool = True,
    ) -> LayerFolder:
        """`folder` holds exactly the top layer of `chain`, and won't change: the one to use.

        If there is such a folder already, that is returned, and `folder` stays this session's:
        processes may run on it. `flavour` names the mapping of ids. `size` is what ``fs`` takes
        up on the disk, in bytes. One that isn't `lasting` is lost with the machine's next start.
        """
        return self._folders.settle(folder, chain, flavour, size, lasting=lasting)

    def folder(self, chain: str, flavour: str) -> LayerFolder | None:
        """The settled folder with the top layer of `chain`, pinned; None if there is none."""
        return self._folders.find(chain, flavour)

    def last_folder(self, chains: Sequence[str], flavour: str) -> tuple[int, LayerFolder] | None:
        """The last of `chains` that has a settled folder: its place among them, and that."""
        return self._folders.find_last(chains, flavour)

    def discard(self, folder: LayerFolder) -> None:
        """Give up a folder of this session. It is in the trash then."""
        self._folders.discard(folder)

    def discard_unsettled(self) -> None:
        """Give up all folders of this session that aren't settled. They are in the trash then."""
        self._folders.drop_unsettled()

    def worked_in(self) -> list[Path]:
        """Folders that overlayfs left, to be removed at the end by who may."""
        return self._folders.worked_in({self.session.ident})

    def cache_folder(self, ident: str) -> LayerFolder:
        """The folder of the cache mount `ident` (any text), shared by all builds; pinned."""
        return self._folders.cache(ident)

    def known_cache_folder(self, ident: str) -> LayerFolder | None:
        """The folder of the cache mount `ident`, pinned; None if there is none."""
        return self._folders.known_cache(ident)

    def empty_trash(self, remove: RemoveTrees) -> None:
        """Remove from the disk what was discarded; `remove` gets the folders."""
        self.trash.empty(remove)

    def record_step(self, key: str, chain: str, *, own: bool, made: float | None = None) -> None:
        """The step with this cache key made `chain`; `own` says that the top layer is its.

        `made` is when, in seconds since 1970, by default now.
        """
        self._chains.record_step(key, chain, own=own, made=made)

    def step(self, key: str, elsewhere: Container[str] = ()) -> CachedStep | None:
        """What the step with this cache key made, pinned; None if any blob of it is missing.

        Blobs whose digests are in `elsewhere` may be missing: they can be fetched.
        """
        return self._chains.step(key, elsewhere)

    @contextmanager
    def single_flight(self, name: str, activity: Activity) -> Iterator[None]:
        """Be the only one, among threads and processes, who does the work called `name`.

        Raises BuildCancelled if the build is cancelled while it waits for others.
        """
        with self.alone(name, activity.raise_if_cancelled):
            yield

    @contextmanager
    def alone(
        self, name: str, while_waiting: Callable[[], object] = lambda: None
    ) -> Iterator[None]:
        """As :meth:`single_flight`; `while_waiting` is called many times a second."""
        path = self.root / "locks" / sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
        with ExitStack() as stack:
            with failing(path):
                stack.enter_context(holding(path, while_waiting))
            yield
