"""openat2(2): a path is opened below a folder, in one call, without following any symlink.

A module of its own because loading ctypes takes longer than reading a small context does.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable

from pybuild.files.trees import shown

_SYS_OPENAT2 = 437  # the same on every architecture
_RESOLVE = 0x02 | 0x04 | 0x08  # no magic links, no symlinks, beneath the folder
_RETRIES = 64


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def load_openat2() -> Callable[[int, bytes, int], int]:
    """A function of an open folder, a relative path and flags, which gives a descriptor.

    It raises OSError: ENOSYS of an old kernel, EPERM of a seccomp filter that doesn't know it.
    """
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    size = ctypes.sizeof(_OpenHow)

    def openat2(folder: int, path: bytes, flags: int) -> int:
        how = _OpenHow(flags, 0, _RESOLVE)
        code = 0
        for _ in range(_RETRIES):
            fd = syscall(_SYS_OPENAT2, folder, path, ctypes.byref(how), ctypes.c_size_t(size))
            if fd >= 0:
                return int(fd)
            code = ctypes.get_errno()
            if code not in (errno.EAGAIN, errno.EINTR):
                break
        raise OSError(code, os.strerror(code), shown(path))

    return openat2
