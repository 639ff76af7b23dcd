"""`build`: from a Dockerfile and a context to an image, the whole flow as one function."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO

from pybuild.backend import (
    Backend,
    BaseImage,
    Capability,
    HostEntry,
    ImageSpec,
    Network,
    PullPolicy,
    Ulimit,
)
from pybuild.backends import DEFAULT_BACKEND, open_backend
from pybuild.dockerfile.frontend import SYNTAX_ARG
from pybuild.dockerfile.instructions import Dockerfile
from pybuild.dockerfile.lint import CHECK_ARG, Lint
from pybuild.dockerfile.parse import parse
from pybuild.errors import (
    BackendUnavailable,
    BuildCancelled,
    PybuildError,
    SourceRange,
    UnsupportedByBackend,
    UsageError,
)
from pybuild.export.exporting import (
    BuiltImage,
    check_output,
    describe_output,
    export,
    image_name,
)
from pybuild.export.outputs import ImageOutput, Output, parse_output
from pybuild.files.layout import open_layout
from pybuild.files.trees import Tree
from pybuild.oci.image_config import ImageConfig
from pybuild.oci.platform import Platform, host_platform, matches, parse_platform
from pybuild.oci.reference import Reference
from pybuild.oci.registry import RegistryClient
from pybuild.plan import make_plan
from pybuild.plan.resolve import ImageName, Resolve
from pybuild.plan.steps import (
    ContextSource,
    Plan,
    PlanRequest,
    RunDefaults,
    RunStep,
    needs,
)
from pybuild.remotes.fetching import Remotes
from pybuild.remotes.options import RemoteOptions
from pybuild.run.activity import CancelToken, Events, StepActivity
from pybuild.run.contexts import Contexts, ContextValue, named_contexts
from pybuild.run.events import BuildFinished, LintReported, Reporter
from pybuild.run.inputs import Inputs, read_inputs
from pybuild.run.layers import releasing
from pybuild.run.result import BuildResult, OutputResult
from pybuild.run.schedule import run_stages, sources, workers
from pybuild.run.stage import StageRunner, StageSettings, base_image, final_config
from pybuild.secrets import Secret

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
    platform: str | Platform | Sequence[str] | None = None,
    pull: PullPolicy | str | bool = PullPolicy.MISSING,
    no_cache: bool = False,
    no_cache_filter: Collection[str] = (),
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    network: Network | str | None = None,
    add_hosts: Sequence[HostEntry] = (),
    shm_size: int | None = None,
    ulimits: Sequence[Ulimit] = (),
    contexts: Mapping[str, ContextValue] | None = None,
    secrets: Mapping[str, Secret] | None = None,
    remotes: RemoteOptions | None = None,
    reporter: Reporter | None = None,
    cancel: CancelToken | None = None,
    max_workers: int | None = None,
    created: datetime | int | None = None,
    outputs: Sequence[Output | str] = (),
    registry: RegistryClient | None = None,
) -> BuildResult:
    """Build an image, write it to its outputs, and return its digests and names.

    `context` is a folder, a stream with a tar archive (or a Dockerfile, then there is no
    context), the URL of a git repository, of an archive or of a Dockerfile, or None.
    `dockerfile` is a path, relative to the working directory, or the text itself; by default
    ``Dockerfile``, else ``Containerfile``, of the context. In an archive or a repository the
    path is one inside it. `contexts` are named contexts: what stands in for the
    images and stages of these names, in the forms of ``--build-context`` or as a tree.
    The stages named in `no_cache_filter` run again although their results may be kept.
    `secrets` are by id; those named HTTP_AUTH_* and GIT_AUTH_* log in where `remotes`, which
    says how, fetches sources on the network.

    `backend` is a name or an open backend, which stays open; `backend_options` go to the one
    opened by name. `shm_size` is in bytes. `created`, a time or seconds since 1970, replaces
    every clock in the image; the build arg SOURCE_DATE_EPOCH does the same. `reporter` gets
    events from one thread at a time. `cancel` may be cancelled from any thread.

    `outputs` are values of `pybuild.export.outputs` or what ``docker build --output`` takes;
    without any, the image goes into the backend's store. `registry` pushes and stays open;
    by default one without logins.

    Raises a :class:`~pybuild.errors.PybuildError`; nothing of a failed build is left.
    """
    began, clock = datetime.now(UTC), time.monotonic()
    args = dict(build_args or {})
    names = tuple(map(image_name, tags))
    wanted_outputs = _outputs(outputs, names)
    wanted, policy = one_platform(platform), pull_policy(pull)
    fixed_time = _fixed_time(created, args)
    cancel = cancel or CancelToken()
    events = Events(reporter)
    with ExitStack() as stack:
        stack.enter_context(errors_of_one_build(files := dict[str, bytes](), cancel))
        fetched = stack.enter_context(Remotes(remotes, secrets or {}))
        load = partial(load_inputs, stack=stack, events=events, cancel=cancel)
        inputs = load(context, dockerfile, args, fetched, files)
        lint = stack.enter_context(_reported(inputs, args, events))
        parsed = parse(inputs.dockerfile, inputs.name, lint, args.get(SYNTAX_ARG))
        if not isinstance(backend, Backend):
            backend = open_backend(backend or DEFAULT_BACKEND, backend_options)
            stack.enter_context(releasing(backend.close, events.warn))
        request = PlanRequest(
            platform=wanted or backend.platforms[0],
            build_platform=backend.platforms[0],
            target=target,
            build_args=args,
            labels=dict(labels or {}),
            run=_run_defaults(network, add_hosts, shm_size, ulimits),
            contexts=named_contexts(contexts or {}),
        )
        lookup = _looked_up(backend, policy)
        plan = _plan(
            parsed, request, lookup, lint, events=events, cancel=cancel, max_workers=max_workers
        )
        _check_supported(plan, backend)
        _report_warnings(plan, backend, events)
        opened = Contexts(inputs.context, contexts or {}, fetched, stack)
        settings = StageSettings(
            contexts=_open_contexts(plan, opened, events, cancel),
            remotes=fetched,
            created=fixed_time,
            began=began,
            use_cache=Capability.STEP_CACHE in backend.capabilities and not no_cache,
            fresh_stages=frozenset(name.lower() for name in no_cache_filter),
        )
        stop = CancelToken()
        runner = StageRunner(plan, backend, events, stop, settings)
        stack.enter_context(releasing(runner.release, events.warn))
        run_stages(plan.stages, runner.run, cancel=cancel, stop=stop, max_workers=max_workers)
        made = runner.finished(plan.target.index)
        spec = ImageSpec(
            config=final_config(plan.target, made, fixed_time),
            layers=made.layer.layer.diffs,
            names=names,
            annotations=dict(annotations or {}),
            base=base_image(plan),
        )
        newest = None if fixed_time is None else int(fixed_time.timestamp())
        image = BuiltImage(backend, spec, made.layer.layer, newest)
        exported = _export(image, wanted_outputs, registry, events, cancel)
        documents = spec.documents()
        result = BuildResult(
            manifest=next((one.manifest for one in exported if one.manifest), documents.manifest),
            config_digest=documents.config.digest,
            names=tuple(dict.fromkeys(name for one in exported for name in one.names)),
            platform=spec.config.platform,
            steps=runner.step_results(),
            seconds=time.monotonic() - clock,
            outputs=exported,
        )
    events.send(BuildFinished(result))
    return result


def _export(
    image: BuiltImage,
    outputs: Sequence[Output],
    registry: RegistryClient | None,
    events: Events,
    cancel: CancelToken,
) -> tuple[OutputResult, ...]:
    with ExitStack() as stack:

        def client() -> RegistryClient:
            return registry or stack.enter_context(RegistryClient())

        results = []
        for output in outputs:
            with events.unit(describe_output(output), cancel) as activity:
                result = export(image, output, client, activity)
                if result.manifest is not None:
                    activity.note(f"exporting manifest {result.manifest.digest}")
                    activity.note(f"exporting config {image.spec.documents().config.digest}")
                for name in result.names:
                    activity.note(f"naming to {name}")
            results.append(result)
    return tuple(results)


def _outputs(outputs: Sequence[Output | str], names: Sequence[Reference]) -> tuple[Output, ...]:
    parsed = tuple(parse_output(one) if isinstance(one, str) else one for one in outputs)
    for output in parsed:
        check_output(output, names)
    return parsed or (ImageOutput(),)


def plan_build(
    context: Context,
    *,
    dockerfile: DockerfileSource = None,
    backend: str | Backend | None = None,
    backend_options: Mapping[str, object] | None = None,
    build_args: Mapping[str, str] | None = None,
    target: str | None = None,
    platform: str | Platform | Sequence[str] | None = None,
    pull: PullPolicy | str | bool = PullPolicy.MISSING,
    labels: Mapping[str, str] | None = None,
    network: Network | str | None = None,
    add_hosts: Sequence[HostEntry] = (),
    shm_size: int | None = None,
    ulimits: Sequence[Ulimit] = (),
    contexts: Mapping[str, ContextValue] | None = None,
    secrets: Mapping[str, Secret] | None = None,
    remotes: RemoteOptions | None = None,
    reporter: Reporter | None = None,
    cancel: CancelToken | None = None,
) -> PlannedBuild:
    """Plan what :func:`build` would do, without doing it. The arguments are the same.

    Images that no backend can look up, because there is none or it can't start, count as
    empty and are listed. A backend given by name is opened only if there is one to look up.
    """
    args = dict(build_args or {})
    wanted, policy = one_platform(platform), pull_policy(pull)
    cancel = cancel or CancelToken()
    events = Events(reporter)
    with ExitStack() as stack:
        stack.enter_context(errors_of_one_build(files := dict[str, bytes](), cancel))
        fetched = stack.enter_context(Remotes(remotes, secrets or {}))
        load = partial(load_inputs, stack=stack, events=events, cancel=cancel)
        inputs = load(context, dockerfile, args, fetched, files)
        lint = stack.enter_context(_reported(inputs, args, events))
        parsed = parse(inputs.dockerfile, inputs.name, lint, args.get(SYNTAX_ARG))
        native = backend.platforms[0] if isinstance(backend, Backend) else host_platform()
        request = PlanRequest(
            platform=wanted or native,
            build_platform=native,
            target=target,
            build_args=args,
            labels=dict(labels or {}),
            run=_run_defaults(network, add_hosts, shm_size, ulimits),
            contexts=named_contexts(contexts or {}),
        )
        lookup = LazyLookup(backend, backend_options, policy, stack, events)
        plan = _plan(parsed, request, lookup, lint, events=events, cancel=cancel)
        for message, where in plan.warnings:
            events.warn(message, where=where)
    return PlannedBuild(plan, tuple(lookup.unresolved))


Lookup = Callable[[ImageName, Platform, StepActivity], BaseImage]


def _looked_up(backend: Backend, policy: PullPolicy) -> Lookup:
    def look_up(name: ImageName, platform: Platform, activity: StepActivity) -> BaseImage:
        if isinstance(name, Reference):
            return backend.resolve(name, platform, policy, activity)
        with open_layout(name.path) as layout:
            image = layout.find(platform, tag=name.tag, digest=name.digest)
            return backend.import_image(image, activity)

    return look_up


class LazyLookup:
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

    def __call__(self, name: ImageName, platform: Platform, activity: StepActivity) -> BaseImage:
        if not isinstance(name, Reference):
            with open_layout(name.path) as layout:
                image = layout.find(platform, tag=name.tag, digest=name.digest)
            return BaseImage(image.reference, image.descriptor.digest, image.config, image.layers)
        with self._lock:
            self._open()
            if self._backend is None:
                self.unresolved[name] = None
                return BaseImage(name, "", ImageConfig(platform), ())
        return self._backend.resolve(name, platform, self._policy, activity)

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
    request: PlanRequest,
    lookup: Lookup,
    lint: Lint,
    *,
    events: Events,
    cancel: CancelToken,
    max_workers: int | None = None,
) -> Plan:
    """Plan the build. Raises DockerfileError also where `lint` found what counts as an error."""
    with resolving(lookup, events, cancel, max_workers) as (resolve, executor):
        plan = make_plan(dockerfile, request, resolve, executor=executor, lint=lint)
    lint.refuse()
    return plan


@contextmanager
def resolving(
    lookup: Lookup, events: Events, cancel: CancelToken, max_workers: int | None = None
) -> Iterator[tuple[Resolve, Executor]]:
    """How to resolve base images, each a unit of work, and threads to look them up at once."""
    stop = CancelToken()

    def resolve(name: ImageName, platform: Platform, where: SourceRange) -> BaseImage:
        title = f"[internal] load metadata for {name}"
        with events.unit(title, stop, where=where) as activity:
            activity.raise_if_cancelled()
            return lookup(name, platform, activity)

    with cancel.on_cancel(stop.cancel), workers(max_workers) as executor:
        try:
            yield resolve, executor
        except BaseException:
            # The first failure is the one to report; the other look-ups needn't go on.
            stop.cancel()
            raise


def load_inputs(
    context: Context,
    dockerfile: DockerfileSource,
    build_args: Mapping[str, str],
    remotes: Remotes,
    files: dict[str, bytes],
    *,
    stack: ExitStack,
    events: Events,
    cancel: CancelToken,
) -> Inputs:
    cancel.raise_if_cancelled()
    keep = build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR", "").lower() in {"1", "t", "true"}
    title = "[internal] load build definition from Dockerfile"
    with events.unit(title, cancel) as activity:
        inputs = stack.enter_context(
            read_inputs(context, dockerfile, remotes, activity, keep_git_dir=keep)
        )
    files[inputs.name] = inputs.dockerfile
    return inputs


def _open_contexts(
    plan: Plan, contexts: Contexts, events: Events, cancel: CancelToken
) -> dict[str | None, Tree]:
    """The files of the contexts that any step reads."""
    steps = [step for stage in plan.stages for step in stage.steps]
    used = {
        source.name
        for step in steps
        for source in sources(step)
        if isinstance(source, ContextSource)
    }
    found: dict[str | None, Tree] = {}
    for name in sorted(used, key=lambda name: name or ""):
        title = f"[context {name}] load" if name else "[internal] load build context"
        with events.unit(title, cancel) as activity:
            activity.raise_if_cancelled()
            found[name] = contexts.open(name, activity)
            # Reads the first folder, so that a context that can't be read fails here.
            found[name].children(b"")
    return found


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


def _report_warnings(plan: Plan, backend: Backend, events: Events) -> None:
    for message, where in plan.warnings:
        events.warn(message, where=where)
    for stage in plan.stages:
        native = any(matches(platform, stage.platform) for platform in backend.platforms)
        if not native and any(isinstance(step, RunStep) for step in stage.steps):
            events.warn(
                f"RUN for {stage.platform} needs this machine to emulate it",
                where=stage.where,
                hint="without qemu-user registered in binfmt_misc it ends with exec format error",
            )


@contextmanager
def _reported(inputs: Inputs, build_args: Mapping[str, str], events: Events) -> Iterator[Lint]:
    """Collect what the build checks find, and report it when all else is done or failed."""
    lint = Lint(build_args.get(CHECK_ARG), inputs.excluded)
    try:
        yield lint
    finally:
        if lint.warnings:
            events.send(LintReported(lint.warnings, inputs.dockerfile))


@contextmanager
def errors_of_one_build(files: Mapping[str, bytes], cancel: CancelToken) -> Iterator[None]:
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


def one_platform(platform: str | Platform | Sequence[str] | None) -> Platform | None:
    if platform is None or isinstance(platform, Platform):
        return platform
    texts = [platform] if isinstance(platform, str) else list(platform)
    named = [part for text in texts for part in text.split(",") if part]
    if len(named) > 1:
        raise UnsupportedByBackend(
            "building for several platforms at once is not supported yet",
            hint="build once for each, under different names",
        )
    return parse_platform(named[0]) if named else None


def pull_policy(pull: PullPolicy | str | bool) -> PullPolicy:
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
