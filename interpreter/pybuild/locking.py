"""`lock_images`: ask registries and servers what a Dockerfile's images and sources are now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from pybuild.backend import BaseImage
from pybuild.errors import SourceRange
from pybuild.lockfile import Lock, LockedImage
from pybuild.lookups import laid_out, resolving
from pybuild.oci.image_config import parse_config
from pybuild.oci.platform import Platform, host_platform
from pybuild.oci.pull import fetch_image
from pybuild.oci.reference import Reference, with_default_tag
from pybuild.oci.registry import RegistryClient
from pybuild.options import asked_platforms
from pybuild.pinning import commit_key, is_pinned
from pybuild.plan import make_plan
from pybuild.plan.resolve import ImageName, Resolve
from pybuild.plan.steps import CopyStep, Plan, PlanRequest
from pybuild.planning import reading, report_warnings
from pybuild.remotes.fetching import Remotes
from pybuild.remotes.locations import Location, WebLocation
from pybuild.remotes.options import RemoteOptions
from pybuild.run.activity import CancelToken, Events, StepActivity
from pybuild.run.contexts import ContextValue, named_contexts
from pybuild.run.events import Reporter
from pybuild.run.inputs import Context, DockerfileSource
from pybuild.secrets import Secret


def lock_images(
    context: Context,
    *,
    dockerfile: DockerfileSource = None,
    build_args: Mapping[str, str] | None = None,
    target: str | None = None,
    platform: str | Platform | Sequence[str | Platform] | None = None,
    contexts: Mapping[str, ContextValue] | None = None,
    secrets: Mapping[str, Secret] | None = None,
    remotes: RemoteOptions | None = None,
    registry: RegistryClient | None = None,
    reporter: Reporter | None = None,
    cancel: CancelToken | None = None,
) -> Lock:
    """Look up every image and every source of ADD that builds of the Dockerfile take.

    The arguments are those of :func:`pybuild.build`. All stages count unless there is a
    `target`. Every one of several platforms also counts as the one that builds, so that the
    lock is good on machines of each; without any it is this machine's. `registry` stays
    open; by default one without logins. What has a digest, a checksum or a commit in the
    Dockerfile isn't in the lock; that such images are there is checked.

    Raises a :class:`~pybuild.errors.PybuildError`, with its place in the Dockerfile.
    """
    args, cancel, events = dict(build_args or {}), cancel or CancelToken(), Events(reporter)
    platforms = asked_platforms(platform) or (host_platform(),)
    with ExitStack() as stack:
        fetched = Remotes(remotes, secrets or {})
        source = stack.enter_context(
            reading(context, dockerfile, args, fetched, events=events, cancel=cancel)
        )
        asked = _Asked(registry or stack.enter_context(RegistryClient()))
        found: list[Plan] = []
        with resolving(asked.look_up, events, cancel) as (resolve, executor):
            once = _once(resolve)
            for wanted, builder in ((one, other) for one in platforms for other in platforms):
                request = PlanRequest(
                    wanted, builder, target, args, contexts=named_contexts(contexts or {})
                )
                every = target is None
                found.append(
                    make_plan(source.dockerfile, request, once, executor=executor, all_stages=every)
                )
        report_warnings(found[0], events)
        sources = _Sources(fetched, events, cancel)
        for plan in found:
            sources.add(plan)
    return Lock(tuple(map(str, platforms)), asked.images, sources.files, sources.commits)


class _Asked:
    """What registries said; ``images`` are those that the Dockerfile gives no digest of."""

    def __init__(self, client: RegistryClient) -> None:
        self.images: dict[tuple[str, str], LockedImage] = {}
        self._client = client

    def look_up(self, name: ImageName, platform: Platform, activity: StepActivity) -> BaseImage:
        if not isinstance(name, Reference):
            return laid_out(name, platform)
        name = with_default_tag(name)
        image = fetch_image(self._client, name, platform, activity)
        if name.digest is None:
            index = image.target.digest if image.indexes else None
            locked = LockedImage(image.descriptor.digest, index)
            self.images[str(name), str(platform)] = locked
        # nothing that planning looks at is in the layers
        return BaseImage(name, image.descriptor.digest, parse_config(image.config_bytes), ())


class _Sources:
    """The sources of ADD, each fetched once."""

    def __init__(self, remotes: Remotes, events: Events, cancel: CancelToken) -> None:
        self.files: dict[str, str] = {}
        self.commits: dict[str, str] = {}
        self._remotes = remotes
        self._events = events
        self._cancel = cancel

    def add(self, plan: Plan) -> None:
        """Look at what the plan's steps name."""
        for stage in plan.stages:
            for step in stage.steps:
                if isinstance(step, CopyStep):
                    for remote in step.remotes:
                        self._add(remote.location, step.where)

    def _add(self, location: Location, where: SourceRange) -> None:
        known = location.url if isinstance(location, WebLocation) else commit_key(location)
        if is_pinned(location) or known in self.files or known in self.commits:
            return
        with self._events.unit(
            f"[internal] look at {known}", self._cancel, where=where
        ) as activity:
            if isinstance(location, WebLocation):
                self.files[known] = self._remotes.file(location, activity).digest
            else:
                self.commits[known] = self._remotes.commit(location, activity)


def _once(resolve: Resolve) -> Resolve:
    """`resolve` that asks once for what several plans have in common."""
    found: dict[tuple[ImageName, Platform], BaseImage] = {}

    def resolve_once(name: ImageName, platform: Platform, where: SourceRange) -> BaseImage:
        if (name, platform) not in found:
            found[name, platform] = resolve(name, platform, where)
        return found[name, platform]

    return resolve_once
