"""Where blobs came from: one that isn't here, or is damaged, can be fetched again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import suppress

from pybuild.errors import UsageError
from pybuild.oci.descriptor import Descriptor
from pybuild.oci.reference import Reference, parse_reference
from pybuild_embedded.database import DamagedDatabase, Database

Origin = tuple[Reference, Descriptor]
"""An image that has the blob, and the blob."""


class Origins:
    """The images that blobs can be fetched from, by the blobs' digests. Safe in threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, image: Reference, blobs: Iterable[Descriptor]) -> None:
        """Remember that the registry has these blobs where it has `image`."""
        rows = [(blob.digest, str(image), blob.media_type, blob.size) for blob in blobs]
        with self._database.writing() as connection:
            connection.executemany("INSERT OR REPLACE INTO origins VALUES (?, ?, ?, ?)", rows)

    def find(self, digest: str) -> Origin | None:
        """Where the blob can be fetched from; None where that isn't known."""
        query = "SELECT image, media_type, size FROM origins WHERE digest=?"
        # a row that says something wrong counts as not there
        with suppress(DamagedDatabase, UsageError), self._database.reading() as connection:
            row = connection.execute(query, (digest,)).fetchone()
            if row is not None:
                return parse_reference(row[0]), Descriptor(row[1], digest, row[2])
        return None

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, str) and self.find(digest) is not None


def forget_origins(connection: sqlite3.Connection, blobs: Iterable[str]) -> None:
    """Forget where these blobs came from."""
    connection.executemany("DELETE FROM origins WHERE digest=?", [(blob,) for blob in blobs])
