"""Blobs: immutable files named by the digest of what is in them.

A blob is here when its file is; there are no rows that could disagree. It is written under
another name, synced, and renamed, so that a file with a digest's name is complete.
"""

from __future__ import annotations

import io
import os
from contextlib import suppress
from hashlib import file_digest, sha256
from pathlib import Path
from typing import BinaryIO, Self

from pybuild.errors import BackendFailed, ImageNotFound, InvalidImage
from pybuild.oci.descriptor import is_digest
from pybuild_embedded.database import Database
from pybuild_embedded.growth import Growth
from pybuild_embedded.rootfolder import failing, sync_folder
from pybuild_embedded.sessions import Part, Session


class Blobs:
    """All blobs of a store. Safe in threads."""

    def __init__(self, root: Path, database: Database, session: Session, growth: Growth) -> None:
        self.folder = root / "blobs" / "sha256"
        self._database = database
        self._session = session
        self._growth = growth

    def path(self, digest: str) -> Path:
        """Where the blob is, if it is here. Raises InvalidImage for what is no digest."""
        if not is_digest(digest):
            raise InvalidImage(f"{digest[:100]!r} is no digest")
        name = digest.removeprefix("sha256:")
        return self.folder / name[:2] / name

    def size(self, digest: str) -> int | None:
        """The blob's size in bytes, None if it isn't here. It isn't pinned."""
        try:
            return self.path(digest).stat().st_size
        except (OSError, InvalidImage):
            return None

    def has(self, digest: str) -> bool:
        """Whether the blob is here; it is pinned if it is."""
        path = self.path(digest)
        with self._database.writing() as connection:
            # first: whoever removes blobs has a transaction of its own
            self._session.pin(connection, Part.BLOB, digest)
            return path.is_file()

    def open(self, digest: str) -> BinaryIO:
        """The blob's bytes; it is pinned. Raises ImageNotFound."""
        self.has(digest)
        return self._open(digest)

    def read(self, digest: str, limit: int) -> bytes:
        """A small blob's verified bytes; it isn't pinned. Raises ImageNotFound, InvalidImage."""
        with self._open(digest) as file, failing(self.folder):
            content = file.read(limit + 1)
        if len(content) > limit:
            raise InvalidImage(f"{digest} has more than {limit} bytes")
        if f"sha256:{sha256(content).hexdigest()}" != digest:
            raise InvalidImage(
                f"the stored blob {digest} is damaged", hint="pybuild fsck --repair removes it"
            )
        return content

    def discard_damaged(self, digest: str) -> bool:
        """Remove a blob whose bytes have another digest; whether that was so."""
        path = self.path(digest)
        with failing(self.folder):
            try:
                with path.open("rb") as file:
                    if f"sha256:{file_digest(file, 'sha256').hexdigest()}" == digest:
                        return False
                path.unlink()
            except FileNotFoundError:
                return False
        return True

    def _open(self, digest: str) -> BinaryIO:
        with failing(self.folder):
            try:
                return self.path(digest).open("rb")
            except FileNotFoundError:
                raise ImageNotFound(f"the store has no blob {digest}") from None

    def writer(self, *, hashed: bool) -> BlobWriter:
        return BlobWriter(self, self._session.new_file(), hashed=hashed)

    def adopt(self, path: Path, digest: str, size: int) -> None:
        """Make a complete file of this file system a blob. It is gone from `path` afterwards."""
        with failing(path):
            found = path.stat().st_size
            if found != size:
                raise BackendFailed(f"the file for {digest} has {found} bytes instead of {size}")
            if self.has(digest) and self.size(digest) == size:
                path.unlink()
                return
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._rename(path, self.path(digest))
        self._growth.add(size)

    def _rename(self, path: Path, target: Path) -> None:
        # pinned already: a blob that appears while garbage is removed stays
        try:
            path.rename(target)
        except FileNotFoundError:
            target.parent.mkdir(mode=0o700, exist_ok=True)
            sync_folder(self.folder)
            path.rename(target)
        sync_folder(target.parent)


class BlobWriter:
    """A new blob. A context manager: what isn't committed within leaves nothing behind.

    Raises BackendFailed where the file can't be written.
    """

    def __init__(self, blobs: Blobs, path: Path, *, hashed: bool) -> None:
        """What is `hashed` by who writes it isn't hashed here once more."""
        self._blobs = blobs
        self._path = path
        self._digest = None if hashed else sha256()
        self._size = 0
        with failing(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._file = io.FileIO(descriptor, "wb")

    def write(self, piece: bytes) -> None:
        """Append `piece`."""
        if self._digest is not None:
            self._digest.update(piece)
        self._size += len(piece)
        left = memoryview(piece)
        with failing(self._path):
            while left:
                left = left[self._file.write(left) :]

    def restart(self) -> None:
        """Drop all that was written."""
        with failing(self._path):
            self._file.seek(0)
            self._file.truncate()
        if self._digest is not None:
            self._digest = sha256()
        self._size = 0

    def commit(self, digest: str, size: int) -> None:
        """Keep the blob, pinned, durably. Called once, last.

        Raises InvalidImage if what was written has another size, or, unless it is `hashed`, digest.
        """
        found = digest if self._digest is None else f"sha256:{self._digest.hexdigest()}"
        if (found, self._size) != (digest, size):
            raise InvalidImage(
                f"expected {digest} with {size} bytes, got {found} with {self._size}"
            )
        with failing(self._path):
            self._file.close()
        self._blobs.adopt(self._path, digest, size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
