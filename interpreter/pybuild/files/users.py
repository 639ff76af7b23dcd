"""Names of users and groups to numbers, from /etc/passwd and /etc/group of a tree.

The rules are those of moby/sys/user, which runc and BuildKit use: nothing of the image is
run, and this machine's own users don't count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pybuild.errors import StepFailed
from pybuild.files.trees import Tree, resolve
from pybuild.oci.layerindex import Kind
from pybuild.values import dataclass

_MAX_FILE = 10 * 1024 * 1024
_MAX_ID = 2**31 - 1
_NUMBER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a process is. ``groups`` are the supplementary ones, the primary first."""

    uid: int
    gid: int
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of passwd (``members`` empty) or group (``uid`` 0)."""

    name: str
    uid: int
    gid: int
    members: tuple[str, ...] = ()


def resolve_user(tree: Tree, spec: str) -> Identity:
    """The identity for ``USER spec``: ``name-or-number[:group]``, empty for root.

    Digits are always a number, whether or not there is a line for it. Raises StepFailed
    for a name without a line and for a number above 2147483647.
    """
    user, _, group = spec.partition(":")
    group = group.partition(":")[0]
    uid, gid = _as_number(user), _as_number(group)
    line = _first_user(tree, user, uid)
    if line is None and uid is None:
        raise StepFailed(f"unable to find user {user}: no matching entries in passwd file")
    primary = _checked(line.gid, user) if line is not None else 0
    identity = Identity(_checked(line.uid, user) if line is not None else uid or 0, primary, ())
    if group:
        chosen = _group_number(tree, group, gid)
        return Identity(identity.uid, chosen, (chosen,))
    supplementary = [primary]
    if line is not None:
        for found in _groups(tree, holding=line.name):
            if line.name in found.members and found.gid not in supplementary:
                supplementary.append(_checked(found.gid, found.name))
    return Identity(identity.uid, primary, tuple(supplementary))


def resolve_owner(tree: Tree, spec: str, *, unknown_is_root: bool = False) -> tuple[int, int]:
    """Owner and group for ``--chown=user[:group]``.

    Without a group, a name has its primary group, and a number is the group as well
    (BuildKit's rule, unlike USER's). Raises StepFailed for a name without a line, unless
    `unknown_is_root`, as for the folders that WORKDIR makes.
    """
    user, colon, group = spec.partition(":")
    uid = _as_number(user)
    if uid is not None:
        owner = uid, uid
    elif user in ("root", ""):
        owner = 0, 0
    else:
        line = _first_user(tree, user, None)
        if line is not None:
            owner = _checked(line.uid, user), _checked(line.gid, user)
        elif unknown_is_root:
            owner = 0, 0
        else:
            raise StepFailed(f"unable to find user {user}: no matching entries in passwd file")
    if not colon or not group:
        return owner
    try:
        return owner[0], _group_number(tree, group, _as_number(group))
    except StepFailed:
        if unknown_is_root and _as_number(group) is None:
            return owner
        raise


def _as_number(text: str) -> int | None:
    """The number that `text` is, None for a name."""
    if not _NUMBER.fullmatch(text):
        return None
    if len(text) > 12:
        raise StepFailed(f"{text[:40]} is no user or group: at most {_MAX_ID} is allowed")
    return _checked(int(text), text)


def _checked(number: int, name: str) -> int:
    if not 0 <= number <= _MAX_ID:
        raise StepFailed(f"{name} is no user or group: numbers go from 0 to {_MAX_ID}")
    return number


def _first_user(tree: Tree, name: str, uid: int | None) -> _Line | None:
    wanted = 0 if not name else uid
    for line in _users(tree):
        if line.uid == wanted if wanted is not None else line.name == name:
            return line
    return _Line("root", 0, 0) if name == "root" or not name else None


def _group_number(tree: Tree, name: str, number: int | None) -> int:
    if number is not None:
        return number
    for line in _groups(tree):
        if line.name == name:
            return _checked(line.gid, name)
    if name == "root":
        return 0
    raise StepFailed(f"unable to find group {name}: no matching entries in group file")


def _users(tree: Tree) -> Iterator[_Line]:
    for fields in _lines(tree, b"etc/passwd"):
        yield _Line(fields[0], _field(fields, 2), _field(fields, 3))


def _groups(tree: Tree, holding: str = "") -> Iterator[_Line]:
    """The groups, or those with this text somewhere in their lines."""
    for fields in _lines(tree, b"etc/group", holding.encode("utf-8", "surrogateescape")):
        if not fields[0].startswith("#"):
            members = tuple(fields[3].split(",")) if len(fields) > 3 else ()
            yield _Line(fields[0], 0, _field(fields, 2), members)


def _field(fields: list[str], at: int) -> int:
    """A number; what isn't one counts as 0, as in the original."""
    text = fields[at] if len(fields) > at else ""
    return int(text) if _NUMBER.fullmatch(text) and len(text) <= 20 else 0


def _lines(tree: Tree, path: bytes, holding: bytes = b"") -> Iterator[list[str]]:
    real = resolve(tree, path)
    entry = tree.get(real)
    if entry is None:
        return
    shown_path = "/" + path.decode()
    if entry.kind is not Kind.FILE:
        raise StepFailed(f"{shown_path} in the image is not a regular file")
    if entry.size > _MAX_FILE:
        raise StepFailed(f"{shown_path} in the image is larger than {_MAX_FILE} bytes")
    with tree.open(real) as stream:
        content = stream.read(entry.size)
    for raw in content.split(b"\n"):
        if holding not in raw:
            continue
        line = raw.strip().decode("utf-8", "surrogateescape")
        if line:
            yield line.split(":")
