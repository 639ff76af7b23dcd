"""The embedded backend on stores of their own, which have busybox as their base image."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pybuild.backend import PullPolicy
from pybuild.errors import BackendUnavailable
from pybuild.oci.image_config import serialize_config
from pybuild.oci.layertar import write_layer
from pybuild.oci.manifest import parse_json_object, parse_manifest
from pybuild.oci.platform import host_platform
from pybuild.oci.reference import parse_reference
from pybuild.testkit.baseimages import BUSYBOX, busybox_config, busybox_entries
from pybuild.testkit.layouts import LayoutReader
from pybuild.testkit.registry import Registry
from pybuild.testkit.workbench import RecordingActivity
from pybuild_embedded.backend import EmbeddedBackend, open_backend


class Stores:
    """Makes stores in `folder` that hold busybox, each a copy of one made before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._template = folder / "template"
        activity = RecordingActivity()
        with busybox_registry() as registry, self._open(self._template) as backend:
            name = f"{registry.address}/busybox:latest"
            image = backend.resolve(
                parse_reference(name), host_platform(), PullPolicy.MISSING, activity
            )
            backend.checkout(image, activity).release()
            backend.image_store().tag(name, parse_reference(BUSYBOX))
            backend.image_store().remove(name)

    def new(self) -> Path:
        """The folder of a new store."""
        root = self._folder / f"store-{next(self._numbers)}"
        shutil.copytree(self._template, root)
        return root

    @contextmanager
    def opened(self, root: Path | None = None, **options: object) -> Iterator[EmbeddedBackend]:
        """A backend on the store `root`, or on a new one."""
        with self._open(root or self.new(), **options) as backend:
            yield backend

    @staticmethod
    def _open(root: Path, **options: object) -> EmbeddedBackend:
        backend = open_backend({"root": root, **options})
        assert isinstance(backend, EmbeddedBackend)
        return backend


@contextmanager
def busybox_registry() -> Iterator[Registry]:
    """A registry on loopback that has busybox:latest."""
    parts: list[bytes] = []
    try:
        layer = write_layer(busybox_entries(), parts.append).diff
    except BackendUnavailable as error:
        pytest.skip(f"needs busybox-static: {error.message}")
    config = replace(busybox_config(), diff_ids=(layer.diff_id,))
    with Registry() as registry:
        document = parse_json_object(serialize_config(config), "the config", 1 << 20)
        registry.add_image("busybox:latest", document, [b"".join(parts)])
        yield registry


def serve_layout(registry: Registry, layout: Path) -> None:
    """Give `registry` the images in an OCI layout, each under the last part of its name."""
    reader = LayoutReader(layout)
    for name, image in reader.images().items():
        repository, _, tag = name.rpartition("/")[2].partition(":")
        with reader.open_blob(image.manifest.digest) as file:
            content = file.read()
        manifest = parse_manifest(content)
        for blob in (manifest.config, *manifest.layers):
            with reader.open_blob(blob.digest) as file:
                registry.add_blob(repository, file.read())
        registry.add_manifest(f"{repository}:{tag}", content, image.manifest.media_type)
