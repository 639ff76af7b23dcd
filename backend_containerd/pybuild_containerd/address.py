"""Where containerd listens: choosing a socket, and saying why one can't be used."""

from __future__ import annotations

import errno
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from pybuild.errors import BackendUnavailable, UsageError
from pybuild.values import dataclass

_SYSTEM = (
    "run/containerd/containerd.sock",
    "var/run/containerd/containerd.sock",
    "run/k3s/containerd/containerd.sock",
)
_DOCKER = (
    "run/docker/containerd/containerd.sock",
    "var/run/docker/containerd/containerd.sock",
)
_LONGEST_PATH = 107  # sun_path of a unix socket's address, less the zero byte
_CONNECT_SECONDS = 5.0


def socket_path(address: str) -> str:
    """The absolute path in `address`, which may begin with ``unix://`` or ``unix:``.

    Raises UsageError for other schemes and for relative paths.
    """
    path = address
    if "://" in address or address.startswith("unix:"):
        parts = urlsplit(address)
        if parts.scheme != "unix" or parts.netloc:
            raise UsageError(
                f"containerd can't be reached at {address!r}",
                hint="give the path of a unix socket, as in unix:///run/containerd/containerd.sock",
            )
        path = address.removeprefix("unix://").removeprefix("unix:")
    if not path.startswith("/") or "\0" in path:
        raise UsageError(
            f"{address!r} is no address of containerd",
            hint="give the absolute path of its unix socket",
        )
    return path


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why nothing can be reached at a path, and what to do."""

    reason: str
    hint: str


def find_obstacle(path: str) -> Obstacle | None:
    """Connect to the unix socket at `path` and let go at once; None if that works."""
    if len(path.encode(errors="surrogateescape")) > _LONGEST_PATH:
        return Obstacle(
            f"the path is longer than {_LONGEST_PATH} bytes", "make a symlink with a short path"
        )
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_CONNECT_SECONDS)
            probe.connect(path)
    except OSError as error:
        return _obstacle(path, error)
    return None


def _obstacle(path: str, error: OSError) -> Obstacle:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return Obstacle("there is no socket", "start containerd, or give another address")
        case errno.EACCES | errno.EPERM:
            return Obstacle(
                "permission denied",
                "run as root, or let your group use the socket ([grpc] gid in containerd's config)",
            )
        case errno.ECONNREFUSED | errno.ENOTSOCK | errno.EPROTOTYPE:
            with suppress(OSError):
                if not stat.S_ISSOCK(Path(path).stat().st_mode):
                    return Obstacle("it is no socket", "give the path of containerd's socket")
            return Obstacle("nothing listens there", "start containerd again")
        case _ if isinstance(error, TimeoutError) or error.errno == errno.EAGAIN:
            return Obstacle("it takes no connections", "containerd hangs; restart it")
        case _:
            return Obstacle((error.strerror or str(error)).lower(), "see whether containerd runs")


def check_socket(path: str) -> None:
    """Raise BackendUnavailable unless something accepts connections at `path`."""
    obstacle = find_obstacle(path)
    if obstacle is not None:
        raise BackendUnavailable(
            f"can't connect to containerd at {path}: {obstacle.reason}", hint=obstacle.hint
        )


def choose_address(
    explicit: str | None = None,
    from_environment: str | None = None,
    runtime_folder: str | None = None,
    *,
    root: str = "/",
) -> str:
    """The path of containerd's socket.

    `explicit` (an option) goes before `from_environment` (CONTAINERD_ADDRESS), and either
    is taken as it is. Without them the first place that takes a connection is used: the
    system's containerd, k3s's, a rootless one by `runtime_folder` (XDG_RUNTIME_DIR), and
    Docker's. `root` is the folder that has ``run`` in it. Raises BackendUnavailable with
    all places that were tried.
    """
    given = explicit or from_environment
    if given:
        path = socket_path(given)
        check_socket(path)
        return path
    obstacles: dict[str, Obstacle] = {}
    for path in _places(runtime_folder, root):
        obstacle = find_obstacle(path)
        if obstacle is None:
            return path
        obstacles[path] = obstacle
    tried = "; ".join(f"{path}: {obstacle.reason}" for path, obstacle in obstacles.items())
    raise BackendUnavailable(f"containerd isn't running here ({tried})", hint=_advice(obstacles))


def _advice(obstacles: dict[str, Obstacle]) -> str:
    """What to do about the most promising of the places: one that exists."""
    for path, obstacle in obstacles.items():
        if obstacle.reason != "there is no socket":
            return f"for {path}: {obstacle.hint}"
    return "start containerd, or give its address with --containerd-address or CONTAINERD_ADDRESS"


def _places(runtime_folder: str | None, root: str) -> Iterator[str]:
    """Where containerd may listen, best first."""
    for name in _SYSTEM:
        yield str(Path(root, name))
    if runtime_folder:
        with suppress(OSError, ValueError):
            # RootlessKit hides /run in a mount namespace; its child's root leads into that
            file = Path(runtime_folder, "containerd-rootless/child_pid")
            pid = int(file.read_text(encoding="ascii"))
            yield f"/proc/{pid}/root/run/containerd/containerd.sock"
    for name in _DOCKER:
        yield str(Path(root, name))
    if runtime_folder:
        yield str(Path(runtime_folder, "docker/containerd/containerd.sock"))
