"""/proc, /sys and /dev of a step, less what it may not see or change.

They are made before anything is known of the step, on folders of ours in the mount namespace
that is to be its own, and moved into its root when there is one.
"""

from __future__ import annotations

import errno
import os
import stat

from pybuild.sandbox import kernel
from pybuild.sandbox.kernel import FOLDER, HIDDEN, NODEV, NOEXEC, NOSUID, RDONLY, Failed, attach
from pybuild.sandbox.program import Spec

# in the server's mount namespace /sys holds ours: the kernel's, shown to steps, masked and
# whole, and a step's own
SYSFS, WHOLE_SYSFS, STEP = b"/sys/s", b"/sys/a", b"/sys/w"
SYSTEM_FOLDERS = (b"proc", b"sys", b"dev")

_DEVICES = {
    b"null": (1, 3),
    b"zero": (1, 5),
    b"full": (1, 7),
    b"random": (1, 8),
    b"urandom": (1, 9),
    b"tty": (5, 0),
}
_LINKS = {
    b"fd": b"/proc/self/fd",
    b"stdin": b"/proc/self/fd/0",
    b"stdout": b"/proc/self/fd/1",
    b"stderr": b"/proc/self/fd/2",
    b"core": b"/proc/kcore",
    b"ptmx": b"pts/ptmx",
}
OWN_DEVICES = frozenset({*_DEVICES, *_LINKS, b"console", b"mqueue", b"pts"})


def step_folders() -> int:
    """An empty file system for what a step needs besides its root."""
    folders = kernel.new_mount(b"tmpfs", {b"mode": b"755"}, HIDDEN)
    attach(folders, os.open(STEP, FOLDER))
    for name in (b"root", b"bottom", b"top", b"view", b"empty", b"files", *SYSTEM_FOLDERS):
        os.mkdir(name, 0o755, dir_fd=folders)
    return folders


class System:
    """The three, each mounted on its folder of ours; ``folders`` holds those and the others.

    ``mounts`` are the names in the root and descriptors of what is to be moved there.
    """

    def __init__(self, folders: int, config: Spec, *, insecure: bool) -> None:
        """Mount them, for a process that has all its namespaces. Raises Failed.

        `folders` are those of :func:`step_folders` in this mount namespace. An `insecure` step
        sees /proc and /sys whole and writable.
        """
        self.folders = folders
        proc, sys = self._proc(config, insecure=insecure), self._sys(config, insecure=insecure)
        self._dev = self._devices(tty_group=not config[b"single"])
        self.mounts = ((b"proc", proc), (b"sys", sys), (b"dev", self._dev))

    def mount_memory(self, size: int) -> None:
        """Mount /dev/shm, of `size` bytes."""
        memory = kernel.new_mount(b"tmpfs", {b"mode": b"1777", b"size": b"%d" % size}, HIDDEN)
        attach(memory, os.open(b"shm", FOLDER, dir_fd=self._dev))

    def _proc(self, config: Spec, *, insecure: bool) -> int:
        proc = kernel.new_mount(b"proc", {}, HIDDEN)
        self._place(proc, b"proc")
        if insecure:
            return proc
        mask(proc, b"/proc/", config[b"masked"])
        for path in config[b"readonly"]:
            fd = _existing(proc, path, b"/proc/")
            if fd >= 0:
                attach(kernel.copy_mount(fd, HIDDEN | RDONLY), fd)
        return proc

    def _sys(self, config: Spec, *, insecure: bool) -> int:
        place, attributes, cleared = SYSFS, HIDDEN | RDONLY, 0
        if insecure:
            place, attributes, cleared = WHOLE_SYSFS, HIDDEN, RDONLY
        sys = kernel.copy_mount(place, attributes, cleared)
        self._place(sys, b"sys")
        if config[b"unified"]:
            groups = kernel.new_mount(b"cgroup2", {}, attributes)
            how = kernel.NO_SYMLINKS | kernel.BENEATH
            attach(groups, kernel.openat2(sys, b"fs/cgroup", os.O_PATH | os.O_NOFOLLOW, how))
            os.close(groups)
        return sys

    def _devices(self, *, tty_group: bool) -> int:
        options = {b"mode": b"755", b"size": b"65536k"}
        dev = kernel.new_mount(b"tmpfs", options, NOSUID | NODEV | kernel.STRICTATIME)
        self._place(dev, b"dev")
        for name, number in _DEVICES.items():
            device = kernel.copy_mount(b"/dev/" + name, NOSUID | NOEXEC)
            status = os.fstat(device)
            if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(*number):
                raise Failed("device", errno.ENODEV, f"/dev/{name.decode()}")
            target = os.open(name, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=dev)
            attach(device, target)
            os.close(device)
        for name, link in _LINKS.items():
            os.symlink(link, name, dir_fd=dev)
        pts = {b"newinstance": b"", b"ptmxmode": b"0666", b"mode": b"0620"}
        if tty_group:
            pts[b"gid"] = b"5"
        for name, mount in (
            (b"pts", kernel.new_mount(b"devpts", pts, NOSUID | NOEXEC)),
            (b"mqueue", kernel.new_mount(b"mqueue", {}, HIDDEN)),
        ):
            os.mkdir(name, 0o755, dir_fd=dev)
            attach(mount, os.open(name, FOLDER, dir_fd=dev))
            os.close(mount)
        os.mkdir(b"shm", 0o755, dir_fd=dev)
        return dev

    def _place(self, mount: int, name: bytes) -> None:
        attach(mount, os.open(name, FOLDER, dir_fd=self.folders))


def mask(folder: int, prefix: bytes, masked: list[bytes]) -> None:
    """Cover paths below `prefix`, which `folder` is: files by /dev/null, folders by nothing."""
    for path in masked:
        fd = _existing(folder, path, prefix)
        if fd < 0:
            continue
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            cover = kernel.copy_mount(STEP + b"/empty", HIDDEN | RDONLY)
        else:
            cover = kernel.copy_mount(b"/dev/null", NOSUID | NOEXEC)
            if os.fstat(cover).st_rdev != os.makedev(1, 3):
                raise Failed("mask", errno.ENODEV, "/dev/null")
        attach(cover, fd)
        os.close(cover)


def _existing(folder: int, path: bytes, prefix: bytes) -> int:
    """A descriptor of an absolute path below `prefix`; -1 if it isn't, or isn't there."""
    if not path.startswith(prefix):
        return -1
    try:
        return kernel.openat2(folder, path.removeprefix(prefix), os.O_PATH, kernel.NO_SYMLINKS)
    except FileNotFoundError:
        return -1
