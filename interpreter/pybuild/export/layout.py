"""An image, or an index with its images, as files: an OCI image layout (`image-layout.md`), which ``docker load`` reads too.

The same image gives the same bytes: names sorted, all times zero, owners zero.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pybuild.backend import Activity
from pybuild.errors import ExportFailed, InvalidImage
from pybuild.export.newfiles import Sink, translated, written
from pybuild.oci.blobs import Blob, memory_blob
from pybuild.oci.descriptor import OCI_INDEX
from pybuild.oci.manifest import (
    MAX_MANIFEST_SIZE,
    Documents,
    ImageDocuments,
    canonical_json,
    descriptor_as_json,
    parse_json_object,
)
from pybuild.oci.platform import Platform, platform_as_json
from pybuild.oci.reference import Reference, familiar
from pybuild.oci.tarformat import BLOCK, Member, header
from pybuild.values import dataclass

_CONTAINERD_NAME = "io.containerd.image.name"
OCI_NAME = "org.opencontainers.image.ref.name"
_MARK = b'{"imageLayoutVersion":"1.0.0"}'
_FILE, _FOLDER = ord("0"), ord("5")


@dataclass(frozen=True, slots=True)
class LayoutFile:
    """A file of a layout: its path in there, size in bytes, and content."""

    path: str
    size: int
    pieces: Callable[[Activity], Iterator[bytes]]


def index_entries(
    documents: Documents, names: Sequence[Reference], platform: Platform
) -> list[dict[str, Any]]:
    """The descriptors in index.json, one for each name; without names, one.

    `platform` is that of an image; an index has its own in it.
    """
    entry = descriptor_as_json(documents.descriptor)
    if documents.index is None:
        entry["platform"] = platform_as_json(platform)
    if not names:
        return [entry]
    return [
        {**entry, "annotations": {_CONTAINERD_NAME: str(name), OCI_NAME: name.tag or ""}}
        for name in names
    ]


def layout_files(
    documents: Documents, blobs: Sequence[Blob], entries: Sequence[dict[str, Any]]
) -> list[LayoutFile]:
    """The files of a layout; `blobs` are the layers and configs of the images."""
    manifests = [memory_blob(each.manifest, each.manifest_bytes) for each in documents.images]
    if documents.index is not None:
        manifests.append(memory_blob(documents.index.index, documents.index.index_bytes))
    return blob_files([*blobs, *manifests], entries)


def blob_files(blobs: Sequence[Blob], entries: Sequence[dict[str, Any]]) -> list[LayoutFile]:
    """The files of a layout that holds `blobs`, manifests among them, and these entries."""
    found = {blob.descriptor.digest: blob for blob in blobs}
    return [
        *(
            LayoutFile(_blob_path(digest), blob.descriptor.size, blob.pieces)
            for digest, blob in found.items()
        ),
        _small("index.json", _index(entries)),
        _small("oci-layout", _MARK),
    ]


def docker_files(documents: ImageDocuments, names: Sequence[Reference]) -> list[LayoutFile]:
    """What ``docker save`` adds to a layout, for those that know no layout."""
    layers = [_blob_path(layer.digest) for layer in documents.layers]
    listed = {
        "Config": _blob_path(documents.config.digest),
        "RepoTags": [familiar(name) for name in names] or None,
        "Layers": layers,
    }
    files = [_small("manifest.json", canonical_json([listed]))]
    repositories: dict[str, dict[str, str]] = {}
    for name in names if layers else ():
        repository = familiar(name).removesuffix(f":{name.tag}")
        repositories.setdefault(repository, {})[name.tag or ""] = layers[-1].rpartition("/")[2]
    if repositories:
        files.append(_small("repositories", canonical_json(repositories)))
    return files


def write_archive(files: Sequence[LayoutFile], sink: Sink, activity: Activity) -> None:
    """Write the files and their folders as a tar archive."""
    folders = {parent for file in files for parent in _parents(file.path)}
    members: list[tuple[str, LayoutFile | None]] = [(file.path, file) for file in files]
    members += [(f"{folder}/", None) for folder in folders]
    for path, file in sorted(members, key=lambda member: member[0]):
        if file is None:
            sink(header(Member(path.encode(), _FOLDER, 0o755)))
            continue
        sink(header(Member(path.encode(), _FILE, 0o644, size=file.size)))
        for piece in file.pieces(activity):
            sink(piece)
        sink(bytes(-file.size % BLOCK))
    sink(bytes(2 * BLOCK))


def write_folder(
    files: Sequence[LayoutFile], entries: Sequence[dict[str, Any]], dest: str, activity: Activity
) -> None:
    """Write the files to the folder `dest`: new, empty, or a layout, whose images stay.

    The index is written last, so that the layout has the whole image or what it had before.
    Raises ExportFailed.
    """
    root = Path(dest)
    made: list[Path] = []
    with translated(dest):
        kept = _images_in(root, entries)
        folders = [root / "blobs" / "sha256", root / "blobs", *([] if root.exists() else [root])]
        folders[0].mkdir(parents=True, exist_ok=True)
        try:
            for file in files:
                path = root / file.path
                is_blob = path.parent == folders[0]
                if not is_blob or (path.is_file() and path.stat().st_size == file.size):
                    continue
                with written(str(path)) as sink:
                    for piece in file.pieces(activity):
                        sink(piece)
                made.append(path)
            for name, content in (("oci-layout", _MARK), ("index.json", _index([*kept, *entries]))):
                with written(str(root / name)) as sink:
                    sink(content)
        except BaseException:
            for path in made:
                path.unlink(missing_ok=True)
            with suppress(OSError):  # some aren't empty
                for folder in folders:
                    folder.rmdir()
            raise


def _images_in(root: Path, replacing: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of the layout that is at `root`, but for the names that `replacing` has."""
    if not root.exists() or not any(root.iterdir()):
        return []
    if not (root / "oci-layout").is_file():
        raise ExportFailed(
            f'can\'t write a layout to "{root}": the folder is neither empty nor a layout',
            hint="give another folder as dest",
        )
    index = root / "index.json"
    if not index.exists():
        return []
    with index.open("rb") as file:
        content = file.read(MAX_MANIFEST_SIZE + 1)
    try:
        found = parse_json_object(content, f'"{index}"', MAX_MANIFEST_SIZE).get("manifests", [])
    except InvalidImage as error:
        raise ExportFailed(f"the layout can't be added to: {error.message}") from None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ExportFailed(f'the layout can\'t be added to: "{index}" is no index')
    taken = {_identity(entry) for entry in replacing}
    return [entry for entry in found if _identity(entry) not in taken]


def _identity(entry: dict[str, Any]) -> str:
    """What of two entries in an index only one may have."""
    annotations = entry.get("annotations")
    if isinstance(annotations, dict) and annotations:
        for key in (_CONTAINERD_NAME, OCI_NAME):
            if key in annotations:
                return f"{key}={annotations[key]}"
    return json.dumps(entry.get("digest"))


def _index(entries: Sequence[dict[str, Any]]) -> bytes:
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}
    return canonical_json(document)


def _small(path: str, content: bytes) -> LayoutFile:
    return LayoutFile(path, len(content), partial(_once, content))


def _once(content: bytes, _: Activity) -> Iterator[bytes]:
    yield content


def _blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
