"""RUN -> a step."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pybuild.backend import Network
from pybuild.dockerfile.instructions import Heredoc, Run
from pybuild.dockerfile.mounts import parse_device
from pybuild.dockerfile.words import unquote_words
from pybuild.errors import DockerfileError, ExpansionError, UnsupportedByBackend, UsageError
from pybuild.plan import paths
from pybuild.plan.history import run_text
from pybuild.plan.scope import proxy_variables, sandbox_hostname
from pybuild.plan.state import StageState
from pybuild.plan.steps import (
    PlannedMount,
    PlannedScript,
    PlannedSsh,
    RunDefaults,
    RunStep,
)

_LONE_HEREDOC = re.compile(r"\d*+<<-?\s*+([^<]++)")
_SCRIPTS = "/dev/pipes/"
_AGENT_VARIABLE = "SSH_AUTH_SOCK"


def plan_run(run: Run, state: StageState) -> None:
    """Add the step of a RUN to `state`.

    Raises DockerfileError, UnsupportedByBackend, and UsageError for what the caller didn't allow.
    """
    settings = state.request.run
    _check_devices(run, settings)
    args, script = _arguments(run, state)
    mounts: list[PlannedMount] = [] if script is None else [script]
    if run.mounts:
        from pybuild.plan.mounts import plan_mounts  # noqa: PLC0415 - for those that have some

        mounts += plan_mounts(run, state)
    step = RunStep(
        where=run.where,
        title=state.title(run),
        key="",
        args=args,
        env=_with_agent(state.process_env(), mounts),
        cwd=paths.clean(state.workdir),
        user=state.config.user,
        mounts=tuple(mounts),
        network=_network(run, settings),
        hostname=sandbox_hostname(state.request.build_args) or settings.hostname,
        extra_hosts=settings.extra_hosts,
        shm_size=settings.shm_size,
        ulimits=settings.ulimits,
        insecure=_is_insecure(run, settings),
        cgroup_parent=settings.cgroup_parent,
        proxies=tuple(proxy_variables(state.request.build_args).items()),
    )
    state.add_step(step, run_text(args, state.scope.declared, state.scope.variables))


def _with_agent(
    env: tuple[tuple[str, str], ...], mounts: Sequence[PlannedMount]
) -> tuple[tuple[str, str], ...]:
    """The variable that leads to the first agent, unless the Dockerfile sets it itself."""
    agent = next((mount.target for mount in mounts if isinstance(mount, PlannedSsh)), None)
    if agent is None or any(name == _AGENT_VARIABLE for name, _ in env):
        return env
    return (*env, (_AGENT_VARIABLE, agent))


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


def _network(run: Run, settings: RunDefaults) -> Network:
    match run.network:
        case None | "default":
            return settings.network
        case "none":
            return Network.NONE
        case "host" if settings.network is not Network.HOST:
            # a build on the host's network has said so of every step
            _check_allowed("RUN --network=host", "network.host", settings)
            return Network.HOST
        case "host":
            return Network.HOST
        case other:
            raise DockerfileError(
                f"unsupported network mode {other!r}", hint="it is default, none or host"
            )


def _is_insecure(run: Run, settings: RunDefaults) -> bool:
    match run.security:
        case None | "sandbox":
            return False
        case "insecure":
            _check_allowed("RUN --security=insecure", "security.insecure", settings)
            return True
        case other:
            raise DockerfileError(
                f"unsupported security mode {other!r}", hint="it is sandbox or insecure"
            )


def _check_devices(run: Run, settings: RunDefaults) -> None:
    """A device that isn't required may be missing, as all are in every backend."""
    for raw in run.devices:
        device = parse_device(raw, run.where)
        if "device" not in settings.allowed:
            _check_allowed(f"RUN --device={device.name}", f"device={device.name}", settings)
        if device.required:
            raise UnsupportedByBackend(
                f"RUN --device can't give the step the device {device.name} yet",
                hint="without required the step runs without the device",
            )


def _check_allowed(what: str, entitlement: str, settings: RunDefaults) -> None:
    """Raise UsageError unless the caller granted `entitlement`."""
    if entitlement not in settings.allowed:
        raise UsageError(
            f"{what} needs the entitlement {entitlement}, which this build hasn't",
            hint=f"if the Dockerfile is to be trusted, build with --allow {entitlement}",
        )
