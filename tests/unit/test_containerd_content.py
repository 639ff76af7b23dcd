from __future__ import annotations

import pytest

from pybuild.errors import BackendFailed
from pybuild_containerd.content import check_labels, gc_labels, label_chunks


@pytest.mark.parametrize("length", [0, 1, 4000, 4091, 4096, 4097, 100_000])
def test_chunks_join_to_the_text_and_each_fits_a_label(length: int) -> None:
    text = "".join(chr(ord("a") + i % 26) for i in range(length))
    chunks = label_chunks("pybuild/index", text)
    assert "".join(chunks.values()) == text
    check_labels(chunks)


def test_a_short_text_is_one_label_under_the_plain_key() -> None:
    assert label_chunks("k", "text") == {"k": "text"}


def test_a_long_text_is_numbered_in_order() -> None:
    assert list(label_chunks("k", "x" * 9000)) == ["k.0", "k.1", "k.2"]


def test_a_label_is_measured_in_bytes_with_its_key() -> None:
    check_labels({"key": "x" * 4093})
    with pytest.raises(BackendFailed, match="4096"):
        check_labels({"key": "x" * 4094})
    with pytest.raises(BackendFailed):
        check_labels({"key": "é" * 2100})


def test_a_manifest_refers_to_its_config_and_to_each_layer() -> None:
    assert gc_labels("sha256:c", ("sha256:a", "sha256:b")) == {
        "containerd.io/gc.ref.content.config": "sha256:c",
        "containerd.io/gc.ref.content.l.0": "sha256:a",
        "containerd.io/gc.ref.content.l.1": "sha256:b",
    }
