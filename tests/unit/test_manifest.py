from __future__ import annotations

import json
from typing import Any

import pytest

from pybuild.errors import InvalidImage, PlatformMismatch
from pybuild.oci.descriptor import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    digest_of,
)
from pybuild.oci.manifest import (
    MAX_CONFIG_SIZE,
    MAX_LAYERS,
    MAX_MANIFEST_SIZE,
    index_document,
    make_manifest,
    media_type_of,
    parse_index,
    parse_manifest,
    platforms,
    select,
)
from pybuild.oci.platform import Platform, parse_platform

A, B, C = ("sha256:" + letter * 64 for letter in "abc")


def config(**changes: Any) -> dict[str, Any]:
    return {"mediaType": OCI_CONFIG, "digest": A, "size": 10} | changes


def layer(**changes: Any) -> dict[str, Any]:
    return {"mediaType": OCI_LAYER_GZIP, "digest": B, "size": 20} | changes


def manifest(**changes: Any) -> bytes:
    document = {"schemaVersion": 2, "config": config(), "layers": [layer()]} | changes
    return json.dumps({key: value for key, value in document.items() if value is not ...}).encode()


def entry(platform: str | None, digest: str = B, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"mediaType": OCI_MANIFEST, "digest": digest, "size": 5}
    if platform:
        os, architecture, *variant = platform.split("/")
        made["platform"] = {"os": os, "architecture": architecture}
        if variant:
            made["platform"]["variant"] = variant[0]
    return made | changes


def index(*entries: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "manifests": list(entries)} | changes).encode()


def test_a_manifest_is_read() -> None:
    found = parse_manifest(manifest(annotations={"k": "v"}, mediaType=OCI_MANIFEST))
    assert found.config == Descriptor(OCI_CONFIG, A, 10)
    assert found.layers == (Descriptor(OCI_LAYER_GZIP, B, 20),)
    assert found.annotations == {"k": "v"}
    assert found.media_type == OCI_MANIFEST


def test_an_index_is_made_canonical_and_read_back() -> None:
    entries = (
        (Descriptor(OCI_MANIFEST, A, 5), parse_platform("linux/amd64")),
        (Descriptor(OCI_MANIFEST, B, 6, {"k": "v"}), parse_platform("linux/arm/v7")),
        (Descriptor(OCI_MANIFEST, C, 7), Platform("windows", "amd64", os_version="10.0.1")),
    )
    made = index_document(entries, {"b": "ü", "a": "1"})
    assert made.index_bytes.decode() == (
        '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":['
        f'{{"mediaType":"{OCI_MANIFEST}","digest":"{A}","size":5,'
        '"platform":{"architecture":"amd64","os":"linux"}},'
        f'{{"mediaType":"{OCI_MANIFEST}","digest":"{B}","size":6,"annotations":{{"k":"v"}},'
        '"platform":{"architecture":"arm","os":"linux","variant":"v7"}},'
        f'{{"mediaType":"{OCI_MANIFEST}","digest":"{C}","size":7,'
        '"platform":{"architecture":"amd64","os":"windows","os.version":"10.0.1"}}],'
        '"annotations":{"a":"1","b":"ü"}}'
    )
    assert made.index.digest == digest_of(made.index_bytes)
    assert made.index.size == len(made.index_bytes)
    found = parse_index(made.index_bytes, OCI_INDEX)
    assert found.manifests == entries
    assert found.annotations == {"a": "1", "b": "ü"}


def test_a_docker_manifest_list_is_made_and_read_back() -> None:
    entries = ((Descriptor(DOCKER_MANIFEST, A, 5), parse_platform("linux/amd64")),)
    made = index_document(entries, docker=True)
    assert made.index.media_type == DOCKER_INDEX
    assert parse_index(made.index_bytes, DOCKER_INDEX).manifests == entries


def test_a_docker_manifest_is_read() -> None:
    data = manifest(
        mediaType=DOCKER_MANIFEST,
        config=config(mediaType=DOCKER_CONFIG),
        layers=[layer(mediaType=DOCKER_LAYER_GZIP)],
    )
    assert parse_manifest(data, DOCKER_MANIFEST).media_type == DOCKER_MANIFEST


def test_what_is_made_is_canonical_and_read_back() -> None:
    blob = Descriptor(OCI_CONFIG, A, 10)
    layers = [Descriptor(OCI_LAYER_GZIP, B, 20, {"z": "ü", "a": "<&>"})]
    made = make_manifest(blob, layers, {"b": "2", "a": "1"})
    assert made == make_manifest(blob, tuple(layers), {"a": "1", "b": "2"})
    assert made.startswith(b'{"schemaVersion":2,"mediaType":"')
    assert b" " not in made
    read = parse_manifest(made, OCI_MANIFEST)
    assert (read.config, list(read.layers)) == (blob, layers)
    assert list(read.annotations) == ["a", "b"]


HOSTILE = {
    "not JSON": b"{",
    "not UTF-8": b'{"a": "\xff"}',
    "a list": b"[]",
    "nested too deeply": b'{"a":' + b"[" * 100_000,
    "NaN": b'{"schemaVersion": NaN}',
    "an endless number": b'{"schemaVersion": ' + b"9" * 10_000 + b"}",
    "too large": b" " * (MAX_MANIFEST_SIZE + 1),
    "a member twice": b'{"schemaVersion":2,"schemaVersion":2}',
    "no schemaVersion": manifest(schemaVersion=...),
    "schemaVersion true": manifest(schemaVersion=True),
    "schemaVersion 3": manifest(schemaVersion=3),
    "manifest and index": manifest(manifests=[]),
    "says that it is an index": manifest(mediaType=OCI_INDEX),
    "unknown media type": manifest(mediaType="text/html"),
    "media type isn't a string": manifest(mediaType=7),
    "no config": manifest(config=...),
    "config is a string": manifest(config=A),
    "artifact config": manifest(
        config=config(mediaType="application/vnd.cncf.helm.config.v1+json")
    ),
    "huge config": manifest(config=config(size=MAX_CONFIG_SIZE + 1)),
    "no layers": manifest(layers=...),
    "layers is an object": manifest(layers={}),
    "too many layers": manifest(layers=[layer()] * (MAX_LAYERS + 1)),
    "unknown layer type": manifest(layers=[layer(mediaType="application/wasm")]),
    "path in the digest": manifest(layers=[layer(digest="sha256:../../etc/passwd")]),
    "upper-case digest": manifest(layers=[layer(digest=B.upper())]),
    "short digest": manifest(layers=[layer(digest=B[:-1])]),
    "newline after the digest": manifest(layers=[layer(digest=B + "\n")]),
    "unknown algorithm": manifest(layers=[layer(digest="sha512:" + "a" * 128)]),
    "digest is a number": manifest(layers=[layer(digest=1)]),
    "negative size": manifest(layers=[layer(size=-1)]),
    "size is a string": manifest(layers=[layer(size="20")]),
    "size is a fraction": manifest(layers=[layer(size=1.5)]),
    "size is true": manifest(layers=[layer(size=True)]),
    "size beyond 63 bits": manifest(layers=[layer(size=1 << 63)]),
    "foreign layer": manifest(layers=[layer(urls=["http://169.254.169.254/"])]),
    "two sizes for a digest": manifest(layers=[layer(), layer(size=21)]),
    "annotations with numbers": manifest(annotations={"a": 1}),
    "annotations as a list": manifest(annotations=[]),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage) as caught:
        parse_manifest(data)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "data",
    [
        index(config=config()),
        index(layers=[]),
        index(mediaType=OCI_MANIFEST),
        manifest(),
        index({"mediaType": OCI_MANIFEST, "digest": "x", "size": 1}),
        index(entry(None) | {"platform": "linux"}),
        index(entry(None) | {"platform": {"os": 1}}),
        index(*[entry("linux/amd64")] * (MAX_LAYERS + 1)),
        index(entry("linux/amd64"), entry("linux/arm64", size=6)),
    ],
)
def test_a_hostile_index_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        parse_index(data)


def test_a_document_must_be_what_it_was_declared_as() -> None:
    with pytest.raises(InvalidImage, match="declared"):
        parse_manifest(manifest(mediaType=OCI_MANIFEST), DOCKER_MANIFEST)
    with pytest.raises(InvalidImage, match="declared"):
        parse_manifest(manifest(), OCI_INDEX)
    with pytest.raises(InvalidImage, match="declared"):
        parse_index(index(), OCI_MANIFEST)


def test_a_general_content_type_is_forgiven() -> None:
    assert media_type_of(manifest(), "text/plain") == OCI_MANIFEST
    assert media_type_of(index(), None) == OCI_INDEX
    assert media_type_of(index(mediaType=DOCKER_INDEX), "application/json") == DOCKER_INDEX
    assert media_type_of(manifest(), DOCKER_MANIFEST) == DOCKER_MANIFEST


@pytest.mark.parametrize(
    ("data", "declared"),
    [
        (b'{"schemaVersion":1,"fsLayers":[],"history":[]}', None),
        (manifest(fsLayers=[]), None),
        (manifest(), "application/vnd.docker.distribution.manifest.v1+prettyjws"),
    ],
)
def test_schema_1_is_named(data: bytes, declared: str | None) -> None:
    with pytest.raises(InvalidImage, match="schema 1") as caught:
        parse_manifest(data, declared)
    assert caught.value.hint


def test_the_same_layer_may_occur_twice() -> None:
    assert len(parse_manifest(manifest(layers=[layer(), layer()])).layers) == 2


def test_the_best_platform_is_selected() -> None:
    found = parse_index(
        index(
            entry("linux/386", A),
            entry("unknown/unknown", C, annotations={"vnd.docker.reference.type": "x"}),
            entry("linux/amd64", B),
        )
    )
    assert select(found, parse_platform("linux/amd64")).digest == B
    assert [str(platform) for platform in platforms(found)] == ["linux/386", "linux/amd64"]


def test_an_attestation_is_never_selected() -> None:
    found = parse_index(index(entry("unknown/unknown", C)))
    with pytest.raises(PlatformMismatch):
        select(found, parse_platform("linux/amd64"))


def test_an_entry_of_another_kind_is_never_selected() -> None:
    found = parse_index(index(entry("linux/amd64", A, mediaType="application/x"), entry(None, B)))
    assert select(found, parse_platform("linux/amd64")).digest == B


def test_a_mismatch_names_what_there_is() -> None:
    found = parse_index(index(entry("linux/arm/v7", A), entry("linux/s390x", B)))
    with pytest.raises(PlatformMismatch) as caught:
        select(found, parse_platform("linux/amd64"))
    assert "linux/amd64" in caught.value.message
    assert caught.value.hint == "it has linux/arm/v7, linux/s390x"
