"""What is to run in a sandbox: plain values, and their form on the way to the zygote.

Host paths are bytes and absolute. Text of the process (arguments, environment, working
directory, targets) is str with undecodable bytes as surrogates, as `os.fsdecode` gives it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from pybuild.errors import UsageError
from pybuild.sandbox import profile


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


Mount = Bind | Tmpfs | SmallFile | Socket


@dataclass(frozen=True, slots=True)
class RunSpec:
    """A process and what it sees. ``env`` is complete; ``cwd`` is absolute, made if missing.

    ``groups`` are the supplementary ones. ``own_network`` gives it a network with nothing
    but loopback; otherwise it has the machine's. ``ulimits`` are (name as in ``docker
    build --ulimit``, soft, hard), -1 for none; ``shm_size`` is in bytes. ``mounts`` are made
    in their order, on paths resolved inside the root; where a mount point doesn't exist,
    the process sees one, and the overlay's ``upper`` gets nothing of it. An ``insecure``
    process has all capabilities of the sandbox's user namespace and any system call, and
    sees /proc and /sys whole and writable. Empty ``args`` ask only whether all this is
    possible.
    """

    root: Overlay | Plain
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
