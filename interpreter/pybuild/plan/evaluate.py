"""ARG/ENV scope; instruction -> step and next config. Pure but for the `resolve` callback."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor

from pybuild.backend import BaseImage
from pybuild.dockerfile.instructions import (
    Add,
    Arg,
    Cmd,
    Command,
    Copy,
    Dockerfile,
    Entrypoint,
    Env,
    Expose,
    From,
    Healthcheck,
    Instruction,
    Label,
    Maintainer,
    Onbuild,
    Run,
    Shell,
    StopSignal,
    User,
    Volume,
    Workdir,
)
from pybuild.dockerfile.lint import Lint
from pybuild.errors import DockerfileError, SourceRange, located
from pybuild.oci import image_config
from pybuild.oci.image_config import HistoryEntry, ImageConfig
from pybuild.oci.platform import Platform
from pybuild.plan import cachekey, paths
from pybuild.plan.checks import StageChecks, check_base_platform, check_stage_heads
from pybuild.plan.copies import plan_add, plan_copy
from pybuild.plan.history import healthcheck_text, listed, quoted
from pybuild.plan.resolve import Body, ImageName, Resolve, Resolved, resolve_stages
from pybuild.plan.runs import plan_run
from pybuild.plan.scope import Scope, global_variables, predefined
from pybuild.plan.sharing import SharedStages
from pybuild.plan.stages import (
    ContextOrigin,
    ImageOrigin,
    Origin,
    ScratchOrigin,
    Stage,
    StageOrigin,
    build_graph,
)
from pybuild.plan.state import Allowance, StageState
from pybuild.plan.steps import (
    ContextSource,
    CopyStep,
    ImageSource,
    Plan,
    PlannedHistory,
    PlannedStage,
    PlanRequest,
    Source,
    StageSource,
    WorkdirStep,
)
from pybuild.values import dataclass, replace


def make_plan(
    dockerfile: Dockerfile,
    request: PlanRequest,
    resolve: Resolve,
    *,
    executor: Executor | None = None,
    lint: Lint | None = None,
    all_stages: bool = False,
) -> Plan:
    """Plan the build of `request.target` and of all stages that it needs, for one platform.

    See :func:`make_plans`.
    """
    return make_plans(
        dockerfile, [request], resolve, executor=executor, lint=lint, all_stages=all_stages
    )


def make_plans(
    dockerfile: Dockerfile,
    requests: Sequence[PlanRequest],
    resolve: Resolve,
    *,
    executor: Executor | None = None,
    lint: Lint | None = None,
    all_stages: bool = False,
) -> Plan:
    """Plan one or more `requests`, which differ in nothing but their platform.

    The stages are those that the target needs, or `all_stages`.

    `resolve` finds an image for a platform; it is called once for each pair, from threads of
    `executor` if there is one. `lint` takes what the build checks find, also if planning fails.

    Raises DockerfileError, UnsupportedByBackend, and what `resolve` raises, all with the
    place in the Dockerfile.
    """
    resolve = _once(resolve)
    shared = SharedStages(sum(isinstance(line, From) for line in dockerfile.instructions))
    warnings: dict[tuple[str, SourceRange | None], None] = {}
    for position, request in enumerate(requests):
        planning = _Planning(
            dockerfile,
            request,
            resolve,
            shared,
            # as in BuildKit, the first platform alone is checked
            lint=lint or Lint() if position == 0 else Lint(),
            executor=executor,
        )
        warnings |= dict.fromkeys(_plan_platform(planning, all_stages=all_stages))
    return shared.plan(tuple(warnings))


def _once(resolve: Resolve) -> Resolve:
    """`resolve` that remembers: the platforms must get the same image where they share one."""
    found: dict[tuple[ImageName, Platform], BaseImage] = {}

    def resolve_once(name: ImageName, platform: Platform, where: SourceRange) -> BaseImage:
        key = (name, platform)
        if key not in found:
            found[key] = resolve(name, platform, where)
        return found[key]

    return resolve_once


@dataclass(frozen=True, slots=True)
class _Planning:
    """What the planning for one platform goes by."""

    dockerfile: Dockerfile
    request: PlanRequest
    resolve: Resolve
    shared: SharedStages
    lint: Lint
    executor: Executor | None


def _plan_platform(
    planning: _Planning, *, all_stages: bool
) -> list[tuple[str, SourceRange | None]]:
    """Add the stages for one platform to the shared ones, and return the warnings."""
    dockerfile, request = planning.dockerfile, planning.request
    variables = global_variables(dockerfile, request)
    check_stage_heads(dockerfile, request, variables, planning.lint)
    graph = build_graph(dockerfile, variables, request.platform, request.contexts)
    target = graph.target(request.target)
    resolved = resolve_stages(
        graph,
        graph.stages if all_stages else (target,),
        request.platform,
        planning.resolve,
        escape=dockerfile.directives.escape,
        executor=planning.executor,
    )
    evaluation = _Evaluation(planning, variables, resolved)
    for stage in resolved.stages:
        evaluation.evaluate(stage, is_target=stage is target)
    planning.shared.add_target(request.platform, evaluation.planned[target.index])
    return _unused_args(dockerfile, request, resolved.bodies.values())


def _target_config(config: ImageConfig, request: PlanRequest) -> ImageConfig:
    """The labels of the command line, and the platform where it isn't the builder's own."""
    labels = {**config.labels, **request.labels}
    if request.platform == request.build_platform:
        return replace(config, labels=labels)
    ours, wanted = config.platform, request.platform
    if (ours.os, ours.architecture) == (wanted.os, wanted.architecture):
        wanted = replace(
            wanted,
            variant=wanted.variant or ours.variant,
            os_version=wanted.os_version or ours.os_version,
        )
    return replace(config, labels=labels, platform=wanted)


def _unused_args(
    dockerfile: Dockerfile, request: PlanRequest, bodies: Iterable[Body]
) -> list[tuple[str, SourceRange | None]]:
    declared: set[str] = set()
    in_triggers = (trigger for body in bodies for trigger in body.triggers)
    for instruction in (*dockerfile.global_args, *dockerfile.instructions, *in_triggers):
        if isinstance(instruction, Arg):
            declared |= {pair.name for pair in instruction.args}
    unused = sorted(n for n in request.build_args if n not in declared and not predefined(n))
    if not unused:
        return []
    return [(f"one or more build-args {listed(unused)} were not consumed", None)]


class _Evaluation:
    """The stages for one platform, evaluated in the order of the file.

    ``planned``, and all that is kept beside it, is by a stage's position in the file.
    """

    def __init__(self, planning: _Planning, variables: dict[str, str], resolved: Resolved) -> None:
        self.planned: dict[int, PlannedStage] = {}
        self._lint = planning.lint
        self._checks: dict[int, StageChecks] = {}
        self._escape = planning.dockerfile.directives.escape
        self._request = planning.request
        self._shared = planning.shared
        self._variables = variables
        self._resolved = resolved
        self._scopes: dict[int, Scope] = {}
        self._keys: dict[int, str] = {}
        self._histories: dict[int, tuple[HistoryEntry, ...]] = {}
        self._allowance = Allowance()

    def evaluate(self, stage: Stage, *, is_target: bool) -> None:
        """Plan one stage; what it needs was planned before."""
        where = stage.head.where
        with located(where):
            state, parent, inherited = self._begin(stage)
            self._run_body(stage, state)
            self._scopes[stage.index] = state.scope
            self._keys[stage.index] = state.key
            planned = state.finish(stage.index, stage.head.stage, parent, inherited, where)
            if is_target:
                planned = replace(planned, config=_target_config(planned.config, self._request))
            self.planned[stage.index] = self._shared.add(planned, self._request.platform)

    def _begin(
        self, stage: Stage
    ) -> tuple[StageState, ImageSource | StageSource, tuple[HistoryEntry, ...]]:
        """The state before the first instruction, what it starts on, and its history."""
        match stage.origin:
            case StageOrigin(index):
                below = StageSource(self.planned[index].index)
                return self._on_stage(index), below, self._history_of(index)
            case ImageOrigin(name) as origin:
                image = self._resolved.image(origin, stage.platform)
                platform = stage.platform or self._request.platform
                check_base_platform(name, image, platform, stage.head.where, self._lint)
                state = self._on_image(image, platform)
                return state, ImageSource(image), image.config.history
            case ScratchOrigin():
                return self._on_image(None, self._request.platform), ImageSource(None), ()
            case ContextOrigin(name):
                state = self._on_image(None, stage.platform or self._request.platform)
                _copy_all(name, stage, state)
                return state, ImageSource(None), ()

    def _run_body(self, stage: Stage, state: StageState) -> None:
        graph = self._resolved.graph
        state.copy_source = lambda name: self._source(graph.copy_origin(name))
        state.mount_source = lambda name: self._source(graph.mount_origin(name))
        body = self._resolved.bodies[stage.index]
        checks = self._checks[stage.index] = self._checks_of(stage, state)
        for state.in_trigger, instructions in ((True, body.triggers), (False, body.own)):
            for instruction in instructions:
                with located(instruction.where), checks.watching(instruction):
                    apply(instruction, state)

    def _checks_of(self, stage: Stage, state: StageState) -> StageChecks:
        match stage.origin:
            case StageOrigin(index):
                return StageChecks(state, self._lint, self._checks[index])
            case ImageOrigin() as origin:
                image = self._resolved.image(origin, stage.platform)
                # without a digest nobody looked the image up
                return StageChecks(state, self._lint, knows_env=bool(image.digest))
            case ScratchOrigin() | ContextOrigin():
                return StageChecks(state, self._lint)

    def _on_image(self, image: BaseImage | None, platform: Platform) -> StageState:
        if image is None:
            config = ImageConfig(platform, working_dir="/")
        else:
            config = _inheritable(image.config)
        scope = Scope(dict(config.env), platform, self._escape)
        key = cachekey.base_key(image, platform)
        return self._state(config, scope, key, platform)

    def _on_stage(self, index: int) -> StageState:
        below = self.planned[index]
        scope = Scope(
            dict(below.config.env), below.platform, self._escape, below=self._scopes[index]
        )
        return self._state(below.config, scope, self._keys[index], below.platform)

    def _state(self, config: ImageConfig, scope: Scope, key: str, platform: Platform) -> StageState:
        return StageState(
            config,
            scope,
            key,
            platform,
            request=self._request,
            global_args=self._variables,
            allowance=self._allowance,
        )

    def _history_of(self, index: int) -> tuple[HistoryEntry, ...]:
        """All lines up to the end of a stage, made once for all stages that start from it."""
        found = self._histories.get(index)
        if found is None:
            stage = self.planned[index]
            own = tuple(map(_entry, stage.history))
            if own:
                self._allowance.spend(len(stage.inherited) + len(own))
            found = self._histories[index] = stage.inherited + own
        return found

    def _source(self, origin: Origin) -> Source:
        match origin:
            case StageOrigin(index):
                return StageSource(self.planned[index].index)
            case ContextOrigin(name):
                return ContextSource(name)
            case ImageOrigin():
                return ImageSource(self._resolved.image(origin, None))
            case ScratchOrigin():
                return ImageSource(None)


def _copy_all(name: str, stage: Stage, state: StageState) -> None:
    """Begin a stage on the files of a named context: a layer that has them all."""
    step = CopyStep(
        where=stage.head.where,
        title=f"FROM {name}",
        key="",
        source=ContextSource(name),
        patterns=("/",),
        files=(),
        destination="/",
    )
    state.add_step(step, f"COPY --from={name} / / # buildkit")


def _inheritable(config: ImageConfig) -> ImageConfig:
    """What a stage takes over from its image's config, as BuildKit does."""
    workdir = config.working_dir
    kept = {name: config.extra[name] for name in ("os.features",) if name in config.extra}
    return replace(
        config,
        working_dir=paths.join("/", workdir) if workdir else "",
        created=None,
        history=(),
        diff_ids=(),
        onbuild=(),
        extra=kept,
        config_extra={},
    )


def _entry(line: PlannedHistory) -> HistoryEntry:
    return HistoryEntry(line.created_by, empty_layer=line.step is None, comment=line.comment)


def apply(instruction: Instruction, state: StageState) -> None:
    """Evaluate one instruction: what it adds to the steps, the config and the history."""
    match instruction:
        case Run():
            plan_run(instruction, state)
        case Copy():
            plan_copy(instruction, state)
        case Add():
            plan_add(instruction, state)
        case Workdir():
            _workdir(instruction, state)
        case Env():
            pairs = state.scope.expand_pairs(instruction.pairs)
            for name, value in pairs:
                state.set_env(name, value)
            state.note(" ".join(["ENV", *(f"{name}={value}" for name, value in pairs)]))
        case Arg():
            _arg(instruction, state)
        case Label():
            pairs = state.scope.expand_pairs(instruction.pairs)
            state.labels |= dict(pairs)
            state.note(" ".join(["LABEL", *(f"{name}={value}" for name, value in pairs)]))
        case Cmd(command=command):
            args = _with_shell(command, state)
            state.update(cmd=args, args_escaped=True)
            state.has_cmd = True
            state.note(f"CMD {quoted(args)}")
        case Entrypoint(command=command):
            args = _with_shell(command, state)
            state.update(entrypoint=args, cmd=state.config.cmd if state.has_cmd else None)
            state.note(f"ENTRYPOINT {quoted(args)}")
        case Expose():
            _expose(instruction, state)
        case Volume(paths=volumes):
            _volume([state.scope.expand(path) for path in volumes], state)
        case User(user=user):
            name = state.scope.expand(user)
            state.update(user=name)
            state.note(f"USER {name}")
        case Shell(args=args):
            state.update(shell=args)
            state.note(f"SHELL {listed(args)}")
        case StopSignal():
            _stop_signal(instruction, state)
        case Healthcheck():
            _healthcheck(instruction, state)
        case Onbuild(trigger=trigger):
            state.onbuild.append(trigger)
        case Maintainer(name=name):
            state.update(author=name)
            state.note(f"MAINTAINER {name}")
        case From():
            raise DockerfileError("FROM begins a stage and stands nowhere else")


def _workdir(instruction: Workdir, state: StageState) -> None:
    path = paths.join(state.workdir, state.scope.expand(instruction.path))
    state.update(working_dir=path)
    created_by = f"WORKDIR {path}"
    if path == "/":
        state.note(created_by)
        return
    step = WorkdirStep(
        where=instruction.where,
        title=state.title(instruction),
        key="",
        path=path,
        user=state.config.user,
    )
    state.add_step(step, created_by)


def _arg(instruction: Arg, state: StageState) -> None:
    words = ["ARG"]
    for pair in instruction.args:
        value = state.scope.declare(pair, state.request.build_args, state.global_args)
        words.append(pair.name if value is None else f"{pair.name}={value}")
    state.forget_env()
    state.note(" ".join(words))


def _with_shell(command: Command, state: StageState) -> tuple[str, ...]:
    return (*state.shell, " ".join(command.args)) if command.shell else command.args


def _expose(instruction: Expose, state: StageState) -> None:
    from pybuild.plan.ports import exposed_ports  # noqa: PLC0415 - for few Dockerfiles

    words = [w for port in sorted(instruction.ports) for w in state.scope.expand_list(port)]
    ports = exposed_ports(words, state.allowance)
    state.ports |= set(ports)
    state.note(f"EXPOSE {listed(ports)}")


def _volume(volumes: list[str], state: StageState) -> None:
    if "" in volumes:
        raise DockerfileError("VOLUME specified can not be an empty string")
    state.volumes |= set(volumes)
    state.note(f"VOLUME {listed(volumes)}")


def _stop_signal(instruction: StopSignal, state: StageState) -> None:
    from pybuild.plan.signals import is_signal  # noqa: PLC0415 - for few Dockerfiles

    signal = state.scope.expand(instruction.signal)
    if not is_signal(signal):
        raise DockerfileError(f"invalid signal: {signal}")
    state.update(stop_signal=signal)
    state.note(f"STOPSIGNAL {signal}")


def _healthcheck(instruction: Healthcheck, state: StageState) -> None:
    command = instruction.command
    if command is None:
        check = image_config.Healthcheck(("NONE",))
    else:
        check = image_config.Healthcheck(
            ("CMD-SHELL" if command.shell else "CMD", *command.args),
            interval=instruction.interval,
            timeout=instruction.timeout,
            start_period=instruction.start_period,
            start_interval=instruction.start_interval,
            retries=instruction.retries,
        )
    state.update(healthcheck=check)
    state.note(healthcheck_text(check))
