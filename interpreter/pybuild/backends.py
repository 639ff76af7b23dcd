"""Discovery: which backends are installed, and opening one by name.

A package registers a backend with an entry point of the group ``pybuild.backends``: its name
and a function ``open_backend(options: Mapping[str, object]) -> Backend``. It is imported only
when it is chosen. An option that a backend doesn't know raises UsageError there. Those of
pybuild itself are found without the entry points, which take longer to read than they do to
load; no other package can take their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from pybuild.backend import Backend
from pybuild.errors import BackendUnavailable

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

GROUP = "pybuild.backends"
DEFAULT_BACKEND = "embedded"
OWN_BACKENDS = {
    "containerd": "pybuild_containerd.backend",
    "embedded": "pybuild_embedded.backend",
    "memory": "pybuild.testkit.memory",
}
"""The modules of the backends that come with pybuild, by their names."""


def backend_names() -> tuple[str, ...]:
    """The names of the installed backends, sorted. Imports none of them."""
    return tuple(sorted({point.name for point in _entry_points()}))


def open_backend(name: str, options: Mapping[str, object] | None = None) -> Backend:
    """Open the backend called `name`; the caller closes it.

    Raises BackendUnavailable if there is none of that name, if its package can't be
    imported, or if it can't start here.
    """
    try:
        opener = _opener(name)
    except (ImportError, AttributeError) as error:
        raise BackendUnavailable(
            f'the backend "{name}" can\'t be loaded: {error}',
            hint="its package, or one that it needs, is missing or broken; install it again",
        ) from error
    backend = opener(dict(options or {}))
    if not isinstance(backend, Backend):
        raise BackendUnavailable(f'the entry point of the backend "{name}" opens no backend')
    return backend


def _opener(name: str) -> Callable[[dict[str, object]], object]:
    """The function that opens the backend. Raises BackendUnavailable if there is none."""
    if name in OWN_BACKENDS:
        own: Callable[[dict[str, object]], object] = import_module(OWN_BACKENDS[name]).open_backend
        return own
    for point in _entry_points().select(name=name):
        found: Callable[[dict[str, object]], object] = point.load()
        return found
    from difflib import get_close_matches  # noqa: PLC0415  (for a wrong name only)

    known = backend_names()
    near = get_close_matches(name, known, n=1)
    guess = f"; did you mean {near[0]}?" if near else ""
    raise BackendUnavailable(
        f'there is no backend "{name}"{guess}',
        hint=f"the installed ones are: {', '.join(known)}" if known else "none is installed",
    )


def _entry_points() -> EntryPoints:
    # it loads email and socket, and parsing and --dry-run need neither
    from importlib.metadata import entry_points  # noqa: PLC0415

    return entry_points(group=GROUP)
