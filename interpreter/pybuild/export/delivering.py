"""Images and their files on the way out: to registries, archives and folders.

Loaded by the first build that asks for one of them.
"""

from __future__ import annotations

from pybuild.backend import Activity
from pybuild.export.folder import write_folder as write_rootfs_folder
from pybuild.export.images import TargetImages, WantedImages
from pybuild.export.layout import (
    docker_files,
    index_entries,
    layout_files,
    write_archive,
    write_folder,
)
from pybuild.export.newfiles import Sink, written
from pybuild.export.outputs import DockerOutput, LocalOutput, OciOutput, TarOutput, place_of
from pybuild.export.rootfs import write_rootfs, write_rootfs_each
from pybuild.oci.blobs import image_blobs
from pybuild.oci.push import push_image
from pybuild.oci.registry import RegistryClient
from pybuild.values import replace


def push(
    built: TargetImages,
    wanted: WantedImages,
    client: RegistryClient,
    activity: Activity,
    *,
    by_digest: bool,
) -> None:
    """Push the images, and the index if there is one, to the registries of their names.

    With `by_digest` they get no tag there. Raises RegistryError, InvalidImage, BuildCancelled.
    """
    documents, names = wanted.documents, wanted.names
    if by_digest:
        digest = documents.descriptor.digest
        names = tuple(dict.fromkeys(replace(name, tag=None, digest=digest) for name in names))
    known = dict(built.blob_places)
    for spec in wanted.specs:
        if spec.base is not None:
            known |= {layer.blob.digest: spec.base.reference for layer in spec.base.layers}
    push_image(client, documents, built.backend.open_blob, names, activity, known=known)


def write_layout(
    built: TargetImages, wanted: WantedImages, output: OciOutput, activity: Activity
) -> None:
    """Write the images as an OCI layout: a folder, or a tar of one. Raises ExportFailed."""
    documents = wanted.documents
    entries = index_entries(documents, wanted.names, wanted.specs[0].config.platform)
    files = layout_files(documents, image_blobs(documents, built.backend.open_blob), entries)
    if not output.tar:
        write_folder(files, entries, place_of(output.dest), activity)
        return
    with written(output.dest) as sink:
        write_archive(files, sink, activity)


def write_docker_archive(
    built: TargetImages, wanted: WantedImages, output: DockerOutput, activity: Activity
) -> None:
    """Write the image as `docker load` takes it. Raises ExportFailed."""
    with written(output.dest) as sink:
        docker_archive(built, wanted, activity, sink)


def docker_archive(
    built: TargetImages, wanted: WantedImages, activity: Activity, sink: Sink
) -> None:
    """Give `sink` the image as `docker load` takes it, piece by piece."""
    documents = wanted.documents
    entries = index_entries(documents, wanted.names, wanted.specs[0].config.platform)
    blobs = image_blobs(documents, built.backend.open_blob)
    files = layout_files(documents, blobs, entries)
    write_archive(files + docker_files(documents.images[0], wanted.names), sink, activity)


def write_tar(built: TargetImages, output: TarOutput, activity: Activity) -> None:
    """Write the files of the images as a tar. Raises ExportFailed."""
    with written(output.dest) as sink:
        if built.as_index:
            trees = {image.folder: image.top.tree() for image in built.images}
            write_rootfs_each(trees, sink, built.newest, activity)
        else:
            write_rootfs(built.images[0].top.tree(), sink, built.newest, activity)


def write_local(built: TargetImages, output: LocalOutput, activity: Activity) -> None:
    """Write the files of the images into a folder. Raises ExportFailed."""
    for image in built.images:
        within = image.folder if built.as_index else ""
        tree = image.top.tree()
        write_rootfs_folder(tree, output.dest, built.newest, activity, within=within)
