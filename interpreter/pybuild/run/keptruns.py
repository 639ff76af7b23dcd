"""Failed RUNs that are kept from build to build, for ``pybuild debug``.

Their files are kept by the backend, in a few places that the next failures take over; whatever
makes room for builds removes them too. What was run there is in a note, a
JSON document that this user alone can read. Secrets and agents are in neither.
"""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, assert_never

from pybuild.backend import (
    Activity,
    Backend,
    BindMount,
    CacheMount,
    HostEntry,
    Mount,
    Network,
    Process,
    ROLayer,
    RWLayer,
    SecretMount,
    Sharing,
    SshMount,
    TmpfsMount,
    Ulimit,
    User,
)
from pybuild.errors import UsageError
from pybuild.files.trees import MemoryTree, NewEntry
from pybuild.files.wholefiles import write_whole
from pybuild.keptlayers import LONGEST_KEPT, KeptLayers
from pybuild.oci.layerindex import Entry, Kind
from pybuild.run.activity import StepActivity
from pybuild.run.failedruns import FailedRun, TakenRun
from pybuild.values import dataclass

MOST_KEPT = 3
_FOLDER = "failures"
_FILE = b"file"
_MOST_NOTE = 4 << 20
_MOST_CONTENT = 1 << 20


@dataclass(frozen=True, slots=True)
class KeptRun:
    """``title`` is the step's, ``where`` its place or empty, ``failed`` in seconds since 1970.

    ``lacking`` tells of each mount that the step had and this hasn't.
    """

    title: str
    where: str
    failed: float
    process: Process
    mounts: tuple[Mount, ...]
    lacking: tuple[str, ...]
    place: int


class KeptRuns:
    """Those that are kept by a backend, which must be open. Safe against other builds."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._layers = backend.kept_layers() or CommittedLayers(backend)
        notes = backend.notes_folder()
        self._folder = None if notes is None else notes / _FOLDER

    def add(self, run: TakenRun, activity: StepActivity) -> bool:
        """Keep one more, in the oldest place; False if there is none at all.

        Nothing else is done with its layer from then on. Raises BackendError, BuildCancelled,
        OSError.
        """
        folder = self._folder
        if folder is None:
            return False
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = min(range(MOST_KEPT), key=lambda number: _written(folder / str(number)))
        with self._backend.single_flight(_key(place), activity):
            # a note is never beside the files of another failure
            (folder / str(place)).unlink(missing_ok=True)
            self._layers.keep(_key(place), run.layer, activity)
            write_whole(folder / str(place), json.dumps(_document(run)).encode("ascii"))
        return True

    def newest(self) -> list[KeptRun]:
        """All that may still be opened, the last first. What is too old is forgotten."""
        if self._folder is None:
            return []
        found = []
        for place in range(MOST_KEPT):
            path = self._folder / str(place)
            kept = _read(path, place)
            if kept is not None and kept.failed >= time.time() - LONGEST_KEPT:
                found.append(kept)
            elif kept is not None:
                with suppress(OSError):
                    path.unlink()
        return sorted(found, key=lambda kept: -kept.failed)

    @contextmanager
    def opened(self, kept: KeptRun, activity: Activity) -> Iterator[FailedRun]:
        """The process and its files. Raises UsageError if these were removed meanwhile."""
        key, layer = _key(kept.place), None
        with self._backend.single_flight(key, activity):
            if (
                self._folder is not None
                and _read(self._folder / str(kept.place), kept.place) == kept
            ):
                layer = self._layers.open(key, activity)
        if layer is None:
            raise _gone(kept)
        with layer:
            yield FailedRun(layer, kept.process, kept.mounts)


class CommittedLayers(KeptLayers):
    """Layers that are kept as steps of the cache."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def keep(self, name: str, layer: RWLayer | ROLayer, activity: Activity) -> None:
        if isinstance(layer, RWLayer):
            layer.commit(name, activity).release()
            return
        with layer.begin(runs=False) as same:
            same.commit(name, activity).release()

    def open(self, name: str, activity: Activity) -> ROLayer | None:  # noqa: ARG002 - there is nothing to do
        return self._backend.lookup(name)


def _gone(kept: KeptRun) -> UsageError:
    return UsageError(
        f'the files of the failed step "{kept.title}" aren\'t kept any more',
        hint="build again: a failed step is kept until room is needed",
    )


def _key(place: int) -> str:
    return f"failed-run-{place}"


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _read(path: Path, place: int) -> KeptRun | None:
    """None if there is nothing there that can be read."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_NOTE + 1)
        found = json.loads(content)
        return KeptRun(
            title=str(found["title"]),
            where=str(found["where"]),
            failed=float(found["failed"]),
            process=_process(found["process"]),
            mounts=tuple(map(_mount, found["mounts"])),
            lacking=tuple(map(str, found["lacking"])),
            place=place,
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _document(run: TakenRun) -> dict[str, Any]:
    process, error = run.process, run.error
    kept, lacking = [], [f"the secret variable {name}" for name, _ in process.secret_env]
    for mount in run.mounts:
        described = _described(mount)
        if isinstance(described, str):
            lacking.append(described)
        else:
            kept.append(described)
    return {
        "title": error.step or "RUN",
        "where": str(error.where or ""),
        "failed": time.time(),
        "mounts": kept,
        "lacking": lacking,
        "process": {
            "args": process.args,
            "env": process.env,
            "cwd": process.cwd,
            "user": [process.user.uid, process.user.gid, process.user.groups],
            "network": process.network.value,
            "hostname": process.hostname,
            "extra_hosts": [[host.name, host.address] for host in process.extra_hosts],
            "shm_size": process.shm_size,
            "ulimits": [[limit.name, limit.soft, limit.hard] for limit in process.ulimits],
            "insecure": process.insecure,
            "cgroup_parent": process.cgroup_parent,
        },
    }


def _process(found: Any) -> Process:
    uid, gid, groups = found["user"]
    return Process(
        args=tuple(found["args"]),
        env=tuple((str(name), str(value)) for name, value in found["env"]),
        cwd=str(found["cwd"]),
        user=User(int(uid), int(gid), tuple(map(int, groups))),
        network=Network(found["network"]),
        hostname=str(found["hostname"]),
        extra_hosts=tuple(HostEntry(*host) for host in found["extra_hosts"]),
        shm_size=found["shm_size"],
        ulimits=tuple(Ulimit(*limit) for limit in found["ulimits"]),
        insecure=bool(found["insecure"]),
        cgroup_parent=found["cgroup_parent"],
    )


def _described(mount: Mount) -> list[Any] | str:
    """The mount for a note; a text that names it if it can't be kept."""
    match mount:
        case TmpfsMount(target=target, size=size):
            return ["tmpfs", target, size]
        case CacheMount(target=target, tree=None) as cache:
            inside = os.fsdecode(cache.inside)
            owner = [cache.mode, cache.uid, cache.gid, cache.readonly, inside]
            return ["cache", target, cache.ident, cache.sharing.value, *owner]
        case CacheMount(target=target):
            return f"the cache at {target}, which begins as a copy"
        case BindMount(target=target):
            content = _content(mount)
            if content is None:
                return f"the bind mount at {target}"
            return ["file", target, base64.b64encode(content).decode(), mount.readonly]
        case SecretMount(target=target):
            return f"the secret at {target}"
        case SshMount(target=target):
            return f"the SSH agent at {target}"
        case _:
            assert_never(mount)


def _content(mount: BindMount) -> bytes | None:
    """What the Dockerfile itself says that is in the file, as a script has it."""
    entry = mount.tree.get(mount.path) if isinstance(mount.tree, MemoryTree) else None
    if entry is None or entry.kind is not Kind.FILE or entry.size > _MOST_CONTENT:
        return None
    with mount.tree.open(mount.path) as stream:
        return stream.read()


def _mount(found: list[Any]) -> Mount:
    match found:
        case ["tmpfs", str(target), int() | None as size]:
            return TmpfsMount(target, size)
        case ["cache", str(target), str(ident), sharing, mode, uid, gid, readonly, str(inside)]:
            return CacheMount(
                target,
                ident,
                Sharing(sharing),
                mode=int(mode),
                uid=int(uid),
                gid=int(gid),
                readonly=bool(readonly),
                inside=os.fsencode(inside),
            )
        case ["file", str(target), str(content), readonly]:
            tree = file_tree(base64.b64decode(content, validate=True))
            return BindMount(target, tree, _FILE, bool(readonly))
        case _:
            raise ValueError("no mount")


def file_tree(content: bytes) -> MemoryTree:
    """A tree of one program, ``file``, with this content."""
    entry = Entry(_FILE, Kind.FILE, mode=0o755, size=len(content), mtime=0)
    return MemoryTree([NewEntry(entry, lambda: io.BytesIO(content))])
