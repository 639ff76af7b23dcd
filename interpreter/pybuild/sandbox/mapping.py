"""Which ids a sandbox has, whose they are outside, and what came out when that was tried."""

from __future__ import annotations

import os
from enum import Enum

from pybuild.values import dataclass

# where programs with rights of their own are, whatever PATH a caller has
_FOLDERS = ("/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin", "/usr/sbin")


class Kind(Enum):
    """How the ids inside come about."""

    INIT = "none"
    """Root without a user namespace. Only by choice: its root is the machine's."""
    IDENTITY = "parent"
    """Root in a user namespace where every id is the same as outside."""
    RANGE = "tools"
    """A user with subordinate ids, mapped by newuidmap and newgidmap."""
    SINGLE = "self"
    """A user with one id: changes of owner and identity succeed without effect."""


class RootKind(Enum):
    """How layers are shown as one root file system."""

    OVERLAY = "overlay"
    """By the kernel: `spec.Overlay`."""
    FUSE = "fuse"
    """By fuse-overlayfs: `spec.FuseOverlay`. Slower, and see there what it gets wrong."""
    COPY = "copy"
    """Not at all: each step runs on a copy, `spec.Plain`."""


@dataclass(frozen=True, slots=True)
class IdRange:
    """`count` ids from `inside` on are those from `outside` on."""

    inside: int
    outside: int
    count: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """The ids of a sandbox. A store's files are worth something under this mapping only."""

    kind: Kind
    uids: tuple[IdRange, ...] = ()
    gids: tuple[IdRange, ...] = ()
    newuidmap: str = ""
    newgidmap: str = ""

    @property
    def userxattr(self) -> bool:
        """Whether overlayfs marks its layers by ``user.`` rather than ``trusted.`` attributes."""
        return self.kind is not Kind.INIT

    def inside(self, uid: int, gid: int) -> tuple[int, int] | None:
        """Who in the sandbox a user and a group outside are; None if one of them is nobody."""
        if self.kind is Kind.INIT:
            return uid, gid
        user, group = _inside(self.uids, uid), _inside(self.gids, gid)
        return None if user is None or group is None else (user, group)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A way to map ids that isn't possible here: why, and what to do."""

    kind: Kind
    reason: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """The best mapping that works, None if none does, and what was tried before it."""

    mapping: Mapping | None
    reason: str
    hint: str | None = None
    refused: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True)
class RootAttempt:
    """A kind of root that isn't possible here: why, and what to do."""

    kind: RootKind
    reason: str
    hint: str | None = None


def _inside(ranges: tuple[IdRange, ...], outside: int) -> int | None:
    for each in ranges:
        if 0 <= outside - each.outside < each.count:
            return outside - each.outside + each.inside
    return None


def system_program(name: str) -> str | None:
    """The path of a program of the system; None if it isn't installed."""
    import shutil  # noqa: PLC0415 - once a boot

    return shutil.which(name, path=os.pathsep.join(_FOLDERS))
