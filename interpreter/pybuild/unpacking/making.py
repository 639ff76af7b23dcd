"""Makes the files of a layer below one folder, which only this process writes to."""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Self

from pybuild.errors import BackendFailed, InvalidImage
from pybuild.files.safepath import Root
from pybuild.files.trees import parent_of, shown
from pybuild.oci.layerindex import Entry, Kind
from pybuild.unpacking.failures import disk_full, is_full
from pybuild.unpacking.layerplan import LowerFile
from pybuild.unpacking.removing import clear

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_FOLDERS = 128
_BLOCK = 512
_NANO = 10**9
# what an image asks for and this machine, or this mapping of ids, can't hold
_OF_THE_IMAGE = (errno.EINVAL, errno.ENAMETOOLONG, errno.EOVERFLOW, errno.E2BIG, errno.EEXIST)
_TYPES = {Kind.CHARACTER: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO}


class Making:
    """Makes entries below `target`: a context manager that leaves the folder empty on errors.

    Raises InvalidImage for what can't be made here, and BackendFailed if the disk is full.
    `allocated` counts the bytes on disk.
    """

    def __init__(self, target: Path, *, owners: bool, devices: bool) -> None:
        """Without `owners` nothing is chowned; with `devices`, not to make one is an error."""
        self._target = target
        self._owners = owners
        self._devices = devices
        self._root = Root(target)
        self._opened: OrderedDict[bytes, int] = OrderedDict()
        self._at = b""
        self.allocated = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.close()
        # what is full is seen before there is room again
        failure = self._failure(error) if isinstance(error, OSError) else None
        if error is not None:
            with suppress(OSError):
                clear(self._target)
        if failure is not None:
            raise failure from error

    def close(self) -> None:
        """Leave the folder as it is. Idempotent."""
        while self._opened:
            os.close(self._opened.popitem()[1])
        self._root.close()

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Raise the errors of the class for those of the system, as leaving its context does."""
        try:
            yield
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> InvalidImage | BackendFailed:
        reason = error.strerror or str(error)
        if is_full(error):
            return disk_full(error, self._target)
        if error.errno in _OF_THE_IMAGE:
            return InvalidImage(f"{shown(self._at)} in the layer can't be made here: {reason}")
        return BackendFailed(f"can't make {shown(self._at)} in {self._target}: {error}")

    def folders(self, entries: Sequence[Entry]) -> None:
        """Make folders, parents first; the root is there. They are ours until `settle`."""
        for entry in entries:
            if entry.path:
                self.folder(entry.path)

    def folder(self, path: bytes) -> None:
        """Make one folder, whose parent is there, as `folders` does."""
        folder, name = self._place(path)
        os.mkdir(name, 0o700, dir_fd=folder)

    def file(self, entries: Sequence[Entry], write: Callable[[int], object]) -> None:
        """Make a file with the names of `entries`, of which the first has the attributes."""
        entry = entries[0]
        fd = self.begin(entry)
        try:
            write(fd)
        except BaseException:
            os.close(fd)
            raise
        self.end(fd, entry)
        self.names(entry.path, entries[1:])

    def begin(self, entry: Entry) -> int:
        """A new file, to be written to and given to `end`."""
        folder, name = self._place(entry.path)
        return os.open(name, _NEW_FILE, 0o600, dir_fd=folder)

    def end(self, fd: int, entry: Entry) -> None:
        """Give the file its attributes, and close it."""
        try:
            self._set_attributes(fd, entry)
            self.allocated += os.fstat(fd).st_blocks * _BLOCK
        finally:
            os.close(fd)

    def names(self, path: bytes, entries: Sequence[Entry]) -> None:
        """Make hard links at `entries` to the file at `path`."""
        for entry in entries:
            self.link(*self._place(path), entry.path)

    def link(self, folder: int, name: bytes, path: bytes) -> None:
        """Make what has this name in the open folder a hard link at `path`."""
        # its folder may be pushed out of those kept open, so it is held here
        held = os.dup(folder)
        try:
            there, new = self._place(path)
            os.link(name, new, src_dir_fd=held, dst_dir_fd=there, follow_symlinks=False)
        finally:
            os.close(held)

    def other(self, entry: Entry) -> bool:
        """Make a symlink, a FIFO or a device; False if it is left out."""
        folder, name = self._place(entry.path)
        if entry.kind is Kind.SYMLINK:
            os.symlink(entry.link, name, dir_fd=folder)
        elif not self._made_node(entry, folder, name):
            return False
        if self._owners:
            _chown(name, entry, folder)
        if entry.kind is not Kind.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=folder)
        times = entry.mtime * _NANO, entry.mtime * _NANO
        os.utime(name, ns=times, dir_fd=folder, follow_symlinks=False)
        return True

    def _made_node(self, entry: Entry, folder: int, name: bytes) -> bool:
        device = os.makedev(*entry.device)
        try:
            os.mknod(name, _TYPES[entry.kind] | 0o600, device, dir_fd=folder)
        except PermissionError:
            if self._devices or entry.kind is Kind.FIFO:
                raise
            return False
        return True

    def whiteout(self, path: bytes) -> None:
        folder, name = self._place(path)
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=folder)

    def settle(self, folders: Sequence[Entry], marked: frozenset[bytes], mark: str) -> None:
        """Give folders their attributes, and those `marked` the attribute `mark`, from below up."""
        for entry in reversed(folders):
            self._at = entry.path
            fd = self._folder(entry.path)
            if entry.path in marked:
                os.setxattr(fd, mark, b"y")
            self._set_attributes(fd, entry)
            self.allocated += os.fstat(fd).st_blocks * _BLOCK

    def _set_attributes(self, fd: int, entry: Entry) -> None:
        # a change of owner takes the setuid bit and capabilities away
        if self._owners:
            _chown(fd, entry)
        os.fchmod(fd, entry.mode)
        for name, value in entry.xattrs:
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                reason = error.strerror or str(error)
                raise BackendFailed(
                    f"can't set the attribute {name} of {shown(entry.path)}: {reason}"
                ) from error
        os.utime(fd, ns=(entry.mtime * _NANO, entry.mtime * _NANO))

    def _place(self, path: bytes) -> tuple[int, bytes]:
        """The folder that `path` is in, which stays open until others are, and its name there."""
        self._at = path
        parent, _, name = path.rpartition(b"/")
        return self._folder(parent), name

    def _folder(self, path: bytes) -> int:
        fd = self._opened.get(path)
        if fd is not None:
            self._opened.move_to_end(path)
            return fd
        parent = self._opened.get(parent_of(path)) if path else None
        if parent is None:
            fd = self._root.open_folder(path)
        else:
            fd = os.open(path.rpartition(b"/")[2], _FOLDER, dir_fd=parent)
        self._opened[path] = fd
        if len(self._opened) > _MOST_FOLDERS:
            os.close(self._opened.popitem(last=False)[1])
        return fd


def _chown(file: int | bytes, entry: Entry, folder: int | None = None) -> None:
    """Change the owner of a descriptor, or of a name in `folder`."""
    try:
        if isinstance(file, int):
            os.fchown(file, entry.uid, entry.gid)
        else:
            os.chown(file, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise InvalidImage(
            f"{shown(entry.path)} in the layer belongs to {entry.uid}:{entry.gid}, "
            "which isn't mapped in the user namespace of the sandbox",
            hint="ids up to 65535 are; or use the containerd backend",
        ) from error


def make_copies(
    making: Making, files: Sequence[LowerFile], folders: Sequence[Path], layers: int
) -> None:
    """Make files with the content of those in `folders`.

    The folders are those of `layers` layers, bottom first, of which the lowest may show several.
    """
    with ExitStack() as stack:
        roots: dict[int, Root] = {}
        for file in files:
            place = max(0, file.layer - (layers - len(folders)))
            if place not in roots:
                roots[place] = stack.enter_context(Root(folders[place]))
            making.file(file.entries, _copying(roots[place], file.path))


def _copying(source: Root, path: bytes) -> Callable[[int], object]:
    """What writes the content of the file `path` in `source` to a descriptor."""

    def write(fd: int) -> None:
        with closing(source.open_file(path)) as stream:
            offset = 0
            while count := os.sendfile(fd, stream.fileno(), offset, 1 << 30):
                offset += count

    return write
