"""The store's database: its tables, its transactions, and its errors as ours.

Besides holding rows it is the one lock between processes: what must not happen while
garbage is removed happens inside :meth:`Database.writing`, and so does the removing. All of
it is short, so that no one waits long. In WAL mode with NORMAL synchronisation a kill loses
nothing, and a power failure at most the last transactions, never a part of one.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Self

from pybuild.errors import BackendFailed
from pybuild_embedded.rootfolder import NoRoom

FILE = "db.sqlite"
FILES = (FILE, f"{FILE}-wal", f"{FILE}-shm")
# seconds to wait for other processes' transactions, which take milliseconds
_PATIENCE = 60.0
_CACHE = 256  # KiB

TABLES = {
    # a layer of a chain, named by its chain id, and the one blob of it that builds get
    "chains": (
        "chain TEXT PRIMARY KEY, parent TEXT NOT NULL, diff_id TEXT NOT NULL,"
        " media_type TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL"
    ),
    # the step cache
    "steps": (
        "key TEXT PRIMARY KEY, chain TEXT NOT NULL, own INTEGER NOT NULL, made REAL NOT NULL,"
        " used INTEGER NOT NULL"
    ),
    # unpacked layers; while `session` isn't NULL they are being made
    "folders": (
        "ident TEXT PRIMARY KEY, chain TEXT, flavour TEXT, session TEXT, size INTEGER,"
        " boot TEXT, synced INTEGER NOT NULL, used INTEGER NOT NULL, UNIQUE (chain, flavour)"
    ),
    "caches": "ident TEXT PRIMARY KEY, used INTEGER NOT NULL",
    # an image for one platform, by its manifest's digest
    "images": (
        "digest TEXT PRIMARY KEY, config TEXT NOT NULL, made REAL NOT NULL, used INTEGER NOT NULL"
    ),
    # what an image keeps: the documents on the way to it, its own, its layers with their diff ids
    "image_blobs": (
        "image TEXT NOT NULL, digest TEXT NOT NULL, diff_id TEXT NOT NULL,"
        " PRIMARY KEY (image, digest, diff_id)"
    ),
    # a name points to an index or manifest, which leads to one image a platform
    "names": "name TEXT PRIMARY KEY, target TEXT NOT NULL",
    "targets": "target TEXT NOT NULL, image TEXT NOT NULL, PRIMARY KEY (target, image)",
    # an image from a registry that has the blob
    "origins": (
        "digest TEXT PRIMARY KEY, image TEXT NOT NULL, media_type TEXT NOT NULL,"
        " size INTEGER NOT NULL"
    ),
    # what was measured: the store as a whole, and cache mounts by name
    "sizes": "part TEXT NOT NULL, ident TEXT NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (part, ident)",
    # what a session uses; a pin of a session that isn't alive means nothing
    "pins": (
        "session TEXT NOT NULL, part TEXT NOT NULL, ident TEXT NOT NULL,"
        " PRIMARY KEY (session, part, ident)"
    ),
}
_VERSION = 3  # 1 had no origins, 2 no sizes
_INDEXES = ("CREATE INDEX IF NOT EXISTS unsettled ON folders (synced, boot)",)


class DamagedDatabase(BackendFailed):
    """The file isn't a database any more, or only in part."""


class Database:
    """One connection for all threads, which take turns. A context manager over `close`."""

    def __init__(self, path: Path) -> None:
        """Open the database, and make it if it isn't there. Raises BackendFailed, DamagedDatabase."""
        self.path = path
        self._lock = threading.RLock()
        self._connection = self._open()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One or more queries; without a transaction of their own. Raises BackendFailed."""
        with self._lock, _translated(self.path):
            yield self._connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other process's or thread's overlaps; undone by an exception.

        Within another of the same thread it is part of that. Raises BackendFailed.
        """
        with self._lock, _translated(self.path):
            if self._connection.in_transaction:
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # after a full disk SQLite has already undone it
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def shorten_log(self) -> None:
        """Bring the log into the database and empty it, if there is room and others let us."""
        with self._lock, suppress(sqlite3.OperationalError):
            self._connection.execute("PRAGMA busy_timeout=1000")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        with self.reading() as connection:
            connection.execute(f"PRAGMA busy_timeout={_PATIENCE * 1000:.0f}")

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Meanwhile the file isn't open here, and threads wait that want to use it."""
        with self._lock:
            self._connection.close()
            try:
                yield
            finally:
                self._connection = self._open()

    def close(self) -> None:
        """Idempotent."""
        with self._lock, suppress(sqlite3.Error):
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _open(self) -> sqlite3.Connection:
        with _translated(self.path):
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            connection = sqlite3.connect(
                self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
            # a damaged text is a text that says something wrong
            connection.text_factory = partial(str, encoding="utf-8", errors="replace")
            try:
                # so much of a large store stays out of memory: the kernel has it in its own
                connection.execute(f"PRAGMA cache_size=-{_CACHE}")
                connection.execute("PRAGMA synchronous=NORMAL")
                if connection.execute("PRAGMA user_version").fetchone()[0] < _VERSION:
                    _make_tables(connection)
            except BaseException:
                connection.close()
                raise
        return connection


def _make_tables(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("BEGIN IMMEDIATE")
    for name, columns in TABLES.items():
        connection.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns})")
    for statement in _INDEXES:
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version={_VERSION}")
    connection.execute("COMMIT")


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _as_ours(path, error) from error


def _as_ours(path: Path, error: sqlite3.Error) -> BackendFailed:
    # the low byte is the primary result code
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    match code:
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return DamagedDatabase(
                f"the store's database {path} is damaged: {error}",
                hint="pybuild fsck --repair saves what can be read of it",
            )
        case sqlite3.SQLITE_CANTOPEN if _lacks_inodes(path.parent):
            return NoRoom(
                f"no room is left for the files of the store's database {path}",
                hint="pybuild prune frees some",
            )
        case sqlite3.SQLITE_FULL:
            return NoRoom(
                f"no room is left for the store's database {path}",
                hint="pybuild prune frees some",
            )
        case sqlite3.SQLITE_BUSY:
            return BackendFailed(
                f"another process has kept the store's database {path} for a minute",
                hint="look for a build that is stopped or hangs",
            )
        case sqlite3.SQLITE_IOERR:
            return BackendFailed(
                f"the store's database {path} can't be read or written: {error}",
                hint="the disk may be failing, or a quota be used up",
            )
        case _:
            return BackendFailed(f"the store's database {path} failed: {error}")


def _lacks_inodes(folder: Path) -> bool:
    found = os.statvfs(folder)
    return found.f_files > 0 and found.f_favail == 0
