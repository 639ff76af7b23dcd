"""Named contexts as a caller gives them, and their files once a step needs them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pybuild.errors import UsageError
from pybuild.files.context import ContextTree
from pybuild.files.trees import Tree
from pybuild.oci.http import Activity
from pybuild.plan.contexts import FilesContext, NamedContext, parse_context
from pybuild.remotes.fetching import Remotes
from pybuild.run.inputs import open_files

if TYPE_CHECKING:
    from pybuild.files.memorycontext import FilesInMemory

ContextValue: TypeAlias = "str | Path | FilesInMemory | Tree"
"""A folder, an URL or another form of ``--build-context``; a path; files in memory or as a tree."""

_IN_MEMORY = "files in memory"


def named_contexts(values: Mapping[str, ContextValue]) -> dict[str, NamedContext]:
    """What the names stand for. Raises UsageError."""
    found: dict[str, NamedContext] = {}
    for name, value in values.items():
        if not name.partition("::")[0]:
            raise UsageError("a named context has no name")
        if isinstance(value, str):
            found[name] = parse_context(value)
        else:
            found[name] = FilesContext(str(value) if isinstance(value, Path) else _IN_MEMORY)
    return found


class Contexts:
    """The files of a build's contexts. They can be read until `stack` is closed."""

    def __init__(
        self,
        main: Tree,
        named: Mapping[str, ContextValue],
        remotes: Remotes,
        stack: ExitStack,
    ) -> None:
        self._main = main
        self._named = named
        self._remotes = remotes
        self._stack = stack

    def open(self, name: str | None, activity: Activity, notes: Path | None = None) -> Tree:
        """The files of the context `name`, None for the main one, less what is excluded.

        The digests of unchanged ones are kept in `notes`, if that is given.
        Raises ContextError, UsageError, FetchFailed.
        """
        if name is None:
            return _keeping_digests(self._main, notes)
        value = self._named[name]
        if isinstance(value, Tree):
            return value
        opened = self._stack.enter_context(open_files(value, self._remotes, activity))
        return _keeping_digests(opened, notes)


def _keeping_digests(tree: Tree, notes: Path | None) -> Tree:
    if notes is not None and isinstance(tree, ContextTree):
        tree.keep_digests_in(notes)
    return tree
