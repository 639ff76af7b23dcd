"""One step on one layer: what exactly it does, and doing it.

`prepare` reads trees and turns a planned step into numbers and entries; `perform` lets the
backend do it. The cache key of a step is made between the two.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import assert_never

from pybuild.backend import (
    BindMount,
    CacheMount,
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
from pybuild.plan.cachekey import files_digest
from pybuild.plan.steps import (
    ContextSource,
    CopyStep,
    ImageSource,
    InlineFile,
    PlannedBind,
    PlannedCache,
    PlannedMount,
    PlannedScript,
    PlannedSecret,
    PlannedSsh,
    PlannedTmpfs,
    RunStep,
    Source,
    StageSource,
    Step,
    WorkdirStep,
)
from pybuild.remotes.locations import Location, WebLocation
from pybuild.run.activity import StepActivity
from pybuild.run.digests import digested
from pybuild.run.lending import Lent, secret_mount, secret_variable, ssh_mount, with_own_sockets
from pybuild.run.onfailure import KEEP_NOTHING, OnFailure
from pybuild.values import dataclass, replace

_SCRIPT = b"script"
_WRONG_PROCESSOR = (
    "the machine can't execute this: it is for another processor, which needs an emulator "
    "(qemu-user-static), or a script without a first line #!"
)


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """The files behind a source; `layer` is None if they are no layer's."""

    tree: Tree
    layer: ROLayer | None = None


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A process to run.

    ``process`` looks the user up, for which layers may have to be uncompressed: it isn't
    called for a step that is kept. Raises StepFailed for one who isn't there.
    """

    process: Callable[[], Process]
    mounts: tuple[Mount, ...]


@dataclass(frozen=True, slots=True)
class PreparedFiles:
    """Entries to put; none of them if the step changes nothing."""

    entries: tuple[NewEntry, ...]


Prepared = PreparedRun | PreparedFiles
OpenSource = Callable[[Source | Location], SourceFiles]


def prepare(
    step: Step, layer: ROLayer, open_source: OpenSource, created: int, lent: Lent
) -> Prepared:
    """Find out what `step` means on `layer`. Nothing is changed.

    `created` is the modification time, in seconds, of what the step itself makes up:
    missing folders, heredocs. Raises StepFailed, CopyFailed, ContextError, FetchFailed,
    BackendError.
    """
    match step:
        case RunStep():
            return _prepare_run(step, layer, open_source, lent)
        case CopyStep():
            return PreparedFiles(_prepare_copy(step, layer.tree(), open_source, created))
        case WorkdirStep():
            return PreparedFiles(_prepare_workdir(step, layer.tree(), created))
        case _:
            assert_never(step)


def changes_nothing(prepared: Prepared) -> bool:
    """Whether there is nothing to do, which no layer has to be kept for."""
    return isinstance(prepared, PreparedFiles) and not prepared.entries


def perform(
    prepared: Prepared,
    layer: ROLayer,
    key: str | None,
    activity: StepActivity,
    newest: int | None = None,
    *,
    on_failure: OnFailure = KEEP_NOTHING,
) -> ROLayer | None:
    """Do it, and return the layer that it made; None if there was nothing to do.

    `newest` is as in :meth:`pybuild.backend.ROLayer.begin`. Raises RunFailed for an exit code other than 0, BackendError, BuildCancelled.
    """
    match prepared:
        case PreparedRun(identified, mounts):
            with (
                with_own_sockets(mounts) as own_mounts,
                on_failure.begun(layer, newest, identified, mounts, activity) as (rw, process),
            ):
                code = rw.run(process, own_mounts, activity)
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
    output = activity.tail.lines()
    return RunFailed(
        f"process {command} did not complete successfully: exit code: {code}",
        process_exit_code=code,
        output=output,
        hint=_WRONG_PROCESSOR if any(map(_is_format_error, output)) else None,
    )


def _is_format_error(line: str) -> bool:
    return line.lower().endswith("exec format error")


def _prepare_run(step: RunStep, layer: ROLayer, open_source: OpenSource, lent: Lent) -> PreparedRun:
    wanted = [mount for mount in step.mounts if isinstance(mount, PlannedSecret)]
    variables = [secret_variable(mount, lent) for mount in wanted]
    secret_env = {pair[0]: pair for pair in variables if pair is not None}
    # the Dockerfile's own variables of these names are covered
    env = tuple(pair for pair in step.process_env if pair[0] not in secret_env)
    mounts = [_mount(mount, open_source, lent) for mount in step.mounts]
    if lent.ca is not None:
        from pybuild.run.certificates import (  # noqa: PLC0415 - seldom lent
            certificate_mounts,
            certificate_variables,
        )

        mounts += certificate_mounts(lent.ca, layer.tree())
        env += certificate_variables(env)

    def process() -> Process:
        identity = resolve_user(layer.tree(), step.user)
        return Process(
            args=step.args,
            env=env,
            cwd=step.cwd,
            user=User(identity.uid, identity.gid, identity.groups),
            network=step.network,
            hostname=step.hostname,
            extra_hosts=step.extra_hosts,
            shm_size=step.shm_size,
            ulimits=step.ulimits,
            secret_env=tuple(secret_env.values()),
            insecure=step.insecure,
            cgroup_parent=step.cgroup_parent,
        )

    return PreparedRun(process, tuple(mount for mount in mounts if mount is not None))


def _mount(mount: PlannedMount, open_source: OpenSource, lent: Lent) -> Mount | None:
    """The mount with its source found; None if it shows something that isn't lent."""
    match mount:
        case PlannedBind():
            return _bind(mount, open_source)
        case PlannedTmpfs(target, size):
            return TmpfsMount(target, size)
        case PlannedScript(target, content):
            entry = _inline_entry(_SCRIPT, content, mode=0o755, mtime=0)
            return BindMount(target, MemoryTree([entry]), _SCRIPT)
        case PlannedCache():
            return _cache(mount, open_source)
        case PlannedSecret():
            return secret_mount(mount, lent)
        case PlannedSsh():
            return ssh_mount(mount, lent)
        case _:
            assert_never(mount)


def _cache(mount: PlannedCache, open_source: OpenSource) -> CacheMount:
    """A cache that begins as something else, or belongs to somebody else, is another one."""
    made = CacheMount(
        mount.target,
        mount.ident,
        mount.sharing,
        mode=0o755 if mount.mode is None else mount.mode & 0o7777,
        uid=mount.uid or 0,
        gid=mount.gid or 0,
        readonly=mount.readonly,
    )
    if mount.source is None:
        return replace(made, ident=cache_ident(mount), inside=tree_path(mount.path))
    files = open_source(mount.source)
    path = _existing(mount.source, files.tree, mount.path, mount.target)
    top = files.tree.get(path)
    if top is not None and top.kind is not Kind.DIRECTORY:
        raise StepFailed(f'source "{mount.path}" of the cache at "{mount.target}" is no folder')
    begun = files_digest(digested(files.tree, path))
    return replace(made, ident=json.dumps([mount.ident, begun]), tree=files.tree, path=path)


def cache_ident(mount: PlannedCache) -> str:
    """The backend's id of a cache mount without a source."""
    owner = (mount.mode, mount.uid, mount.gid)
    return mount.ident if owner == (None, None, None) else json.dumps([mount.ident, *owner])


def _bind(mount: PlannedBind, open_source: OpenSource) -> BindMount:
    files = open_source(mount.source)
    path = _existing(mount.source, files.tree, mount.path, mount.target)
    return BindMount(mount.target, files.tree, path, mount.readonly, files.layer)


def _existing(source: Source, tree: Tree, written: str, target: str) -> bytes:
    """The resolved path of a mount's source."""
    path = resolve(tree, tree_path(written))
    if path and tree.get(path) is None:
        raise StepFailed(
            f'source "{written}" of the mount at "{target}" was not found in '
            f"{describe_source(source)}",
            hint="a file that .dockerignore excludes isn't part of the context"
            if isinstance(source, ContextSource)
            else None,
        )
    return path


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
    path = resolve(tree, tree_path(step.path))
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
        _inline_entry(tree_path(file.name), file.content, mode=0o644, mtime=mtime) for file in files
    ]


def _inline_entry(path: bytes, content: bytes, *, mode: int, mtime: int) -> NewEntry:
    entry = Entry(path, Kind.FILE, mode=mode, size=len(content), mtime=mtime)
    return NewEntry(entry, lambda: io.BytesIO(content))


def _literal(name: str) -> str:
    return "".join(f"\\{c}" if c in "*?[\\" else c for c in name)


def tree_path(path: str) -> bytes:
    """A path as written, as that of a tree; ``..`` stays."""
    parts = [part for part in path.split("/") if part not in {"", "."}]
    return "/".join(parts).encode("utf-8", "surrogateescape")
