"""What is to run in a sandbox: plain values, and their form on the way to the zygote.

Host paths are bytes and absolute. Text of the process (arguments, environment, working
directory, targets) is str with undecodable bytes as surrogates, as `os.fsdecode` gives it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from pybuild.errors import UsageError
from pybuild.sandbox import profile
from pybuild.values import dataclass, field


@dataclass(frozen=True, slots=True)
class Overlay:
    """Layers shown as one file system. ``lowers`` are top first and may be none, or 499.

    Changes are left in ``upper`` as overlayfs writes them; ``work`` is an empty folder on
    the same file system. With ``volatile``, fsync in the process costs nothing: what a
    crash of the machine leaves in ``upper`` is then worth nothing either.
    """

    lowers: tuple[bytes, ...]
    upper: bytes
    work: bytes
    volatile: bool = True


@dataclass(frozen=True, slots=True)
class FuseOverlay:
    """As Overlay, shown by fuse-overlayfs, where the kernel's overlay can't be had.

    Needs the program, and /dev/fuse for this user. In ``upper`` there are, besides
    overlayfs's marks, ``.wh.`` files as in layers and ``.wh..wh..opq`` in new folders. Its
    version 1.10 mistakes the names of a file that has several in a lower: a change may land
    in ``upper`` under another of them. So no file of ``lowers`` may have more than one.
    """

    lowers: tuple[bytes, ...]
    upper: bytes
    work: bytes


@dataclass(frozen=True, slots=True)
class Plain:
    """A folder used as it is. Every mount point, /proc, /sys and /dev too, must exist in it."""

    path: bytes


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or folder of the host, with what is mounted below it, at ``target``.

    ``source`` is a path, or a descriptor whose path must still lead to the same file when
    the step begins. ``inside`` is what of it is shown, a relative path through folders only,
    without links.
    """

    target: str
    source: bytes | int
    readonly: bool = True
    inside: bytes = b""


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """An empty file system in memory; ``size`` in bytes, None for the kernel's default."""

    target: str
    size: int | None = None
    mode: int = 0o1777


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A read-only file with this content, in memory only: resolv.conf, hosts, a secret."""

    target: str
    content: bytes = field(repr=False)
    mode: int = 0o644
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Socket:
    """A Unix socket of the host, for this step alone: it is given owner and mode.

    It belongs to the user whose sandbox it is, in a folder that nobody else may enter.
    """

    target: str
    source: bytes
    mode: int = 0o600
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class OverlayBind:
    """Layers shown as one file system, or what lies at ``path`` in it, at ``target``.

    ``lowers`` are top first. Changes go to ``upper``, with ``work`` as in :class:`Overlay`;
    without them it is read-only and there is a lower. ``path`` is relative, and no component
    of it is a link.
    """

    target: str
    lowers: tuple[bytes, ...]
    upper: bytes | None = None
    work: bytes | None = None
    path: bytes = b""
    readonly: bool = True


Root = Overlay | FuseOverlay | Plain
Mount = Bind | Tmpfs | SmallFile | Socket | OverlayBind


@dataclass(frozen=True, slots=True)
class RunSpec:
    """A process and what it sees.

    ``env`` is complete but for a HOME that lacks or is empty: that is the user's in the
    root's /etc/passwd, ``/`` if it has none, as runc has it. ``cwd`` is absolute, made if
    missing. ``groups`` are the supplementary ones. ``own_network`` gives it a network with
    nothing but loopback; otherwise it has the machine's. ``ulimits`` are (name as in ``docker
    build --ulimit``, soft, hard), -1 for none; ``shm_size`` is in bytes. ``mounts`` are made
    in their order, on paths resolved inside the root; where a mount point doesn't exist,
    the process sees one, and the overlay's ``upper`` gets nothing of it. An ``insecure``
    process has all capabilities of the sandbox's user namespace and any system call, and
    sees /proc and /sys whole and writable. ``terminal`` is a descriptor that becomes its
    controlling terminal and its standard streams; without one it has no input. Empty ``args`` ask only whether all this is
    possible.
    """

    root: Root
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    hostname: str = "buildkitsandbox"
    own_network: bool = False
    ulimits: tuple[tuple[str, int, int], ...] = ()
    shm_size: int = profile.DEFAULT_SHM
    mounts: tuple[Mount, ...] = ()
    insecure: bool = False
    terminal: int | None = None


def passed_descriptors(spec: RunSpec) -> tuple[int, ...]:
    """The descriptors that the mounts name, in the order in which they are passed."""
    sources = (mount.source for mount in spec.mounts if isinstance(mount, Bind))
    return tuple(source for source in sources if isinstance(source, int))


def as_value(spec: RunSpec) -> dict[bytes, object]:
    """The form for `wire.encode`. Raises UsageError for what Linux doesn't have."""
    descriptors = iter(range(len(passed_descriptors(spec))))
    overlay: list[object] = []
    plain = b""
    match spec.root:
        case Overlay(lowers=lowers, upper=upper, work=work, volatile=volatile):
            overlay = [list(lowers), upper, work, volatile]
        case FuseOverlay(lowers=lowers, upper=upper, work=work):
            overlay = [list(lowers), upper, work, False]
        case Plain(path=plain):
            pass
    return {
        b"overlay": overlay,
        b"plain": plain,
        b"args": [_text(word) for word in spec.args],
        b"env": [[_text(name), _text(value)] for name, value in spec.env],
        b"cwd": _text(spec.cwd),
        b"uid": spec.uid,
        b"gid": spec.gid,
        b"groups": list(spec.groups),
        b"hostname": _text(spec.hostname),
        b"own_network": spec.own_network,
        b"ulimits": [[_limit(name), soft, hard] for name, soft, hard in spec.ulimits],
        b"shm": spec.shm_size,
        b"insecure": spec.insecure,
        b"terminal": spec.terminal is not None,
        b"mounts": [_mount(mount, descriptors) for mount in spec.mounts],
    }


def _mount(mount: Mount, descriptors: Iterator[int]) -> list[object]:
    match mount:
        case Bind(target=target, source=source, readonly=readonly, inside=inside):
            place = source if isinstance(source, bytes) else next(descriptors)
            return [b"bind", _text(target), place, readonly, inside]
        case Tmpfs(target=target, size=size, mode=mode):
            return [b"tmpfs", _text(target), b"" if size is None else b"%d" % size, mode]
        case SmallFile(target=target, content=content, mode=mode, uid=uid, gid=gid):
            return [b"file", _text(target), content, mode, uid, gid]
        case Socket(target=target, source=path, mode=mode, uid=uid, gid=gid):
            return [b"socket", _text(target), path, mode, uid, gid]
        case OverlayBind(target=target, lowers=lowers, upper=upper, work=work):
            ends = [upper, work] if upper and work else []
            return [b"overlay", _text(target), list(lowers), ends, mount.path, mount.readonly]


def _text(text: str) -> bytes:
    encoded = os.fsencode(text)
    if b"\0" in encoded:
        raise UsageError("an argument, variable or path of a process has a NUL in it")
    return encoded


def _limit(name: str) -> int:
    try:
        return profile.LIMITS.index(name)
    except ValueError:
        known = ", ".join(sorted(profile.LIMITS))
        raise UsageError(f"unknown resource limit {name}", hint=f"known are {known}") from None
