"""Sessions: who uses the store at this moment, and what nobody may remove therefore.

A session is a locked file, so the kernel ends it with its process. Its *pins* are rows: what
a live session has pinned stays. Whoever opens the store cleans up after the dead ones.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from pybuild.files.locks import remove_unheld, try_lock
from pybuild_embedded.database import Database
from pybuild_embedded.rootfolder import failing
from pybuild_embedded.trash import Trash

_NEW = ".new-"


class Part(StrEnum):
    """What a store is made of, and what pins name."""

    STEP = "step"
    CHAIN = "chain"
    BLOB = "blob"
    INDEX = "index"
    FOLDER = "folder"
    CACHE = "cache"
    IMAGE = "image"


class Session:
    """One use of the store, from opening to closing it. ``ingest`` is for unfinished files."""

    def __init__(self, root: Path) -> None:
        """Begin one. The store's lock must be held."""
        self.ident = os.urandom(16).hex()
        self.ingest = root / "ingest" / self.ident
        self._folder = root / "sessions"
        self._path = self._folder / self.ident
        new = self._folder / f"{_NEW}{self.ident}"
        self._lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try_lock(self._lock)
        # under its name it is locked from the start: others look at any moment
        new.rename(self._path)

    def pin(self, connection: sqlite3.Connection, part: Part, *idents: str) -> None:
        """Keep these as long as the session lasts; within a transaction, before using them."""
        rows = [(self.ident, part, ident) for ident in idents]
        connection.executemany("INSERT OR IGNORE INTO pins VALUES (?, ?, ?)", rows)

    def let_go(self, database: Database) -> None:
        """Pin nothing any more, and drop the files that aren't finished."""
        _remove_folder(self.ingest)
        with database.writing() as connection:
            connection.execute("DELETE FROM pins WHERE session=?", (self.ident,))

    def new_file(self) -> Path:
        """A path for a file that isn't finished; it vanishes with the session."""
        with failing(self.ingest):
            self.ingest.mkdir(mode=0o700, exist_ok=True)
        return self.ingest / os.urandom(16).hex()

    def others(self) -> set[str]:
        """The sessions that live besides this one."""
        return {
            path.name
            for path in self._folder.iterdir()
            if path.name != self.ident and not path.name.startswith(_NEW) and is_locked(path)
        }

    def live(self) -> set[str]:
        """All sessions that live, this one included."""
        return self.others() | {self.ident}

    def oldest(self, idents: Iterable[str]) -> float:
        """When the first of these began, in seconds since 1970."""
        begun = [self._path.stat().st_mtime]
        for ident in idents:
            with suppress(FileNotFoundError):
                begun.append((self._folder / ident).stat().st_mtime)
        return min(begun)

    def dead(self) -> set[str]:
        """Sessions that ended without closing. The store's lock must be held."""
        return {path.name for path in self._folder.iterdir()} - {self.ident} - self.others()

    def bury(self, dead: set[str], database: Database, trash: Trash) -> None:
        """Remove what the sessions `dead` left. The store's lock must be held."""
        remove_unheld(self._folder.parent / "locks")
        unfinished = end_sessions(database, dead)
        with database.writing() as connection:
            # nobody knows what they added
            connection.execute("DELETE FROM sizes")
        for folder in unfinished:
            trash.put(folder)
        for ident in dead:
            _remove_folder(self.ingest.parent / ident)
            # last, so that a kill before it has all this done again
            (self._folder / ident).unlink(missing_ok=True)

    def end(self) -> None:
        """Remove the session's files. Idempotent."""
        if self._lock < 0:
            return
        _remove_folder(self.ingest)
        with suppress(OSError):
            self._path.unlink()
        os.close(self._lock)
        self._lock = -1


def _remove_folder(path: Path) -> None:
    """Remove a folder with all in it, if it is there; most are empty."""
    try:
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError:
        import shutil  # noqa: PLC0415 - seldom needed

        shutil.rmtree(path, ignore_errors=True)


def end_sessions(database: Database, idents: Iterable[str]) -> list[Path]:
    """Drop the pins of sessions and the rows of what they haven't settled: those folders."""
    rows = [(ident,) for ident in idents]
    unfinished: list[Path] = []
    with database.writing() as connection:
        for row in rows:
            connection.execute("DELETE FROM pins WHERE session=?", row)
            found = connection.execute("SELECT ident FROM folders WHERE session=?", row)
            unfinished += [database.path.parent / "layers" / ident for (ident,) in found]
            connection.execute("DELETE FROM folders WHERE session=?", row)
    return unfinished


def is_locked(path: Path) -> bool:
    """Whether a process has the file locked. Looking at it disturbs nobody else who looks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
