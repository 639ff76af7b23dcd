"""Discovery: which backends are installed, and opening one by name.

A package registers a backend with an entry point of the group ``pybuild.backends``: its name
and a function ``open_backend(options: Mapping[str, object]) -> Backend``. It is imported only
when it is chosen. An option that a backend doesn't know raises UsageError there.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING

from pybuild.backend import Backend
from pybuild.errors import BackendUnavailable

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

GROUP = "pybuild.backends"
DEFAULT_BACKEND = "embedded"


def backend_names() -> tuple[str, ...]:
    """The names of the installed backends, sorted. Imports none of them."""
    return tuple(sorted({point.name for point in _entry_points()}))


def open_backend(name: str, options: Mapping[str, object] | None = None) -> Backend:
    """Open the backend called `name`; the caller closes it.

    Raises BackendUnavailable if there is none of that name, if its package can't be
    imported, or if it can't start here.
    """
    points = _entry_points().select(name=name)
    if not points:
        known = backend_names()
        near = get_close_matches(name, known, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise BackendUnavailable(
            f'there is no backend "{name}"{guess}',
            hint=f"the installed ones are: {', '.join(known)}" if known else "none is installed",
        )
    try:
        opener = next(iter(points)).load()
    except (ImportError, AttributeError) as error:
        raise BackendUnavailable(
            f'the backend "{name}" can\'t be loaded: {error}',
            hint="its package, or one that it needs, is missing or broken; install it again",
        ) from error
    backend = opener(dict(options or {}))
    if not isinstance(backend, Backend):
        raise BackendUnavailable(f'the entry point of the backend "{name}" opens no backend')
    return backend


def _entry_points() -> EntryPoints:
    # it loads email and socket, and parsing and --dry-run need neither
    from importlib.metadata import entry_points  # noqa: PLC0415

    return entry_points(group=GROUP)
