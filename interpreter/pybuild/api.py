"""`build`: from a Dockerfile and a context to an image, the whole flow as one function."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
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
    check_index_annotations,
    check_output,
    describe_output,
    export,
)
from pybuild.export.images import TargetImage, TargetImages, image_name, wanted_images
from pybuild.export.outputs import ImageOptions, ImageOutput, Output, parse_output
from pybuild.files.layout import open_layout
from pybuild.files.trees import Tree
from pybuild.lendingflags import parse_entitlements
from pybuild.oci.descriptor import Descriptor
from pybuild.oci.image_config import ImageConfig
from pybuild.oci.platform import Platform, host_platform, parse_platform
from pybuild.oci.reference import Reference
from pybuild.oci.registry import RegistryClient
from pybuild.plan import make_plans
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
from pybuild.run.lending import Lent, check_lent, wanted_agents
from pybuild.run.result import BuildResult, BuiltImage, OutputResult
from pybuild.run.schedule import run_stages, sources, workers
from pybuild.run.stage import StageRunner, StageSettings, base_image, final_config
from pybuild.sandbox import emulation
from pybuild.secrets import Secret

# names without dots alone, so that nothing leads upwards
_CGROUP = re.compile(r"/?(?!\.+(?:/|$))[\w.@:-]+(?:/(?!\.+(?:/|$))[\w.@:-]+)*/?", re.ASCII)

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
    no_cache_filter: Collection[str] = (),
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    index_annotations: Mapping[str, str] | None = None,
    network: Network | str | None = None,
    add_hosts: Sequence[HostEntry] = (),
    shm_size: int | None = None,
    ulimits: Sequence[Ulimit] = (),
    cgroup_parent: str | None = None,
    allow: Sequence[str] = (),
    contexts: Mapping[str, ContextValue] | None = None,
    secrets: Mapping[str, Secret] | None = None,
    ssh: Mapping[str, Sequence[str | Path]] | None = None,
    ca: bytes | None = None,
    remotes: RemoteOptions | None = None,
    reporter: Reporter | None = None,
    cancel: CancelToken | None = None,
    max_workers: int | None = None,
    created: datetime | int | None = None,
    outputs: Sequence[Output | str] = (),
    registry: RegistryClient | None = None,
) -> BuildResult:
    """Build an image, for one platform or several, write it to its outputs, and return its
    digests and names.

    `context` is a folder, a stream with a tar archive (or a Dockerfile, then there is no
    context), the URL of a git repository, of an archive or of a Dockerfile, or None.
    `dockerfile` is a path, relative to the working directory, or the text itself; by default
    ``Dockerfile``, else ``Containerfile``, of the context. In an archive or a repository the
    path is one inside it. `contexts` are named contexts: what stands in for the
    images and stages of these names, in the forms of ``--build-context`` or as a tree.
    The stages named in `no_cache_filter` run again although their results may be kept.
    `secrets` are by id; those named HTTP_AUTH_* and GIT_AUTH_* log in where `remotes`, which
    says how, fetches sources on the network.

    `platform` is one or several, as ``linux/amd64``; several, which may stand in one text
    with commas between, become one image index. The build arg BUILDKIT_MULTI_PLATFORM makes
    an index of one as well. `annotations` are of each manifest.

    `backend` is a name or an open backend, which stays open; `backend_options` go to the one
    opened by name. `shm_size` is in bytes. `allow` are entitlements: ``network.host``,
    ``security.insecure``, ``device``, ``device=NAME``. `ssh` has for each id the socket of an
    agent, or files with private keys. `ca` are certificates, as PEM, that every RUN trusts.
    Of `secrets`, `ssh` and `ca` nothing gets into the image or a cache key. `created`, a time
    or seconds since 1970, replaces every clock in the image; the build arg SOURCE_DATE_EPOCH
    does the same. `reporter` gets events from one thread at a time. `cancel` may be cancelled from any thread.

    `outputs` are values of `pybuild.export.outputs` or what ``docker build --output`` takes;
    without any, the image goes into the backend's store. `registry` pushes and stays open;
    by default one without logins.

    Raises a :class:`~pybuild.errors.PybuildError`; nothing of a failed build is left.
    """
    began, clock = datetime.now(UTC), time.monotonic()
    args = dict(build_args or {})
    names = tuple(map(image_name, tags))
    platforms, policy = asked_platforms(platform), pull_policy(pull)
    as_index = _as_index(platforms, args)
    check_index_annotations(index_annotations or {}, as_index=as_index)
    wanted_outputs = _outputs(outputs, names, as_index=as_index)
    fixed_time = _fixed_time(created, args)
    cancel, events = cancel or CancelToken(), Events(reporter)
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
            platform=backend.platforms[0],
            build_platform=backend.platforms[0],
            target=target,
            build_args=_with_epoch(args, fixed_time),
            labels=dict(labels or {}),
            run=_run_defaults(network, add_hosts, shm_size, ulimits, cgroup_parent, allow),
            contexts=named_contexts(contexts or {}),
        )
        asked, lookup = _for_each(platforms, request), _looked_up(backend, policy)
        plan = _plan(
            parsed, asked, lookup, lint, events=events, cancel=cancel, max_workers=max_workers
        )
        _check_supported(plan, backend)
        _report_warnings(plan, events)
        _check_emulation(plan, backend, events)
        opened = Contexts(inputs.context, contexts or {}, fetched, stack)
        settings = StageSettings(
            contexts=_open_contexts(plan, opened, events, cancel),
            remotes=fetched,
            created=fixed_time,
            began=began,
            use_cache=Capability.STEP_CACHE in backend.capabilities and not no_cache,
            lent=_lend(plan, secrets or {}, ssh or {}, ca, stack),
            fresh_stages=frozenset(name.lower() for name in no_cache_filter),
        )
        stop = CancelToken()
        runner = StageRunner(plan, backend, events, stop, settings)
        stack.enter_context(releasing(runner.release, events.warn))
        run_stages(plan.stages, runner.run, cancel=cancel, stop=stop, max_workers=max_workers)
        built = TargetImages(
            backend,
            _target_images(plan, runner, fixed_time, annotations or {}),
            names,
            as_index,
            dict(index_annotations or {}),
            None if fixed_time is None else int(fixed_time.timestamp()),
        )
        exported = _export(built, wanted_outputs, registry, events, cancel)
        descriptor, images = _described(built, exported, events.silent(cancel))
        result = BuildResult(
            descriptor=descriptor,
            names=tuple(dict.fromkeys(name for one in exported for name in one.names)),
            images=images,
            steps=runner.step_results(),
            seconds=time.monotonic() - clock,
            outputs=exported,
        )
    events.send(BuildFinished(result))
    return result


def _target_images(
    plan: Plan, runner: StageRunner, created: datetime | None, annotations: Mapping[str, str]
) -> tuple[TargetImage, ...]:
    """The images that the finished stages of `runner` make."""
    found = []
    for target in plan.targets:
        made = runner.finished(target.stage.index)
        spec = ImageSpec(
            config=final_config(target.stage, made, created),
            layers=made.layer.layer.diffs,
            annotations=dict(annotations),
            base=base_image(plan, target.stage),
        )
        found.append(TargetImage(target.platform, spec, made.layer.layer))
    return tuple(found)


def _export(
    built: TargetImages,
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
                result = export(built, output, client, activity)
                for image in result.images.values():
                    activity.note(f"exporting manifest {image.digest}")
                    activity.note(f"exporting config {image.config_digest}")
                if built.as_index and result.descriptor is not None:
                    activity.note(f"exporting manifest list {result.descriptor.digest}")
                for name in result.names:
                    activity.note(f"naming to {name}")
            results.append(result)
    return tuple(results)


def _described(
    built: TargetImages, outputs: Sequence[OutputResult], activity: StepActivity
) -> tuple[Descriptor, Mapping[Platform, BuiltImage]]:
    """The digests in the first output that has any, or those that the store would have."""
    for output in outputs:
        if output.descriptor is not None:
            return output.descriptor, output.images
    wanted = wanted_images(built, ImageOptions(), activity)
    return wanted.documents.descriptor, wanted.results(built)


def _outputs(
    outputs: Sequence[Output | str], names: Sequence[Reference], *, as_index: bool
) -> tuple[Output, ...]:
    parsed = tuple(parse_output(one) if isinstance(one, str) else one for one in outputs)
    for output in parsed:
        check_output(output, names, as_index=as_index)
    return parsed or (ImageOutput(),)


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
    cgroup_parent: str | None = None,
    allow: Sequence[str] = (),
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
    platforms, policy = asked_platforms(platform), pull_policy(pull)
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
            platform=native,
            build_platform=native,
            target=target,
            build_args=args,
            labels=dict(labels or {}),
            run=_run_defaults(network, add_hosts, shm_size, ulimits, cgroup_parent, allow),
            contexts=named_contexts(contexts or {}),
        )
        lookup = LazyLookup(backend, backend_options, policy, stack, events)
        asked = _for_each(platforms, request)
        plan = _plan(parsed, asked, lookup, lint, events=events, cancel=cancel)
        _report_warnings(plan, events)
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
    requests: Sequence[PlanRequest],
    lookup: Lookup,
    lint: Lint,
    *,
    events: Events,
    cancel: CancelToken,
    max_workers: int | None = None,
) -> Plan:
    """Plan the build. Raises DockerfileError also where `lint` found what counts as an error."""
    with resolving(lookup, events, cancel, max_workers) as (resolve, executor):
        plan = make_plans(dockerfile, requests, resolve, executor=executor, lint=lint)
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


def _lend(
    plan: Plan,
    secrets: Mapping[str, Secret],
    ssh: Mapping[str, Sequence[str | Path]],
    ca: bytes | None,
    stack: ExitStack,
) -> Lent:
    """What steps of the plan may see; agents of our own end with the stack."""
    check_lent(plan, secrets, ssh)
    idents = sorted(wanted_agents(plan) & ssh.keys())
    if not idents:
        return Lent(secrets, {}, ca)
    from pybuild.run.sshkeys import open_agents  # noqa: PLC0415 - seldom needed

    wanted = {ident: tuple(map(Path, ssh[ident])) for ident in idents}
    return Lent(secrets, stack.enter_context(open_agents(wanted)), ca)


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


def _report_warnings(plan: Plan, events: Events) -> None:
    for message, where in plan.warnings:
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


def asked_platforms(
    platform: str | Platform | Sequence[str | Platform] | None,
) -> tuple[Platform, ...]:
    """The platforms asked for, each once; none is the backend's own. Raises UsageError."""
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


def _as_index(platforms: Sequence[Platform], build_args: Mapping[str, str]) -> bool:
    """Whether there will be an index. Raises UsageError."""
    text = build_args.get("BUILDKIT_MULTI_PLATFORM", "")
    if text.lower() not in {"", "0", "f", "false", "1", "t", "true"}:
        raise UsageError(f'the build arg BUILDKIT_MULTI_PLATFORM "{text}" is not true or false')
    return len(platforms) > 1 or text.lower() in {"1", "t", "true"}


def pull_policy(pull: PullPolicy | str | bool) -> PullPolicy:
    if isinstance(pull, PullPolicy):
        return pull
    if isinstance(pull, bool):
        return PullPolicy.ALWAYS if pull else PullPolicy.MISSING
    try:
        return PullPolicy(pull)
    except ValueError:
        raise UsageError(f'the pull policy "{pull}" is not missing, always or never') from None


def _run_defaults(  # noqa: PLR0917 - what the command line says of RUN, in its order
    network: Network | str | None,
    hosts: Sequence[HostEntry],
    shm_size: int | None,
    ulimits: Sequence[Ulimit],
    cgroup: str | None,
    allow: Sequence[str],
) -> RunDefaults:
    try:
        chosen = Network(network or Network.DEFAULT)
    except ValueError:
        raise UsageError(f'the network "{network}" is not default, none or host') from None
    if cgroup is not None and not _CGROUP.fullmatch(cgroup):
        raise UsageError(f'the control group "{cgroup}" is no path of one', hint="as in /builds/a")
    return RunDefaults(
        chosen,
        tuple(hosts),
        shm_size,
        tuple(ulimits),
        allowed=parse_entitlements(allow),
        cgroup_parent=cgroup and "/" + cgroup.strip("/"),
    )


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
