"""How a plan finds its base images: in a backend that is open, or in one opened for the first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager

from pybuild.backend import Backend, BaseImage, PullPolicy
from pybuild.backends import open_backend
from pybuild.errors import BackendUnavailable, SourceRange
from pybuild.oci.image_config import ImageConfig
from pybuild.oci.platform import Platform
from pybuild.oci.reference import Reference
from pybuild.plan.contexts import LayoutContext
from pybuild.plan.resolve import ImageName, Resolve
from pybuild.run.activity import CancelToken, Events, StepActivity
from pybuild.run.layers import releasing
from pybuild.run.schedule import workers

Lookup = Callable[[ImageName, Platform, StepActivity], BaseImage]
"""Finds an image for a platform, or raises what :meth:`.Backend.resolve` does."""


def looked_up(backend: Backend, policy: PullPolicy) -> Lookup:
    """Look images up in `backend`, and take those of a layout into it."""

    def look_up(name: ImageName, platform: Platform, activity: StepActivity) -> BaseImage:
        if isinstance(name, Reference):
            return backend.resolve(name, platform, policy, activity)
        from pybuild.files.layout import open_layout  # noqa: PLC0415  (few images are in one)

        with open_layout(name.path) as layout:
            image = layout.find(platform, tag=name.tag, digest=name.digest)
            return backend.import_image(image, activity)

    return look_up


def laid_out(name: LayoutContext, platform: Platform) -> BaseImage:
    """The image in a layout, without its layers' bytes. Raises as :func:`.open_layout`."""
    from pybuild.files.layout import open_layout  # noqa: PLC0415  (as above)

    with open_layout(name.path) as layout:
        image = layout.find(platform, tag=name.tag, digest=name.digest)
    return BaseImage(image.reference, image.descriptor.digest, image.config, image.layers)


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
            return laid_out(name, platform)
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
