"""The embedded backend on stores of their own, which have busybox as their base image."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from pybuild.backend import PullPolicy
from pybuild.errors import BackendUnavailable
from pybuild.oci.image_config import serialize_config
from pybuild.oci.layerwriter import write_layer
from pybuild.oci.manifest import parse_json_object, parse_manifest
from pybuild.oci.platform import host_platform
from pybuild.oci.reference import parse_reference
from pybuild.sandbox import client
from pybuild.testkit._containerd_cleaner import mounts_below
from pybuild.testkit.baseimages import BUSYBOX, busybox_config, busybox_entries
from pybuild.testkit.layouts import LayoutReader
from pybuild.testkit.registry import Registry
from pybuild.testkit.workbench import RecordingActivity
from pybuild_embedded.backend import EmbeddedBackend, open_backend
from sandboxing import best_mapping, empty


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
    def lent(self, *, empty: bool = False) -> Iterator[Path]:
        """A new store, or the folder of one, which is removed at the end by who may."""
        root = self._folder / f"store-{next(self._numbers)}" if empty else self.new()
        try:
            yield root
        finally:
            remove_store(root)

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


def remove_store(root: Path) -> None:
    """Remove a store, whoever owns what is in it."""
    if os.geteuid() == 0:
        subprocess.run(["rm", "-rf", root], check=True)  # of any depth
        return
    if root.exists():
        empty(best_mapping(root), root)
        root.rmdir()


def check_store(root: Path) -> None:
    """Raise AssertionError if builds left anything in the store that isn't kept on purpose."""
    if not root.exists():
        return
    with Stores._open(root) as backend:  # which removes what dead sessions left
        left = [str(fault) for fault in backend.image_store().check(repair=False)]
        with backend._store.database.reading() as rows:
            known = {ident for (ident,) in rows.execute("SELECT ident FROM folders")}
    for name in ("sessions", "ingest", "trash", "locks"):
        left += [f"{name}/{path.name}" for path in (root / name).iterdir()]
    for folder in (root / "layers").iterdir():
        if folder.name not in known:
            left.append(f"layers/{folder.name}")
        elif (folder / "work").exists() and any((folder / "work").iterdir()):
            left.append(f"layers/{folder.name}/work")
    left += [f"mount {point}" for point in mounts_below(root)]
    left += [f"process {process}" for process in orphans()]
    assert left == [], left


def orphans(patience: float = 5) -> list[str]:
    """The processes of our sandboxes that have lost who asked for them, after some time."""
    deadline = time.monotonic() + patience
    while (found := _orphans()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _orphans() -> list[str]:
    """A zygote is started by Python; when that has died, its parent is another program."""
    zygote = os.fsencode(Path(client.__file__).with_name("zygote.py"))
    lines: dict[int, bytes] = {}
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
            lines[int(folder.name)] = (folder / "cmdline").read_bytes()
    return [
        f"{process} {line!r}"
        for process, line in lines.items()
        if zygote in line.split(b"\0") and b"python" not in lines.get(parents[process], b"")
    ]


def add_layout(registry: Registry, layout: Path, name: str) -> None:
    """Serve the first image of an OCI layout as `name`."""
    reader = LayoutReader(layout)
    image = next(iter(reader.images().values()))
    layers = reader.read_json(_path(image.manifest.digest))["layers"]
    blobs = [reader.open_blob(layer["digest"]).read() for layer in layers]
    registry.add_image(name, reader.open_blob(image.config_digest).read(), blobs)


def _path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


@contextmanager
def busybox_registry(password: str | None = None) -> Iterator[Registry]:
    """A registry on loopback that has busybox:latest, for all, or for "me" with a password."""
    parts: list[bytes] = []
    try:
        layer = write_layer(busybox_entries(), parts.append).diff
    except BackendUnavailable as error:
        pytest.skip(f"needs busybox-static: {error.message}")
    config = replace(busybox_config(), diff_ids=(layer.diff_id,))
    login = {} if password is None else {"username": "me", "password": password}
    with Registry(**login) as registry:
        document = parse_json_object(serialize_config(config), "the config", 1 << 20)
        registry.add_image("busybox:latest", document, [b"".join(parts)])
        yield registry


@contextmanager
def on_an_overlay(folder: Path) -> Iterator[Path]:
    """A folder on an overlay, which can't hold the upper folder of another: `folder`, if it is.

    Otherwise root mounts one below it, as containers have it: on a file system of its own.
    """
    kind = ["stat", "-f", "-c", "%T", str(folder)]
    if subprocess.run(kind, check=True, capture_output=True, text=True).stdout == "overlayfs\n":
        yield folder
        return
    if os.geteuid() != 0:
        pytest.skip("accepted: only root can mount an overlay here, and does for other users")
    names = ("lower", "upper", "work", "merged")
    mount_tmpfs = ["mount", "-t", "tmpfs", "-o", "mode=711", "tmpfs", str(folder)]
    subprocess.run(mount_tmpfs, check=True)
    try:
        lower, upper, work, merged = (folder / name for name in names)
        for made in (lower, upper, work, merged):
            made.mkdir()
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        subprocess.run(
            ["mount", "-t", "overlay", "-o", options, "overlay", str(merged)], check=True
        )
        try:
            merged.chmod(0o711)
            yield merged
        finally:
            subprocess.run(["umount", str(merged)], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


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
