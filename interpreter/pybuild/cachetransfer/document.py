"""The document of a cache: which steps made which layers.

It is the config of an OCI image manifest, whose layers are the layers' blobs, or an
annotation in the manifest of an image that has such blobs itself. As JSON::

    {"version": 1,
     "layers": [[-1, "sha256:<diff id>", -1], [0, "sha256:<diff id>", 0], ...],
     "steps": [["<cache key>", <owners>, <layer>, <own>, <made>], ...],
     "mounts": [["<id>", "sha256:<diff id>", <blob>], ...]}

A layer is the position of the layer below it, -1 for none, its diff id, and the position of
its blob among the manifest's layers. The base image's layers have the blob -1: they come
with the base image, never with a cache. Every layer stands behind the one below it, so a
document can't lead in a circle. A step has the position of its topmost layer, -1 for scratch,
whether that is its own, and when it ran, in microseconds since 1970. Keys of steps that ran
where files have no owners say so: they mean something else elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pybuild.errors import InvalidImage
from pybuild.oci.descriptor import Descriptor, LayerDiff, is_digest
from pybuild.oci.manifest import MAX_CONFIG_SIZE, MAX_LAYERS, parse_json_object
from pybuild.values import dataclass

CACHE_CONFIG = "application/vnd.pybuild.cache.config.v1+json"
"""The media type of the document as a config."""

CACHE_ANNOTATION = "vnd.pybuild.cache.v1"
"""The annotation with the document in an image's manifest."""

_VERSION = 1
_MOST = 1 << 16
_LONGEST_IDENT = 4096
_KEY = re.compile(r"[0-9a-f]{64}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = 253_402_300_799_999_999  # the last microsecond of the year 9999
_WHAT = "the build cache"


@dataclass(frozen=True, slots=True)
class CachedStep:
    """What a step left: ``base`` has the diff ids of its base image's layers, bottom first.

    ``layers`` are those above; with ``own`` the topmost of them is what the step changed.
    """

    base: tuple[str, ...]
    layers: tuple[LayerDiff, ...]
    own: bool
    made: datetime


@dataclass(frozen=True, slots=True)
class _Layer:
    below: int
    diff_id: str
    blob: int
    height: int


@dataclass(frozen=True, slots=True)
class _Step:
    top: int
    own: bool
    made: datetime


class CacheDocument:
    """A document that was checked; ``mounts`` are the cache mounts by their ids."""

    def __init__(
        self,
        blobs: Sequence[Descriptor],
        layers: Sequence[_Layer],
        steps: Mapping[tuple[str, bool], _Step],
        mounts: Mapping[str, LayerDiff],
    ) -> None:
        self._blobs = blobs
        self._layers = layers
        self._steps = steps
        self.mounts = mounts

    def find(self, key: str, *, owners: bool) -> CachedStep | None:
        """What the step with this cache key left, if the cache has it."""
        step = self._steps.get((key, owners))
        if step is None:
            return None
        base: list[str] = []
        layers: list[LayerDiff] = []
        place = step.top
        while place >= 0:
            layer = self._layers[place]
            if layer.blob < 0:
                base.append(layer.diff_id)
            else:
                layers.append(LayerDiff(layer.diff_id, self._blobs[layer.blob]))
            place = layer.below
        return CachedStep(tuple(base[::-1]), tuple(layers[::-1]), step.own, step.made)


def parse_document(data: bytes, blobs: Sequence[Descriptor]) -> CacheDocument:
    """The document in `data`, whose manifest has these layers. Raises InvalidImage."""
    document = parse_json_object(data, _WHAT, MAX_CONFIG_SIZE)
    if document.get("version") is True or document.get("version") != _VERSION:
        raise InvalidImage(f"{_WHAT} has an unknown version")
    layers: list[_Layer] = []
    for row in _rows(document, "layers", 3):
        layers.append(_parse_layer(row, layers, len(blobs)))
    steps: dict[tuple[str, bool], _Step] = {}
    for row in _rows(document, "steps", 5):
        key, step = _parse_step(row, layers)
        if key in steps:
            raise InvalidImage(f"{_WHAT} has two steps with one key")
        steps[key] = step
    mounts: dict[str, LayerDiff] = {}
    for row in _rows(document, "mounts", 3):
        ident, diff_id, blob = row
        if not isinstance(ident, str) or len(ident) > _LONGEST_IDENT or ident in mounts:
            raise InvalidImage(f"{_WHAT} has a cache mount with a wrong id")
        place = _number(blob, 0, len(blobs) - 1)
        mounts[ident] = LayerDiff(_diff_id(diff_id), blobs[place])
    return CacheDocument(blobs, layers, steps, mounts)


def _rows(document: Mapping[str, Any], name: str, width: int) -> list[list[Any]]:
    rows = document.get(name, [])
    if not isinstance(rows, list) or len(rows) > _MOST:
        raise InvalidImage(f"{_WHAT} has no list of {name}, or too many")
    if not all(isinstance(row, list) and len(row) == width for row in rows):
        raise InvalidImage(f"{_WHAT} has {name} of an unknown form")
    return rows


def _parse_layer(row: list[Any], before: Sequence[_Layer], blobs: int) -> _Layer:
    below, blob = _number(row[0], -1, len(before) - 1), _number(row[2], -1, blobs - 1)
    lower = before[below] if below >= 0 else None
    height = 1 if lower is None else lower.height + 1
    if height > MAX_LAYERS:
        raise InvalidImage(f"{_WHAT} has more than {MAX_LAYERS} layers over each other")
    if blob < 0 and lower is not None and lower.blob >= 0:
        raise InvalidImage(f"{_WHAT} has a base image's layer above others")
    return _Layer(below, _diff_id(row[1]), blob, height)


def _parse_step(row: list[Any], layers: Sequence[_Layer]) -> tuple[tuple[str, bool], _Step]:
    key, owners, top, own, made = row
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise InvalidImage(f"{_WHAT} has a step with a wrong key")
    if not isinstance(owners, bool) or not isinstance(own, bool):
        raise InvalidImage(f"{_WHAT} has a step of an unknown form")
    place = _number(top, -1, len(layers) - 1)
    if own and (place < 0 or layers[place].blob < 0):
        raise InvalidImage(f"{_WHAT} has a step that made a base image's layer")
    time = _EPOCH + timedelta(microseconds=_number(made, 0, _LATEST))
    return (key, owners), _Step(place, own, time)


def _number(value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidImage(f"{_WHAT} has {str(value)[:30]!r} where a number is needed")
    return value


def _diff_id(value: Any) -> str:
    if not isinstance(value, str) or not is_digest(value):
        raise InvalidImage(f"{_WHAT} has the invalid diff id {str(value)[:100]!r}")
    return value


class DocumentWriter:
    """Makes a document; equal calls give equal bytes.

    ``blobs`` are those that a manifest must have, in this order. Those given at the start
    stay the first ones.
    """

    def __init__(self, blobs: Sequence[Descriptor] = ()) -> None:
        self._blobs: dict[str, Descriptor] = {}
        self._places: dict[str, int] = {}
        for place, blob in enumerate(blobs):
            self._places.setdefault(blob.digest, place)
        self._given = tuple(blobs)
        self._layers: dict[tuple[int, str, int], int] = {}
        self._steps: dict[tuple[str, bool], list[Any]] = {}
        self._mounts: dict[str, list[Any]] = {}

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        return (*self._given, *self._blobs.values())

    @property
    def is_empty(self) -> bool:
        return not self._steps and not self._mounts

    def add_step(
        self,
        key: str,
        layers: Sequence[LayerDiff],
        base: int,
        *,
        own: bool,
        made: datetime,
        owners: bool,
    ) -> None:
        """Add a step that left `layers`, of which the first `base` are its base image's."""
        place = -1
        for number, layer in enumerate(layers):
            blob = -1 if number < base else self._place(layer.blob)
            row = (place, layer.diff_id, blob)
            place = self._layers.setdefault(row, len(self._layers))
        microseconds = max(0, (made - _EPOCH) // timedelta(microseconds=1))
        self._steps.setdefault((key, owners), [key, owners, place, own, microseconds])

    def add_mount(self, ident: str, layer: LayerDiff) -> None:
        self._mounts[ident] = [ident, layer.diff_id, self._place(layer.blob)]

    def content(self) -> bytes:
        """The document. Raises InvalidImage for one that nobody would read."""
        if len(self.blobs) > MAX_LAYERS or max(len(self._layers), len(self._steps)) > _MOST:
            raise InvalidImage(f"{_WHAT} would have more than {MAX_LAYERS} layers")
        document = {
            "version": _VERSION,
            "layers": [list(row) for row in self._layers],
            "steps": list(self._steps.values()),
            "mounts": [self._mounts[ident] for ident in sorted(self._mounts)],
        }
        # ids may be any text, so all is escaped that UTF-8 has no bytes for
        content = json.dumps(document, separators=(",", ":")).encode()
        if len(content) > MAX_CONFIG_SIZE:
            raise InvalidImage(f"{_WHAT} would have {len(content)} bytes, over {MAX_CONFIG_SIZE}")
        return content

    def _place(self, blob: Descriptor) -> int:
        place = self._places.get(blob.digest)
        if place is None:
            place = self._places[blob.digest] = len(self._given) + len(self._blobs)
            self._blobs[blob.digest] = blob
        return place
