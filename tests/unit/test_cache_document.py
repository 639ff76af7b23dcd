from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from pybuild.cachetransfer.document import CachedStep, DocumentWriter, parse_document
from pybuild.errors import InvalidImage
from pybuild.oci.descriptor import OCI_LAYER_GZIP, Descriptor, LayerDiff

MADE = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
KEYS = [f"{n:064x}" for n in range(10)]


def layer(number: int) -> LayerDiff:
    blob = Descriptor(OCI_LAYER_GZIP, f"sha256:{number + 1000:064x}", number)
    return LayerDiff(f"sha256:{number:064x}", blob)


BASE = (layer(1), layer(2))


def written() -> DocumentWriter:
    writer = DocumentWriter()
    above = (*BASE, layer(3))
    writer.add_step(KEYS[0], above, 2, own=True, made=MADE, owners=True)
    writer.add_step(KEYS[1], above, 2, own=False, made=MADE, owners=True)
    writer.add_step(KEYS[2], (*above, layer(4)), 2, own=True, made=MADE, owners=False)
    writer.add_step(KEYS[3], (*BASE, layer(5)), 2, own=True, made=MADE, owners=True)
    writer.add_step(KEYS[4], (), 0, own=False, made=MADE, owners=True)
    writer.add_mount("/id \udcff ü", layer(6))
    return writer


def test_what_is_written_is_read() -> None:
    writer = written()
    document = parse_document(writer.content(), writer.blobs)
    base = tuple(each.diff_id for each in BASE)
    assert document.find(KEYS[0], owners=True) == CachedStep(base, (layer(3),), True, MADE)
    assert document.find(KEYS[1], owners=True) == CachedStep(base, (layer(3),), False, MADE)
    assert document.find(KEYS[2], owners=False) == CachedStep(
        base, (layer(3), layer(4)), True, MADE
    )
    assert document.find(KEYS[3], owners=True) == CachedStep(base, (layer(5),), True, MADE)
    assert document.find(KEYS[4], owners=True) == CachedStep((), (), False, MADE)
    assert document.mounts == {"/id \udcff ü": layer(6)}


def test_a_step_is_found_only_as_it_was_kept() -> None:
    document = parse_document(written().content(), written().blobs)
    assert document.find(KEYS[0], owners=False) is None
    assert document.find(KEYS[2], owners=True) is None
    assert document.find(KEYS[9], owners=True) is None


def test_equal_caches_are_equal_bytes_and_have_no_base_image() -> None:
    assert written().content() == written().content()
    digests = [blob.digest for blob in written().blobs]
    assert digests == [layer(n).blob.digest for n in (3, 4, 5, 6)]


def test_layers_stand_in_a_document_once() -> None:
    rows = json.loads(written().content())["layers"]
    assert len(rows) == len({json.dumps(row) for row in rows}) == 5


def test_the_blobs_of_an_image_stay_in_their_places() -> None:
    writer = DocumentWriter([each.blob for each in (*BASE, layer(3))])
    writer.add_step(KEYS[0], (*BASE, layer(3)), 2, own=True, made=MADE, owners=True)
    assert writer.blobs == tuple(each.blob for each in (*BASE, layer(3)))
    found = parse_document(writer.content(), writer.blobs).find(KEYS[0], owners=True)
    assert found is not None
    assert found.layers == (layer(3),)


def test_more_than_anyone_reads_is_not_written() -> None:
    writer = DocumentWriter()
    for number in range(5000):
        writer.add_step(f"{number:064x}", (layer(number),), 0, own=True, made=MADE, owners=True)
    with pytest.raises(InvalidImage, match="more than 4096 layers"):
        writer.content()


def test_a_thousand_layers_over_each_other_are_read_in_no_time() -> None:
    writer = DocumentWriter()
    layers = tuple(map(layer, range(1000)))
    for count in range(1, 1001):
        key = f"{count:064x}"
        writer.add_step(key, layers[:count], 0, own=True, made=MADE, owners=True)
    content = writer.content()
    assert len(content) < 400_000
    found = parse_document(content, writer.blobs).find(f"{1000:064x}", owners=True)
    assert found is not None
    assert found.layers == layers
