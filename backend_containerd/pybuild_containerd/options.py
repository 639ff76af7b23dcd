"""The options of the containerd backend, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pybuild.errors import UsageError
from pybuild.values import dataclass, field


@dataclass(frozen=True, slots=True)
class Options:
    """What :func:`pybuild_containerd.backend.open_backend` takes.

    ``address`` is the socket's path; without it ``environment_address`` (CONTAINERD_ADDRESS),
    then the well-known places, one of them below ``xdg_runtime_dir``.
    ``pull`` is "auto" to have containerd fetch layers where it can, which is faster, "own" to
    have pybuild do it. ``runner`` says how a RUN is run: "sandbox" by pybuild on the files of
    a snapshot, "crun" or "runc" by that runtime in such a sandbox, "task" by containerd, "auto"
    by a sandbox where that works. ``cache_dir`` keeps what is found out about layers, and the
    locks of steps and cache mounts: builds with the same one wait for each other there. By
    default it is the user's. ``hosts_dir`` is
    containerd's ``certs.d``, ``docker_config`` the path of Docker's config.json, ``proxies``
    maps a URL's scheme to its proxy (``no`` lists what needs none). ``moby_labels`` adds what
    Docker's classic builder leaves; None means in the namespace ``moby``. With ``unpack`` the
    finished image is ready to run.
    """

    address: str | None = None
    environment_address: str | None = None
    xdg_runtime_dir: str | None = None
    namespace: str = "default"
    snapshotter: str | None = None
    runtime: str = "io.containerd.runc.v2"
    pull: str = "auto"
    runner: str = "auto"
    cache_dir: Path | None = None
    hosts_dir: Path | None = None
    docker_config: Path | None = None
    proxies: Mapping[str, str] = field(default_factory=dict)
    moby_labels: bool | None = None
    unpack: bool = True


_PATHS = frozenset({"cache_dir", "hosts_dir", "docker_config"})
_FLAGS = frozenset({"moby_labels", "unpack"})
_TEXTS = frozenset(
    {"address", "environment_address", "xdg_runtime_dir", "namespace", "snapshotter", "runtime"}
)
_CHOICES = {
    "pull": frozenset({"auto", "own"}),
    "runner": frozenset({"auto", "sandbox", "task", "crun", "runc"}),
}
_NEVER_NONE = frozenset({"namespace", "runtime", "proxies", "pull", "runner", "unpack"})


def parse_options(options: Mapping[str, object]) -> Options:
    """Check names and types. None means the default. Raises UsageError."""
    known = Options.__match_args__
    for name in options:
        if name not in known:
            raise UsageError(
                f"the containerd backend has no option {name}",
                hint=f"its options are {', '.join(sorted(known))}",
            )
    given = {
        name: _checked(name, value)
        for name, value in options.items()
        if value is not None or name not in _NEVER_NONE
    }
    return Options(**given)  # type: ignore[arg-type]  # each was checked by its name


def _checked(name: str, value: object) -> object:
    if value is None:
        return None
    if name in _PATHS and isinstance(value, str | Path) and str(value):
        return Path(value)
    if name in _FLAGS and isinstance(value, bool):
        return value
    if name in _FLAGS and isinstance(value, str) and value in {"true", "false"}:
        return value == "true"
    if name == "proxies" and isinstance(value, Mapping):
        pairs = dict(value)
        if all(isinstance(part, str) for pair in pairs.items() for part in pair):
            return pairs
    if isinstance(value, str) and value in _CHOICES.get(name, ()):
        return value
    if name in _TEXTS and isinstance(value, str) and value:
        return value
    raise UsageError(f"the containerd backend's option {name} has the unfit value {value!r}")
