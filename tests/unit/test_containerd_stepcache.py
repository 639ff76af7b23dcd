from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from pybuild.errors import BackendFailed
from pybuild.oci.descriptor import OCI_LAYER_GZIP, Descriptor, LayerDiff, digest_of
from pybuild_containerd.client import Client
from pybuild_containerd.content import BlobInfo, ContentStore
from pybuild_containerd.errors_table import NotFound
from pybuild_containerd.stepcache import CachedStep, StepCache, own_blob, record_digest

MADE = datetime(2024, 2, 29, 12, 30, 1, 123456, tzinfo=UTC)
DOCUMENT = "pybuild/step.document"


class Labels(ContentStore):
    """A content store of which only the labels are kept."""

    def __init__(self) -> None:
        super().__init__(cast("Client", None))
        self.labels: dict[str, dict[str, str]] = {}
        self.updates = 0

    def info(self, digest: str) -> BlobInfo:
        if digest not in self.labels:
            raise NotFound("", call="", details="")
        return BlobInfo(digest, 1, self.labels[digest])

    def replace_labels(self, digest: str, labels: Mapping[str, str]) -> None:
        self.info(digest)
        self.labels[digest] = dict(labels)

    def update_labels(self, digest: str, labels: Mapping[str, str]) -> None:
        self.info(digest)
        self.updates += 1
        self.labels[digest] |= labels

    def write_small(
        self, data: bytes, digest: str, labels: Mapping[str, str] | None = None
    ) -> None:
        assert digest_of(data) == digest
        self.labels[digest] = dict(labels or {})


def layers(count: int, **annotations: str) -> tuple[LayerDiff, ...]:
    return tuple(
        LayerDiff(
            digest_of(b"diff %d" % number),
            Descriptor(OCI_LAYER_GZIP, digest_of(b"blob %d" % number), number, annotations),
        )
        for number in range(count)
    )


@pytest.fixture
def content() -> Labels:
    return Labels()


def cache(content: Labels, snapshotter: str = "overlayfs") -> StepCache:
    return StepCache(cast("Client", None), content, snapshotter)


@pytest.mark.parametrize(
    "step",
    [
        CachedStep(layers(1), own=True, made=MADE),
        CachedStep(layers(3), own=False, made=MADE),
        CachedStep((), own=False, made=MADE),
        CachedStep(layers(200), own=True, made=MADE),
        CachedStep(layers(2, **{"a.b/c": "ü"}), own=True, made=MADE),
    ],
)
def test_a_step_is_found_as_it_was_recorded(content: Labels, step: CachedStep) -> None:
    cache(content).record("key", step)
    assert cache(content).find("key") == step
    assert cache(content).find("other") is None


def test_a_step_recorded_again_replaces_all_of_the_first(content: Labels) -> None:
    steps = cache(content)
    steps.record("key", CachedStep(layers(200), own=True, made=MADE))
    second = CachedStep(layers(2), own=False, made=MADE)
    steps.record("key", second)
    assert steps.find("key") == second
    (labels,) = content.labels.values()
    assert sum(label.startswith("containerd.io/gc.ref.content") for label in labels) == 2


def test_a_record_keeps_itself_its_blobs_and_its_snapshot(content: Labels) -> None:
    step = CachedStep(layers(2), own=True, made=MADE)
    cache(content, "native").record("key", step)
    labels = content.labels[record_digest("key")]
    assert labels["containerd.io/gc.root"]
    assert labels["containerd.io/gc.ref.content.l.0"] == step.layers[0].blob.digest
    assert labels["containerd.io/gc.ref.content.l.1"] == step.layers[1].blob.digest
    pair = f"{step.layers[0].diff_id} {step.layers[1].diff_id}"
    assert labels["containerd.io/gc.ref.snapshot.native"] == digest_of(pair.encode())


def _with_document(labels: dict[str, str], text: str) -> dict[str, str]:
    return {**labels, DOCUMENT: text, "pybuild/step": digest_of(text.encode())}


_DAMAGES: dict[str, Any] = {
    "no labels": lambda _: {},
    "no document": lambda labels: {k: v for k, v in labels.items() if k != DOCUMENT},
    "a cut document": lambda labels: labels | {DOCUMENT: labels[DOCUMENT][:-1]},
    "another digest": lambda labels: labels | {"pybuild/step": digest_of(b"")},
    "no JSON": lambda labels: _with_document(labels, "{"),
    "no object": lambda labels: _with_document(labels, "[]"),
    "deep JSON": lambda labels: _with_document(labels, "[" * 4000),
    "another key": lambda labels: _with_document(labels, labels[DOCUMENT].replace("key", "kez")),
    "no layers": lambda labels: _with_document(
        labels, '{"key":"key","layers":[],"own":true,"made":"2024-02-29T12:30:01+00:00"}'
    ),
    "no digest": lambda labels: _with_document(
        labels, labels[DOCUMENT].replace("sha256:", "sha512:")
    ),
    "a negative size": lambda labels: _with_document(
        labels, labels[DOCUMENT].replace(",0,", ",-1,")
    ),
    "a size in words": lambda labels: _with_document(
        labels, labels[DOCUMENT].replace(",0,", ',"0",')
    ),
    "another media type": lambda labels: _with_document(
        labels, labels[DOCUMENT].replace(OCI_LAYER_GZIP, "text/plain")
    ),
    "no time": lambda labels: _with_document(labels, labels[DOCUMENT].replace("2024", "year")),
}


@pytest.mark.parametrize("damage", _DAMAGES)
def test_a_damaged_record_is_a_miss_and_is_mended_by_the_next(content: Labels, damage: str) -> None:
    step = CachedStep(layers(1), own=True, made=MADE)
    steps = cache(content)
    steps.record("key", step)
    digest = record_digest("key")
    whole = content.labels[digest]
    content.labels[digest] = _DAMAGES[damage](whole)
    assert content.labels[digest] != whole
    assert steps.find("key") is None
    steps.record("key", step)
    assert steps.find("key") == step


def test_use_is_noted_once_an_hour(content: Labels) -> None:
    steps = cache(content)
    steps.record("key", CachedStep(layers(1), own=True, made=MADE))
    digest = record_digest("key")
    steps.find("key")
    assert content.updates == 0
    now = int(content.labels[digest]["pybuild/step.used"])
    for odd in (str(now - 3700), str(now + 10**6), "soon", "9" * 30, "²"):
        content.labels[digest]["pybuild/step.used"] = odd
        steps.find("key")
        assert int(content.labels[digest]["pybuild/step.used"]) >= now
    assert content.updates == 5
    steps.find("key")
    assert content.updates == 5


def test_use_on_another_snapshotter_keeps_its_snapshot_too(content: Labels) -> None:
    cache(content).record("key", CachedStep(layers(1), own=True, made=MADE))
    cache(content, "native").find("key")
    labels = content.labels[record_digest("key")]
    assert labels["containerd.io/gc.ref.snapshot.native"] == layers(1)[0].diff_id
    assert labels["containerd.io/gc.ref.snapshot.overlayfs"] == layers(1)[0].diff_id


def test_what_containerd_would_refuse_is_refused_before(content: Labels) -> None:
    step = CachedStep(layers(1), own=True, made=MADE)
    with pytest.raises(BackendFailed, match="4096"):
        cache(content, "x" * 5000).record("key", step)
    assert content.labels == {}


def test_the_blob_of_a_step_that_changed_nothing_is_not_its_own() -> None:
    step = CachedStep(layers(2), own=True, made=MADE)
    assert own_blob(step) == layers(2)[1].blob
    assert own_blob(replace(step, own=False)) is None
