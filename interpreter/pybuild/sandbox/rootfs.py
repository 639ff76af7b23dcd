"""The root file system of a step: its overlay, mount points that nobody sees later, mounts.

Runs in the step's own mount namespace, before the process exists. Paths inside the root
are resolved in it, one component at a time or by openat2, and mounted on by descriptor.
"""

from __future__ import annotations

import errno
import os
import stat

from pybuild.sandbox import kernel
from pybuild.sandbox.kernel import FOLDER, HIDDEN, NODEV, NOSUID, RDONLY, Failed, attach
from pybuild.sandbox.system import OWN_DEVICES, STEP, SYSTEM_FOLDERS

TYPE_CHECKING = False  # typing is slow to load
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Protocol

    class Layers(Protocol):
        """What shows layers as one file system."""

        def mount(self, above: list[int], below: list[int]) -> int: ...
        def unmount(self, root: int) -> None: ...


_MAX_LINKS = 40
_OVERLAY = b"index=off,metacopy=off,redirect_dir=nofollow"

Path = list[bytes]


class Mount:
    """What goes where: a detached mount, the absolute target as given, whether a folder."""

    def __init__(self, fd: int, target: bytes) -> None:
        self.fd = fd
        self.target = target
        self.path = [name for name in target.split(b"/") if name not in (b"", b".")]
        self.is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)


# --- mounts that the client asks for


def open_mounts(
    wanted: list[list[Any]], folders: int, passed: int, options: bytes, *, single: bool
) -> list[Mount]:
    """Each as a detached mount. `wanted` are lists as `client` encodes them.

    A source that is a number is the descriptor `passed` plus that. `options` are further
    ones of overlays. With a `single` id all files are that user's.
    """
    mounts = []
    for number, (kind, target, *rest) in enumerate(wanted):
        match kind, rest:
            case b"bind", [source, readonly, bytes(inside)]:
                attributes = NODEV | (RDONLY if readonly else 0)
                fd = _bind(_source(source, passed), inside, attributes)
            case b"tmpfs", [bytes(size), mode]:
                limits = {b"mode": b"%o" % mode} | ({b"size": size} if size else {})
                fd = kernel.new_mount(b"tmpfs", limits, NOSUID | NODEV)
            case b"file", [bytes(content), int(mode), int(uid), int(gid)]:
                owner = (0, 0) if single else (uid, gid)
                fd = _small_file(b"files/%d" % number, content, mode, owner, folders)
            case b"socket", [bytes(source), int(mode), int(uid), int(gid)]:
                os.chown(source, *((0, 0) if single else (uid, gid)))
                os.chmod(source, mode)  # noqa: PTH101 - pathlib is slow to load
                fd = kernel.copy_mount(source, HIDDEN | RDONLY)
            case b"overlay", [list(lowers), list(ends), bytes(path), readonly]:
                root = _layers(lowers, ends, folders, options)
                fd = _part_of_view(root, path, NODEV | (RDONLY if readonly else 0))
            case _:
                raise Failed("mounts", 0, f"a mount of kind {kind!r}")
        mounts.append(Mount(fd, target))
    return mounts


def _source(source: bytes | int, passed: int) -> bytes:
    """The path of a source. A descriptor of another mount namespace can't be copied itself."""
    if isinstance(source, bytes):
        return source
    path = os.readlink(b"/proc/self/fd/%d" % (passed + source))  # noqa: PTH115 - pathlib is slow to load
    meant, found = os.fstat(passed + source), os.stat(path)  # noqa: PTH116 - as above
    if (meant.st_dev, meant.st_ino) != (found.st_dev, found.st_ino):
        raise Failed("bind", errno.ESTALE, f"{os.fsdecode(path)} isn't what was passed any more")
    return path


def _bind(source: bytes, inside: bytes, attributes: int) -> int:
    """A copy of what is at `inside` in a folder; its files are others', so no link is followed."""
    if not inside:
        return kernel.copy_mount(source, attributes)
    folder = os.open(source, FOLDER)
    try:
        part = kernel.openat2(folder, inside, FOLDER, kernel.NO_SYMLINKS | kernel.BENEATH)
    except OSError as error:
        raise Failed("mount source", error.errno or 0, os.fsdecode(b"/" + inside)) from None
    finally:
        os.close(folder)
    try:
        return kernel.copy_mount(part, attributes)
    finally:
        os.close(part)


def _small_file(
    name: bytes, content: bytes, mode: int, owner: tuple[int, int], folders: int
) -> int:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folders)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        os.fchown(fd, *owner)
        os.fchmod(fd, mode)
    return kernel.copy_mount(STEP + b"/" + name, HIDDEN | RDONLY)


def _layers(lowers: list[bytes], ends: list[bytes], folders: int, options: bytes) -> int:
    opened = [os.open(path, FOLDER) for path in lowers]
    opened.append(os.open("empty", FOLDER, dir_fd=folders))  # the kernel wants two, or an upper
    changes = [os.open(path, FOLDER) for path in ends]
    root = mount_layers(folders, b"view", opened, changes, options)
    for fd in (*opened, *changes):
        os.close(fd)
    return root


def _part_of_view(root: int, path: bytes, attributes: int) -> int:
    """A detached mount of what lies at `path` in our "view", which ends; `root` is closed."""
    try:
        place = kernel.openat2(root, path or b".", os.O_PATH, kernel.NO_SYMLINKS | kernel.BENEATH)
    except OSError as error:
        raise Failed("mount source", error.errno or 0, os.fsdecode(b"/" + path)) from None
    mount = kernel.copy_mount(place, attributes)
    os.close(place)
    os.close(root)
    kernel.unmount(STEP + b"/view", kernel.MNT_DETACH)
    return mount


def mount_layers(
    folders: int, name: bytes, lowers: list[int], ends: list[int], options: bytes
) -> int:
    """Mount an overlay on our folder `name`; a descriptor of its root.

    `ends` are the upper and the work folder, if any. Folders are named by descriptor: short,
    exact, and nothing to read in mountinfo.
    """
    os.chdir("/proc/self/fd")
    target = os.open(name, FOLDER, dir_fd=folders)
    text = b"lowerdir=" + b":".join(b"%d" % fd for fd in lowers)
    if ends:
        text += b",upperdir=%d,workdir=%d" % tuple(ends)
    kernel.mount_overlay(b"%d" % target, text + b"," + _OVERLAY + options)
    os.close(target)
    return os.open(name, FOLDER, dir_fd=folders)


class KernelLayers:
    """Layers that the kernel shows as the root of a step, on our folder "root"."""

    def __init__(self, spec: list[Any], folders: int, options: bytes) -> None:
        lowers, upper, work, volatile = spec
        self._folders = folders
        self._options = options + (b",volatile" if volatile else b"")
        self._lowers = [os.open(path, FOLDER) for path in lowers]
        self._ends = [os.open(upper, FOLDER), os.open(work, FOLDER)]

    def mount(self, above: list[int], below: list[int]) -> int:
        """A descriptor of the root, with further layers above and below."""
        lowers = [*above, *self._lowers, *below]
        return mount_layers(self._folders, b"root", lowers, self._ends, self._options)

    def unmount(self, root: int) -> None:
        """Undo `mount` after which nothing was written; `root` is closed."""
        os.close(root)
        kernel.unmount(STEP + b"/root")
        _forget_volatile(self._ends[1])


# --- the root itself


class Root:
    """The root of a step, mounted at our "root" folder. ``fd`` is the folder in its mount."""

    def __init__(self, folders: int) -> None:
        self._folders = folders
        self.fd = -1

    def bind(self, path: bytes) -> None:
        """Use a folder as it is."""
        self.fd = kernel.copy_mount(path, NODEV)
        self.attach()

    def attach(self) -> None:
        """Mount a root that isn't mounted anywhere yet in this mount namespace."""
        attach(self.fd, os.open(STEP + b"/root", FOLDER))

    def overlay(self, layers: Layers, mounts: list[Mount]) -> None:
        """Mount layers over each other, and over folders with the mount points that lack.

        Those lie below all layers. Where a layer has deleted such a path, or a link leads
        elsewhere, the mount is made again with a further layer on top, in which existing
        folders have the attributes that they have below.
        """
        bottom = os.open("bottom", FOLDER, dir_fd=self._folders)
        for name in SYSTEM_FOLDERS:
            os.mkdir(name, 0o755, dir_fd=bottom)
        own = [mount for mount in mounts if not _lies_in_another(mount, mounts)]
        for mount in own:
            make_path(bottom, mount.path, is_folder=mount.is_folder)
        self.fd = layers.mount([], [bottom])
        absent = list(self._absent(own))
        if absent:
            top = os.open("top", FOLDER, dir_fd=self._folders)
            for path, is_folder in absent:
                self._copy_folders(top, path)
                make_path(top, path, is_folder=is_folder)
            self._copy_times(top)
            layers.unmount(self.fd)
            self.fd = layers.mount([top], [bottom])

    def _absent(self, mounts: Iterable[Mount]) -> Iterable[tuple[Path, bool]]:
        for name in SYSTEM_FOLDERS:
            if not self.has([name]):
                yield [name], True
        for mount in mounts:
            done, missing = self.resolve(mount.path)
            if missing:
                yield [*done, *missing], mount.is_folder

    def has(self, path: Path) -> bool:
        try:
            os.close(self.open(path))
        except FileNotFoundError:
            return False
        return True

    def open(self, path: Path, flags: int = os.O_PATH | os.O_NOFOLLOW) -> int:
        """Open a resolved path: its last component may be a link, which isn't followed."""
        return kernel.openat2(
            self.fd, b"/".join(path) or b".", flags, kernel.NO_SYMLINKS | kernel.BENEATH
        )

    def resolve(self, path: Path) -> tuple[Path, Path]:
        """The part of a path that exists, links followed in the root, and the missing rest."""
        pending, done, links = path[::-1], list[bytes](), 0
        while pending:
            name = pending.pop()
            if name == b"..":
                done = done[:-1]
                continue
            try:
                fd = self.open([*done, name])
            except FileNotFoundError:
                if b".." in pending:
                    raise Failed("mount point", errno.ENOENT, _shown(path)) from None
                return done, [name, *pending[::-1]]
            except OSError as error:
                raise Failed("mount point", error.errno or 0, _shown(path)) from None
            try:
                mode = os.fstat(fd).st_mode
                target = os.readlink(b"", dir_fd=fd) if stat.S_ISLNK(mode) else b""
            finally:
                os.close(fd)
            if stat.S_ISLNK(mode):
                links += 1
                if links > _MAX_LINKS:
                    raise Failed("mount point", errno.ELOOP, _shown(path))
                done = [] if target.startswith(b"/") else done
                pending += [each for each in target.split(b"/") if each not in (b"", b".")][::-1]
            else:
                done.append(name)
        return done, []

    def _copy_folders(self, skeleton: int, path: Path) -> None:
        """Make the folders of `path` that exist here there, with owner, mode and attributes."""
        for length in range(1, len(path)):
            part = path[:length]
            if not self.has(part):
                return
            source = self.open(part, os.O_RDONLY | os.O_DIRECTORY)
            status = os.fstat(source)
            name = b"/".join(part)
            try:
                os.mkdir(name, 0o700, dir_fd=skeleton)
            except FileExistsError:
                os.close(source)
                continue
            copy = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=skeleton)
            os.fchown(copy, status.st_uid, status.st_gid)
            os.fchmod(copy, stat.S_IMODE(status.st_mode))
            for key in os.listxattr(source):
                if not key.startswith(("trusted.overlay.", "user.overlay.", "security.selinux")):
                    os.setxattr(copy, key, os.getxattr(source, key))
            os.close(copy)
            os.close(source)

    def _copy_times(self, skeleton: int) -> None:
        """Give the folders of the skeleton the times that they have here, the root too."""
        pending: list[Path] = [[]]
        while pending:
            path = pending.pop()
            if not self.has(path):
                continue
            source = self.open(path)
            status = os.fstat(source)
            os.close(source)
            name = b"/".join(path) or b"."
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=skeleton)
            pending += [[*path, os.fsencode(e.name)] for e in os.scandir(folder) if e.is_dir()]
            if not path:
                os.fchown(folder, status.st_uid, status.st_gid)
                os.fchmod(folder, stat.S_IMODE(status.st_mode))
            os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns))
            os.close(folder)

    # --- mounting in it

    def system_folder(self, name: bytes) -> int:
        """The root's own folder for /proc, /sys or /dev, which may not be a link."""
        try:
            return kernel.openat2(self.fd, name, FOLDER, kernel.NO_SYMLINKS | kernel.BENEATH)
        except OSError as error:
            text = f"/{os.fsdecode(name)} of the image is not a folder"
            raise Failed("mount point", error.errno or 0, text) from None

    def target(self, mount: Mount) -> int:
        """Where a mount goes, made if it lies in a mount made before it."""
        done, missing = self.resolve(mount.path)
        if _is_closed([*done, *missing]):
            raise Failed("mount point", errno.EPERM, _shown(mount.path))
        if missing:
            parent = self.open(done)
            try:
                if _mount_number(parent) == _mount_number(self.fd):
                    raise Failed("mount point", errno.ENOENT, _shown(mount.path))
                make_path(parent, missing, is_folder=mount.is_folder)
            finally:
                os.close(parent)
        if not done and not missing:
            raise Failed("mount point", errno.EBUSY, "/")
        fd = self.open([*done, *missing])
        if stat.S_ISDIR(os.fstat(fd).st_mode) != mount.is_folder:
            number = errno.ENOTDIR if mount.is_folder else errno.EISDIR
            raise Failed("mount point", number, _shown(mount.path))
        return fd


def _lies_in_another(mount: Mount, mounts: list[Mount]) -> bool:
    inside = [other.path for other in mounts if other is not mount]
    above = (mount.path[:length] for length in range(1, len(mount.path)))
    return any(path in inside or path in ([name] for name in SYSTEM_FOLDERS) for path in above)


def _is_closed(path: Path) -> bool:
    """Whether a mount there could hide or fake what the kernel or we have there."""
    if path[:1] == [b"dev"]:
        return len(path) == 1 or path[1] in OWN_DEVICES
    return path[:1] in ([b"proc"], [b"sys"])


def make_path(folder: int, path: Path, *, is_folder: bool) -> None:
    """Make an empty file or folder and the folders above it, in a place without links."""
    try:
        _make_path(folder, path, is_folder=is_folder)
    except OSError as error:
        raise Failed("mount point", error.errno or 0, _shown(path)) from None


def _make_path(folder: int, path: Path, *, is_folder: bool) -> None:
    names = path if is_folder else path[:-1]
    for length in range(1, len(names) + 1):
        try:
            os.mkdir(b"/".join(names[:length]), 0o755, dir_fd=folder)
        except FileExistsError:
            continue
    if not is_folder:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(b"/".join(path), flags, 0o644, dir_fd=folder))


def _forget_volatile(work: int) -> None:
    """Nothing was written: allow the next mount what the mark of the last one forbids."""
    try:
        os.unlink("work/incompat/volatile/dirty", dir_fd=work)
        os.rmdir("work/incompat/volatile", dir_fd=work)
    except FileNotFoundError:
        return


def _mount_number(fd: int) -> bytes:
    """Which mount a descriptor is in; a bind may show the same file system."""
    info = os.open(b"/proc/self/fdinfo/%d" % fd, os.O_RDONLY | os.O_CLOEXEC)
    text = os.read(info, 4096)
    os.close(info)
    return text.partition(b"mnt_id:")[2].split()[0]


def _shown(path: Path) -> str:
    return os.fsdecode(b"/" + b"/".join(path))
