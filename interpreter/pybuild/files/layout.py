"""Images in an OCI image layout (image specification, `image-layout.md`): a folder or a tar.

A layout may come from anyone: nothing is followed out of it, and no byte is taken that its
digest and size don't vouch for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from pybuild.errors import ContextError, ImageNotFound, InvalidImage, PlatformMismatch, PybuildError
from pybuild.files.context import open_context_directory, open_context_tar, read_file
from pybuild.files.trees import Tree, resolve
from pybuild.oci.descriptor import INDEX_TYPES, Descriptor, LayerDiff
from pybuild.oci.http import Activity
from pybuild.oci.image_config import ImageConfig, parse_config
from pybuild.oci.layerindex import Kind
from pybuild.oci.manifest import (
    MAX_CONFIG_SIZE,
    MAX_MANIFEST_SIZE,
    Index,
    Manifest,
    parse_index,
    parse_json_object,
    parse_manifest,
    select,
)
from pybuild.oci.platform import Platform, matches
from pybuild.oci.reference import DEFAULT_TAG, Reference
from pybuild.values import dataclass, replace

_CHUNK = 1 << 20
_DEEPEST_INDEX = 4
_NAMES = ("org.opencontainers.image.ref.name", "io.containerd.image.name")


@dataclass(frozen=True, slots=True)
class LayoutImage:
    """One image for one platform in a layout, its documents checked, its layers not read yet.

    ``reference`` is made up, for messages, and has the manifest's digest. ``layers`` are
    bottom first.
    """

    reference: Reference
    descriptor: Descriptor
    manifest: Manifest
    manifest_bytes: bytes
    config_bytes: bytes
    config: ImageConfig
    layers: tuple[LayerDiff, ...]
    layout: ImageLayout


class ImageLayout:
    """A layout in `tree`, called `name` in messages."""

    def __init__(self, tree: Tree, name: str) -> None:
        self._tree = tree
        self._name = name
        version = self._object("oci-layout").get("imageLayoutVersion")
        if not isinstance(version, str) or not version.startswith("1."):
            raise InvalidImage(f"{name} is an image layout of an unknown version")
        self._index = parse_index(self._file("index.json"))

    def find(
        self, platform: Platform, *, tag: str | None = None, digest: str | None = None
    ) -> LayoutImage:
        """The image of a tag, or with a digest; of neither, ``latest`` or else the only one.

        Raises ImageNotFound, PlatformMismatch, InvalidImage.
        """
        chosen = self._chosen(tag, digest)
        for _ in range(_DEEPEST_INDEX):
            try:
                descriptor = select(chosen, platform)
            except PlatformMismatch as error:
                raise PlatformMismatch(
                    f"{self._name} has no image for {platform}", hint=error.hint
                ) from None
            if descriptor.media_type not in INDEX_TYPES:
                return self._described(descriptor, platform)
            chosen = parse_index(self.read(descriptor, MAX_MANIFEST_SIZE), descriptor.media_type)
        raise InvalidImage(f"{self._name} has indexes nested too deeply")

    def named(self, *, tag: str | None = None, digest: str | None = None) -> Descriptor:
        """The manifest or index of a tag, or with a digest, chosen as by :meth:`find`.

        Of several under one tag it is the first. Raises ImageNotFound, InvalidImage.
        """
        entries = self._chosen(tag, digest).manifests
        if not entries:
            raise ImageNotFound(f"{self._name} has no image")
        return entries[0][0]

    def read(self, blob: Descriptor, limit: int) -> bytes:
        """A small blob's verified bytes. Raises InvalidImage if it has more than `limit`."""
        if blob.size > limit:
            raise InvalidImage(f"{blob.digest} has {blob.size} bytes, over {limit}")
        pieces: list[bytes] = []
        self._copy(blob, pieces.append)
        return b"".join(pieces)

    def copy(self, blob: Descriptor, write: Callable[[bytes], object], activity: Activity) -> None:
        """Hand all bytes of a blob to `write`; keep them only if this returns.

        Raises InvalidImage where they aren't what digest and size say, BuildCancelled.
        """
        done = 0

        def write_and_tell(piece: bytes) -> None:
            nonlocal done
            activity.raise_if_cancelled()
            write(piece)
            done += len(piece)
            activity.progress(blob.digest, done, blob.size)

        self._copy(blob, write_and_tell)

    def _chosen(self, tag: str | None, digest: str | None) -> Index:
        """The entries of the layout's index that tag and digest mean."""
        entries = self._index.manifests
        if digest is not None:
            found = tuple(entry for entry in entries if entry[0].digest == digest)
            return replace(self._index, manifests=found or (self._unlisted(digest),))
        found = tuple(e for e in entries if _is_tagged(e[0], tag or DEFAULT_TAG))
        if found:
            return replace(self._index, manifests=found)
        if tag is None and entries and len({_name(entry[0]) for entry in entries}) == 1:
            return self._index
        known = sorted({name for entry in entries if (name := _name(entry[0]))})
        shown = ", ".join(known[:10])
        raise ImageNotFound(
            f"{self._name} has no image with the tag {tag or DEFAULT_TAG}",
            hint=f"it has {shown}" if known else "its images have no tags; give a digest",
        )

    def _unlisted(self, digest: str) -> tuple[Descriptor, None]:
        """A manifest that only another index leads to, or nothing."""
        entry = self._tree.get(self._blob_path(digest))
        if entry is None or entry.kind is not Kind.FILE:
            raise ImageNotFound(f"{self._name} has no image {digest}")
        blob = Descriptor("", digest, entry.size)
        document = parse_json_object(self.read(blob, MAX_MANIFEST_SIZE), digest, MAX_MANIFEST_SIZE)
        media_type = document.get("mediaType")
        if not isinstance(media_type, str):
            raise InvalidImage(f"{digest} in {self._name} is no image")
        return replace(blob, media_type=media_type), None

    def _described(self, descriptor: Descriptor, platform: Platform) -> LayoutImage:
        document = self.read(descriptor, MAX_MANIFEST_SIZE)
        manifest = parse_manifest(document, descriptor.media_type)
        raw = self.read(manifest.config, MAX_CONFIG_SIZE)
        config = parse_config(raw)
        if len(config.diff_ids) != len(manifest.layers):
            raise InvalidImage(
                f"{self._name} has {len(manifest.layers)} layers, "
                f"but its config names {len(config.diff_ids)}"
            )
        if not matches(platform, config.platform):
            raise PlatformMismatch(
                f"{self._name} has no image for {platform}", hint=f"it has {config.platform}"
            )
        return LayoutImage(
            Reference(
                "localhost", f"oci-layout/{_as_repository(self._name)}", None, descriptor.digest
            ),
            descriptor,
            manifest,
            document,
            raw,
            config,
            tuple(map(LayerDiff, config.diff_ids, manifest.layers)),
            self,
        )

    def _copy(self, blob: Descriptor, write: Callable[[bytes], object]) -> None:
        digest, size = sha256(), 0
        with self._open(blob) as stream:
            while piece := stream.read(_CHUNK):
                digest.update(piece)
                size += len(piece)
                write(piece)
        if f"sha256:{digest.hexdigest()}" != blob.digest or size != blob.size:
            raise InvalidImage(f"{self._name} has other bytes under {blob.digest}")

    def _open(self, blob: Descriptor) -> BinaryIO:
        path = self._blob_path(blob.digest)
        entry = self._tree.get(path)
        if entry is None or entry.kind is not Kind.FILE:
            raise InvalidImage(f"{self._name} lacks the blob {blob.digest}")
        if entry.size != blob.size:
            raise InvalidImage(
                f"{self._name} has {entry.size} bytes under {blob.digest}, "
                f"which should have {blob.size}"
            )
        return self._tree.open(path)

    def _blob_path(self, digest: str) -> bytes:
        """Where a blob lies; a link is followed inside of the layout only."""
        path = f"blobs/{digest.replace(':', '/')}".encode()
        try:
            return resolve(self._tree, path)
        except PybuildError as error:
            raise InvalidImage(f"{self._name}: {error.message}") from None

    def _object(self, path: str) -> dict[str, object]:
        return parse_json_object(self._file(path), f"{path} of {self._name}", MAX_MANIFEST_SIZE)

    def _file(self, path: str) -> bytes:
        data = read_file(self._tree, path, MAX_MANIFEST_SIZE)
        if data is None:
            raise InvalidImage(f"{self._name} is no OCI image layout: it has no {path}")
        return data


@contextmanager
def open_layout(path: str | os.PathLike[str]) -> Iterator[ImageLayout]:
    """The layout in a folder or in a tar, plain or compressed. Raises ImageNotFound, InvalidImage."""
    where = Path(path)
    name = f"the layout {os.fspath(path)}"
    if not where.exists():
        raise ImageNotFound(
            f"{name} doesn't exist", hint="a path is relative to the working directory"
        )
    try:
        if where.is_dir():
            with open_context_directory(where) as tree:
                yield ImageLayout(tree, name)
        elif not where.is_file():  # opening a pipe would wait
            raise InvalidImage(f"{name} is neither a folder nor a file")
        else:
            with where.open("rb") as stream, open_context_tar(stream) as tree:
                yield ImageLayout(tree, name)
    except ContextError as error:
        raise InvalidImage(f"{name} can't be read: {error.message}", hint=error.hint) from error
    except OSError as error:
        raise InvalidImage(f"{name} can't be read: {error.strerror or error}") from error


def _names(descriptor: Descriptor) -> list[str]:
    return [descriptor.annotations[key] for key in _NAMES if key in descriptor.annotations]


def _name(descriptor: Descriptor) -> str:
    """What the entry is called, empty if it isn't."""
    return next(iter(_names(descriptor)), "")


def _is_tagged(descriptor: Descriptor, tag: str) -> bool:
    """Whether an annotation is the tag, or a full name that ends with it."""
    return any(name == tag or name.endswith(f":{tag}") for name in _names(descriptor))


def _as_repository(name: str) -> str:
    """The last part of the layout's path, as far as it may be part of a reference."""
    words = re.findall("[a-z0-9]+", name.rpartition("/")[2].lower()[:100])
    return "-".join(words) or "image"
