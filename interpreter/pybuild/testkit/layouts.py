"""OCI image layouts on disk: written and read for tests, and brought into a containerd."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pybuild.backend import Image
from pybuild.errors import BackendUnavailable
from pybuild.oci.compression import Compression, Packing, compressor
from pybuild.oci.descriptor import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    LayerDiff,
)
from pybuild.oci.image_config import ImageConfig, serialize_config
from pybuild.oci.manifest import canonical_json, descriptor_as_json, make_manifest

_CHUNK = 1 << 20
_CONTAINERD_NAME = "io.containerd.image.name"
_OCI_NAME = "org.opencontainers.image.ref.name"


class LayoutWriter:
    """An OCI image layout in the making, in the empty or missing folder `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._blobs = folder / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)
        self._manifests: list[dict[str, object]] = []

    def add_blob(self, data: bytes, media_type: str) -> Descriptor:
        digest = hashlib.sha256(data).hexdigest()
        (self._blobs / digest).write_bytes(data)
        return Descriptor(media_type, f"sha256:{digest}", len(data))

    def add_tar(self, tar: Path) -> LayerDiff:
        """Compress the tar and add it as a layer blob."""
        packer = compressor(Packing(Compression.GZIP))
        plain, packed = hashlib.sha256(), hashlib.sha256()
        part = self._blobs / "part"
        with tar.open("rb") as source, part.open("wb") as sink:
            while chunk := source.read(_CHUNK):
                plain.update(chunk)
                data = packer.compress(chunk)
                packed.update(data)
                sink.write(data)
            data = packer.flush()
            packed.update(data)
            sink.write(data)
            size = sink.tell()
        part.rename(self._blobs / packed.hexdigest())
        blob = Descriptor(OCI_LAYER_GZIP, f"sha256:{packed.hexdigest()}", size)
        return LayerDiff(f"sha256:{plain.hexdigest()}", blob)

    def add_image(
        self, names: Sequence[str], config: ImageConfig, layers: Sequence[LayerDiff]
    ) -> str:
        """Add config and manifest under each of the full `names`; return the digest."""
        raw = self.add_blob(serialize_config(config), OCI_CONFIG)
        made = make_manifest(raw, [layer.blob for layer in layers])
        manifest = self.add_blob(made, OCI_MANIFEST)
        platform = {"architecture": config.platform.architecture, "os": config.platform.os}
        for name in names:
            entry = descriptor_as_json(manifest)
            entry["platform"] = platform
            entry["annotations"] = {_CONTAINERD_NAME: name, _OCI_NAME: name.rpartition(":")[2]}
            self._manifests.append(entry)
        return manifest.digest

    def finish(self) -> Path:
        """Write the layout's two files; the folder is a whole layout then."""
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self._manifests}
        (self.folder / "index.json").write_bytes(canonical_json(index))
        return self.folder


class LayoutReader:
    """An OCI image layout: a folder, or an archive of one. `validate` takes it for a backend."""

    def __init__(self, path: Path) -> None:
        self._files: dict[str, bytes] = {}
        if path.is_dir():
            for file in path.rglob("*"):
                if file.is_file():
                    self._files[file.relative_to(path).as_posix()] = file.read_bytes()
            return
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None:
                    self._files[member.name] = content.read()

    @property
    def paths(self) -> list[str]:
        """The files in it, sorted."""
        return sorted(self._files)

    def read_json(self, path: str) -> Any:
        return json.loads(self._files[path])

    def open_blob(self, digest: str) -> BinaryIO:
        return BytesIO(self._files[f"blobs/{digest.replace(':', '/')}"])

    def images(self) -> dict[str, Image]:
        """The images by their full names; by digest where they have none."""
        assert self.read_json("oci-layout") == {"imageLayoutVersion": "1.0.0"}
        found = {}
        for entry in self.read_json("index.json")["manifests"]:
            manifest = Descriptor(entry["mediaType"], entry["digest"], entry["size"])
            config = self.read_json(f"blobs/{manifest.digest.replace(':', '/')}")["config"]
            name = entry.get("annotations", {}).get(_CONTAINERD_NAME, manifest.digest)
            found[name] = Image(manifest, config["digest"])
        return found


def image_names(layout: Path) -> list[str]:
    """The full names of the images in a layout."""
    index = json.loads((layout / "index.json").read_bytes())
    return [entry["annotations"][_CONTAINERD_NAME] for entry in index["manifests"]]


def import_into_containerd(layout: Path, address: str, namespace: str = "default") -> list[str]:
    """Bring a layout's images into a containerd's image store, not unpacked; return the names.

    Uses ``ctr``, so that what is imported owes nothing to pybuild's own client. Raises
    BackendUnavailable without it, RuntimeError where it fails.
    """
    if shutil.which("ctr") is None:
        raise BackendUnavailable("ctr is missing", hint="install containerd")
    with tempfile.NamedTemporaryFile(prefix="layout-", suffix=".tar") as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(layout, ".")
        archive.flush()
        command = ["ctr", "--address", address, "--namespace", namespace]
        done = subprocess.run(
            [*command, "images", "import", "--no-unpack", archive.name],
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
    if done.returncode != 0:
        raise RuntimeError(f"ctr images import failed: {done.stderr.strip()}")
    return image_names(layout)
