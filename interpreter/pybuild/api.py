"""`build`: from a Dockerfile and a context to an image, the whole flow as one function."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pybuild.backend import Backend, Capability, HostEntry, Network, PullPolicy, Ulimit
from pybuild.backends import DEFAULT_BACKEND, open_backend
from pybuild.building import (
    Building,
    WantedImages,
    delivered,
    made_images,
    noting_misses,
    opened_caches,
    registry_client,
    run_plan,
)
from pybuild.errors import UsageError
from pybuild.export.exporting import check_index_annotations
from pybuild.export.images import image_name
from pybuild.export.outputs import Output
from pybuild.files.trees import Tree
from pybuild.lookups import LazyLookup, looked_up
from pybuild.oci.platform import Platform, host_platform
from pybuild.oci.reference import Reference
from pybuild.options import (
    asked_platforms,
    fixed_time_of,
    pull_policy,
    run_defaults,
    stages_to_hit,
    wanted_outputs,
    wants_index,
    with_epoch,
)
from pybuild.plan.steps import ContextSource, Plan, PlanRequest, RunDefaults
from pybuild.planning import (
    for_each,
    plan_all,
    reading,
    report_warnings,
)
from pybuild.remotes.fetching import Remotes
from pybuild.remotes.options import RemoteOptions
from pybuild.requirements import check_emulation, check_supported
from pybuild.run.activity import CancelToken, Events
from pybuild.run.contexts import Contexts, ContextValue, named_contexts
from pybuild.run.events import BuildFinished, Reporter
from pybuild.run.inputs import Context, DockerfileSource
from pybuild.run.layers import releasing
from pybuild.run.lending import Lent, check_lent, default_agent, wanted_agents
from pybuild.run.onfailure import OnFailure
from pybuild.run.planmade import plan_made
from pybuild.run.result import BuildResult
from pybuild.run.schedule import sources
from pybuild.run.stagesettings import StageSettings
from pybuild.secrets import Secret
from pybuild.values import dataclass

if TYPE_CHECKING:
    from pybuild.cachetransfer.caches import CacheRequest
    from pybuild.cachetransfer.places import CacheExport, CacheImport
    from pybuild.lockfile import Lock
    from pybuild.oci.registry import RegistryClient
    from pybuild.run.failedruns import FailedRuns
    from pybuild.run.failedsteps import FailedSteps


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
    fail_on_miss: bool | Collection[str] = False,
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
    locked: Lock | str | Path | bool = False,
    outputs: Sequence[Output | str] = (),
    registry: RegistryClient | None = None,
    cache_from: Sequence[CacheImport | str] = (),
    cache_to: Sequence[CacheExport | str] = (),
    logs: str | Path | None = None,
    failed_steps: FailedSteps | None = None,
    failed_runs: FailedRuns | None = None,
) -> BuildResult:
    """Build an image, for one platform or several, write it to its outputs, and return its
    digests and names.

    `context` is a folder, a stream with a tar archive (or a Dockerfile, then there is no
    context), the URL of a git repository, of an archive or of a Dockerfile, files in memory
    by their paths, or None. `dockerfile` is a path, relative to the working directory, or the
    text itself as bytes or as a parsed Dockerfile; by default ``Dockerfile``, else
    ``Containerfile``, of the context. In an archive, a repository or in memory the path is
    one inside it. `contexts` are named contexts: what stands in for the
    images and stages of these names, in the forms of ``--build-context`` or as a tree.
    The stages named in `no_cache_filter` run again although their results may be kept. With
    `fail_on_miss`, True or the names of stages, a step that would have to run ends the build.
    `secrets` are by id; those named HTTP_AUTH_* and GIT_AUTH_* log in where `remotes`, which
    says how, fetches sources on the network; git has the agent `ssh` ``default``, if there is one.

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

    With `locked`, a lock, the path of its file, or True for that beside the Dockerfile, images
    and sources of ADD are those of :func:`pybuild.lock_images`; no registry is asked for what
    is in the backend's store, whatever `pull` says.

    `outputs` are values of `pybuild.export.outputs` or what ``docker build --output`` takes;
    without any, the image goes into the backend's store. `registry` pushes and stays open;
    by default one without logins. `cache_from` and `cache_to` are values of
    `pybuild.cachetransfer.places` or what the flags of these names take: where steps that
    aren't kept here are sought, and where all are written to in the end.

    `logs` is a folder, made if need be, where all that a process printed is kept if its step
    doesn't end well; the error names the file. `failed_steps` keeps the files of such a step
    beyond the build, for which the backend must be given open. `failed_runs` keeps a failed RUN
    for ``pybuild debug``.

    Raises a :class:`~pybuild.errors.PybuildError`; nothing of a failed build is left.
    """
    began, clock = datetime.now(UTC), time.monotonic()
    args, names = dict(build_args or {}), tuple(map(image_name, tags))
    lock = _chosen_lock(locked, context, dockerfile)
    platforms, policy = asked_platforms(platform), pull_policy(pull, locked=lock is not None)
    as_index, fixed_time = wants_index(platforms, args), fixed_time_of(created, args)
    check_index_annotations(index_annotations or {}, as_index=as_index)
    wanted = WantedImages(
        names,
        as_index,
        annotations or {},
        index_annotations or {},
        fixed_time,
        wanted_outputs(outputs, names, as_index=as_index),
    )
    wanted_caches = _cache_request(cache_from, cache_to)
    cancel, events = cancel or CancelToken(), Events(reporter)
    on_failure = _on_failure(logs, failed_steps, failed_runs, backend)
    with ExitStack() as stack:
        fetched = Remotes(remotes, secrets or {}, default_agent(ssh or {}))
        source = stack.enter_context(
            reading(context, dockerfile, args, fetched, events=events, cancel=cancel)
        )
        if not isinstance(backend, Backend):
            backend = open_backend(backend or DEFAULT_BACKEND, backend_options)
            stack.enter_context(releasing(backend.close, events.warn))
        run = run_defaults(network, add_hosts, shm_size, ulimits, cgroup_parent, allow)
        request = _request(
            backend, target, with_epoch(args, fixed_time), run, labels=labels, contexts=contexts
        )
        asked, lookup = for_each(platforms, request), looked_up(backend, policy)
        use_cache = Capability.STEP_CACHE in backend.capabilities and not no_cache
        plan = plan_all(
            source, asked, lookup, lock, events=events, cancel=cancel, max_workers=max_workers
        )
        events.send(plan_made(plan, source.inputs.name, source.inputs.dockerfile))
        _check_plan(plan, backend, events, use_cache=use_cache)
        client = registry_client(registry, stack)
        this = Building(plan, backend, wanted, client, events, cancel)
        caches = opened_caches(this, wanted_caches, stack, no_cache=no_cache)
        refused = stages_to_hit(fail_on_miss, plan, source.stage_names, use_cache=use_cache)
        given = context, dockerfile
        misses = noting_misses(this, source, given, asked, names, began=began, refused=refused)
        opened = Contexts(source.inputs.context, contexts or {}, fetched, stack)
        settings = StageSettings(
            contexts=_open_contexts(plan, opened, backend.notes_folder(), events, cancel),
            remotes=fetched,
            created=fixed_time,
            began=began,
            use_cache=use_cache,
            lent=_lend(plan, secrets or {}, ssh or {}, ca, stack),
            fresh_stages=frozenset(name.lower() for name in no_cache_filter),
            on_failure=on_failure.fitting(backend),
        )
        runner = run_plan(this, settings, misses, caches, stack, max_workers=max_workers)
        built = made_images(this, runner, caches)
        result = delivered(this, built, runner, clock)
        if caches is not None:
            caches.export(runner, args, built, wanted.outputs)
    events.send(BuildFinished(result))
    return result


def _cache_request(
    cache_from: Sequence[CacheImport | str], cache_to: Sequence[CacheExport | str]
) -> CacheRequest | None:
    if not cache_from and not cache_to:
        return None
    from pybuild.cachetransfer.caches import cache_request  # noqa: PLC0415  (few builds have one)

    return cache_request(cache_from, cache_to)


def _on_failure(
    logs: str | Path | None,
    failed_steps: FailedSteps | None,
    failed_runs: FailedRuns | None,
    backend: str | Backend | None,
) -> OnFailure:
    if failed_steps is not None and not isinstance(backend, Backend):
        raise UsageError(
            "a backend that is opened for one build can't keep the files of failed steps",
            hint="give an open one, or use a pybuild.Builder",
        )
    return OnFailure(failed_steps, None if logs is None else Path(logs), failed_runs)


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
    locked: Lock | str | Path | bool = False,
) -> PlannedBuild:
    """Plan what :func:`build` would do, without doing it. The arguments are the same.

    Images that no backend can look up, because there is none or it can't start, count as
    empty and are listed. A backend given by name is opened only if there is one to look up.
    """
    args = dict(build_args or {})
    lock = _chosen_lock(locked, context, dockerfile)
    platforms, policy = asked_platforms(platform), pull_policy(pull, locked=lock is not None)
    cancel = cancel or CancelToken()
    events = Events(reporter)
    with ExitStack() as stack:
        fetched = Remotes(remotes, secrets or {})
        source = stack.enter_context(
            reading(context, dockerfile, args, fetched, events=events, cancel=cancel)
        )
        run = run_defaults(network, add_hosts, shm_size, ulimits, cgroup_parent, allow)
        request = _request(backend, target, args, run, labels=labels, contexts=contexts)
        lookup = LazyLookup(backend, backend_options, policy, stack, events)
        asked = for_each(platforms, request)
        plan = plan_all(source, asked, lookup, lock, events=events, cancel=cancel)
        report_warnings(plan, events)
    return PlannedBuild(plan, tuple(lookup.unresolved))


def _check_plan(plan: Plan, backend: Backend, events: Events, *, use_cache: bool) -> None:
    """Report the plan's warnings, and refuse what the backend or this machine can't do."""
    check_supported(plan, backend, use_cache=use_cache)
    report_warnings(plan, events)
    check_emulation(plan, backend, events)


def _chosen_lock(
    locked: Lock | str | Path | bool, context: Context, dockerfile: DockerfileSource
) -> Lock | None:
    if locked is False:
        return None
    from pybuild.lockfile import chosen_lock  # noqa: PLC0415 - few builds are locked

    return chosen_lock(locked, context, dockerfile)


def _open_contexts(
    plan: Plan, contexts: Contexts, notes: Path | None, events: Events, cancel: CancelToken
) -> dict[str | None, Tree]:
    """The files of the contexts that any step reads; `notes` is :meth:`.Backend.notes_folder`."""
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
            found[name] = contexts.open(name, activity, notes)
            # Reads the first folder, so that a context that can't be read fails here.
            found[name].children(b"")
    return found


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


def _request(
    backend: str | Backend | None,
    target: str | None,
    build_args: Mapping[str, str],
    run: RunDefaults,
    *,
    labels: Mapping[str, str] | None,
    contexts: Mapping[str, ContextValue] | None,
) -> PlanRequest:
    """What is asked for, for the backend's own platform, or this machine's while none is open."""
    native = backend.platforms[0] if isinstance(backend, Backend) else host_platform()
    return PlanRequest(
        platform=native,
        build_platform=native,
        target=target,
        build_args=dict(build_args),
        labels=dict(labels or {}),
        run=run,
        contexts=named_contexts(contexts or {}),
    )
