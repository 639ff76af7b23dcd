"""A finished build's steps on the way out, to where other machines find them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import BinaryIO

from pybuild.backend import Backend, Capability
from pybuild.cachetransfer.document import CACHE_CONFIG, DocumentWriter
from pybuild.cachetransfer.mounts import OfferedMount
from pybuild.cachetransfer.places import CacheExport, InlineExport, LocalExport, RegistryExport
from pybuild.errors import (
    BackendError,
    CopyFailed,
    ExportFailed,
    ImageError,
    PybuildError,
    UnsupportedByBackend,
)
from pybuild.export.layout import OCI_NAME, blob_files, write_folder
from pybuild.export.newfiles import check_destination
from pybuild.oci.blobs import Blob, memory_blob
from pybuild.oci.descriptor import OCI_MANIFEST, Descriptor, digest_of
from pybuild.oci.http import Activity
from pybuild.oci.manifest import descriptor_as_json, make_manifest
from pybuild.oci.reference import Reference, version
from pybuild.oci.registry import RegistryClient
from pybuild.oci.transfers import in_parallel
from pybuild.run.activity import StepActivity
from pybuild.run.elsewhere import KeptStep
from pybuild.values import dataclass


@dataclass(frozen=True, slots=True)
class _Artifact:
    """A cache as a manifest, its config, and the blobs of its layers."""

    manifest: Descriptor
    manifest_bytes: bytes
    blobs: tuple[Blob, ...]


@dataclass(frozen=True, slots=True)
class WantedMount:
    """A cache mount by the backend's id, and its name for messages.

    ``elsewhere`` finds it in the caches that the build looks into, if there are any.
    """

    ident: str
    name: str
    elsewhere: Callable[[Activity], OfferedMount | None] | None


def describe_export(export: CacheExport) -> str:
    """What is being done, for progress."""
    match export:
        case RegistryExport():
            return "exporting cache to registry"
        case LocalExport():
            return "exporting cache to client directory"
        case InlineExport():
            return "preparing layers for inline cache"


def export_cache(
    export: RegistryExport | LocalExport,
    backend: Backend,
    steps: Iterable[KeptStep],
    mounts: Sequence[WantedMount],
    client: Callable[[], RegistryClient],
    *,
    known: Mapping[str, Reference],
    activity: StepActivity,
) -> None:
    """Write `steps` and `mounts`.

    `known` says by digest where a registry has a blob already. Raises ExportFailed, or warns
    if the export says so; BuildCancelled.
    """
    try:
        artifact = _artifact(backend, steps, mounts, activity)
        match export:
            case RegistryExport():
                _push(artifact, export, client(), known, activity)
            case LocalExport():
                _write(artifact, export, activity)
    except (ImageError, BackendError, CopyFailed, ExportFailed) as error:
        failed = _failed(export, error)
        if not export.ignore_error:
            raise failed from error
        activity.warn(failed.message, failed.hint)


def inline_annotation(
    steps: Iterable[KeptStep],
    layers: Sequence[Descriptor],
    made: datetime | None,
    *,
    owners: bool,
) -> str:
    """The document for the manifest of an image with these layers.

    `made` replaces the times of the steps, for an image that has no clock in it.
    """
    writer = DocumentWriter(layers)
    for step in steps:
        _add(writer, step, owners=owners, made=made or step.made)
    return writer.content().decode()


def check_export(backend: Backend, exports: Sequence[CacheExport]) -> None:
    """Refuse, before anything is built, what will fail. Raises UnsupportedByBackend, ExportFailed."""
    for export in exports:
        if isinstance(export, LocalExport) and not export.ignore_error:
            check_destination(export.dest, folder=True)
    if exports and Capability.STEP_CACHE not in backend.capabilities:
        raise UnsupportedByBackend(
            f'the backend "{backend.name}" keeps no steps that could be exported',
            hint="build without --cache-to",
        )
    with_mounts = any(not isinstance(one, InlineExport) and one.mounts for one in exports)
    if with_mounts and backend.cache_exchange() is None:
        raise UnsupportedByBackend(
            f'the backend "{backend.name}" can\'t export cache mounts',
            hint="leave mounts= away from --cache-to",
        )


def _artifact(
    backend: Backend,
    steps: Iterable[KeptStep],
    mounts: Sequence[WantedMount],
    activity: StepActivity,
) -> _Artifact:
    activity.note("preparing build cache for export")
    owners = Capability.FILE_OWNERS in backend.capabilities
    writer = DocumentWriter()
    for step in steps:
        _add(writer, step, owners=owners, made=step.made)
    opened: dict[str, Callable[[], BinaryIO]] = {}
    for mount in mounts:
        _add_mount(writer, mount, backend, opened, activity)
    content = writer.content()
    config = Descriptor(CACHE_CONFIG, digest_of(content), len(content))
    manifest = make_manifest(config, writer.blobs)
    blobs = (
        Blob(blob, opened.get(blob.digest) or partial(backend.open_blob, blob.digest))
        for blob in writer.blobs
    )
    return _Artifact(
        Descriptor(OCI_MANIFEST, digest_of(manifest), len(manifest)),
        manifest,
        (*blobs, memory_blob(config, content)),
    )


def _add_mount(
    writer: DocumentWriter,
    mount: WantedMount,
    backend: Backend,
    opened: dict[str, Callable[[], BinaryIO]],
    activity: StepActivity,
) -> None:
    """Add a mount as it is here, else as it came from elsewhere, where nothing has used it."""
    exchange = backend.cache_exchange()
    layer = exchange.pack_mount(mount.ident, activity) if exchange is not None else None
    if layer is None and mount.elsewhere is not None:
        offered = mount.elsewhere(activity)
        if offered is not None:
            layer = offered.layer
            opened[layer.blob.digest] = partial(offered.open, activity)
    if layer is None:
        activity.warn(f'the cache mount "{mount.name}" isn\'t exported: there is nothing in it yet')
    else:
        writer.add_mount(mount.ident, layer)


def _add(writer: DocumentWriter, step: KeptStep, *, owners: bool, made: datetime) -> None:
    writer.add_step(step.key, step.layers, step.base, own=step.own, made=made, owners=owners)


def _push(
    artifact: _Artifact,
    export: RegistryExport,
    client: RegistryClient,
    known: Mapping[str, Reference],
    activity: StepActivity,
) -> None:
    if _has(client, export.ref, artifact.manifest.digest, activity):
        return
    writer = client.writer(export.ref)

    def send(blob: Blob, activity: Activity) -> None:
        origin = known.get(blob.descriptor.digest)
        near = origin is not None and origin.registry == export.ref.registry
        writer.send(blob, origin.repository if origin is not None and near else None, activity)

    for blob in artifact.blobs[:-1]:
        activity.note(f"writing layer {blob.descriptor.digest}")
    in_parallel([partial(send, blob) for blob in artifact.blobs], activity)
    activity.note(f"writing cache image manifest {artifact.manifest.digest}")
    writer.put_manifest(artifact.manifest, artifact.manifest_bytes, version(export.ref), activity)


def _has(client: RegistryClient, reference: Reference, digest: str, activity: Activity) -> bool:
    """Whether the registry has just this cache already."""
    try:
        return client.resolve(reference, activity).digest == digest
    except ImageError:
        activity.raise_if_cancelled()
        return False  # writing it will say what is wrong


def _write(artifact: _Artifact, export: LocalExport, activity: StepActivity) -> None:
    entry = descriptor_as_json(artifact.manifest)
    entry["annotations"] = {OCI_NAME: export.tag}
    manifest = memory_blob(artifact.manifest, artifact.manifest_bytes)
    files = blob_files([*artifact.blobs, manifest], [entry])
    write_folder(files, [entry], export.dest, activity)
    activity.note(f"writing cache image manifest {artifact.manifest.digest}")


def _failed(export: RegistryExport | LocalExport, error: PybuildError) -> ExportFailed:
    place = str(export.ref) if isinstance(export, RegistryExport) else f'"{export.dest}"'
    return ExportFailed(f"can't write the build cache to {place}: {error.message}", hint=error.hint)
