"""A database that is damaged is made anew, with the rows that can still be read."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from pybuild.errors import BackendUnavailable
from pybuild_embedded.database import FILE, TABLES, DamagedDatabase, Database
from pybuild_embedded.rootfolder import failing, sync_folder
from pybuild_embedded.sessions import Session

_NEW = "db.new"


def open_database(root: Path, session: Session) -> Database:
    """The store's database, made anew if it can't even be opened. The store's lock must be held.

    Raises BackendUnavailable where that is needed but other sessions use it.
    """
    try:
        return Database(root / FILE)
    except DamagedDatabase as error:
        _check_alone(session, error)
    rebuild(root)
    return Database(root / FILE)


def mend_database(root: Path, session: Session, database: Database, error: DamagedDatabase) -> None:
    """Do as :func:`rebuild` with an open database. The store's lock must be held.

    Raises BackendUnavailable, for the reason of `error`, where other sessions use it.
    """
    _check_alone(session, error)
    with database.closed():
        rebuild(root)


def rebuild(root: Path) -> None:
    """Replace the database, which nobody may have open, by one with all rows that are legible."""
    new = root / _NEW
    with failing(root):
        _remove(new)
        with (
            Database(new) as fresh,
            fresh.writing() as target,
            suppress(sqlite3.Error),
            closing(sqlite3.connect(root / FILE)) as damaged,
        ):
            for table in TABLES:
                _copy(damaged, target, table)
        # an old log would be applied to the new database
        _remove(root / FILE, keep_main=True)
        new.replace(root / FILE)
        sync_folder(root)


def _check_alone(session: Session, error: DamagedDatabase) -> None:
    if session.others():
        raise BackendUnavailable(
            error.message, hint="it is mended once no other build uses the store"
        ) from error


def _copy(damaged: sqlite3.Connection, target: sqlite3.Connection, table: str) -> None:
    # from both ends, up to the damaged page
    for order in ("ASC", "DESC"):
        with suppress(sqlite3.DatabaseError):
            query = f"SELECT * FROM {table} ORDER BY rowid {order}"  # noqa: S608 - names of ours
            for row in damaged.execute(query):
                places = ",".join("?" * len(row))
                insert = f"INSERT OR IGNORE INTO {table} VALUES ({places})"  # noqa: S608 - as above
                with suppress(sqlite3.DatabaseError):
                    target.execute(insert, row)


def _remove(database: Path, *, keep_main: bool = False) -> None:
    for ending in ("-wal", "-shm", "" if not keep_main else "-journal"):
        database.with_name(database.name + ending).unlink(missing_ok=True)
