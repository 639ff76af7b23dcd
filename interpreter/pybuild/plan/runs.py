"""RUN -> a step."""

from __future__ import annotations

import re
from dataclasses import replace

from pybuild.backend import Network
from pybuild.dockerfile.instructions import Heredoc, Run
from pybuild.dockerfile.mounts import MountOptions, parse_mount
from pybuild.dockerfile.words import unquote_words
from pybuild.errors import DockerfileError, ExpansionError, UnsupportedByBackend, UsageError
from pybuild.plan import paths
from pybuild.plan.history import run_text
from pybuild.plan.scope import proxy_variables, sandbox_hostname
from pybuild.plan.state import StageState
from pybuild.plan.steps import (
    ContextSource,
    PlannedBind,
    PlannedMount,
    PlannedScript,
    PlannedTmpfs,
    RunStep,
)

_LONE_HEREDOC = re.compile(r"\d*+<<-?\s*+([^<]++)")
_SCRIPTS = "/dev/pipes/"

_HINTS = {
    "secret": "a later version will; don't pass secrets as ARG or ENV meanwhile: the image keeps them",
    "ssh": "a later version will; meanwhile fetch what needs the agent before the build",
    "cache": "a later version will; without the mount the step starts with an empty cache",
}


def plan_run(run: Run, state: StageState) -> None:
    """Add the step of a RUN to `state`.

    Raises DockerfileError, UnsupportedByBackend, and UsageError for what the caller didn't allow.
    """
    _refuse(run)
    args, script = _arguments(run, state)
    mounts: list[PlannedMount] = [] if script is None else [script]
    mounts += [_mount(raw, run, state) for raw in run.mounts]
    settings = state.request.run
    step = RunStep(
        where=run.where,
        title=state.title(run),
        key="",
        args=args,
        env=state.process_env(),
        cwd=paths.clean(state.workdir),
        user=state.config.user,
        mounts=tuple(mounts),
        network=_network(run, settings.network),
        hostname=sandbox_hostname(state.request.build_args) or settings.hostname,
        extra_hosts=settings.extra_hosts,
        shm_size=settings.shm_size,
        ulimits=settings.ulimits,
    )
    state.add_step(step, run_text(args, state.scope.declared, state.scope.variables))
    proxies = proxy_variables(state.request.build_args)
    if proxies:  # after the key was made: where a download came through changes no result
        env = tuple(pair for pair in step.env if pair[0] not in proxies)
        state.allowance.spend(len(env))
        state.steps[-1] = replace(step, key=state.key, env=(*env, *proxies.items()))


def _arguments(run: Run, state: StageState) -> tuple[tuple[str, ...], PlannedScript | None]:
    args, script = run.command.args, None
    if run.heredocs:
        args, script = _heredoc_arguments(run, state)
    if run.command.shell:
        return (*state.shell, " ".join(args)), script
    if not args:
        raise DockerfileError("RUN has no command")
    return args, script


def _heredoc_arguments(run: Run, state: StageState) -> tuple[tuple[str, ...], PlannedScript | None]:
    """A lone heredoc is the script itself; among other words it is left to the shell."""
    line = run.command.args[0]
    first = run.heredocs[0]
    if len(run.heredocs) > 1 or not _is_lone(line, first):
        bodies = "".join(f"\n{doc.content}{doc.name}" for doc in run.heredocs)
        return (line + bodies,), None
    content = first.body
    if state.platform.os == "windows" or not content.startswith("#!"):
        return (content,), None
    target = _SCRIPTS + first.name
    return (target,), PlannedScript(target, content.encode("utf-8", "surrogateescape"))


def _is_lone(line: str, heredoc: Heredoc) -> bool:
    match = _LONE_HEREDOC.fullmatch(line)
    if match is None:
        return False
    try:
        return unquote_words(match[1], raw_quotes=False) == [heredoc.name]
    except ExpansionError:
        return False


def _network(run: Run, default: Network) -> Network:
    match run.network:
        case None | "default":
            return default
        case "none":
            return Network.NONE
        case "host" if default is not Network.HOST:
            raise UsageError(
                "RUN --network=host needs the entitlement network.host, which this build hasn't",
                where=run.where,
                hint="if the Dockerfile is to be trusted, build with --network=host",
            )
        case "host":
            return Network.HOST
        case other:
            raise DockerfileError(
                f"unsupported network mode {other!r}", hint="it is default, none or host"
            )


def _refuse(run: Run) -> None:
    if run.security == "insecure":
        raise UnsupportedByBackend(
            "RUN --security=insecure can't be run yet",
            where=run.where,
            hint="a later version will; without the flag the step runs in the usual sandbox",
        )
    if run.security not in {None, "sandbox"}:
        raise DockerfileError(
            f"unsupported security mode {run.security!r}", hint="it is sandbox or insecure"
        )
    if run.devices:
        raise UnsupportedByBackend(
            "RUN --device can't be run yet",
            where=run.where,
            hint="a later version will; without the flag the step sees no devices of the machine",
        )


def _mount(raw: str, run: Run, state: StageState) -> PlannedMount:
    options = parse_mount(raw, run.where, state.scope.expand)
    if options.type not in {"bind", "tmpfs"}:
        raise UnsupportedByBackend(
            f"RUN --mount=type={options.type} can't be run yet",
            where=run.where,
            hint=_HINTS.get(options.type),
        )
    target = paths.clean(paths.join(state.workdir, options.target or ""))
    if target == "/":
        raise DockerfileError(f'invalid mount target "{options.target or "/"}"')
    if options.type == "tmpfs":
        return PlannedTmpfs(target, options.size or None)
    return _bind(options, target, state)


def _bind(options: MountOptions, target: str, state: StageState) -> PlannedBind:
    source = state.mount_source(options.from_) if options.from_ else ContextSource()
    path = paths.clean(options.source or "").removeprefix("/")
    return PlannedBind(target, source, path, options.readonly)
