"""The options of the embedded backend, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pybuild.errors import UsageError
from pybuild.imagestore import parse_share
from pybuild.values import dataclass, field


@dataclass(frozen=True, slots=True)
class Options:
    """What :func:`pybuild_embedded.backend.open_backend` takes.

    ``root`` is the store's folder, by default platformdirs' cache folder of this user.
    ``hosts_dir`` is of containerd's ``certs.d`` form, ``docker_config`` the path of Docker's
    config.json, ``proxies`` maps a URL's scheme to its proxy (``no`` lists what needs none).
    ``max_size`` is what the store may take up when a build has ended, in bytes, or as a share
    of the disk (``15%``); by default :func:`pybuild.imagestore.usual_ceiling`.
    ``runner`` is "auto" or "sandbox", which are the same here, or "crun" or "runc": that
    runtime starts the processes in the sandbox. ``user_namespace`` False lets root run steps
    in the machine's own user namespace.
    """

    root: Path | None = None
    hosts_dir: Path | None = None
    docker_config: Path | None = None
    proxies: Mapping[str, str] = field(default_factory=dict)
    max_size: int | str | None = None
    runner: str = "auto"
    user_namespace: bool = True


_RUNNERS = ("auto", "sandbox", "crun", "runc")
_PATHS = frozenset({"root", "hosts_dir", "docker_config"})


def parse_options(options: Mapping[str, object]) -> Options:
    """Check names and types. None means the default. Raises UsageError."""
    known = Options.__match_args__
    for name in options:
        if name not in known:
            raise UsageError(
                f"the embedded backend has no option {name}",
                hint=f"its options are {', '.join(sorted(known))}",
            )
    given = {name: _checked(name, value) for name, value in options.items() if value is not None}
    return Options(**given)  # type: ignore[arg-type]  # each was checked by its name


def _checked(name: str, value: object) -> object:
    if name in _PATHS and isinstance(value, str | Path) and str(value):
        return Path(value)
    if name == "runner" and value in _RUNNERS:
        return value
    if name == "max_size" and _is_size(value):
        return value
    if name == "user_namespace" and isinstance(value, bool):
        return value
    if name == "proxies" and isinstance(value, Mapping):
        pairs = dict(value)
        if all(isinstance(part, str) for pair in pairs.items() for part in pair):
            return pairs
    raise UsageError(f"the embedded backend's option {name} has the unfit value {value!r}")


def _is_size(value: object) -> bool:
    if isinstance(value, str):
        return parse_share(value) is not None
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
