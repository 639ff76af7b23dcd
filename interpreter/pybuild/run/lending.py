"""What the caller lends to a build: seen by the steps that ask for it, kept nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pybuild.backend import Mount, SecretMount, SshMount
from pybuild.errors import StepFailed, UsageError
from pybuild.plan.steps import Plan, PlannedSecret, PlannedSsh, RunStep
from pybuild.remotes.fetching import OpenAgent
from pybuild.secrets import Secret
from pybuild.values import dataclass, field, replace

_LONGEST_SECRET = 500 * 1024  # as in BuildKit


@dataclass(frozen=True, slots=True)
class Lent:
    """Secrets and the sockets of SSH agents, by id; ``ca`` are certificates as PEM.

    Those certificates are trusted besides the image's own.
    """

    secrets: Mapping[str, Secret] = field(default_factory=dict)
    agents: Mapping[str, Path] = field(default_factory=dict)
    ca: bytes | None = field(default=None, repr=False)


def check_lent(plan: Plan, secrets: Mapping[str, Secret], agents: Mapping[str, object]) -> None:
    """Raise UsageError, with the step's place, where something required isn't lent."""
    for ident, secret in secrets.items():
        if len(secret.value) > _LONGEST_SECRET:
            raise UsageError(f"the secret {ident} is larger than {_LONGEST_SECRET} bytes")
    steps = (step for stage in plan.stages for step in stage.steps)
    for step in steps:
        for mount in step.mounts if isinstance(step, RunStep) else ():
            match mount:
                case PlannedSecret(id=ident, required=True) if ident not in secrets:
                    raise UsageError(
                        f"the step needs the secret {ident}, which this build isn't given",
                        where=step.where,
                        hint=f"--secret id={ident},src=FILE or id={ident},env=VARIABLE",
                    )
                case PlannedSsh(id=ident, required=True) if ident not in agents:
                    raise UsageError(
                        f"the step needs the SSH agent {ident}, which this build isn't given",
                        where=step.where,
                        hint=f"--ssh {ident} for a running agent, {ident}=FILE for a private key",
                    )
                case _:
                    pass


def default_agent(ssh: Mapping[str, Sequence[str | Path]]) -> OpenAgent | None:
    """The agent that git gets for repositories: the one with the id ``default``, if it is lent."""
    paths = ssh.get("default")
    if paths is None:
        return None

    @contextmanager
    def opened() -> Iterator[Path]:
        from pybuild.run.sshkeys import open_agents  # noqa: PLC0415 - seldom needed

        with open_agents({"default": tuple(map(Path, paths))}) as agents:
            yield agents["default"]

    return opened


def wanted_agents(plan: Plan) -> frozenset[str]:
    """The ids of the agents that steps of the plan ask for."""
    steps = (step for stage in plan.stages for step in stage.steps)
    mounts = (mount for step in steps if isinstance(step, RunStep) for mount in step.mounts)
    return frozenset(mount.id for mount in mounts if isinstance(mount, PlannedSsh))


def secret_mount(mount: PlannedSecret, lent: Lent) -> SecretMount | None:
    """The file of a secret; None if it isn't lent, or not wanted as a file."""
    secret = lent.secrets.get(mount.id)
    if secret is None or mount.target is None:
        return None
    return SecretMount(mount.target, secret.value, mount.mode, mount.uid, mount.gid)


def secret_variable(mount: PlannedSecret, lent: Lent) -> tuple[str, str] | None:
    """The variable of a secret; None if it isn't lent, or not wanted as one."""
    secret = lent.secrets.get(mount.id)
    if secret is None or mount.env is None:
        return None
    if b"\0" in secret.value:
        raise StepFailed(f"the secret {mount.id} has a NUL, so it can't be in a variable")
    return mount.env, secret.value.decode("utf-8", "surrogateescape")


def ssh_mount(mount: PlannedSsh, lent: Lent) -> SshMount | None:
    """The socket of an agent, still the agent's own; None if it isn't lent."""
    agent = lent.agents.get(mount.id)
    if agent is None:
        return None
    return SshMount(mount.target, agent, mount.mode, mount.uid, mount.gid)


@contextmanager
def with_own_sockets(mounts: Sequence[Mount]) -> Iterator[tuple[Mount, ...]]:
    """`mounts`, in which each agent's socket is replaced by a new one that leads to it."""
    if not any(isinstance(mount, SshMount) for mount in mounts):
        yield tuple(mounts)
        return
    from pybuild.run.agentproxy import agent_proxy  # noqa: PLC0415 - sockets are slow to load

    with ExitStack() as stack:
        yield tuple(
            replace(mount, socket=stack.enter_context(agent_proxy(mount.socket)))
            if isinstance(mount, SshMount)
            else mount
            for mount in mounts
        )
