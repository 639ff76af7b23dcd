"""One step on one layer: what exactly it does, and doing it.

`prepare` reads trees and turns a planned step into numbers and entries; `perform` lets the
backend do it. The cache key of a step is made between the two.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import assert_never

from pybuild.backend import (
    BindMount,
    Mount,
    Process,
    ROLayer,
    TmpfsMount,
    User,
)
from pybuild.errors import CopyFailed, RunFailed, StepFailed
from pybuild.files.copying import CopyRequest, plan_copies
from pybuild.files.trees import MemoryTree, NewEntry, Tree, resolve
from pybuild.files.users import resolve_owner, resolve_user
from pybuild.oci.layerindex import Entry, Kind
from pybuild.plan.steps import (
    ContextSource,
    CopyStep,
    ImageSource,
    InlineFile,
    PlannedBind,
    PlannedScript,
    PlannedTmpfs,
    RunStep,
    Source,
    StageSource,
    Step,
    WorkdirStep,
)
from pybuild.remotes.locations import Location, WebLocation
from pybuild.run.activity import StepActivity

_SCRIPT = b"script"


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """The files behind a source; `layer` is None if they are no layer's."""

    tree: Tree
    layer: ROLayer | None = None


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A process to run."""

    process: Process
    mounts: tuple[Mount, ...]


@dataclass(frozen=True, slots=True)
class PreparedFiles:
    """Entries to put; none of them if the step changes nothing."""

    entries: tuple[NewEntry, ...]


Prepared = PreparedRun | PreparedFiles
OpenSource = Callable[[Source | Location], SourceFiles]


def prepare(step: Step, layer: ROLayer, open_source: OpenSource, created: int) -> Prepared:
    """Find out what `step` means on `layer`. Nothing is changed.

    `created` is the modification time, in seconds, of what the step itself makes up:
    missing folders, heredocs. Raises StepFailed, CopyFailed, ContextError, FetchFailed,
    BackendError.
    """
    match step:
        case RunStep():
            return _prepare_run(step, layer.tree(), open_source)
        case CopyStep():
            return PreparedFiles(_prepare_copy(step, layer.tree(), open_source, created))
        case WorkdirStep():
            return PreparedFiles(_prepare_workdir(step, layer.tree(), created))
        case _:
            assert_never(step)


def perform(
    prepared: Prepared,
    layer: ROLayer,
    key: str | None,
    activity: StepActivity,
    newest: int | None = None,
) -> ROLayer | None:
    """Do it, and return the layer that it made; None if there was nothing to do.

    `newest` is as in :meth:`pybuild.backend.ROLayer.begin`. Raises RunFailed for an exit code other than 0, BackendError, BuildCancelled.
    """
    match prepared:
        case PreparedRun(process, mounts):
            with layer.begin(runs=True, newest=newest) as rw:
                code = rw.run(process, mounts, activity)
                # A process that was killed by a cancel failed for no reason of its own.
                activity.raise_if_cancelled()
                if code != 0:
                    raise _run_failed(process, code, activity)
                return rw.commit(key, activity)
        case PreparedFiles(entries):
            if not entries:
                return None
            with layer.begin(runs=False, newest=newest) as rw:
                rw.put(entries, activity)
                activity.raise_if_cancelled()
                return rw.commit(key, activity)
        case _:
            assert_never(prepared)


def _run_failed(process: Process, code: int, activity: StepActivity) -> RunFailed:
    command = json.dumps(" ".join(process.args), ensure_ascii=False)
    return RunFailed(
        f"process {command} did not complete successfully: exit code: {code}",
        process_exit_code=code,
        output=activity.tail.lines(),
    )


def _prepare_run(step: RunStep, tree: Tree, open_source: OpenSource) -> PreparedRun:
    identity = resolve_user(tree, step.user)
    process = Process(
        args=step.args,
        env=step.env,
        cwd=step.cwd,
        user=User(identity.uid, identity.gid, identity.groups),
        network=step.network,
        hostname=step.hostname,
        extra_hosts=step.extra_hosts,
        shm_size=step.shm_size,
        ulimits=step.ulimits,
    )
    mounts: list[Mount] = []
    for mount in step.mounts:
        match mount:
            case PlannedBind():
                mounts.append(_bind(mount, open_source))
            case PlannedTmpfs(target, size):
                mounts.append(TmpfsMount(target, size))
            case PlannedScript(target, content):
                entry = _inline_entry(_SCRIPT, content, mode=0o755, mtime=0)
                mounts.append(BindMount(target, MemoryTree([entry]), _SCRIPT))
            case _:
                assert_never(mount)
    return PreparedRun(process, tuple(mounts))


def _bind(mount: PlannedBind, open_source: OpenSource) -> BindMount:
    files = open_source(mount.source)
    path = resolve(files.tree, _tree_path(mount.path))
    if path and files.tree.get(path) is None:
        raise StepFailed(
            f'source "{mount.path}" of the mount at "{mount.target}" was not found in '
            f"{describe_source(mount.source)}",
            hint="a file that .dockerignore excludes isn't part of the context"
            if isinstance(mount.source, ContextSource)
            else None,
        )
    return BindMount(mount.target, files.tree, path, mount.readonly, files.layer)


def _prepare_copy(
    step: CopyStep, tree: Tree, open_source: OpenSource, created: int
) -> tuple[NewEntry, ...]:
    several = len(step.patterns) + len(step.files) + len(step.remotes) > 1
    if several and not step.destination.endswith("/"):
        raise CopyFailed(
            f"{step.instruction} of more than one source needs a folder as its destination",
            hint=f"end it with a slash: {step.destination}/",
        )
    request = CopyRequest(
        patterns=(),
        destination=step.destination,
        chown=resolve_owner(tree, step.chown) if step.chown else None,
        chmod=step.chmod,
        link=step.link,
        created=created,
    )
    return tuple(plan_copies(list(_copies(step, request, open_source)), tree))


def _copies(
    step: CopyStep, request: CopyRequest, open_source: OpenSource
) -> Iterator[tuple[CopyRequest, Tree]]:
    """What is copied from where, in the order of the instruction: heredocs come last."""
    local = replace(request, exclude=step.exclude, parents=step.parents, unpack=step.unpack)
    start = 0
    for remote in (*step.remotes, None):
        end = len(step.patterns) if remote is None else remote.position
        if start < end:
            patterns = step.patterns[start:end]
            yield replace(local, patterns=patterns), open_source(step.source).tree
        start = end
        if remote is not None:
            name = remote.location.name if isinstance(remote.location, WebLocation) else "/"
            wanted = replace(request, patterns=(_literal(name),), exclude=step.exclude)
            yield replace(wanted, unpack=remote.unpack), open_source(remote.location).tree
    if step.files:
        patterns = tuple(_literal(file.name) for file in step.files)
        inline = MemoryTree(_inline_files(step.files, request.created))
        yield replace(request, patterns=patterns), inline


def _prepare_workdir(step: WorkdirStep, tree: Tree, created: int) -> tuple[NewEntry, ...]:
    """The missing folders, all owned by the user, as `llb.Mkdir` with a user makes them."""
    path = resolve(tree, _tree_path(step.path))
    missing: list[bytes] = []
    while path:
        entry = tree.get(path)
        if entry is not None:
            if entry.kind is not Kind.DIRECTORY:
                name = path.decode("utf-8", "replace")
                raise StepFailed(f'WORKDIR {step.path}: "/{name}" is not a folder')
            break
        missing.append(path)
        path = path.rpartition(b"/")[0]
    if not missing:
        return ()
    uid, gid = resolve_owner(tree, step.user, unknown_is_root=True) if step.user else (0, 0)
    return tuple(
        NewEntry(Entry(folder, Kind.DIRECTORY, mode=0o755, uid=uid, gid=gid, mtime=created))
        for folder in reversed(missing)
    )


def describe_source(source: Source) -> str:
    """How messages name a source of files."""
    match source:
        case ContextSource(None):
            return "the build context"
        case ContextSource(name):
            return f'the named context "{name}"'
        case StageSource():
            return "the stage"
        case ImageSource(image):
            return f"the image {image.reference}" if image is not None else "scratch"
        case _:
            assert_never(source)


def _inline_files(files: Iterable[InlineFile], mtime: int) -> list[NewEntry]:
    return [
        _inline_entry(_tree_path(file.name), file.content, mode=0o644, mtime=mtime)
        for file in files
    ]


def _inline_entry(path: bytes, content: bytes, *, mode: int, mtime: int) -> NewEntry:
    entry = Entry(path, Kind.FILE, mode=mode, size=len(content), mtime=mtime)
    return NewEntry(entry, lambda: io.BytesIO(content))


def _literal(name: str) -> str:
    return "".join(f"\\{c}" if c in "*?[\\" else c for c in name)


def _tree_path(path: str) -> bytes:
    parts = [part for part in path.split("/") if part not in {"", "."}]
    return "/".join(parts).encode("utf-8", "surrogateescape")
