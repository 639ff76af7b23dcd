"""`build`: from a Dockerfile and a context to an image, the whole flow as one function."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from pybuild.backend import (
    Backend,
    BaseImage,
    Capability,
    HostEntry,
    Network,
    PullPolicy,
    Ulimit,
)
from pybuild.backends import DEFAULT_BACKEND, open_backend
from pybuild.dockerfile.instructions import Dockerfile
from pybuild.dockerfile.parse import parse
from pybuild.errors import (
    BackendUnavailable,
    BuildCancelled,
    PybuildError,
    SourceRange,
    UnsupportedByBackend,
    UsageError,
)
from pybuild.files.trees import Tree
from pybuild.oci.image_config import ImageConfig
from pybuild.oci.platform import Platform, host_platform, parse_platform
from pybuild.oci.reference import Reference, parse_reference, with_default_tag
from pybuild.plan import make_plans
from pybuild.plan.steps import (
    ContextSource,
    Plan,
    PlanRequest,
    RunDefaults,
    RunStep,
    needs,
)
from pybuild.run.activity import CancelToken, Events, StepActivity
from pybuild.run.events import BuildFinished, Reporter
from pybuild.run.export import ExportRequest, export
from pybuild.run.inputs import Inputs, read_inputs
from pybuild.run.layers import releasing
from pybuild.run.result import BuildResult
from pybuild.run.schedule import run_stages, sources, workers
from pybuild.run.stage import StageRunner, StageSettings
from pybuild.sandbox import emulation

Context = str | Path | BinaryIO | None
DockerfileSource = str | Path | bytes | None


@dataclass(frozen=True, slots=True)
class PlannedBuild:
    """What :func:`plan_build` gives: the plan, and the base images that nobody looked up."""

    plan: Plan
    unresolved: tuple[Reference, ...] = ()


def build(
    context: Context,
    *,
    dockerfile: DockerfileSource = None,
    tags: Sequence[str] = (),
    backend: str | Backend | None = None,
    backend_options: Mapping[str, object] | None = None,
    build_args: Mapping[str, str] | None = None,
    target: str | None = None,
    platform: str | Platform | Sequence[str | Platform] | None = None,
    pull: PullPolicy | str | bool = PullPolicy.MISSING,
    no_cache: bool = False,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    index_annotations: Mapping[str, str] | None = None,
    network: Network | str | None = None,
    add_hosts: Sequence[HostEntry] = (),
    shm_size: int | None = None,
    ulimits: Sequence[Ulimit] = (),
    reporter: Reporter | None = None,
    cancel: CancelToken | None = None,
    max_workers: int | None = None,
    created: datetime | int | None = None,
) -> BuildResult:
    """Build an image, for one platform or several, and return its digests and names.

    `context` is a folder, a stream with a tar archive (or a Dockerfile, then there is no
    context), or None. `dockerfile` is a path, relative to the working directory, or the
    text itself; by default ``Dockerfile``, else ``Containerfile``, of the context. In a tar
    archive the path is one inside it.

    `platform` is one or several, as ``linux/amd64``; several, which may stand in one text
    with commas between, become one image index. The build arg BUILDKIT_MULTI_PLATFORM makes
    an index of one as well. `annotations` are of each manifest.

    `backend` is a name or an open backend, which stays open; `backend_options` go to the one
    opened by name. `shm_size` is in bytes. `created`, a time or seconds since 1970, replaces
    every clock in the image; the build arg SOURCE_DATE_EPOCH does the same. `reporter` gets
    events from one thread at a time. `cancel` may be cancelled from any thread.

    Raises a :class:`~pybuild.errors.PybuildError`; nothing of a failed build is left.
    """
    began, clock = datetime.now(UTC), time.monotonic()
    run = _run_defaults(network, add_hosts, shm_size, ulimits)
    platforms, policy = _platforms(platform), _pull_policy(pull)
    fixed_time = _fixed_time(created, build_args or {})
    exporting = ExportRequest(
        tuple(map(_image_name, tags)),
        dict(annotations or {}),
        dict(index_annotations or {}),
        fixed_time,
        _as_index(platforms, build_args or {}, index_annotations),
    )
    cancel = cancel or CancelToken()
    events = Events(reporter)
    with ExitStack() as stack:
        stack.enter_context(_errors_of_one_build(files := dict[str, bytes](), cancel))
        inputs = _load_inputs(context, dockerfile, files, stack=stack, events=events, cancel=cancel)
        parsed = parse(inputs.dockerfile, inputs.name)
        if not isinstance(backend, Backend):
            backend = open_backend(backend or DEFAULT_BACKEND, backend_options)
            stack.enter_context(releasing(backend.close, events.warn))
        request = PlanRequest(
            platform=backend.platforms[0],
            build_platform=backend.platforms[0],
            target=target,
            build_args=_with_epoch(build_args or {}, fixed_time),
            labels=dict(labels or {}),
            run=run,
        )
        asked, lookup = _for_each(platforms, request), _looked_up(backend, policy)
        plan = _plan(parsed, asked, lookup, events=events, cancel=cancel, max_workers=max_workers)
        _check_supported(plan, backend)
        _report_warnings(parsed, plan, events)
        _check_emulation(plan, backend, events)
        settings = StageSettings(
            context=_open_context(plan, inputs, events, cancel),
            created=fixed_time,
            began=began,
            use_cache=Capability.STEP_CACHE in backend.capabilities and not no_cache,
        )
        stop = CancelToken()
        runner = StageRunner(plan, backend, events, stop, settings)
        stack.enter_context(releasing(runner.release, events.warn))
        run_stages(plan.stages, runner.run, cancel=cancel, stop=stop, max_workers=max_workers)
        with events.unit("exporting to image", cancel) as activity:
            exported = export(plan, runner, backend, exporting, activity)
        result = BuildResult(
            descriptor=exported.descriptor,
            names=exported.names,
            images=exported.images,
            steps=runner.step_results(),
            seconds=time.monotonic() - clock,
        )
    events.send(BuildFinished(result))
    return result


def plan_build(
    context: Context,
    *,
    dockerfile: DockerfileSource = None,
    backend: str | Backend | None = None,
    backend_options: Mapping[str, object] | None = None,
    build_args: Mapping[str, str] | None = None,
    target: str | None = None,
    platform: str | Platform | Sequence[str | Platform] | None = None,
    pull: PullPolicy | str | bool = PullPolicy.MISSING,
    labels: Mapping[str, str] | None = None,
    network: Network | str | None = None,
    add_hosts: Sequence[HostEntry] = (),
    shm_size: int | None = None,
    ulimits: Sequence[Ulimit] = (),
    reporter: Reporter | None = None,
    cancel: CancelToken | None = None,
) -> PlannedBuild:
    """Plan what :func:`build` would do, without doing it. The arguments are the same.

    Images that no backend can look up, because there is none or it can't start, count as
    empty and are listed. A backend given by name is opened only if there is one to look up.
    """
    platforms, policy = _platforms(platform), _pull_policy(pull)
    cancel = cancel or CancelToken()
    events = Events(reporter)
    with ExitStack() as stack:
        stack.enter_context(_errors_of_one_build(files := dict[str, bytes](), cancel))
        inputs = _load_inputs(context, dockerfile, files, stack=stack, events=events, cancel=cancel)
        parsed = parse(inputs.dockerfile, inputs.name)
        native = backend.platforms[0] if isinstance(backend, Backend) else host_platform()
        request = PlanRequest(
            platform=native,
            build_platform=native,
            target=target,
            build_args=dict(build_args or {}),
            labels=dict(labels or {}),
            run=_run_defaults(network, add_hosts, shm_size, ulimits),
        )
        lookup = _LazyLookup(backend, backend_options, policy, stack, events)
        asked = _for_each(platforms, request)
        plan = _plan(parsed, asked, lookup, events=events, cancel=cancel)
        _report_warnings(parsed, plan, events)
    return PlannedBuild(plan, tuple(lookup.unresolved))


Lookup = Callable[[Reference, Platform, StepActivity], BaseImage]


def _looked_up(backend: Backend, policy: PullPolicy) -> Lookup:
    return lambda reference, platform, activity: backend.resolve(
        reference, platform, policy, activity
    )


class _LazyLookup:
    """Looks images up in a backend that is opened for the first of them, if it can be."""

    def __init__(
        self,
        backend: str | Backend | None,
        options: Mapping[str, object] | None,
        policy: PullPolicy,
        stack: ExitStack,
        events: Events,
    ) -> None:
        self.unresolved: dict[Reference, None] = {}
        self._backend = backend if isinstance(backend, Backend) else None
        self._name = None if isinstance(backend, Backend) else backend
        self._options = options
        self._policy = policy
        self._stack = stack
        self._events = events
        self._lock = threading.Lock()

    def __call__(
        self, reference: Reference, platform: Platform, activity: StepActivity
    ) -> BaseImage:
        with self._lock:
            self._open()
            if self._backend is None:
                self.unresolved[reference] = None
                return BaseImage(reference, "", ImageConfig(platform), ())
        return self._backend.resolve(reference, platform, self._policy, activity)

    def _open(self) -> None:
        if self._backend is not None or self._name is None:
            return
        name, self._name = self._name, None
        try:
            self._backend = open_backend(name, self._options)
        except BackendUnavailable as error:
            self._events.warn(f"base images are not looked up: {error.message}", hint=error.hint)
        else:
            self._stack.enter_context(releasing(self._backend.close, self._events.warn))


def _plan(
    dockerfile: Dockerfile,
    requests: Sequence[PlanRequest],
    lookup: Lookup,
    *,
    events: Events,
    cancel: CancelToken,
    max_workers: int | None = None,
) -> Plan:
    """Plan the build; the images of all stages are looked up at the same time."""
    stop = CancelToken()

    def resolve(reference: Reference, platform: Platform, where: SourceRange) -> BaseImage:
        title = f"[internal] load metadata for {reference}"
        with events.unit(title, stop, where=where) as activity:
            activity.raise_if_cancelled()
            return lookup(reference, platform, activity)

    with cancel.on_cancel(stop.cancel), workers(max_workers) as executor:
        try:
            return make_plans(dockerfile, requests, resolve, executor=executor)
        except BaseException:
            # The first failure is the one to report; the other look-ups needn't go on.
            stop.cancel()
            raise


def _load_inputs(
    context: Context,
    dockerfile: DockerfileSource,
    files: dict[str, bytes],
    *,
    stack: ExitStack,
    events: Events,
    cancel: CancelToken,
) -> Inputs:
    cancel.raise_if_cancelled()
    with events.unit("[internal] load build definition from Dockerfile", cancel):
        inputs = stack.enter_context(read_inputs(context, dockerfile))
    files[inputs.name] = inputs.dockerfile
    return inputs


def _open_context(plan: Plan, inputs: Inputs, events: Events, cancel: CancelToken) -> Tree | None:
    """The context's files, if any step reads them."""
    steps = [step for stage in plan.stages for step in stage.steps]
    if not any(isinstance(source, ContextSource) for step in steps for source in sources(step)):
        return None
    with events.unit("[internal] load build context", cancel) as activity:
        activity.raise_if_cancelled()
        # Reads the first folder, so that a context that can't be read fails here.
        inputs.context.children(b"")
    return inputs.context


def _check_supported(plan: Plan, backend: Backend) -> None:
    """Refuse, before anything runs, what the backend can't do."""
    wanted = list(needs(plan))
    for need in wanted:
        if need.capability not in backend.capabilities:
            raise UnsupportedByBackend(
                f'the backend "{backend.name}" lacks what this step needs: {need.capability}',
                where=need.where,
                hint="use another backend (--backend)",
            )
    backend.require(frozenset(need.capability for need in wanted))
    systems = {platform.os for platform in backend.platforms}
    for stage in plan.stages:
        if stage.platform.os not in systems:
            raise UnsupportedByBackend(
                f'the backend "{backend.name}" can\'t build for {stage.platform}',
                where=stage.where,
                hint=f"it builds for {', '.join(map(str, backend.platforms))}",
            )


def _report_warnings(dockerfile: Dockerfile, plan: Plan, events: Events) -> None:
    for message, where in (*dockerfile.warnings, *plan.warnings):
        events.warn(message, where=where)


def _check_emulation(plan: Plan, backend: Backend, events: Events) -> None:
    """Refuse, before anything runs, a RUN for a processor that the machine can't emulate."""
    runs: dict[Platform, RunStep] = {}
    for stage in plan.stages:
        first = next((step for step in stage.steps if isinstance(step, RunStep)), None)
        if first is not None:
            runs.setdefault(stage.platform, first)
    for platform, step in runs.items():
        match backend.executes(platform):
            case True:
                pass
            case False:
                raise UnsupportedByBackend(
                    f"RUN for {platform} needs an emulator, and this machine has none",
                    where=step.where,
                    hint=emulation.INSTALL_HINT,
                )
            case None:
                events.warn(
                    f"RUN for {platform} needs the machine that runs it to emulate it",
                    where=step.where,
                    hint="without that it ends with exec format error",
                )


@contextmanager
def _errors_of_one_build(files: Mapping[str, bytes], cancel: CancelToken) -> Iterator[None]:
    """Give errors the texts that their places are in, for whoever shows them.

    What breaks because the build was cancelled is no error of its own.
    """
    try:
        yield
    except BuildCancelled:
        raise
    except PybuildError as error:
        if cancel.cancelled:
            raise BuildCancelled("the build was cancelled") from error
        error.files = files
        raise


def _image_name(text: str) -> Reference:
    reference = parse_reference(text)
    if reference.digest:
        raise UsageError(
            f'the image can\'t be named "{text}"', hint="a name has no digest: that is made here"
        )
    return with_default_tag(reference)


def _platforms(platform: str | Platform | Sequence[str | Platform] | None) -> tuple[Platform, ...]:
    """The platforms asked for, each once; none is the backend's own."""
    if platform is None:
        return ()
    found: dict[Platform, None] = {}
    for each in [platform] if isinstance(platform, str | Platform) else platform:
        if isinstance(each, Platform):
            found[each] = None
        else:
            found |= dict.fromkeys(parse_platform(part) for part in each.split(",") if part)
    return tuple(found)


def _for_each(platforms: Sequence[Platform], request: PlanRequest) -> list[PlanRequest]:
    """The request for each of the platforms asked for; as it is if none was."""
    return [replace(request, platform=each) for each in platforms] or [request]


def _as_index(
    platforms: Sequence[Platform],
    build_args: Mapping[str, str],
    annotations: Mapping[str, str] | None,
) -> bool:
    """Whether there will be an index. Raises UsageError for annotations of one that there won't."""
    text = build_args.get("BUILDKIT_MULTI_PLATFORM", "")
    if text.lower() not in {"", "0", "f", "false", "1", "t", "true"}:
        raise UsageError(f'the build arg BUILDKIT_MULTI_PLATFORM "{text}" is not true or false')
    as_index = len(platforms) > 1 or text.lower() in {"1", "t", "true"}
    if annotations and not as_index:
        raise UsageError(
            "an image for one platform has no index that could be annotated",
            hint="build for several, or with the build arg BUILDKIT_MULTI_PLATFORM=1",
        )
    return as_index


def _pull_policy(pull: PullPolicy | str | bool) -> PullPolicy:
    if isinstance(pull, PullPolicy):
        return pull
    if isinstance(pull, bool):
        return PullPolicy.ALWAYS if pull else PullPolicy.MISSING
    try:
        return PullPolicy(pull)
    except ValueError:
        raise UsageError(f'the pull policy "{pull}" is not missing, always or never') from None


def _run_defaults(
    network: Network | str | None,
    hosts: Sequence[HostEntry],
    shm_size: int | None,
    ulimits: Sequence[Ulimit],
) -> RunDefaults:
    try:
        chosen = Network(network or Network.DEFAULT)
    except ValueError:
        raise UsageError(f'the network "{network}" is not default, none or host') from None
    return RunDefaults(chosen, tuple(hosts), shm_size, tuple(ulimits))


def _with_epoch(build_args: Mapping[str, str], fixed_time: datetime | None) -> dict[str, str]:
    """The build args, in which stages that declare SOURCE_DATE_EPOCH see the image's time."""
    if fixed_time is None:
        return dict(build_args)
    return {**build_args, "SOURCE_DATE_EPOCH": str(int(fixed_time.timestamp()))}


def _fixed_time(created: datetime | int | None, build_args: Mapping[str, str]) -> datetime | None:
    if isinstance(created, datetime):
        return created.astimezone(UTC)
    text = build_args.get("SOURCE_DATE_EPOCH", "") if created is None else str(created)
    if not text:
        return None
    try:
        return datetime.fromtimestamp(int(text), UTC)
    except (ValueError, OverflowError, OSError):
        raise UsageError(f'"{text}" is no time in seconds since 1970') from None
