"""listxattrat(2): whether a file has extended attributes, in one call relative to its folder.

Linux has it since 6.13. Until then, a name in an open folder is looked up through /proc, which
takes two to three times as long. A module of its own, as loading ctypes is worth it for many
files only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

_SYS_LISTXATTRAT = 465  # the same on every architecture but Alpha
_HERE, _NOFOLLOW = -100, 0x100


def load_has_none() -> Callable[[int, bytes], bool] | None:
    """A function of an open folder and a name in it: whether that has no attributes for sure.

    False also stands for what can't be told, as of a file just removed. None where there is no
    such call: an old kernel, or a seccomp filter that doesn't know it.
    """
    long, number, text, pointer = ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p
    kind = ctypes.CFUNCTYPE(long, long, number, text, number, pointer, ctypes.c_size_t)
    syscall = kind(("syscall", ctypes.CDLL(None)))

    if syscall(_SYS_LISTXATTRAT, _HERE, b"/", _NOFOLLOW, None, 0) < 0:
        return None

    def has_none(folder: int, name: bytes) -> bool:
        return bool(syscall(_SYS_LISTXATTRAT, folder, name, _NOFOLLOW, None, 0) == 0)

    return has_none
