"""Folders with one unpacked layer each, and those of cache mounts.

A folder has a row before it exists and none after it is gone, so what has no row is garbage.
It belongs to its session until it is settled: then it never changes. Its files aren't
synced one by one but all at once when the session ends, or never if it isn't lasting; what a
power failure may have caught is told by the boot id in its row, and dropped.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from pybuild.files.recent import Recent
from pybuild.values import dataclass
from pybuild_embedded.database import DamagedDatabase, Database
from pybuild_embedded.growth import Growth
from pybuild_embedded.rootfolder import NoRoom, failing
from pybuild_embedded.sessions import Part, Session
from pybuild_embedded.trash import Trash

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_UNSYNCED, _NEVER_SYNCED = 0, 2
_MOST_KNOWN = 256


@dataclass(frozen=True, slots=True)
class LayerFolder:
    """A folder for overlayfs: ``fs`` is what it gets as a lower or upper, ``work`` its workdir."""

    ident: str
    path: Path
    fs: Path

    @property
    def work(self) -> Path:
        return self.path / "work"

    def make(self) -> None:
        """Make what of it isn't there."""
        with failing(self.path):
            self.path.mkdir(mode=0o700, exist_ok=True)
            self.work.mkdir(mode=0o700, exist_ok=True)
            if not self.fs.exists():
                self.fs.mkdir(exist_ok=True)
                # it becomes the root of a file system, which all may enter, whatever the umask
                self.fs.chmod(0o755)


def folder_in(parent: Path, ident: str) -> LayerFolder:
    """The one called `ident` in `parent`; nothing is made on the disk."""
    path = parent / ident
    return LayerFolder(ident, path, path / "fs")


class Folders:
    """The unpacked layers and cache mounts of a store. Safe in threads."""

    def __init__(
        self, root: Path, database: Database, session: Session, trash: Trash, growth: Growth
    ) -> None:
        self._root = root
        self._layers = root / "layers"
        self._caches = root / "cachemounts"
        self._database = database
        self._session = session
        self._trash = trash
        self._growth = growth
        self._boot = boot_id()
        # the idents of settled ones that this session has pinned, which stay
        self._known: Recent[tuple[str, str], str] = Recent(_MOST_KNOWN)

    def new(self) -> LayerFolder:
        """An empty folder, this session's."""
        ident = os.urandom(16).hex()
        with self._database.writing() as connection:
            connection.execute(
                "INSERT INTO folders VALUES (?, NULL, NULL, ?, NULL, ?, 0, 0)",
                (ident, self._session.ident, self._boot),
            )
        folder = folder_in(self._layers, ident)
        folder.make()
        return folder

    def settle(
        self, folder: LayerFolder, chain: str, flavour: str, size: int | None, *, lasting: bool
    ) -> LayerFolder:
        """The folder holds the top layer of `chain`; the one to use, which may be another's."""
        with self._database.writing() as connection:
            found = self._find(connection, chain, flavour)
            if found is None:
                connection.execute(
                    "UPDATE folders SET session=NULL, chain=?, flavour=?, size=?, used=?,"
                    " synced=? WHERE ident=?",
                    (chain, flavour, size, int(time.time()), _state(lasting), folder.ident),
                )
                self._growth.add(size or 0)
            winner = found or folder
            self._session.pin(connection, Part.FOLDER, winner.ident)
        self._known.put((chain, flavour), winner.ident)
        return winner

    def find(self, chain: str, flavour: str) -> LayerFolder | None:
        """The folder with the top layer of `chain`, pinned."""
        known = self._known.get((chain, flavour))
        if known is not None:
            return folder_in(self._layers, known)
        try:
            with self._database.writing() as connection:
                found = self._find(connection, chain, flavour)
                if found is None:
                    return None
                self._session.pin(connection, Part.FOLDER, found.ident)
                row = (int(time.time()), found.ident)
                connection.execute("UPDATE folders SET used=? WHERE ident=?", row)
        except DamagedDatabase:
            return None  # a failing cache is a miss
        self._known.put((chain, flavour), found.ident)
        return found

    def find_last(self, chains: Sequence[str], flavour: str) -> tuple[int, LayerFolder] | None:
        """The place of the last of `chains` that has a folder, and that, pinned."""
        query = "SELECT chain FROM folders WHERE flavour=? AND session IS NULL"
        with self._database.reading() as connection:
            settled = {chain for (chain,) in connection.execute(query, (flavour,)).fetchall()}
        for place in range(len(chains) - 1, -1, -1):
            if chains[place] in settled:
                found = self.find(chains[place], flavour)
                if found is not None:
                    return place, found
        return None

    def discard(self, folder: LayerFolder) -> None:
        """Remove a folder that nobody else can use."""
        # the row goes with the session at the latest; on a full disk, removing it takes room
        self._trash.put(folder.path)
        with suppress(NoRoom), self._database.writing() as connection:
            connection.execute("DELETE FROM folders WHERE ident=?", (folder.ident,))

    def drop_unsettled(self) -> None:
        """Remove the folders of this session that nobody else can use."""
        query = "SELECT ident FROM folders WHERE session=?"
        own = (self._session.ident,)
        with self._database.reading() as connection:
            idents = connection.execute(query, own).fetchall()
        for (ident,) in idents:
            self._trash.put(self._layers / ident)
        with suppress(NoRoom), self._database.writing() as connection:
            rows = [(ident, *own) for (ident,) in idents]
            connection.executemany("DELETE FROM folders WHERE ident=? AND session=?", rows)

    def cache(self, ident: str) -> LayerFolder:
        """The folder of the cache mount with this id, pinned and made if it isn't there."""
        name = sha256(ident.encode("utf-8", "surrogateescape")).hexdigest()
        with self._database.writing() as connection:
            self._session.pin(connection, Part.CACHE, name)
            row = (name, int(time.time()))
            connection.execute("INSERT OR REPLACE INTO caches VALUES (?, ?)", row)
        self._growth.use_cache(name)
        folder = folder_in(self._caches, name)
        folder.make()
        return folder

    def known_cache(self, ident: str) -> LayerFolder | None:
        """The folder of the cache mount with this id, pinned; None if it isn't there."""
        name = sha256(ident.encode("utf-8", "surrogateescape")).hexdigest()
        with self._database.writing() as connection:
            query = "SELECT 1 FROM caches WHERE ident=?"
            if not connection.execute(query, (name,)).fetchone():
                return None
            self._session.pin(connection, Part.CACHE, name)
        return folder_in(self._caches, name)

    def worked_in(self, sessions: Iterable[str]) -> list[Path]:
        """The ``work`` of settled folders that `sessions` use, where overlayfs left something."""
        query = "SELECT ident FROM pins WHERE session=? AND part=?"
        with self._database.reading() as connection:
            found = [connection.execute(query, (each, Part.FOLDER)).fetchall() for each in sessions]
        works = {folder_in(self._layers, ident).work for rows in found for (ident,) in rows}
        return [work for work in works if _holds_any(work)]

    def drop_unsynced(self) -> None:
        """Remove what a machine's end may have caught half-written."""
        lost = "FROM folders WHERE synced IN (?, ?) AND boot<>?"
        values = (_UNSYNCED, _NEVER_SYNCED, self._boot)
        with self._database.reading() as connection:
            if not connection.execute(f"SELECT 1 {lost}", values).fetchone():
                return
        with self._database.writing() as connection:
            idents = connection.execute(f"SELECT ident {lost}", values).fetchall()
            connection.execute(f"DELETE {lost}", values)
        for (ident,) in idents:
            self._trash.put(self._layers / ident)

    def sync(self) -> None:
        """Make all settled folders durable, this session's and others'."""
        query = "SELECT ident FROM folders WHERE synced=? AND session IS NULL"
        with self._database.reading() as connection:
            idents = connection.execute(query, (_UNSYNCED,)).fetchall()
        if not idents:
            return
        with failing(self._root):
            _sync_file_system(self._root)
        with self._database.writing() as connection:
            connection.executemany("UPDATE folders SET synced=1 WHERE ident=?", idents)

    def _find(self, connection: sqlite3.Connection, chain: str, flavour: str) -> LayerFolder | None:
        query = "SELECT ident FROM folders WHERE chain=? AND flavour=?"
        row = connection.execute(query, (chain, flavour)).fetchone()
        if row is None:
            return None
        folder = folder_in(self._layers, row[0])
        if folder.fs.is_dir():
            return folder
        connection.execute("DELETE FROM folders WHERE ident=?", row)
        return None


def _state(lasting: bool) -> int:
    return _UNSYNCED if lasting else _NEVER_SYNCED


def _holds_any(folder: Path) -> bool:
    try:
        with os.scandir(folder) as found:
            return any(found)
    except FileNotFoundError:
        return False


def boot_id() -> str:
    """What differs between two runs of this machine."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return "unknown"


def _sync_file_system(path: Path) -> None:
    import ctypes  # noqa: PLC0415 - after a RUN

    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)
