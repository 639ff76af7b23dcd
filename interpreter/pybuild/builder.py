"""`Builder`: many builds over one backend, and the images in its store."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypedDict, Unpack

from pybuild.api import build
from pybuild.backend import Backend, HostEntry, Network, PullPolicy, Ulimit
from pybuild.backends import DEFAULT_BACKEND, open_backend
from pybuild.errors import ImageNotFound, PlatformMismatch, UsageError
from pybuild.export.outputs import Output
from pybuild.image import Image, stored_image
from pybuild.oci.descriptor import is_digest
from pybuild.oci.platform import Platform, parse_platform
from pybuild.oci.reference import parse_reference, with_default_tag
from pybuild.options import pull_policy
from pybuild.remotes.options import RemoteOptions
from pybuild.run.activity import CancelToken, Events
from pybuild.run.contexts import ContextValue
from pybuild.run.events import Reporter
from pybuild.run.failedsteps import FailedSteps
from pybuild.run.inputs import Context, DockerfileSource
from pybuild.run.result import BuildResult
from pybuild.run.schedule import workers
from pybuild.secrets import Secret

if TYPE_CHECKING:
    from pybuild.cachetransfer.places import CacheExport, CacheImport
    from pybuild.lockfile import Lock
    from pybuild.oci.registry import RegistryClient

_UNNAMED = "docker.io/library/unnamed"
_OUTPUTS = "a build leaves it there unless it has outputs that are not of type=image"


class BuildOptions(TypedDict, total=False):
    """What :meth:`Builder.build` takes besides the context: as :func:`pybuild.build` does."""

    dockerfile: DockerfileSource
    tags: Sequence[str]
    build_args: Mapping[str, str] | None
    target: str | None
    platform: str | Platform | Sequence[str | Platform] | None
    pull: PullPolicy | str | bool
    no_cache: bool
    no_cache_filter: Collection[str]
    fail_on_miss: bool | Collection[str]
    labels: Mapping[str, str] | None
    annotations: Mapping[str, str] | None
    index_annotations: Mapping[str, str] | None
    network: Network | str | None
    add_hosts: Sequence[HostEntry]
    shm_size: int | None
    ulimits: Sequence[Ulimit]
    cgroup_parent: str | None
    allow: Sequence[str]
    contexts: Mapping[str, ContextValue] | None
    secrets: Mapping[str, Secret] | None
    ssh: Mapping[str, Sequence[str | Path]] | None
    ca: bytes | None
    remotes: RemoteOptions | None
    reporter: Reporter | None
    cancel: CancelToken | None
    max_workers: int | None
    created: datetime | int | None
    locked: Lock | str | Path | bool
    outputs: Sequence[Output | str]
    cache_from: Sequence[CacheImport | str]
    cache_to: Sequence[CacheExport | str]
    logs: str | Path | None


class BuildFuture(Future[BuildResult]):
    """A build that :meth:`Builder.submit` began, or will begin."""

    def __init__(self, cancel: CancelToken) -> None:
        super().__init__()
        self._cancel = cancel

    def cancel(self) -> bool:
        """Cancel the build, also one that runs; False if it has ended.

        One that hasn't begun never does, and counts as cancelled. One that runs ends soon:
        :meth:`result` waits for that, and raises BuildCancelled unless it was done already.
        """
        if super().cancel():
            return True
        if self.done():
            return False
        self._cancel.cancel()
        return True


class Builder:
    """Builds over one backend, from any number of threads. A context manager over `close`.

    ::

        with pybuild.Builder() as builder:
            result = builder.build({"Dockerfile": "FROM busybox"})
            print(builder.image(result).fs.listdir("/"))

    `backend` is a name or an open backend, which stays open; `backend_options` go to the one
    opened by name. `registry` pushes and stays open; by default each push has a client without
    logins. At most `max_builds` builds of :meth:`submit` run at the same time, by default as
    many as there are processors, at least four.

    What the backend keeps for a running build it keeps here until `close`: the images and
    steps of all builds, and the files of the last steps that failed, for ``error.fs``.
    """

    def __init__(
        self,
        backend: str | Backend | None = None,
        *,
        backend_options: Mapping[str, object] | None = None,
        registry: RegistryClient | None = None,
        max_builds: int | None = None,
    ) -> None:
        """Raises BackendError, UsageError."""
        if max_builds is not None and max_builds < 1:
            raise UsageError(f"max_builds is {max_builds}, not 1 or more")
        self._registry = registry
        self._failed = FailedSteps()
        self._changed = threading.Condition()
        self._running: list[CancelToken] = []
        self._refuses = False
        self._resources = ExitStack()
        if not isinstance(backend, Backend):
            backend = open_backend(backend or DEFAULT_BACKEND, backend_options)
            self._resources.callback(backend.close)
        self._backend = backend
        self._resources.callback(self._failed.close)
        self._pool = self._resources.enter_context(workers(max_builds))

    @property
    def backend(self) -> Backend:
        """What it builds on; open as long as the builder is."""
        return self._backend

    def build(self, context: Context, **options: Unpack[BuildOptions]) -> BuildResult:
        """Build as :func:`pybuild.build` does, in this thread.

        A step that fails raises a :class:`~pybuild.errors.StepFailed` whose ``fs`` can be read
        until the builder is closed. Raises UsageError when it is.
        """
        with self._used(options.pop("cancel", None)) as (_, cancel):
            return self._build(context, options, cancel)

    def submit(self, context: Context, **options: Unpack[BuildOptions]) -> BuildFuture:
        """Build in a thread of the builder's own. Raises UsageError when it is closed."""
        cancel = CancelToken()
        future = BuildFuture(cancel)
        self._begin(cancel)
        try:
            self._pool.submit(self._complete, future, context, options, cancel)
        except BaseException:
            self._end(cancel)
            raise
        return future

    def image(
        self,
        image: BuildResult | str,
        *,
        platform: str | Platform | None = None,
        pull: PullPolicy | str | bool = PullPolicy.NEVER,
    ) -> Image:
        """The image that a build made, or that a name or digest finds in the store.

        Of several platforms it is the one asked for, by default this machine's, of a result
        the first one. A name that isn't in the store is fetched if `pull` says so. Raises
        ImageNotFound, also for a build whose outputs leave nothing in the store,
        PlatformMismatch, RegistryError, InvalidImage.
        """
        wanted = parse_platform(platform) if isinstance(platform, str) else platform
        names: Sequence[str] = ()
        with self._used() as (backend, cancel):
            if isinstance(image, BuildResult):
                digest, names = _digest_in(image, wanted), image.names
                reference = parse_reference(names[0] if names else f"{_UNNAMED}@{digest}")
            elif is_digest(image):
                digest, reference = image, parse_reference(f"{_UNNAMED}@{image}")
            else:
                reference = with_default_tag(parse_reference(image))
                native, nobody = backend.platforms[0], Events(None).silent(cancel)
                found = backend.resolve(reference, wanted or native, pull_policy(pull), nobody)
                digest = found.digest
                names = () if reference.digest else (str(reference),)
            try:
                stored = stored_image(backend, digest, reference)
            except ImageNotFound as error:
                raise ImageNotFound(
                    f"the image {digest} is not in the store", hint=_OUTPUTS
                ) from error
        return Image(stored, names, self._used, self._client)

    def close(self, *, cancel: bool = False) -> None:
        """Wait for what was begun and submitted, or `cancel` it; then close everything.

        Leaving a ``with`` block by an exception cancels. Idempotent. Not to be called by a
        reporter or a future's callback of the builder's own builds.
        """
        with self._changed:
            self._refuses = True
        try:
            if cancel:
                self._cancel_all()
            self._wait()
        except BaseException:  # an interrupt doesn't leave processes behind
            self._cancel_all()
            self._wait()
            raise
        finally:
            self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.close(cancel=kind is not None)

    def _build(self, context: Context, options: BuildOptions, cancel: CancelToken) -> BuildResult:
        given = BuildOptions(**options, cancel=cancel)
        return build(
            context,
            backend=self._backend,
            failed_steps=self._failed,
            registry=self._registry,
            **given,
        )

    def _complete(
        self, future: BuildFuture, context: Context, options: BuildOptions, cancel: CancelToken
    ) -> None:
        try:
            if not future.set_running_or_notify_cancel():
                return
            with _following(options.pop("cancel", None), cancel):
                future.set_result(self._build(context, options, cancel))
        except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
            future.set_exception(error)
        finally:
            self._end(cancel)

    @contextmanager
    def _used(self, cancel: CancelToken | None = None) -> Iterator[tuple[Backend, CancelToken]]:
        """The backend for one operation, and what cancels it: `cancel`, or the builder's close."""
        own = CancelToken()
        self._begin(own)
        try:
            with _following(cancel, own):
                yield self._backend, own
        finally:
            self._end(own)

    def _begin(self, operation: CancelToken) -> None:
        with self._changed:
            if self._refuses:
                raise UsageError(
                    "the builder is closed", hint="use it, and its images, in its with block"
                )
            self._running.append(operation)

    def _end(self, operation: CancelToken) -> None:
        with self._changed:
            self._running.remove(operation)
            self._changed.notify_all()

    def _wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._running)

    def _cancel_all(self) -> None:
        with self._changed:
            running = list(self._running)
        for each in running:
            each.cancel()

    @contextmanager
    def _client(self) -> Iterator[RegistryClient]:
        if self._registry is not None:
            yield self._registry
            return
        from pybuild.oci.registry import RegistryClient  # noqa: PLC0415 - few push

        with RegistryClient() as client:
            yield client


def _following(leader: CancelToken | None, follower: CancelToken) -> AbstractContextManager[None]:
    """While it lasts, cancelling the one cancels the other."""
    return nullcontext() if leader is None else leader.on_cancel(follower.cancel)


def _digest_in(result: BuildResult, platform: Platform | None) -> str:
    if platform is None:
        return result.images[result.platform].digest
    if platform not in result.images:
        raise PlatformMismatch(
            f"the build made no image for {platform}",
            hint="it made them for " + ", ".join(map(str, result.images)),
        )
    return result.images[platform].digest
