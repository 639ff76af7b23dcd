"""What a target can be given: build args, secrets and SSH agents, of all stages that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from posixpath import basename

from pybuild.dockerfile.instructions import Arg, Dockerfile, Env, Pair, Run
from pybuild.dockerfile.mounts import parse_mount
from pybuild.dockerfile.targets import description_of
from pybuild.dockerfile.words import expand_word
from pybuild.errors import SourceRange, located
from pybuild.plan.resolve import Resolve, Resolved, resolve_stages
from pybuild.plan.scope import Scope, global_variables
from pybuild.plan.stages import ImageOrigin, Stage, StageOrigin, build_graph
from pybuild.plan.steps import PlanRequest
from pybuild.values import dataclass


@dataclass(frozen=True, slots=True)
class OutlineArg:
    """A build arg. ``value`` is its default or what the caller gave, empty if it has none."""

    name: str
    description: str
    value: str
    where: SourceRange


@dataclass(frozen=True, slots=True)
class OutlineMount:
    """A secret or an SSH agent that a RUN mounts."""

    id: str
    required: bool
    where: SourceRange


@dataclass(frozen=True, slots=True)
class Outline:
    """The parameters of a target, each list in order of lines. ``name`` is the stage's."""

    name: str | None
    description: str
    args: tuple[OutlineArg, ...]
    secrets: tuple[OutlineMount, ...]
    ssh: tuple[OutlineMount, ...]


def make_outline(
    dockerfile: Dockerfile,
    request: PlanRequest,
    resolve: Resolve,
    *,
    executor: Executor | None = None,
) -> Outline:
    """Outline `request.target`; the arguments and errors are those of `make_plan`."""
    variables = global_variables(dockerfile, request)
    graph = build_graph(dockerfile, variables, request.platform, request.contexts)
    target = graph.target(request.target)
    escape = dockerfile.directives.escape
    resolved = resolve_stages(
        graph, (target,), request.platform, resolve, escape=escape, executor=executor
    )
    outliner = _Outliner(dockerfile, request, variables, resolved)
    for stage in resolved.stages:
        outliner.add(stage)
    return Outline(
        name=target.head.stage,
        description=description_of(target.head.stage or "", target.head.comments),
        args=tuple(sorted(outliner.args.values(), key=_line)),
        secrets=tuple(sorted(outliner.secrets.values(), key=_line)),
        ssh=tuple(sorted(outliner.ssh.values(), key=_line)),
    )


def _line(part: OutlineArg | OutlineMount) -> int:
    return part.where.start_line


class _Outliner:
    """Collects over the stages in order of the file.

    Of args with the same name the last one counts, of mounts the first.
    """

    def __init__(
        self,
        dockerfile: Dockerfile,
        request: PlanRequest,
        variables: dict[str, str],
        resolved: Resolved,
    ) -> None:
        self.args: dict[str, OutlineArg] = {}
        self.secrets: dict[str, OutlineMount] = {}
        self.ssh: dict[str, OutlineMount] = {}
        self._escape = dockerfile.directives.escape
        self._request = request
        self._variables = variables
        self._resolved = resolved
        self._scopes: dict[int, Scope] = {}
        self._global = _global_args(dockerfile, variables)
        self._uses = _used_by_globals(dockerfile)

    def add(self, stage: Stage) -> None:
        """Add what one stage takes; the stage that it starts from was added before."""
        for word in (stage.head.image, stage.head.platform or ""):
            for name in expand_word(word, self._variables, self._escape).matched:
                self._add_global(name)
        scope = self._scopes[stage.index] = self._scope(stage)
        for instruction in self._resolved.bodies[stage.index]:
            with located(instruction.where):
                match instruction:
                    case Env(pairs=pairs):
                        for name, value in scope.expand_pairs(pairs):
                            scope.set_env(name, value)
                    case Arg():
                        self._add_args(instruction, scope)
                    case Run():
                        self._add_mounts(instruction, scope)
                    case _:
                        pass

    def _scope(self, stage: Stage) -> Scope:
        match stage.origin:
            case StageOrigin(index):
                below = self._scopes[index]
                return Scope(below.env, self._request.platform, self._escape, below)
            case ImageOrigin() as origin:
                env = dict(self._resolved.image(origin, stage.platform).config.env)
                return Scope(env, stage.platform or self._request.platform, self._escape)
            case _:
                return Scope({}, self._request.platform, self._escape)

    def _add_args(self, instruction: Arg, scope: Scope) -> None:
        for pair in instruction.args:
            value = scope.declare(pair, self._request.build_args, self._variables)
            given = pair.value is not None or pair.name in self._request.build_args
            if not given and pair.name in self._variables:
                self._add_global(pair.name)
            else:
                self.args[pair.name] = _arg(pair, value, instruction)

    def _add_global(self, name: str) -> None:
        """An ARG before the first FROM, and those that its default is made of."""
        waiting = [name]
        added: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name in self._global and name not in added:
                added.add(name)
                self.args[name] = self._global[name]
                waiting += self._uses[name]

    def _add_mounts(self, run: Run, scope: Scope) -> None:
        for raw in run.mounts:
            options = parse_mount(raw, run.where, scope.expand)
            match options.type:
                case "secret":
                    name = options.source or options.id or basename(options.target or "")
                    self.secrets.setdefault(name, OutlineMount(name, options.required, run.where))
                case "ssh":
                    name = options.id or "default"
                    self.ssh.setdefault(name, OutlineMount(name, options.required, run.where))
                case _:
                    pass


def _arg(pair: Pair, value: str | None, instruction: Arg) -> OutlineArg:
    description = description_of(pair.name, instruction.comments)
    return OutlineArg(pair.name, description, value or "", instruction.where)


def _global_args(dockerfile: Dockerfile, variables: Mapping[str, str]) -> dict[str, OutlineArg]:
    return {
        pair.name: _arg(pair, variables.get(pair.name), instruction)
        for instruction in dockerfile.global_args
        for pair in instruction.args
    }


def _used_by_globals(dockerfile: Dockerfile) -> dict[str, set[str]]:
    """The names in the default of each ARG before the first FROM."""
    uses: dict[str, set[str]] = {}
    for instruction in dockerfile.global_args:
        for pair in instruction.args:
            word = expand_word(pair.value or "", {}, dockerfile.directives.escape)
            uses[pair.name] = set(word.unmatched)
    return uses
