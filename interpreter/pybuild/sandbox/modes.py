"""Finds out which sandbox this machine and this user allow, and why not a better one.

Every candidate is tried for real: a zygote is started and goes all the way to where it
would execute a program.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pybuild.errors import BackendUnavailable, PybuildError
from pybuild.sandbox.client import Sandbox, SandboxFailed
from pybuild.sandbox.mapping import (
    Attempt,
    IdRange,
    Kind,
    Mapping,
    Probe,
    RootAttempt,
    RootKind,
    system_program,
)
from pybuild.sandbox.runtimes import INSTEAD
from pybuild.sandbox.spec import FuseOverlay, Overlay, Plain, Root, RunSpec
from pybuild.values import dataclass

IDS = 65536
"""How many ids an image may use: those of Docker's user namespaces, and of a line of /etc/subuid."""

_TRIAL = 7
_ELSE = "or use the containerd backend"
_SYSCTLS = (
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ("user.max_user_namespaces", "0", "15000"),
)


def probe(folder: Path, *, namespace_for_root: bool = True) -> Probe:
    """Find the mapping to use. `folder`, where layers will be, exists and is written to.

    Without `namespace_for_root`, root runs steps in the machine's own user namespace.
    """
    if sys.platform != "linux":
        return Probe(None, "sandboxes need Linux", _ELSE.removeprefix("or "))
    refused: list[Attempt] = []
    for candidate in _candidates(namespace_for_root=namespace_for_root):
        if isinstance(candidate, Attempt):
            refused.append(candidate)
            continue
        try:
            _try(candidate, folder, None)
        except SandboxFailed as failure:
            refused.append(explain(candidate.kind, failure, folder))
        except PybuildError as error:
            refused.append(Attempt(candidate.kind, error.message, error.hint))
        else:
            hint = refused[-1].hint if refused else None
            return Probe(candidate, _describe(candidate), hint, tuple(refused))
    last = refused[-1]
    return Probe(None, last.reason, last.hint, tuple(refused))


@dataclass(frozen=True, slots=True)
class RootProbe:
    """The best kind of root that works, and what was tried before it."""

    kind: RootKind
    refused: tuple[RootAttempt, ...] = ()


def probe_root(folder: Path, mapping: Mapping, *, fuse: bool = True) -> RootProbe:
    """Find the kind of root to use for layers in `folder` under a mapping that works.

    Without `fuse`, fuse-overlayfs isn't one.
    """
    refused: list[RootAttempt] = []
    candidates = (
        (RootKind.OVERLAY, partial(Overlay, volatile=False)),
        (RootKind.FUSE, FuseOverlay),
    )
    for kind, root in candidates[: 2 if fuse else 1]:
        try:
            _try(mapping, folder, root)
        except SandboxFailed as failure:
            hint = explain(mapping.kind, failure, folder).hint
            # that the sandbox can't be made isn't so: another kind can
            reason = failure.message.partition(": ")[2]
            refused.append(RootAttempt(kind, reason, hint))
        else:
            return RootProbe(kind, tuple(refused))
    return RootProbe(RootKind.COPY, tuple(refused))


def _describe(mapping: Mapping) -> str:
    match mapping.kind:
        case Kind.INIT:
            return "root, without a user namespace"
        case Kind.IDENTITY:
            return f"root in a user namespace of {IDS} ids, the same as outside"
        case Kind.RANGE:
            return f"a user namespace with subordinate ids from {mapping.uids[1].outside} on"
        case Kind.SINGLE:
            return "a user namespace of one id: changes of owner have no effect"


def _candidates(*, namespace_for_root: bool) -> Iterator[Mapping | Attempt]:
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 and not namespace_for_root:
        yield Mapping(Kind.INIT)
        return
    mapped = min(mapped_from_zero(_read(f"/proc/self/{name}_map")) for name in ("uid", "gid"))
    if uid == 0 and mapped >= IDS:
        same = (IdRange(0, 0, IDS),)
        yield Mapping(Kind.IDENTITY, same, same)
        return
    if uid == 0:
        yield Attempt(Kind.IDENTITY, f"only {mapped} ids are mapped here, not {IDS}")
    else:
        yield range_mapping(uid, gid, _user_name(uid))
    yield Mapping(Kind.SINGLE, (IdRange(0, uid, 1),), (IdRange(0, gid, 1),))


def range_mapping(uid: int, gid: int, name: str) -> Mapping | Attempt:
    """The mapping of a user with subordinate ids, or what it lacks."""
    newuidmap, newgidmap = system_program("newuidmap"), system_program("newgidmap")
    if newuidmap is None or newgidmap is None:
        hint = "install newuidmap and newgidmap (package uidmap or shadow-utils)"
        return Attempt(Kind.RANGE, "newuidmap and newgidmap aren't installed", hint)
    ranges, missing, flags = [], [], []
    for number, file, flag in (
        (uid, "/etc/subuid", "--add-subuids"),
        (gid, "/etc/subgid", "--add-subgids"),
    ):
        first = subordinate_ids(_read(file), {name, str(uid)})
        if first is None:
            missing.append(file)
            flags.append(f"{flag} 100000-165535")
        else:
            ranges.append((IdRange(0, number, 1), IdRange(1, first, IDS)))
    if missing:
        user = name or uid
        hint = f"as root: usermod {' '.join(flags)} {user}, with numbers nobody else has"
        verb = "give" if len(missing) > 1 else "gives"
        reason = f"{' and '.join(missing)} {verb} {user} no {IDS} ids in a row"
        return Attempt(Kind.RANGE, reason, hint)
    return Mapping(Kind.RANGE, ranges[0], ranges[1], newuidmap, newgidmap)


def subordinate_ids(text: str, users: set[str]) -> int | None:
    """The first of 65536 ids that /etc/subuid or /etc/subgid gives to one of `users`."""
    for line in text.splitlines():
        user, _, numbers = line.partition(":")
        first, _, count = numbers.partition(":")
        if user in users and first.isdecimal() and count.isdecimal() and int(count) >= IDS:
            return int(first)
    return None


def mapped_from_zero(text: str) -> int:
    """How many ids from 0 on a file like /proc/self/uid_map maps."""
    lines = sorted(tuple(map(int, line.split())) for line in text.splitlines())
    end = 0
    for inside, _, count in lines:
        if inside != end:
            break
        end += count
    return end


def _try(
    mapping: Mapping,
    folder: Path,
    overlay: Callable[[tuple[bytes, ...], bytes, bytes], Root] | None,
) -> None:
    """Go all the way to a program, on an overlay or a plain folder in `folder`.

    Raises SandboxFailed.
    """
    place = Path(tempfile.mkdtemp(prefix="probe-", dir=folder))
    upper, work = place / "upper", place / "work"
    system = [upper / name for name in ("proc", "sys", "dev")]
    try:
        for made in (upper, work, *system):
            made.mkdir()
        root: Root = Plain(os.fsencode(upper))
        if overlay is not None:
            root = overlay((), os.fsencode(upper), os.fsencode(work))
        with Sandbox(mapping) as sandbox:
            sandbox.run(RunSpec(root, ()), lambda _stream, _piece: None)
    finally:
        # its folder has mode 000, and can't be listed
        for made in (work / "work", work / "index", work, *system, upper, place):
            if made.exists():
                made.rmdir()


def try_runtime(sandbox: Sandbox) -> None:
    """Have the runtime of a started sandbox run a shell of the machine.

    Raises BackendUnavailable if it doesn't.
    """
    root = Plain(b"/")
    try:
        code = sandbox.run(RunSpec(root, ("/bin/sh", "-c", f"exit {_TRIAL}")), lambda *_: None)
    except SandboxFailed as failure:
        message = f"{sandbox.runtime} can't be used here: {failure.message}"
        raise BackendUnavailable(message, hint=INSTEAD) from failure
    if code != _TRIAL:
        message = f"{sandbox.runtime} can't be used here: a shell ended with {code}, not {_TRIAL}"
        raise BackendUnavailable(message, hint=INSTEAD)


def explain(kind: Kind, failure: SandboxFailed, folder: Path) -> Attempt:
    """What a failure most likely comes from, and what to do."""
    forbidden = failure.number in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS)
    if forbidden and kind is not Kind.INIT:
        for name, bad, good in _SYSCTLS:
            if _read(f"/proc/sys/{name.replace('.', '/')}").strip() == bad:
                reason = f"user namespaces are forbidden: the sysctl {name} is {bad}"
                return Attempt(kind, reason, f"sysctl -w {name}={good} as root, {_ELSE}")
    match failure.step:
        case "unshare user":
            hint = f"allow user namespaces to this container or user, {_ELSE}"
        case "map ids":
            hint = "see that newuidmap and newgidmap are setuid root or have their capabilities"
        case "mount overlay":
            hint = f"keep layers on another file system than {folder}'s, {_ELSE}"
        case "fuse-overlayfs":
            hint = f"install fuse-overlayfs and let this user open /dev/fuse, {_ELSE}"
        case "mount proc":
            hint = f"run outside of a container that hides parts of /proc, {_ELSE}"
        case _ if failure.number == errno.ENOSYS:
            hint = f"use Linux 5.12 or newer, {_ELSE}"
        case _:
            hint = _ELSE.removeprefix("or ")
    return Attempt(kind, failure.message, hint)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _user_name(uid: int) -> str:
    import pwd  # noqa: PLC0415 - only some systems have it

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""
