"""The content store: blobs by digest.

Digests are ``sha256:`` and 64 hex digits, of the bytes as they are stored. The caller
computes them: containerd checks them again at the commit.
"""

from __future__ import annotations

import contextlib
import io
import random
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Final, Self, cast

from pybuild.backend import Activity
from pybuild.errors import BackendError, BackendFailed, InvalidImage, PybuildError
from pybuild.values import dataclass, field
from pybuild_containerd import rpcs
from pybuild_containerd.client import COMMIT, WRITE, Client, Stream
from pybuild_containerd.errors_table import AlreadyExists, Locked, NotFound
from pybuild_containerd.leases import keep_content

_MESSAGE: Final = 1 << 20
"""Bytes sent in one message, or up to twice as many: containerd gets slower with smaller ones."""

_SMALL: Final = 8 << 20
_LOCKED_SECONDS: Final = 300.0
_LONGEST_LABEL: Final = 4096


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """What the store knows of a blob; ``size`` in bytes."""

    digest: str
    size: int
    labels: Mapping[str, str] = field(default_factory=dict)


class ContentStore:
    """The blobs in the client's namespace. Safe to use from several threads."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def info(self, digest: str) -> BlobInfo:
        """Raises NotFound."""
        info = self._client.call(rpcs.CONTENT_INFO, digest=digest).info
        return BlobInfo(info.digest, info.size, dict(info.labels))

    def exists(self, digest: str, labels: Mapping[str, str] | None = None) -> bool:
        """Whether the blob is here; if so, our lease keeps it from now on, and it has `labels`."""
        wanted = dict(labels or {})
        try:
            self.info(digest)
            keep_content(self._client, digest)
            # a garbage collection may have come before the lease did
            found = self.info(digest).labels
            if any(found.get(label, "") != value for label, value in wanted.items()):
                self.update_labels(digest, wanted)
        except NotFound:
            return False
        return True

    def keep(self, digest: str) -> bool:
        """As :meth:`exists`, one call less for a blob that most likely is here."""
        try:
            keep_content(self._client, digest)
            self.info(digest)
        except NotFound:
            return False
        return True

    def open(self, digest: str, offset: int = 0, size: int = 0) -> BinaryIO:
        """A stream of the blob from `offset` on, `size` bytes or to its end for 0.

        Close it to stop early. Raises NotFound.
        """
        total = self.info(digest).size
        return self._open_part(digest, offset, total if size == 0 else min(total, offset + size))

    def _open_part(self, digest: str, offset: int, end: int) -> BinaryIO:
        if offset >= end:
            return io.BytesIO()
        stream = self._client.stream(
            rpcs.CONTENT_READ, digest=digest, offset=offset, size=end - offset
        )
        return cast(
            "BinaryIO", io.BufferedReader(_BlobReader(stream, digest, end - offset), 1 << 18)
        )

    def read(self, digest: str, limit: int = _SMALL) -> bytes:
        """The whole blob. Raises NotFound, and InvalidImage if it is beyond `limit` bytes."""
        size = self.info(digest).size
        if size > limit:
            raise InvalidImage(f"{digest} has {size} bytes where at most {limit} are allowed")
        with self._open_part(digest, 0, size) as blob:
            return blob.read()

    def writer(
        self,
        ref: str | None = None,
        *,
        expected: str | None = None,
        total: int = 0,
        activity: Activity | None = None,
        resumable: bool = False,
    ) -> BlobWriter:
        """Begin to write a blob.

        One writer at a time has a `ref`; a second one waits here. Writers of a ref that was
        left over go on at :attr:`BlobWriter.offset`; without `ref` it is a new random one.
        With `expected`, the blob's digest, `present` tells that nothing need be written.
        `total` is the size in bytes if it is known. Raises Locked after five minutes.
        """
        ref = ref or f"pybuild-{secrets.token_hex(12)}"
        opening = {"ref": ref, "expected": expected or "", "total": total}
        until = time.monotonic() + _LOCKED_SECONDS
        pause = 0.05
        while True:
            if activity is not None:
                activity.raise_if_cancelled()
            try:
                return BlobWriter(self._client, opening, activity, resumable=resumable)
            except Locked:
                if time.monotonic() > until:
                    raise
                time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  # only spreads load
                pause = min(pause * 2, 2.0)

    def write_small(
        self, data: bytes, digest: str, labels: Mapping[str, str] | None = None
    ) -> None:
        """Store a blob of at most 8 MiB. One that is here already gets `labels` as well."""
        if len(data) > _SMALL:
            raise BackendFailed(f"{digest} is too large to be written at once")
        check_labels(labels or {})
        if self.exists(digest, labels):
            return
        with self.writer(f"pybuild-{secrets.token_hex(12)}", total=len(data)) as writer:
            writer.write(data)
            writer.commit(digest, len(data), labels)

    def update_labels(self, digest: str, labels: Mapping[str, str]) -> None:
        """Set these labels and leave the others; an empty value unsets one. Raises NotFound."""
        if labels:
            self._client.call(
                rpcs.CONTENT_UPDATE,
                info={"digest": digest, "labels": dict(labels)},
                update_mask={"paths": [f"labels.{label}" for label in labels]},
            )

    def replace_labels(self, digest: str, labels: Mapping[str, str]) -> None:
        """Set these labels and unset all others. Raises NotFound."""
        self._client.call(
            rpcs.CONTENT_UPDATE,
            info={"digest": digest, "labels": dict(labels)},
            update_mask={"paths": ["labels"]},
        )

    def delete(self, digest: str) -> None:
        """Delete a blob; one that is gone already is fine."""
        with contextlib.suppress(NotFound):
            self._client.call(rpcs.CONTENT_DELETE, digest=digest)


class _BlobReader(io.RawIOBase):
    """The bytes of a Read stream; ends with an error if there are fewer than `size`."""

    def __init__(self, stream: Stream, digest: str, size: int) -> None:
        super().__init__()
        self._stream = stream
        self._digest = digest
        self._missing = size
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._piece and self._missing > 0:
            message = self._stream.receive()
            if message is None:
                raise BackendFailed(f"containerd ended {self._digest} {self._missing} bytes early")
            self._piece = memoryview(message.data)[: self._missing]
            self._missing -= len(self._piece)
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            self._stream.cancel()
        super().close()


class BlobWriter:
    """One blob being written: a context manager that ends in `commit`, or drops the bytes.

    ``offset`` is how much of it the store has. ``present`` is True when the store has the
    whole blob under its expected digest: `write` is not allowed then, `commit` still is due.
    """

    def __init__(
        self,
        client: Client,
        opening: Mapping[str, Any],
        activity: Activity | None,
        *,
        resumable: bool,
    ) -> None:
        self._client = client
        self._ref: str = opening["ref"]
        self._total: int = opening["total"]
        self._expected: str = opening["expected"]
        self._resumable = resumable
        self._activity = activity
        self._pending: list[bytes] = []
        self._waiting = 0
        self._over = False
        self._stream = client.duplex(rpcs.CONTENT_WRITE, activity=activity)
        self.present = False
        self.offset = 0
        try:
            self._stream.send(**opening)  # the action STAT, which takes the ref
            answer = self._stream.receive()
            if answer is None:
                raise BackendFailed(f"containerd ended the writing of {self._ref}")
            self.offset = answer.offset
        except AlreadyExists:
            self.present = True
            self._stream.cancel()
        except BaseException:
            self._stream.cancel()
            raise
        # what another namespace has needs no bytes either, but still the commit
        self._shared = self.offset > 0 and bool(self._expected) and self.offset == self._total

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._over:
            self.abort()

    @property
    def complete(self) -> bool:
        """Whether the store needs no more bytes, so that `commit` may follow at once."""
        return self.present or self._shared

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes to the end. They are on their way, not stored, when this returns."""
        if self._activity is not None:
            self._activity.raise_if_cancelled()
        for start in range(0, len(data), _MESSAGE):
            piece = bytes(data[start : start + _MESSAGE])
            self._pending.append(piece)
            self._waiting += len(piece)
            if self._waiting >= _MESSAGE:
                self._drain()
                self._send(action=WRITE, total=self._total)

    def commit(self, digest: str, size: int, labels: Mapping[str, str] | None = None) -> None:
        """Store the blob. `digest` and `size` are of all of it, as the caller counted them.

        Our lease keeps it and it gets `labels`, also if someone else stored it meanwhile.
        Raises FailedPrecondition if the bytes don't have that digest or size.
        """
        labels = dict(labels or {})
        check_labels(labels)
        try:
            if self.present:
                raise AlreadyExists("", call="", details="")
            self._commit(digest, size, labels)
        except AlreadyExists:
            self.abort()
            keep_content(self._client, digest)
            ContentStore(self._client).update_labels(digest, labels)
            ContentStore(self._client).info(digest)
        self._over = True

    def abort(self) -> None:
        """Drop what was written, or keep it for a later writer if it is resumable."""
        self._over = True
        keep = self.present or (self._resumable and self.offset > 0)
        with contextlib.suppress(PybuildError):  # must not hide what led here
            if keep and not self.present:
                self._flush()
        self._stream.cancel()
        if keep:
            return
        with contextlib.suppress(BackendError):  # as above
            _retry_locked(lambda: self._client.call(rpcs.CONTENT_ABORT, ref=self._ref))

    def _send(self, **fields: Any) -> None:
        """Send what is pending with a message of these fields."""
        self._stream.send_data("data", self._pending, ref=self._ref, offset=self.offset, **fields)
        self.offset += self._waiting
        self._pending.clear()
        self._waiting = 0

    def _flush(self) -> None:
        """Wait until containerd has what is on its way."""
        self._stream.finish()
        for _ in self._stream:
            pass

    def _drain(self) -> None:
        """Take the acknowledgements that are here, so that the daemon isn't held up."""
        while self._stream.has_received():
            if self._stream.receive() is None:
                raise BackendFailed(f"containerd ended the writing of {self._ref} early")

    def _commit(self, digest: str, size: int, labels: dict[str, str]) -> None:
        self._send(action=COMMIT, total=size, expected=digest, labels=labels)
        self._stream.finish()
        committed = False
        for answer in self._stream:
            committed = committed or answer.action == COMMIT
        if not committed:
            raise BackendFailed(f"containerd ended the writing of {digest} without a commit")


def _retry_locked(call: Callable[[], object]) -> None:
    """Call until the ref isn't locked; a cancelled stream's lock goes a moment later."""
    for pause in (0.01, 0.03, 0.1, 0.3, 1.0):
        try:
            call()
        except Locked:
            time.sleep(pause)
        else:
            return


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise BackendFailed for a label that containerd would refuse after all the work."""
    for key, value in labels.items():
        if len(key.encode()) + len(value.encode()) > _LONGEST_LABEL:
            raise BackendFailed(
                f"the label {key[:60]} is longer than the {_LONGEST_LABEL} bytes allowed"
            )


def label_chunks(key: str, text: str) -> dict[str, str]:
    """`text` as one label, or as ``key.0``, ``key.1`` and so on where it is too long for one."""
    room = _LONGEST_LABEL - len(key) - len(".99999")
    if len(text) <= room:
        return {key: text}
    pieces = [text[start : start + room] for start in range(0, len(text), room)]
    return {f"{key}.{number}": piece for number, piece in enumerate(pieces)}


def gc_labels(config: str, layers: tuple[str, ...]) -> dict[str, str]:
    """The labels by which a manifest keeps its config and layers, all given as digests."""
    references = {f"containerd.io/gc.ref.content.l.{i}": layer for i, layer in enumerate(layers)}
    return {"containerd.io/gc.ref.content.config": config, **references}


def index_gc_labels(manifests: tuple[str, ...]) -> dict[str, str]:
    """The labels by which an index keeps its manifests, all given as digests."""
    return {f"containerd.io/gc.ref.content.m.{i}": digest for i, digest in enumerate(manifests)}
