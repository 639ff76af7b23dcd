"""The store's folder: whose it is, where it lies, and what format it has."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from pathlib import Path

from pybuild.errors import BackendFailed, BackendUnavailable
from pybuild.files.locks import holding

_FORMAT_FILE = "format"
_FORMAT = b"pybuild store 1\n"
_LOCK = "lock"
RESERVE = "reserve"
NOTES = "contexts"
"""What builds keep about build contexts. It bounds itself, and may be emptied any time."""
# seconds to wait for others to open it, which takes milliseconds
_PATIENCE = 60.0
# what it takes to open a full store and delete some rows: bytes, and files for inodes
_RESERVE_SIZE = 1 << 20
_RESERVE_FILES = 8
FOLDERS = (
    "blobs",
    "blobs/sha256",
    "indexes",
    "layers",
    "cachemounts",
    NOTES,
    "ingest",
    "sessions",
    "locks",
    "trash",
)
# what a killed process leaves that had only begun to make a store
_BEGINNINGS = frozenset({_LOCK, f"{_FORMAT_FILE}.new"})
# locks and shared memory, which the database needs, don't reach the other machines of these
_NETWORK_TYPES = frozenset(
    "9p afs beegfs ceph cifs fuse.ceph fuse.glusterfs fuse.s3fs fuse.sshfs gfs2 glusterfs "  # noqa: SIM905 - a word list
    "lustre ncpfs nfs nfs4 ocfs2 orangefs smb3 smbfs vboxsf".split()
)
_MOUNTS = Path("/proc/self/mountinfo")
_ELSEWHERE = "choose another folder for the store"


class NoRoom(BackendFailed):
    """The file system is full, or a quota of it is used up."""


def prepare_root(root: Path) -> None:
    """Make the folder, or check that it can be a store of ours. Raises BackendUnavailable."""
    with unavailable(root):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = root.stat()
        if status.st_uid != os.geteuid():
            raise BackendUnavailable(
                f"the store {root} belongs to another user (id {status.st_uid})", hint=_ELSEWHERE
            )
        kind = network_type(status.st_dev, _mounts())
        if kind is not None:
            raise BackendUnavailable(
                f"the store {root} is on a network file system ({kind})",
                hint="choose a folder on a disk of this machine",
            )
        has_format = (root / _FORMAT_FILE).exists()
        if not has_format and {path.name for path in root.iterdir()} - _BEGINNINGS:
            raise BackendUnavailable(
                f"the folder {root} is neither empty nor a store of pybuild", hint=_ELSEWHERE
            )
        if status.st_mode & 0o077:
            root.chmod(0o700)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the store's lock, as everybody does who opens it. Raises BackendUnavailable."""
    end = time.monotonic() + _PATIENCE

    def check_time() -> None:
        if time.monotonic() > end:
            raise BackendUnavailable(
                f"another process has been opening the store {root} for a minute",
                hint="look for a build that is stopped or hangs",
            )

    with holding(root / _LOCK, check_time):
        yield


def check_format(root: Path) -> None:
    """Under the store's lock: give a new store its format and folders, or check them.

    Raises BackendUnavailable for a store of another version.
    """
    path = root / _FORMAT_FILE
    with unavailable(root):
        if not path.exists():
            new = root / f"{_FORMAT_FILE}.new"
            write_durably(new, _FORMAT)
            new.replace(path)
            sync_folder(root)
        found = path.read_bytes()[:100]
        if found != _FORMAT:
            raise BackendUnavailable(
                f"the store {root} has another format, {found.decode(errors='replace').strip()!r}",
                hint="use the version of pybuild that made it, or choose another folder",
            )
        for name in FOLDERS:
            (root / name).mkdir(mode=0o700, exist_ok=True)


def keep_reserve(root: Path) -> None:
    """Set room aside that makes a full store usable again. Whether there is any doesn't matter."""
    folder = root / RESERVE
    if folder.exists():
        return
    try:
        folder.mkdir(mode=0o700)
        for number in range(_RESERVE_FILES):
            descriptor = os.open(folder / str(number), os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, _RESERVE_SIZE // _RESERVE_FILES)
            finally:
                os.close(descriptor)
    except OSError:
        release_reserve(root)


def release_reserve(root: Path) -> None:
    """Give the room back."""
    import shutil  # noqa: PLC0415 - on a full disk

    shutil.rmtree(root / RESERVE, ignore_errors=True)


def network_type(device: int, mounts: str) -> str | None:
    """The type of the network file system with this device number; None if it is a local one.

    `mounts` is a /proc/self/mountinfo (proc_pid_mountinfo(5)).
    """
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split(" ")[2:3] == [wanted]:
            kind = rest.partition(" ")[0]
            return kind if kind in _NETWORK_TYPES else None
    return None


@contextmanager
def failing(path: Path) -> Iterator[None]:
    """Raise BackendFailed for what the file system refuses; NoRoom for a full one."""
    try:
        yield
    except OSError as error:
        raise _failed(path, error) from error


@contextmanager
def unavailable(root: Path) -> Iterator[None]:
    """As :func:`failing`, while a store is opened: BackendUnavailable, but NoRoom."""
    try:
        with failing(root):
            yield
    except NoRoom:
        raise
    except BackendFailed as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise BackendUnavailable(error.message, hint=_ELSEWHERE) from error


def write_durably(path: Path, content: bytes) -> None:
    """Write a small file that is complete after a power failure, once its folder is synced."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mounts() -> str:
    try:
        return _MOUNTS.read_text(errors="replace")
    except OSError:
        return ""


def _failed(path: Path, error: OSError) -> BackendFailed:
    if error.errno in {ENOSPC, EDQUOT}:
        return NoRoom(
            f"no room is left in the store's file system, at {path}",
            hint="pybuild prune frees some",
        )
    return BackendFailed(f"the store can't use {error.filename or path}: {error.strerror}")
