"""The files of an image in a folder of this machine.

The image is not trusted: nothing is opened but by a name in an open folder, and no symlink
is followed, neither the image's nor one that was in the folder before. What was there and has
a name of the image is replaced, files by whole files, and all else stays.
"""

from __future__ import annotations

import errno
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

from pybuild.backend import Activity
from pybuild.errors import ExportFailed, InvalidImage, UsageError
from pybuild.export.newfiles import translated
from pybuild.export.rootfs import PROGRESS_ITEM
from pybuild.files.trees import Tree, parent_of, shown, walk
from pybuild.oci.layerindex import NO_NAMES, Entry, Kind
from pybuild.values import dataclass

_PIECE = 1 << 18
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_FOLDER = os.O_RDONLY | _NOFOLLOW | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | getattr(os, "O_CLOEXEC", 0)
_HAS_DIR_FD = os.open in os.supports_dir_fd and os.mkdir in os.supports_dir_fd
_SET_ID = 0o6000
_OTHERWISE = "use type=tar, and unpack it where they can be made"


def write_folder(
    tree: Tree, dest: str, newest: int | None, activity: Activity, *, within: str = ""
) -> None:
    """Write all files of `tree` to the folder `dest`, which is made if it isn't there.

    With `within` they go into the folder of that name in `dest`.

    As root the files get their owners, devices are made, and extended attributes are set; as
    an ordinary user the owners are the user's own, set-id bits are dropped with them, and
    devices are left out with a warning. With `newest`, in seconds since 1970, later
    modification times become that one. Raises ExportFailed, InvalidImage, BuildCancelled.
    """
    if not _HAS_DIR_FD:
        raise UsageError(
            "this system can't write an image's files to a folder safely", hint="use type=tar"
        )
    with translated(dest), ExitStack() as stack:
        os.makedirs(dest, exist_ok=True)  # noqa: PTH103  (as the next line)
        root = os.open(dest, _FOLDER & ~_NOFOLLOW)
        if within:
            root = _inner_folder(root, within)
        writer = _Writer(tree, root, newest, activity)
        stack.enter_context(closing(writer))
        for entry in walk(tree, b""):
            if entry.path:
                activity.raise_if_cancelled()
                writer.write(entry)
        writer.finish()


@dataclass(frozen=True, slots=True)
class _Open:
    """A folder that is being filled; what it will look like is set when it is full."""

    path: bytes
    fd: int
    entry: Entry | None


class _Writer:
    """Writes entries, parents first; keeps the folders open that lead to the last one."""

    def __init__(self, tree: Tree, root: int, newest: int | None, activity: Activity) -> None:
        self._tree = tree
        self._newest = newest
        self._activity = activity
        self._open = [_Open(b"", root, None)]
        self._written: set[bytes] = set()
        self._skipped: list[bytes] = []
        self._done = 0
        geteuid: Callable[[], int] | None = getattr(os, "geteuid", None)
        self._is_root = geteuid is not None and geteuid() == 0

    def write(self, entry: Entry) -> None:
        name = entry.path.rpartition(b"/")[2]
        if name in NO_NAMES or b"\0" in name:
            raise InvalidImage(f"the image has a file with the impossible name {shown(entry.path)}")
        while self._open[-1].path != parent_of(entry.path):
            self._leave()
        folder = self._open[-1].fd
        with _named(entry.path):
            match entry.kind:
                case Kind.DIRECTORY:
                    self._enter(folder, name, entry)
                case Kind.FILE:
                    self._file(folder, name, entry)
                case Kind.SYMLINK:
                    with _replacing(folder, name) as temporary:
                        os.symlink(entry.link, temporary, dir_fd=folder)
                        self._dress_link(folder, temporary, entry)
                case Kind.CHARACTER | Kind.BLOCK | Kind.FIFO | Kind.SOCKET:
                    self._special(folder, name, entry)
                case Kind.WHITEOUT | Kind.OPAQUE:
                    raise InvalidImage(f"{shown(entry.path)} is a removal, not a file")

    def finish(self) -> None:
        """Set what folders look like, and tell what was left out."""
        while len(self._open) > 1:
            self._leave()
        if self._skipped:
            count, first = len(self._skipped), shown(self._skipped[0])
            more = f" and {count - 1} more" if count > 1 else ""
            self._activity.warn(
                f"{first}{more} can't be made here: only root makes special files", _OTHERWISE
            )

    def close(self) -> None:
        for folder in self._open:
            os.close(folder.fd)
        self._open.clear()

    def _enter(self, parent: int, name: bytes, entry: Entry) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            fd = self._existing(parent, name)
        else:
            fd = os.open(name, _FOLDER, dir_fd=parent)
        self._open.append(_Open(entry.path, fd, entry))

    def _existing(self, parent: int, name: bytes) -> int:
        """Open a folder that was there; anything else of that name is replaced by one."""
        try:
            fd = os.open(name, _FOLDER, dir_fd=parent)
        except OSError as error:
            if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
                raise
            os.unlink(name, dir_fd=parent)
            os.mkdir(name, 0o700, dir_fd=parent)
            return os.open(name, _FOLDER, dir_fd=parent)
        with suppress(OSError):  # another user's, where that may do
            os.fchmod(fd, 0o700)
        return fd

    def _leave(self) -> None:
        folder = self._open.pop()
        try:
            if folder.entry is not None:
                with _named(folder.path):
                    self._dress(folder.fd, folder.entry)
        finally:
            os.close(folder.fd)

    def _file(self, folder: int, name: bytes, entry: Entry) -> None:
        with _replacing(folder, name) as temporary:
            if entry.link in self._written and self._link(entry.link, folder, temporary):
                return
            fd = os.open(temporary, _NEW, 0o600, dir_fd=folder)
            try:
                self._copy(fd, entry)
                self._dress(fd, entry)
            finally:
                os.close(fd)
        self._written.add(entry.path)

    def _copy(self, fd: int, entry: Entry) -> None:
        with closing(self._tree.open(entry.path)) as stream:
            left = entry.size
            while piece := stream.read(_PIECE):
                self._activity.raise_if_cancelled()
                left -= len(piece)
                view = memoryview(piece)
                while view:
                    view = view[os.write(fd, view) :]
                self._done += len(piece)
                self._activity.progress(PROGRESS_ITEM, self._done, None)
        if left:
            raise InvalidImage(f"{shown(entry.path)} is not as long as the image says")

    def _link(self, target: bytes, folder: int, name: bytes) -> bool:
        """Make a hard link to a file written before; False where that can't be."""
        with ExitStack() as stack:
            here = self._open[0].fd
            *parents, base = target.split(b"/")
            for parent in parents:
                here = os.open(parent, _FOLDER, dir_fd=here)
                stack.callback(os.close, here)
            try:
                os.link(base, name, src_dir_fd=here, dst_dir_fd=folder, follow_symlinks=False)
            except OSError as error:
                if error.errno not in {errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP}:
                    raise
                return False
        return True

    def _special(self, folder: int, name: bytes, entry: Entry) -> None:
        kinds = {Kind.CHARACTER: 0o020000, Kind.BLOCK: 0o060000, Kind.FIFO: 0o010000}
        if not self._is_root or entry.kind not in kinds:
            self._skipped.append(entry.path)
            return
        try:
            with _replacing(folder, name) as temporary:
                device = os.makedev(*entry.device)
                os.mknod(temporary, kinds[entry.kind] | 0o600, device, dir_fd=folder)
                os.chown(temporary, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)
                # The name is ours and random, and what it names was made just now.
                os.chmod(temporary, entry.mode, dir_fd=folder)
                self._set_times(temporary, entry, folder)
        except (PermissionError, OverflowError):  # root of a container; no such number
            self._skipped.append(entry.path)

    def _dress(self, fd: int, entry: Entry) -> None:
        """Give an open file or folder its owner, mode, attributes and time, in this order."""
        mode = entry.mode
        if self._is_root:
            os.fchown(fd, entry.uid, entry.gid)
        elif not self._owned(fd, entry):
            mode &= ~_SET_ID  # they would lend the rights of another user than was meant
        os.fchmod(fd, mode)
        if self._is_root and sys.platform == "linux":
            for key, value in entry.xattrs:
                with suppress(OSError):  # file systems differ in what they hold
                    os.setxattr(fd, key, value)
        mtime = self._mtime(entry)
        os.utime(fd, (mtime, mtime))

    def _dress_link(self, folder: int, name: bytes, entry: Entry) -> None:
        if self._is_root:
            os.chown(name, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)
        self._set_times(name, entry, folder)

    def _set_times(self, name: bytes, entry: Entry, folder: int) -> None:
        mtime = self._mtime(entry)
        os.utime(name, (mtime, mtime), dir_fd=folder, follow_symlinks=False)

    def _mtime(self, entry: Entry) -> int:
        return entry.mtime if self._newest is None else min(entry.mtime, self._newest)

    @staticmethod
    def _owned(fd: int, entry: Entry) -> bool:
        status = os.fstat(fd)
        return (status.st_uid, status.st_gid) == (entry.uid, entry.gid)


def _inner_folder(parent: int, name: str) -> int:
    """Open a folder, made if it isn't there, in one that is closed; a link is none."""
    try:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=parent)
        with _named(os.fsencode(name)):
            return os.open(name, _FOLDER, dir_fd=parent)
    finally:
        os.close(parent)


@contextmanager
def _replacing(folder: int, name: bytes) -> Iterator[bytes]:
    """A temporary name in `folder`, whose file gets the name `name` when the context ends."""
    temporary = b".pybuild-" + secrets.token_hex(8).encode()
    try:
        yield temporary
        try:
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except (IsADirectoryError, NotADirectoryError):
            os.rmdir(name, dir_fd=folder)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        # Of two names of one file, rename leaves both.
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)


@contextmanager
def _named(path: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ExportFailed(f"can't write {shown(path)}: {reason}") from error
