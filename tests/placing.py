"""The rules of COPY, ADD and .dockerignore, told a second time for `modelling`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase

from projects import FOLDER, Copy, Files, Node


class Impossible(Exception):
    """The instruction can't be carried out, or it isn't told what it does."""


Identity = tuple[object, ...]
"""A step's inputs: what it starts on, what it says, the variables and files that it sees."""


class Staging:
    """Files with others put over them. `apart` sees nothing of those below."""

    def __init__(self, below: Files, *, apart: bool = False) -> None:
        self._below = below
        self._apart = apart
        self.placed: dict[str, Node] = {}

    def get(self, path: str) -> Node | None:
        return self.placed.get(path) or (None if self._apart else self._below.get(path))

    def put(self, path: str, node: Node) -> None:
        for there in (self.placed.get(path), self._below.get(path)):
            if there is not None and (there.kind == "folder") != (node.kind == "folder"):
                raise Impossible(f"{path} would take the place of something else")
        if self.get(path) != node or node.kind != "folder":
            self.placed[path] = node

    def make(self, folder: str, node: Node) -> None:
        """Make `folder` as `node` unless it is there."""
        for there in (self.placed.get(folder), self._below.get(folder)):
            if there is not None and there.kind != "folder":
                raise Impossible(f"{folder} is no folder")
        if self.get(folder) is None:
            self.placed[folder] = node

    def make_parents(self, path: str, node: Node) -> None:
        for folder in parents_of(path):
            self.make(folder, node)

    def files(self) -> Files:
        return {**self._below, **self.placed}

    def facts(self) -> Identity:
        return tuple(sorted((path, facts_of(node)) for path, node in self.placed.items()))


class Placing:
    """The rules of COPY and ADD."""

    def __init__(
        self, copy: Copy, source: Files, staging: Staging, destination: str, *, as_folder: bool
    ) -> None:
        self._copy = copy
        self._source = source
        self._staging = staging
        self._destination = destination
        self._as_folder = as_folder
        mode = 0o755 if copy.chmod is None else copy.chmod & 0o777
        self._made = Node("folder", mode, uid=copy.chown or 0, gid=copy.chown or 0)

    def add(self, pattern: str) -> None:
        pattern = pattern.strip("/").removeprefix("./")
        pattern = "" if pattern == "." else pattern
        if self._copy.parents:
            self._add_with_parents(pattern)
            return
        for path in self._matching(pattern):
            real = followed(self._source, path)
            node = FOLDER if not real else self._source.get(real)
            if node is None:
                raise Impossible(f"{path} is not there")
            if node.members and self._copy.instruction == "ADD":
                self._unpack(node)
            elif node.kind == "folder":
                self._add_folder(real)
            else:
                self._add_file(path, node)

    def _matching(self, pattern: str) -> list[str]:
        if "*" not in pattern:
            return [pattern]
        above, _, name = pattern.rpartition("/")
        if above and self._source.get(above, Node()).kind != "folder":
            raise Impossible(f"{above} is no folder")
        return [path for path in _children(self._source, above) if _name_fits(path, name)]

    def _add_file(self, path: str, node: Node) -> None:
        target = self._destination
        if self._as_folder:
            self._make_folder(target)
        there = self._staging.get(target)
        if not target or self._as_folder or (there is not None and there.kind == "folder"):
            target = f"{target}/{path.rpartition('/')[2]}".lstrip("/")
        self._staging.make_parents(target, self._made)
        self._staging.put(target, self._changed(node))

    def _add_folder(self, real: str) -> None:
        self._make_folder(self._destination)
        rules = (self._copy.exclude,) if self._copy.exclude else ()
        found = {
            path[len(real) :].lstrip("/"): node
            for path, node in files_below(self._source, real).items()
        }
        for inside, node in sorted(without_ignored(found, rules).items()):
            self._staging.put(f"{self._destination}/{inside}".lstrip("/"), self._changed(node))

    def _add_with_parents(self, pattern: str) -> None:
        node = self._source.get(pattern)
        if node is None:
            raise Impossible(f"{pattern} is not there")
        if any(self._source[folder].kind != "folder" for folder in parents_of(pattern)):
            raise Impossible("a link stands before the end")
        self._make_folder(self._destination)
        taken = {path: self._source[path] for path in parents_of(pattern)} | {pattern: node}
        taken |= files_below(self._source, pattern) if node.kind == "folder" else {}
        for path, each in sorted(taken.items()):
            target = f"{self._destination}/{path}".lstrip("/")
            there = self._staging.get(target)
            if path in parents_of(pattern) and there is not None and there.kind == "folder":
                # a folder on the way keeps its owner, and takes the mode of the source
                each = replace(there, mode=each.mode)  # noqa: PLW2901 - the same folder
                self._staging.put(target, each)
                continue
            self._staging.put(target, self._changed(each))

    def _unpack(self, node: Node) -> None:
        self._staging.make_parents(
            f"{self._destination}/x".lstrip("/"), replace(self._made, mode=0o755)
        )
        for path, member in node.members:
            target = f"{self._destination}/{path}".lstrip("/")
            owner = (member.uid, member.gid)
            if self._copy.chown is not None:
                owner = (self._copy.chown, self._copy.chown)
            self._staging.put(target, replace(member, uid=owner[0], gid=owner[1]))

    def _make_folder(self, path: str) -> None:
        self._staging.make_parents(f"{path}/x".lstrip("/"), self._made)

    def _changed(self, node: Node) -> Node:
        if self._copy.chown is not None:
            node = replace(node, uid=self._copy.chown, gid=self._copy.chown)
        if self._copy.chmod is not None and node.kind != "link":
            node = replace(node, mode=self._copy.chmod)
        return node


def without_ignored(files: Files, rules: tuple[str, ...]) -> Files:
    """`files` without those that the rules of a .dockerignore exclude.

    A folder that is excluded stays if something below it does.
    """
    kept: dict[str, Node] = {}
    for path in files:
        if not _is_ignored(path, rules):
            kept |= {above: files[above] for above in (*parents_of(path), path)}
    return kept


def _is_ignored(path: str, rules: tuple[str, ...]) -> bool:
    ignored = False
    for rule in rules:
        pattern = re.compile(_regex(rule.removeprefix("!")))
        if any(pattern.fullmatch(each) for each in (*parents_of(path), path)):
            ignored = not rule.startswith("!")
    return ignored


def _regex(rule: str) -> str:
    text = re.escape(rule).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
    return text.replace(r"\?", "[^/]")


def followed(files: Files, path: str) -> str:
    """Where `path` leads once its links are followed. Raises Impossible for a loop."""
    for _ in range(20):
        for part in (*parents_of(path), path):
            node = files.get(part)
            if node is None or node.kind != "link":
                continue
            target = node.content.decode()
            above = "" if target.startswith("/") else part.rpartition("/")[0]
            path = normal(f"{above}/{target}/{path[len(part) :]}")
            break
        else:
            return path
    raise Impossible("links go round")


def normal(path: str) -> str:
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts)


def parents_of(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def files_below(files: Files, path: str) -> Files:
    start = f"{path}/" if path else ""
    return {other: node for other, node in files.items() if other.startswith(start) and other}


def _children(files: Files, folder: str) -> Iterator[str]:
    return (path for path in sorted(files) if path.rpartition("/")[0] == folder)


def _name_fits(path: str, pattern: str) -> bool:
    return fnmatchcase(path.rpartition("/")[2], pattern)


def facts_of(node: Node) -> Identity:
    """What of a node is an input of who reads it."""
    return (node.kind, node.mode, node.uid, node.gid, node.content)
