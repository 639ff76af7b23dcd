"""All fetching of one build: each source on the network once, kept until the build ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

from pybuild.files.context import ContextTree
from pybuild.files.keyedlocks import KeyedLocks
from pybuild.files.trees import Tree
from pybuild.oci.http import Activity
from pybuild.remotes.locations import GitLocation, Location, WebLocation
from pybuild.remotes.options import RemoteOptions
from pybuild.secrets import Secret
from pybuild.values import replace

if TYPE_CHECKING:
    from pybuild.remotes.web import WebClient, WebFile

OpenAgent = Callable[[], AbstractContextManager[Path]]
"""Gives the socket of an SSH agent, which is there as long as the context lasts."""


class Remotes:
    """The sources that were fetched. A context manager; safe in threads.

    `secrets` may hold logins, by BuildKit's names: HTTP_AUTH_TOKEN_<host>,
    HTTP_AUTH_HEADER_<host>, GIT_AUTH_TOKEN[.<host>] and GIT_AUTH_HEADER[.<host>]. For
    repositories, which may be or have submodules over ssh, `open_agent` is called once: its agent
    is used in place of that in `options`.
    """

    def __init__(
        self,
        options: RemoteOptions | None = None,
        secrets: Mapping[str, Secret] = MappingProxyType({}),
        open_agent: OpenAgent | None = None,
    ) -> None:
        self._options = options or RemoteOptions()
        self._open_agent = open_agent
        self._secrets = secrets
        self._locks = KeyedLocks()
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._web: WebClient | None = None
        self._files: dict[WebLocation, WebFile] = {}
        self._checkouts: dict[GitLocation, ContextTree] = {}

    def tree(self, location: Location, activity: Activity) -> Tree:
        """The files at `location`: a repository's, or the one file under its own name.

        Raises FetchFailed, ContextError, BuildCancelled.
        """
        if isinstance(location, GitLocation):
            return self.repository(location, activity)
        return self.file(location, activity).tree()

    def file(self, location: WebLocation, activity: Activity) -> WebFile:
        """The file at `location`. Raises FetchFailed, BuildCancelled."""
        with self._locks.holding(str(location)):
            found = self._files.get(location)
            if found is None:
                found = self._files[location] = self._client().fetch(location, activity)
                self._on_close(found.spool.close)
        return found

    def repository(self, location: GitLocation, activity: Activity) -> ContextTree:
        """The files of a repository. Raises FetchFailed, ContextError, BuildCancelled."""
        # Imported here, as most builds read nothing by git.
        from pybuild.remotes.git import check_out  # noqa: PLC0415

        with self._locks.holding(str(location)):
            tree = self._checkouts.get(location)
            if tree is None:
                made = check_out(location, self._with_agent(), self._secrets, activity)
                self._on_close(made.close)
                tree = self._checkouts[location] = made.tree
        return tree

    def commit(self, location: GitLocation, activity: Activity) -> str:
        """The id of the commit that the repository has there now; its files aren't fetched.

        Raises FetchFailed, BuildCancelled.
        """
        from pybuild.remotes.git import find_commit  # noqa: PLC0415 - as above

        return find_commit(location, self._options, self._secrets, activity)

    def close(self) -> None:
        """Remove everything that was fetched. Idempotent."""
        with self._lock:
            self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _with_agent(self) -> RemoteOptions:
        with self._lock:
            if self._open_agent is not None:
                agent = self._stack.enter_context(self._open_agent())
                self._options = replace(self._options, ssh_agent=str(agent))
                self._open_agent = None
            return self._options

    def _client(self) -> WebClient:
        # Imported here so that a build without such a source loads no HTTP client.
        from pybuild.remotes.web import WebClient  # noqa: PLC0415

        with self._lock:
            if self._web is None:
                self._web = WebClient(self._options, self._secrets)
                self._stack.callback(self._web.close)
            return self._web

    def _on_close(self, callback: Callable[[], object]) -> None:
        with self._lock:
            self._stack.callback(callback)
