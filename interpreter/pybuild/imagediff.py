"""How two images differ: in their files, and in what is set for their processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pybuild.files.trees import Tree, shown, walk
from pybuild.oci.image_config import ImageConfig, serialize_config
from pybuild.oci.layerindex import Entry, Kind
from pybuild.values import dataclass

_PIECE = 1 << 20
# what is made of the files and of when things happened, and is no setting
_NO_SETTINGS = frozenset({"created", "history", "rootfs"})
_PATHS = frozenset({"ExposedPorts", "Volumes"})


@dataclass(frozen=True, slots=True)
class Aspect:
    """One thing that differs of a file: ``name`` is type, content, size, mode, owner, link, device
    or xattrs. Modes are octal, owners ``uid:gid``, sizes bytes, contents digests.
    """

    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class FileDifference:
    """A path that only one image has, or that differs; ``before`` or ``after`` is None there.

    ``path`` is absolute. ``aspects`` are empty for what only one has.
    """

    path: str
    before: Entry | None
    after: Entry | None
    aspects: tuple[Aspect, ...] = ()


@dataclass(frozen=True, slots=True)
class SettingDifference:
    """A member of the image's config, as ``Env.PATH``; None where it isn't set."""

    name: str
    before: str | None
    after: str | None


def compared_settings(before: ImageConfig, after: ImageConfig) -> tuple[SettingDifference, ...]:
    """What is set otherwise, by name. History, layers and times are no settings."""
    old, new = _settings(before), _settings(after)
    return tuple(
        SettingDifference(name, old.get(name), new.get(name))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    )


def _settings(config: ImageConfig) -> dict[str, str]:
    document: dict[str, Any] = json.loads(serialize_config(config))
    found: dict[str, str] = {}
    for name, value in document.items():
        if name == "config" and isinstance(value, Mapping):
            for member, inner in value.items():
                found.update(_flat(member, inner))
        elif name not in _NO_SETTINGS:
            found[name] = _text(value)
    return found


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """A member by itself, or each of those in it that people change one by one."""
    if name == "Env":
        for pair in value or ():
            variable, _, text = str(pair).partition("=")
            yield f"{name}.{variable}", text
    elif name == "Labels" and isinstance(value, Mapping):
        yield from ((f"{name}.{label}", _text(text)) for label, text in value.items())
    elif name in _PATHS and isinstance(value, Mapping):
        yield from ((f"{name}.{one}", "set") for one in value)
    else:
        yield name, _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def compared_files(before: Tree, after: Tree) -> Iterator[FileDifference]:
    """The paths that differ, folders before what is in them. Times of files don't count.

    Raises what the trees do where content has to be read.
    """
    old, new = walk(before, b""), walk(after, b"")
    one, other = next(old, None), next(new, None)
    while one is not None or other is not None:
        if other is None or (one is not None and _order(one) < _order(other)):
            assert one is not None  # noqa: S101 - the loop's condition
            yield FileDifference(_shown(one), one, None)
            one = next(old, None)
        elif one is None or _order(other) < _order(one):
            yield FileDifference(_shown(other), None, other)
            other = next(new, None)
        else:
            aspects = tuple(_aspects(one, other, before, after))
            if aspects:
                yield FileDifference(_shown(one), one, other, aspects)
            one, other = next(old, None), next(new, None)


def _order(entry: Entry) -> list[bytes]:
    """The order of :func:`walk`."""
    return entry.path.split(b"/") if entry.path else []


def _shown(entry: Entry) -> str:
    return f"/{shown(entry.path)}" if entry.path else "/"


def _aspects(old: Entry, new: Entry, before: Tree, after: Tree) -> Iterator[Aspect]:
    if old.kind is not new.kind:
        yield Aspect("type", old.kind.value, new.kind.value)
    elif old.kind is Kind.FILE:
        yield from _content(old, new, before, after)
    elif old.link != new.link:
        yield Aspect("link", shown(old.link), shown(new.link))
    elif old.device != new.device:
        yield Aspect("device", _pair(old.device), _pair(new.device))
    if old.mode != new.mode and Kind.SYMLINK not in {old.kind, new.kind}:
        yield Aspect("mode", f"{old.mode:04o}", f"{new.mode:04o}")
    if (old.uid, old.gid) != (new.uid, new.gid):
        yield Aspect("owner", _pair((old.uid, old.gid)), _pair((new.uid, new.gid)))
    if old.xattrs != new.xattrs:
        yield Aspect("xattrs", _names(old), _names(new))


def _content(old: Entry, new: Entry, before: Tree, after: Tree) -> Iterator[Aspect]:
    if old.size != new.size:
        yield Aspect("size", str(old.size), str(new.size))
    one, other = _digest(old, before), _digest(new, after)
    if one != other:
        yield Aspect("content", one, other)


def _digest(entry: Entry, tree: Tree) -> str:
    if entry.digest is not None:
        return entry.digest
    digest = hashlib.sha256()
    with tree.open(entry.path) as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


def _pair(numbers: tuple[int, int]) -> str:
    return f"{numbers[0]}:{numbers[1]}"


def _names(entry: Entry) -> str:
    return ",".join(name for name, _ in entry.xattrs)
