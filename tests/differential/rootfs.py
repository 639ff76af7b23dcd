"""What is compared of two images: the config's fields, and the file tree under a mounted root."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Node:
    """One file of a tree. ``content`` is a digest, a link's target, or a device number."""

    kind: str
    mode: int
    uid: int
    gid: int
    content: str
    mtime: int
    links: tuple[bytes, ...] = ()


def read_tree(root: Path) -> dict[bytes, Node]:
    """Every file below `root` by relative path; symlinks aren't followed."""
    nodes: dict[bytes, Node] = {}
    inodes: dict[int, list[bytes]] = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in [*folders, *files]:
            path = folder + b"/" + name
            relative = os.path.relpath(path, os.fsencode(root))
            status = os.lstat(path)
            nodes[relative] = _node(path, status)
            if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                inodes.setdefault(status.st_ino, []).append(relative)
    for paths in inodes.values():
        group = tuple(sorted(paths))
        for path in group:
            node = nodes[path]
            nodes[path] = Node(
                node.kind, node.mode, node.uid, node.gid, node.content, node.mtime, group
            )
    return nodes


def _node(path: bytes, status: os.stat_result) -> Node:
    mode = status.st_mode
    if stat.S_ISREG(mode):
        with Path(os.fsdecode(path)).open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif stat.S_ISLNK(mode):
        content = os.fsdecode(os.readlink(path))  # noqa: PTH115 - bytes
    else:
        content = str(status.st_rdev) if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else ""
    return Node(
        stat.filemode(mode)[0],
        stat.S_IMODE(mode),
        status.st_uid,
        status.st_gid,
        content,
        int(status.st_mtime),
    )


def differences(ours: dict[bytes, Node], theirs: dict[bytes, Node], started: float) -> list[str]:
    """Where the trees differ, a line each.

    A file's time counts only if one side's is older than the build: what a build makes is
    as old as its own build.
    """
    found = []
    for path in sorted(ours.keys() | theirs.keys()):
        name = os.fsdecode(path)
        mine, other = ours.get(path), theirs.get(path)
        if mine is None or other is None:
            found.append(f"{name}: only in {'buildah' if mine is None else 'pybuild'}'s image")
            continue
        found += [
            f"{name}: {field} {getattr(mine, field)} / {getattr(other, field)}"
            for field in ("kind", "mode", "uid", "gid", "content", "links")
            if getattr(mine, field) != getattr(other, field)
        ]
        dated = mine.kind == "-" and min(mine.mtime, other.mtime) < started
        if dated and mine.mtime != other.mtime:
            found.append(f"{name}: mtime {mine.mtime} / {other.mtime}")
    return found


_FIELDS = (
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Healthcheck",
    "ArgsEscaped",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
    "OnBuild",
    "Shell",
)


def config_differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Where the ``config`` objects of two image configs differ; absent and empty are one."""
    mine, other = ours.get("config") or {}, theirs.get("config") or {}
    found = [
        f"config {field}: {mine.get(field)!r} / {other.get(field)!r}"
        for field in _FIELDS
        if (mine.get(field) or None) != (other.get(field) or None)
    ]
    return found + [
        f"{field}: {ours.get(field)!r} / {theirs.get(field)!r}"
        for field in ("architecture", "os")
        if ours.get(field) != theirs.get(field)
    ]
