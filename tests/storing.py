"""What the tests of the embedded backend's store share: layers and images to put into it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

from pybuild.files.trees import NewEntry
from pybuild.oci.descriptor import OCI_INDEX, Descriptor, LayerDiff, digest_of
from pybuild.oci.image_config import ImageConfig
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.layerwriter import WrittenLayer, write_layer
from pybuild.oci.manifest import canonical_json, descriptor_as_json, image_documents
from pybuild.oci.platform import Platform, host_platform
from pybuild.oci.reference import parse_reference
from pybuild_embedded.images import Images
from pybuild_embedded.store import LayerFolder, Store

FLAVOUR = "root"


def remove_trees(folders: Sequence[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def images_of(store: Store) -> Images:
    return Images(store, remove_trees)


def crash(store: Store) -> None:
    """End a session as its process's death does."""
    store.database.close()
    os.close(store.session._lock)
    store._closed = True


def put_blob(store: Store, content: bytes) -> str:
    digest = digest_of(content)
    with store.blob_writer() as writer:
        writer.write(content)
        writer.commit(digest, len(content))
    return digest


def written_layer(content: bytes) -> tuple[WrittenLayer, bytes]:
    """A layer with the file ``file``, and its blob's bytes."""
    parts: list[bytes] = []
    entry = NewEntry(Entry(b"file", Kind.FILE, size=len(content)), partial(BytesIO, content))
    return write_layer([entry], parts.append), b"".join(parts)


def put_layer(store: Store, content: bytes) -> LayerDiff:
    """A layer with the file ``file`` in the store, its index too."""
    layer, blob = written_layer(content)
    put_blob(store, blob)
    name = layer.diff.diff_id.replace(":", "-")
    (store.index_folder / name).write_bytes(layer.index.to_bytes())
    return layer.diff


def put_step(store: Store, key: str, below: Sequence[LayerDiff] = ()) -> tuple[LayerDiff, ...]:
    """A cached step that added a layer; all layers."""
    layers = (*below, put_layer(store, key.encode()))
    store.record_step(key, store.record_layers(layers), own=True)
    return layers


def put_folder(
    store: Store, layers: Sequence[LayerDiff], content: bytes, flavour: str = FLAVOUR
) -> LayerFolder:
    """The unpacked top layer, if it was made by `put_layer` of `content`."""
    folder = store.new_folder()
    (folder.fs / "file").write_bytes(content)
    return store.settle(folder, store.record_layers(layers), flavour)


def put_image(
    store: Store,
    *names: str,
    layers: Sequence[LayerDiff] = (),
    platform: Platform | None = None,
    comment: str = "",
) -> Descriptor:
    """An image of these layers, recorded under its manifest; that one's descriptor."""
    manifest, config = put_documents(store, layers, platform or host_platform(), comment)
    images_of(store).record(list(map(parse_reference, names)), manifest, manifest, config)
    return manifest


def put_documents(
    store: Store, layers: Sequence[LayerDiff], platform: Platform, comment: str = ""
) -> tuple[Descriptor, str]:
    """The documents of an image, not recorded: its manifest and its config's digest."""
    diff_ids = tuple(layer.diff_id for layer in layers)
    config = ImageConfig(platform, diff_ids=diff_ids, labels={"comment": comment})
    documents = image_documents(config, [layer.blob for layer in layers])
    put_blob(store, documents.config_bytes)
    put_blob(store, documents.manifest_bytes)
    return documents.manifest, documents.config.digest


def put_index(store: Store, manifests: Sequence[tuple[Descriptor, Platform]]) -> Descriptor:
    """An index of manifests, which needn't be here."""
    entries = []
    for manifest, platform in manifests:
        entry = descriptor_as_json(manifest)
        entry["platform"] = {"os": platform.os, "architecture": platform.architecture}
        entries.append(entry)
    document = canonical_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    return Descriptor(OCI_INDEX, put_blob(store, document), len(document))


def disk_usage(folder: Path) -> int:
    """What du(1) says, in bytes."""
    done = subprocess.run(["du", "-s", "-B1", folder], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[0])
