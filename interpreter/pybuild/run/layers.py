"""Who still needs which layer: layers shared by stages, and the base images of a build."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pybuild.backend import Activity, Backend, BaseImage, ROLayer


class SharedLayer:
    """A read-only layer with several users. It is released with the last of them.

    Whoever makes one is its first user.
    """

    def __init__(self, layer: ROLayer) -> None:
        self.layer = layer
        self._users = 1
        self._lock = threading.Lock()

    def share(self) -> SharedLayer:
        """Add a user, who must call :meth:`release` once."""
        with self._lock:
            self._users += 1
        return self

    def release(self) -> None:
        """Take a user away."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self.layer.release()


class BaseImages:
    """The base images that a build has checked out: each once, all kept to its end."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._layers: dict[str, SharedLayer] = {}

    def checkout(
        self, image: BaseImage | None, activity: Activity, *, runs: bool = True
    ) -> SharedLayer:
        """The layer of `image`, of scratch for None. The caller becomes a user of it.

        `runs` is as in :meth:`pybuild.backend.Backend.checkout`; of several that of the first.
        """
        name = f"{image.digest} {image.config.platform}" if image else "scratch"
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        # Two images may be fetched at the same time, one image only once.
        with lock:
            if name not in self._layers:
                layer = self._backend.checkout(image, activity, runs=runs)
                self._layers[name] = SharedLayer(layer)
            return self._layers[name].share()

    def release(self) -> None:
        """Let go of all of them."""
        with self._lock:
            layers = list(self._layers.values())
            self._layers.clear()
        release_all([layer.release for layer in layers])


def release_all(releases: list[Callable[[], None]]) -> None:
    """Call each of `releases`, the last first, whatever the others raise; raise the first error."""
    first: Exception | None = None
    for release in reversed(releases):
        try:
            release()
        except Exception as error:  # noqa: BLE001  # the others must be released too
            first = first or error
    if first is not None:
        raise first


@contextmanager
def releasing(release: Callable[[], None], warn: Callable[[str], None]) -> Iterator[None]:
    """Call `release` at the end.

    Its error is a warning: it neither hides the error of the block nor makes a build that
    succeeded fail.
    """
    try:
        yield
    finally:
        try:
            release()
        except Exception as error:  # noqa: BLE001  # whatever it is, the build has ended
            warn(f"something could not be released: {error}")
