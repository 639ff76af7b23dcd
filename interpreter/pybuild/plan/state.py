"""What is known of a stage while its instructions are evaluated, one after the other."""

from __future__ import annotations

from collections.abc import Callable

from pybuild.dockerfile.instructions import Instruction, Run
from pybuild.errors import DockerfileError, SourceRange
from pybuild.oci.image_config import HistoryEntry, ImageConfig
from pybuild.oci.platform import Platform
from pybuild.plan import cachekey
from pybuild.plan.scope import Scope
from pybuild.plan.steps import (
    CopyStep,
    ImageSource,
    PlannedHistory,
    PlannedStage,
    PlanRequest,
    RunStep,
    Source,
    StageSource,
    Step,
    WorkdirStep,
)
from pybuild.values import replace

# What all values of a plan may hold together, in words of eight bytes: about 80 MB. Without
# it a hostile file of a megabyte, each line repeating what came before, fills any memory
# and takes hours.
_ALLOWANCE = 10_000_000


class Allowance:
    """How much a plan may still grow."""

    def __init__(self, words: int = _ALLOWANCE) -> None:
        self._left = words

    def spend(self, words: int) -> None:
        self._left -= words
        if self._left < 0:
            raise DockerfileError(
                "the plan of this Dockerfile grows beyond all bounds",
                hint="its lines repeat too many variables, labels, ports or history lines",
            )


class StageState:
    """The config, file system key, steps and history of a stage so far.

    ``config`` is current but for what stands in ``scope.env``, ``labels``, ``ports``,
    ``volumes`` and ``onbuild``.
    """

    def __init__(
        self,
        config: ImageConfig,
        scope: Scope,
        key: str,
        platform: Platform,
        *,
        request: PlanRequest,
        global_args: dict[str, str],
        allowance: Allowance,
    ) -> None:
        self.config = config
        self.scope = scope
        self.key = key
        self.platform = platform
        self.request = request
        self.global_args = global_args
        self.allowance = allowance
        self.labels = dict(config.labels)
        self.ports = set(config.exposed_ports)
        self.volumes = set(config.volumes)
        self.onbuild: list[str] = []
        self.has_cmd = False
        self.in_trigger = False
        self.copy_source: Callable[[str], Source]
        self.mount_source: Callable[[str], Source]
        self.steps: list[Step] = []
        self.history: list[PlannedHistory] = []
        self._env: tuple[tuple[str, str], ...] | None = None

    @property
    def workdir(self) -> str:
        return self.config.working_dir or "/"

    @property
    def shell(self) -> tuple[str, ...]:
        if self.config.shell:
            return self.config.shell
        return ("cmd", "/S", "/C") if self.platform.os == "windows" else ("/bin/sh", "-c")

    def set_env(self, name: str, value: str) -> None:
        self.allowance.spend(1 + len(value) // 8)
        self.scope.set_env(name, value)
        self._env = None

    def process_env(self) -> tuple[tuple[str, str], ...]:
        """What a process sees but for proxies; one value is shared until a variable changes."""
        self.allowance.spend(len(self.scope.variables))
        if self._env is None:
            self._env = tuple(self.scope.variables.items())
        return self._env

    def forget_env(self) -> None:
        """To be called after an ARG."""
        self._env = None

    def update(self, **changes: object) -> None:
        self.config = replace(self.config, **changes)  # type: ignore[arg-type]  # checked by tests

    def title(self, instruction: Instruction) -> str:
        """The instruction as one line for progress."""
        word, _, rest = instruction.text.strip().partition(" ")
        text = f"{word.upper()} {rest.strip()}".strip()
        if isinstance(instruction, Run) and instruction.heredocs:
            first, *others = instruction.heredocs[0].content.strip().splitlines() or [""]
            text += f" ({first}{'...' if others else ''})"
        return f"ONBUILD {text}" if self.in_trigger else text

    def note(self, created_by: str) -> None:
        """Add a history line that changes no file."""
        self.allowance.spend(8 + len(created_by) // 8)
        self.history.append(PlannedHistory(created_by, None))

    def add_step(self, step: Step, created_by: str) -> None:
        """Add a step and its history line; the step's key is made here."""
        self.key = cachekey.step_key(self.key, step)
        self.allowance.spend(8 + len(created_by) // 8)
        self.history.append(PlannedHistory(created_by, len(self.steps)))
        self.steps.append(_with_key(step, self.key))

    def finish(
        self,
        index: int,
        name: str | None,
        parent: ImageSource | StageSource,
        inherited: tuple[HistoryEntry, ...],
        where: SourceRange,
    ) -> PlannedStage:
        self.allowance.spend(
            len(self.scope.env)
            + len(self.scope.variables)
            + len(self.scope.declared)
            + 2 * (len(self.labels) + len(self.ports) + len(self.volumes))
            + len(self.onbuild)
            + 50
        )
        self.update(
            env=tuple(self.scope.env.items()),
            labels=self.labels,
            exposed_ports=frozenset(self.ports),
            volumes=frozenset(self.volumes),
            onbuild=tuple(self.onbuild),
        )
        return PlannedStage(
            index=index,
            name=name,
            label=name or f"stage-{index}",
            platform=self.platform,
            parent=parent,
            steps=tuple(self.steps),
            config=self.config,
            inherited=inherited,
            history=tuple(self.history),
            where=where,
            args=tuple((k, v) for k, v in dict(self.scope.declared).items() if v is not None),
        )


def _with_key(step: Step, key: str) -> Step:
    match step:
        case RunStep() | CopyStep() | WorkdirStep():
            return replace(step, key=key)
