"""The step cache: what steps made, kept in containerd's store for every client of it.

The record of a step is a small blob whose bytes follow from the step's cache key alone, so
that one call finds it among however many. What the step made stands in the blob's labels,
which containerd changes all at once, and which belong to the namespace::

    containerd.io/gc.root                    the record keeps itself,
    containerd.io/gc.ref.content.l.0         the blobs of all layers, bottom first,
    containerd.io/gc.ref.snapshot.overlayfs  and the topmost one's snapshot, if there is one
    pybuild/step                             the digest of the document
    pybuild/step.document                    what was made, as JSON; .0, .1, … if it is long
    pybuild/step.used                        when it was used last, to the hour

What a removed record alone kept goes with containerd's next garbage collection; a build that
found the record before keeps the layers by its own lease.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from pybuild.oci.descriptor import Descriptor, LayerDiff, digest_of, is_digest
from pybuild.oci.manifest import LAYER_TYPES
from pybuild.values import dataclass
from pybuild_containerd import rpcs
from pybuild_containerd.client import Client
from pybuild_containerd.content import ContentStore, check_labels, label_chunks
from pybuild_containerd.errors_table import CallFailed, NotFound
from pybuild_containerd.unpack import chain_ids

MOST_STEPS: Final = 2000
"""How many steps are kept; each costs containerd's database some kilobytes."""

MOST_BYTES: Final = 10 << 30
"""How many bytes the kept steps' own layers may have, as compressed as they are stored."""

_VERSION: Final = 1
_STEP: Final = "pybuild/step"
_DOCUMENT: Final = "pybuild/step.document"
_USED: Final = "pybuild/step.used"
_ROOT: Final = "containerd.io/gc.root"
_CONTENT: Final = "containerd.io/gc.ref.content.l."
_SNAPSHOT: Final = "containerd.io/gc.ref.snapshot."
# seconds between two notes of a record's use, each of which is a write of the database
_USE_GRAIN: Final = 3600


@dataclass(frozen=True, slots=True)
class CachedStep:
    """All layers after a step, bottom first; with ``own`` the topmost is what it changed.

    ``made`` is when it ran.
    """

    layers: tuple[LayerDiff, ...]
    own: bool
    made: datetime


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A record as it is stored. ``step`` is None if it is damaged, and ``key`` empty.

    ``digest`` names the record itself; ``used`` is in seconds since 1970.
    """

    digest: str
    key: str
    used: int
    step: CachedStep | None


class StepCache:
    """The records of the client's namespace. Safe in threads and among processes."""

    def __init__(self, client: Client, content: ContentStore, snapshotter: str) -> None:
        self._client = client
        self._content = content
        self._snapshotter = snapshotter
        self._recorded = False

    def record(self, key: str, step: CachedStep) -> None:
        """Keep the step under `key`, in place of an earlier one.

        The blobs must be there and kept by the session's lease. Raises BackendFailed.
        """
        labels = self._labels(key, step)
        check_labels(labels)
        blob = _record_bytes(key)
        digest = digest_of(blob)
        try:
            self._content.replace_labels(digest, labels)
        except NotFound:
            self._content.write_small(blob, digest, labels)
        self._recorded = True

    def find(self, key: str) -> CachedStep | None:
        """What the step made; None if it isn't known, or if its record is damaged.

        Whether its blobs are still there is for the caller to see.
        """
        digest = record_digest(key)
        try:
            labels = self._content.info(digest).labels
        except CallFailed:
            return None
        found = _parse(labels)
        if found is None or found[0] != key:
            return None
        self._note_use(digest, labels, found[1])
        return found[1]

    def records(self) -> list[StepRecord]:
        """All records, those used last first."""
        with self._client.stream(rpcs.CONTENT_LIST, filters=[f'labels."{_STEP}"']) as pages:
            found = [_record(blob) for page in pages for blob in page.info]
        return sorted(found, key=lambda record: (-record.used, record.digest))

    def forget(self, record: StepRecord) -> None:
        """Remove a record; one that is gone already is fine."""
        self._content.delete(record.digest)

    def shrink(self, most_steps: int = MOST_STEPS, most_bytes: int = MOST_BYTES) -> None:
        """Remove damaged records, and those used least recently beyond either number.

        Nothing to do for a session that recorded nothing.
        """
        if not self._recorded:
            return
        kept, size, blobs = 0, 0, set[str]()
        for record in self.records():
            if record.step is not None and kept < most_steps:
                own = own_blob(record.step)
                more = own.size if own is not None and own.digest not in blobs else 0
                if size + more <= most_bytes:
                    kept, size = kept + 1, size + more
                    blobs.update([own.digest] if own is not None else [])
                    continue
            self.forget(record)

    def _labels(self, key: str, step: CachedStep) -> dict[str, str]:
        document = _document(key, step)
        return {
            _ROOT: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            _STEP: digest_of(document.encode()),
            **label_chunks(_DOCUMENT, document),
            **{f"{_CONTENT}{i}": layer.blob.digest for i, layer in enumerate(step.layers)},
            **self._use_labels(step),
        }

    def _use_labels(self, step: CachedStep) -> dict[str, str]:
        labels = {_USED: str(int(time.time()))}
        if step.layers:
            labels[f"{_SNAPSHOT}{self._snapshotter}"] = chain_ids(step.layers)[-1]
        return labels

    def _note_use(self, digest: str, labels: Mapping[str, str], step: CachedStep) -> None:
        snapshot = f"{_SNAPSHOT}{self._snapshotter}"
        recent = abs(time.time() - _seconds(labels)) < _USE_GRAIN
        if recent and (snapshot in labels or not step.layers):
            return
        with contextlib.suppress(CallFailed):  # a record may be removed at any time
            self._content.update_labels(digest, self._use_labels(step))


def record_digest(key: str) -> str:
    """The digest of the record of the step with this cache key."""
    return digest_of(_record_bytes(key))


def own_blob(step: CachedStep) -> Descriptor | None:
    """The blob that the step itself made; None if it changed nothing."""
    return step.layers[-1].blob if step.own else None


def _record_bytes(key: str) -> bytes:
    return json.dumps({"pybuild step": _VERSION, "key": key}).encode()


def _document(key: str, step: CachedStep) -> str:
    layers = [
        [x.diff_id, x.blob.media_type, x.blob.digest, x.blob.size, dict(x.blob.annotations)]
        for x in step.layers
    ]
    document = {"key": key, "layers": layers, "own": step.own, "made": step.made.isoformat()}
    return json.dumps(document, separators=(",", ":"))


def _record(blob: Any) -> StepRecord:
    labels = dict(blob.labels)
    key, step = _parse(labels) or ("", None)
    return StepRecord(blob.digest, key, _seconds(labels), step)


def _parse(labels: Mapping[str, str]) -> tuple[str, CachedStep] | None:
    """The key and the step in a record's labels; None if they are damaged."""
    text = "".join(_chunks(labels))
    if digest_of(text.encode()) != labels.get(_STEP):
        return None
    try:
        document = json.loads(text)
        layers = tuple(map(_layer, document["layers"]))
        made = datetime.fromisoformat(document["made"]).astimezone(UTC)
        key, step = str(document["key"]), CachedStep(layers, document["own"] is True, made)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return None if step.own and not layers else (key, step)


def _chunks(labels: Mapping[str, str]) -> Iterator[str]:
    if _DOCUMENT in labels:
        yield labels[_DOCUMENT]
        return
    number = 0
    while (piece := labels.get(f"{_DOCUMENT}.{number}")) is not None:
        yield piece
        number += 1


def _layer(value: list[Any]) -> LayerDiff:
    """Raises ValueError or TypeError for what is no layer."""
    diff_id, media_type, digest, size, annotations = value
    if not is_digest(diff_id) or not is_digest(digest) or media_type not in LAYER_TYPES:
        raise ValueError(value)
    if type(size) is not int or size < 0:
        raise ValueError(value)
    return LayerDiff(diff_id, Descriptor(media_type, digest, size, dict(annotations)))


def _seconds(labels: Mapping[str, str]) -> int:
    text = labels.get(_USED, "")
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 12 else 0
