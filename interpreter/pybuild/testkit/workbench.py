"""Short forms for tests of backends: an activity that records, entries, and steps on layers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from io import BytesIO
from typing import Any, Self

from pybuild.backend import (
    Backend,
    BaseImage,
    Image,
    ImageSpec,
    Mount,
    Process,
    PullPolicy,
    ROLayer,
)
from pybuild.files.trees import NewEntry
from pybuild.oci.image_config import HistoryEntry, ImageConfig
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.reference import parse_reference
from pybuild.run.activity import CancelToken

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class RecordingActivity:
    """An Activity that keeps what it is told, and can be cancelled."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._token = CancelToken()
        self._output: dict[int, list[bytes]] = {1: [], 2: []}
        self._lock = threading.Lock()

    @property
    def stdout(self) -> bytes:
        return self._joined(1)

    @property
    def stderr(self) -> bytes:
        return self._joined(2)

    def _joined(self, stream: int) -> bytes:
        with self._lock:
            return b"".join(self._output[stream])

    def cancel(self) -> None:
        """Cancel what this activity was given to."""
        self._token.cancel()

    def log(self, stream: int, data: bytes) -> None:
        with self._lock:
            self._output[stream].append(bytes(data))

    def progress(self, item: str, done: int, total: int | None) -> None:
        """Nothing is kept of it."""

    def warn(self, message: str, hint: str | None = None) -> None:
        with self._lock:
            self.warnings.append(f"{message} ({hint})" if hint else message)

    def raise_if_cancelled(self) -> None:
        self._token.raise_if_cancelled()

    def on_cancel(self, callback: Callable[[], None]) -> AbstractContextManager[None]:
        return self._token.on_cancel(callback)


def file(path: bytes, content: bytes = b"", mode: int = 0o644, **fields: Any) -> NewEntry:
    """A regular file; `fields` are further ones of :class:`Entry`."""
    digest = f"sha256:{sha256(content).hexdigest()}"
    entry = Entry(path, Kind.FILE, mode, size=len(content), digest=digest, **fields)
    return NewEntry(entry, partial(BytesIO, content))


def folder(path: bytes, mode: int = 0o755, **fields: Any) -> NewEntry:
    return NewEntry(Entry(path, Kind.DIRECTORY, mode, **fields))


def symlink(path: bytes, target: bytes) -> NewEntry:
    return NewEntry(Entry(path, Kind.SYMLINK, 0o777, link=target))


def hard_link(path: bytes, target: NewEntry) -> NewEntry:
    """A second name of `target`, a file put into the same layer."""
    return NewEntry(replace(target.entry, path=path, link=target.entry.path))


@dataclass(frozen=True, slots=True)
class Ran:
    """What a simple RUN gave; ``layer`` is what it left, whatever the exit code."""

    code: int
    out: str
    err: str
    layer: ROLayer


class Workbench:
    """Steps on layers, each in one call. Releases every layer at its end."""

    def __init__(self, backend: Backend, base_reference: str) -> None:
        self.backend = backend
        self.activity = RecordingActivity()
        self._base_reference = base_reference
        self._stack = ExitStack()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def hold(self, layer: ROLayer) -> ROLayer:
        """Release `layer` at the end."""
        with self._lock:
            self._stack.push(layer)
        return layer

    def image(self, reference: str | None = None) -> BaseImage:
        """The base image, or another."""
        return self.backend.resolve(
            parse_reference(reference or self._base_reference),
            self.backend.platforms[0],
            PullPolicy.MISSING,
            self.activity,
        )

    def base(self) -> ROLayer:
        """The base image, checked out."""
        return self.hold(self.backend.checkout(self.image(), self.activity))

    def scratch(self) -> ROLayer:
        return self.hold(self.backend.checkout(None, self.activity))

    def put(
        self,
        layer: ROLayer,
        *entries: NewEntry,
        key: str | None = None,
        newest: int | None = None,
    ) -> ROLayer:
        """The layer with `entries` put on `layer`."""
        with layer.begin(runs=False, newest=newest) as rw:
            rw.put(entries, self.activity)
            return self.hold(rw.commit(key, self.activity))

    def run(
        self,
        layer: ROLayer,
        command: str | Sequence[str],
        mounts: Sequence[Mount] = (),
        activity: RecordingActivity | None = None,
        newest: int | None = None,
        **fields: Any,
    ) -> Ran:
        """Run a shell script or an argument list; `fields` are further ones of Process."""
        activity = activity or RecordingActivity()
        args = ("/bin/sh", "-c", command) if isinstance(command, str) else tuple(command)
        process = Process(
            **{"args": args, "env": (("PATH", PATH),), "cwd": "/", "hostname": "worker", **fields}
        )
        with layer.begin(runs=True, newest=newest) as rw:
            code = rw.run(process, mounts, activity)
            made = self.hold(rw.commit(None, activity))
        out = activity.stdout.decode("utf-8", "surrogateescape")
        err = activity.stderr.decode("utf-8", "surrogateescape")
        return Ran(code, out, err, made)

    def create(
        self,
        top: ROLayer,
        *names: str,
        base: BaseImage | None = None,
        annotations: dict[str, str] | None = None,
        **fields: Any,
    ) -> Image:
        """An image of `top`; `fields` are further ones of ImageConfig."""
        platform = self.backend.platforms[0]
        history = tuple(HistoryEntry(created_by="test") for _ in top.diffs)
        diff_ids = tuple(diff.diff_id for diff in top.diffs)
        config = ImageConfig(
            **{"platform": platform, "history": history, "diff_ids": diff_ids, **fields}
        )
        references = tuple(parse_reference(name) for name in names)
        spec = ImageSpec(config, top.diffs, references, annotations or {}, base)
        return self.backend.create_image(spec, top, self.activity)


def content(layer: ROLayer, path: bytes) -> bytes:
    """What a file of the layer's file system holds."""
    with layer.tree().open(path) as stream:
        return stream.read()
