"""The mounts of a RUN: what ``--mount`` says, with targets, ids and sources worked out."""

from __future__ import annotations

import posixpath

from pybuild.backend import Sharing
from pybuild.dockerfile.instructions import Run
from pybuild.dockerfile.mounts import MountOptions, parse_mount
from pybuild.errors import DockerfileError
from pybuild.plan import paths
from pybuild.plan.state import StageState
from pybuild.plan.steps import (
    ContextSource,
    PlannedBind,
    PlannedCache,
    PlannedMount,
    PlannedSecret,
    PlannedSsh,
    PlannedTmpfs,
)

_SECRETS = "/run/secrets/"
_AGENTS = "/run/buildkit/ssh_agent."


def plan_mounts(run: Run, state: StageState) -> list[PlannedMount]:
    """The mounts of `run`, in its order. Raises DockerfileError."""
    planned: list[PlannedMount] = []
    agents = 0
    for raw in run.mounts:
        options = parse_mount(raw, run.where, state.scope.expand)
        match options.type:
            case "tmpfs":
                planned.append(PlannedTmpfs(_target(options.target, state), options.size or None))
            case "cache":
                planned.append(_cache(options, state))
            case "secret":
                planned.append(_secret(options, state))
            case "ssh":
                planned.append(_ssh(options, agents, state))
                agents += 1
            case _:
                planned.append(_bind(options, state))
    return planned


def _target(written: str | None, state: StageState) -> str:
    target = paths.clean(paths.join(state.workdir, written or ""))
    if target == "/":
        raise DockerfileError(f'invalid mount target "{written or "/"}"')
    return target


def _bind(options: MountOptions, state: StageState) -> PlannedBind:
    source = state.mount_source(options.from_) if options.from_ else ContextSource()
    target = _target(options.target, state)
    return PlannedBind(target, source, _source_path(options), options.readonly)


def _cache(options: MountOptions, state: StageState) -> PlannedCache:
    """By default its id is the target as written, and all ids are the build arg's namespace's."""
    namespace = state.request.build_args.get("BUILDKIT_CACHE_MOUNT_NS", "")
    ident = options.id or posixpath.normpath(options.target or "")
    return PlannedCache(
        target=_target(options.target, state),
        ident=f"{namespace}/{ident}",
        sharing=Sharing(options.sharing or Sharing.SHARED),
        source=state.mount_source(options.from_) if options.from_ else None,
        path=_source_path(options),
        readonly=options.readonly,
        mode=options.mode,
        uid=options.uid,
        gid=options.gid,
    )


def _secret(options: MountOptions, state: StageState) -> PlannedSecret:
    ident = options.id or options.source or posixpath.basename(options.target or "")
    if not ident:
        raise DockerfileError(
            f'a secret can\'t be named after the target "{options.target}"',
            hint="give the mount an id",
        )
    target = options.target
    if target is None and options.env is None:
        target = _SECRETS + posixpath.basename(ident)
    return PlannedSecret(
        id=ident,
        target=None if target is None else _target(target, state),
        env=None if options.env is None else options.env or ident,
        required=options.required,
        mode=_mode(options, 0o400),
        uid=options.uid or 0,
        gid=options.gid or 0,
    )


def _ssh(options: MountOptions, number: int, state: StageState) -> PlannedSsh:
    return PlannedSsh(
        id=options.id or "default",
        target=_target(options.target or f"{_AGENTS}{number}", state),
        required=options.required,
        mode=_mode(options, 0o600),
        uid=options.uid or 0,
        gid=options.gid or 0,
    )


def _mode(options: MountOptions, default: int) -> int:
    return (default if options.mode is None else options.mode) & 0o777


def _source_path(options: MountOptions) -> str:
    return paths.clean(options.source or "").removeprefix("/")
