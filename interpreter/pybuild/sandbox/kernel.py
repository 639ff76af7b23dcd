"""System calls that `os` lacks: mounts by descriptor, openat2, clone3, prctl.

For the zygote and what runs below it: one thread, Linux 5.12 or newer.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000

MS_NODEV, MS_REC, MS_PRIVATE, MS_SLAVE = 0x4, 0x4000, 1 << 18, 1 << 19
MNT_DETACH = 0x2
# attributes of a mount
RDONLY, NOSUID, NODEV, NOEXEC, STRICTATIME = 0x1, 0x2, 0x4, 0x8, 0x20
HIDDEN = NOSUID | NODEV | NOEXEC
# how openat2 resolves
NO_MAGIC_LINKS, NO_SYMLINKS, BENEATH, IN_ROOT = 0x02, 0x04, 0x08, 0x10
FOLDER = getattr(os, "O_PATH", 0) | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)

# these numbers are the same on every architecture
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = range(428, 433)
_CLONE3, _CLOSE_RANGE, _OPENAT2, _MOUNT_SETATTR = 435, 436, 437, 442
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE, _OPEN_TREE_CLONE = -100, 0x1000, 0x8000, 0x1
_FROM_AND_TO_EMPTY = 0x4 | 0x40
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_RETRIES = 64
# as in the module signal, which is slow to load
SIGKILL, _SIGPIPE, _SIGCHLD, _SIGXFSZ = 9, 13, 17, 25
_SIG_DFL = 0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
for _name in ("capget", "capset", "mount", "pivot_root", "signal", "syscall", "umount2", "unshare"):
    getattr(_libc, _name)  # found once, not by each child


class Failed(Exception):
    """A step of the way to the process didn't work: its name, the errno or 0, a text."""

    def __init__(self, step: str, number: int, text: str = "") -> None:
        super().__init__(step, number, text)
        self.number = number
        self.packet = b"failed\0%s\0%d\0%s" % (step.encode(), number, os.fsencode(text))


def call(step: str, name: str, *arguments: int | bytes | None) -> int:
    """A function of the C library. Raises Failed, naming the step, if it returns -1."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = getattr(_libc, name)(*words)
    if result == -1:
        raise Failed(step, ctypes.get_errno())
    return result


def _system(step: str, *arguments: int | bytes | None) -> int:
    return call(step, "syscall", *arguments)


def prctl(step: str, *arguments: int) -> int:
    result: int = _libc.prctl(*arguments, *[0] * (5 - len(arguments)))
    if result == -1:
        raise Failed(step, ctypes.get_errno())
    return result


def clone(flags: int) -> int:
    """Fork with new namespaces: 0 in the child. There are no threads, so no lock is held."""
    arguments = struct.pack("=8Q", flags, 0, 0, 0, _SIGCHLD, 0, 0, 0)
    return _system("clone3", _CLONE3, arguments, len(arguments))


def default_signals() -> None:
    """Undo what Python has set for the signals that programs expect to end them."""
    for number in (_SIGPIPE, _SIGXFSZ):
        call("signal", "signal", number, _SIG_DFL)


def close_range(first: int, last: int) -> None:
    _system("close descriptors", _CLOSE_RANGE, first, last, 0)


def openat2(folder: int, path: bytes, flags: int, resolve: int) -> int:
    """Raises OSError; ELOOP or EXDEV where `resolve` forbids."""
    how = struct.pack("=3Q", flags | _CLOEXEC, 0, resolve)
    for _ in range(_RETRIES):  # the kernel asks to try again while others rename
        try:
            return _system("openat2", _OPENAT2, folder, path, how, len(how))
        except Failed as failure:
            if failure.number != errno.EAGAIN:
                raise OSError(failure.number, os.strerror(failure.number), path) from None
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)


def new_mount(kind: bytes, options: dict[bytes, bytes], attributes: int) -> int:
    """A file system mounted nowhere yet. An option without value is a flag."""
    step = f"mount {kind.decode()}"
    context = _system(step, _FSOPEN, kind, 1)
    try:
        for key, value in options.items():
            how = _SET_STRING if value else _SET_FLAG
            _system(step, _FSCONFIG, context, how, key, value or None, 0)
        _system(step, _FSCONFIG, context, _CREATE, None, None, 0)
        return _system(step, _FSMOUNT, context, 1, attributes)
    finally:
        os.close(context)


def copy_mount(place: int | bytes, attributes: int = 0, cleared: int = 0) -> int:
    """A private copy of what is mounted at and below a place, mounted nowhere yet.

    It gets these attributes and loses the `cleared` ones.
    """
    folder, path = (place, b"") if isinstance(place, int) else (_AT_FDCWD, place)
    flags = _OPEN_TREE_CLONE | _CLOEXEC | _AT_RECURSIVE | (0 if path else _AT_EMPTY_PATH)
    mount = _system("bind", _OPEN_TREE, folder, path, flags)
    settings = struct.pack("=4Q", attributes, cleared, MS_PRIVATE, 0)
    how = _AT_EMPTY_PATH | _AT_RECURSIVE
    _system("bind attributes", _MOUNT_SETATTR, mount, b"", how, settings, len(settings))
    return mount


def attach(mount: int, target: int) -> None:
    """Mount it on a file or folder of this mount namespace; `target` is closed."""
    try:
        _system("attach", _MOVE_MOUNT, mount, b"", target, b"", _FROM_AND_TO_EMPTY)
    finally:
        os.close(target)


def make_all(propagation: int) -> None:
    """Set the propagation of every mount of this namespace."""
    call("make private", "mount", None, b"/", None, MS_REC | propagation, None)


def mount_overlay(target: bytes, options: bytes) -> None:
    """Mount an overlay without device files; paths in `options` are relative to the folder."""
    call("mount overlay", "mount", b"overlay", target, b"overlay", MS_NODEV, options)


def unmount(path: bytes, flags: int = 0) -> None:
    call("unmount", "umount2", path, flags)
