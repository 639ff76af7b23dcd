"""Packets with descriptors, over sockets as the interpreter itself has them.

The module ``socket`` loads enumerations and selectors, which takes longer than all else that the
zygote needs.
"""

from __future__ import annotations

import struct
from _socket import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    SCM_RIGHTS,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socket,
    socketpair,
)

TYPE_CHECKING = False  # typing is slow to load
if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_FDS = 64
"""How many descriptors go with one packet at most."""


def pair() -> tuple[socket, socket]:
    """Two ends, which keep packets apart."""
    return socketpair(AF_UNIX, SOCK_SEQPACKET)


def send(over: socket, packet: bytes, fds: Sequence[int]) -> None:
    """Send a packet with descriptors, which stay open here. Raises OSError."""
    over.sendmsg([packet], [(SOL_SOCKET, SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))])


def receive(over: socket, size: int) -> tuple[bytes, list[int]]:
    """The next packet, of `size` bytes at most, and its descriptors; empty at the end."""
    packet, others, _, _ = over.recvmsg(size, CMSG_SPACE(4 * MOST_FDS), MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, content in others:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            fds += struct.unpack(f"{len(content) // 4}i", content)
    return packet, fds
