"""How sources on the network are fetched."""

from __future__ import annotations

from collections.abc import Mapping

from pybuild.values import dataclass, field

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """``proxies`` are as :func:`urllib.request.getproxies` gives them.

    ``public_only`` refuses every address that isn't a public one, after the names were looked
    up and on each redirect; a proxy, which looks names up itself, isn't used then. ``search_path``
    is where git and ssh are looked for, by default where the system has them. ``ssh_agent`` is an
    agent's socket. A file may have ``max_bytes``, and in each ``patience`` seconds something
    must come. ``allow_file`` lets git read repositories of this machine: for tests.
    """

    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    public_only: bool = False
    search_path: str | None = None
    ssh_agent: str | None = None
    max_bytes: int = 64 * _GIB
    patience: float = 60.0
    git_seconds: float = 3600.0
    allow_file: bool = False
