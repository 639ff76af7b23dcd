"""What a build made to one output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from pybuild.backend import Activity
from pybuild.backends import open_backend
from pybuild.errors import UsageError
from pybuild.export.folder import write_folder as write_rootfs_folder
from pybuild.export.images import (
    TargetImages,
    WantedImages,
    all_names,
    load_images,
    store_images,
    wanted_images,
)
from pybuild.export.layout import (
    docker_files,
    index_entries,
    layout_files,
    write_archive,
    write_folder,
)
from pybuild.export.newfiles import Sink, check_destination, written
from pybuild.export.outputs import (
    BackendLoadOutput,
    Destination,
    DockerLoadOutput,
    DockerOutput,
    ImageOptions,
    ImageOutput,
    LocalOutput,
    OciOutput,
    Output,
    RegistryOutput,
    TarOutput,
)
from pybuild.export.rootfs import write_rootfs, write_rootfs_each
from pybuild.oci.blobs import image_blobs
from pybuild.oci.push import push_image
from pybuild.oci.reference import Reference
from pybuild.oci.registry import RegistryClient
from pybuild.run.result import OutputResult


def check_output(output: Output, names: Sequence[Reference], *, as_index: bool) -> None:
    """Refuse, before anything is built, an output that would fail in the end.

    `names` are the build's; with `as_index` it makes an index. Raises UsageError, ExportFailed.
    """
    match output:
        case RegistryOutput() | ImageOutput(push=True):
            if not _checked_names(output.image, names, as_index=as_index):
                raise UsageError("an image can't be pushed without a name", hint="name it with -t")
        case ImageOutput() | BackendLoadOutput():
            _checked_names(output.image, names, as_index=as_index)
        case OciOutput():
            _checked_names(output.image, names, as_index=as_index)
            check_destination(output.dest, folder=not output.tar)
        case DockerOutput():
            _refuse_index(as_index=as_index)
            _checked_names(output.image, names, as_index=as_index)
            check_destination(output.dest, folder=False)
        case DockerLoadOutput():
            from pybuild.export.dockersocket import check_docker  # noqa: PLC0415  (imports http)

            _refuse_index(as_index=as_index)
            _checked_names(output.image, names, as_index=as_index)
            check_docker(output.host)
        case TarOutput():
            check_destination(output.dest, folder=False)
        case LocalOutput():
            check_destination(output.dest, folder=True)


def _checked_names(
    options: ImageOptions, names: Sequence[Reference], *, as_index: bool
) -> tuple[Reference, ...]:
    check_index_annotations(options.index_annotations, as_index=as_index)
    return all_names(names, options)


def check_index_annotations(annotations: Mapping[str, str], *, as_index: bool) -> None:
    """Raise UsageError for annotations of an index that there won't be."""
    if annotations and not as_index:
        raise UsageError(
            "an image for one platform has no index that could be annotated",
            hint="build for several, or with the build arg BUILDKIT_MULTI_PLATFORM=1",
        )


def _refuse_index(*, as_index: bool) -> None:
    if as_index:
        raise UsageError(
            "docker exporter does not currently support exporting manifest lists",
            hint="build for one platform, or use type=oci",
        )


def describe_output(output: Output) -> str:
    """What is being done, for progress."""
    match output:
        case ImageOutput():
            return "exporting to image"
        case RegistryOutput():
            return "pushing to registry"
        case OciOutput():
            return "exporting to oci image format"
        case DockerOutput():
            return "exporting to docker image format"
        case DockerLoadOutput():
            return "loading into docker"
        case BackendLoadOutput():
            return f"loading into {output.backend}"
        case TarOutput():
            return "exporting to client tarball"
        case LocalOutput():
            return "exporting to client directory"


def export(
    built: TargetImages, output: Output, client: Callable[[], RegistryClient], activity: Activity
) -> OutputResult:
    """Write what was built to `output`. `client` is asked only if something is pushed.

    Raises ExportFailed, RegistryError, BackendError, InvalidImage, BuildCancelled; what was
    at the destination before stays then, but in a folder of files.
    """
    activity.raise_if_cancelled()
    match output:
        case TarOutput():
            _write_tar(built, output, activity)
            return OutputResult("tar", _place(output.dest))
        case LocalOutput():
            _write_local(built, output, activity)
            return OutputResult("local", output.dest)
        case _:
            wanted = wanted_images(built, output.image, activity)
            kind, dest = _export_images(built, wanted, output, client, activity)
            return OutputResult(
                kind,
                _place(dest),
                wanted.documents.descriptor,
                tuple(map(str, wanted.names)),
                wanted.results(built),
            )


def _export_images(
    built: TargetImages,
    wanted: WantedImages,
    output: ImageOutput
    | RegistryOutput
    | OciOutput
    | DockerOutput
    | DockerLoadOutput
    | BackendLoadOutput,
    client: Callable[[], RegistryClient],
    activity: Activity,
) -> tuple[str, Destination]:
    """Write the images, and return the kind and place of the output's result."""
    match output:
        case ImageOutput():
            store_images(built, wanted, activity)
            if output.push:
                _push(built, wanted, client(), activity, by_digest=output.by_digest)
            return "image", ""
        case RegistryOutput():
            _push(built, wanted, client(), activity, by_digest=output.by_digest)
            return "registry", ""
        case OciOutput():
            _write_layout(built, wanted, output, activity)
            return "oci", output.dest
        case DockerOutput():
            with written(output.dest) as sink:
                _docker_archive(built, wanted, activity, sink)
            return "docker", output.dest
        case DockerLoadOutput():
            from pybuild.export.dockersocket import load_archive  # noqa: PLC0415  (imports http)

            archive = partial(_docker_archive, built, wanted, activity)
            load_archive(output.host, archive, activity)
            return "docker", output.host
        case BackendLoadOutput():
            with open_backend(output.backend, output.options) as other:
                load_images(wanted, other, built.backend.open_blob, activity)
            return output.backend, ""


def _push(
    built: TargetImages,
    wanted: WantedImages,
    client: RegistryClient,
    activity: Activity,
    *,
    by_digest: bool,
) -> None:
    documents, names = wanted.documents, wanted.names
    if by_digest:
        digest = documents.descriptor.digest
        names = tuple(dict.fromkeys(replace(name, tag=None, digest=digest) for name in names))
    known = {
        layer.blob.digest: spec.base.reference
        for spec in wanted.specs
        if spec.base is not None
        for layer in spec.base.layers
    }
    push_image(client, documents, built.backend.open_blob, names, activity, known=known)


def _write_layout(
    built: TargetImages, wanted: WantedImages, output: OciOutput, activity: Activity
) -> None:
    documents = wanted.documents
    entries = index_entries(documents, wanted.names, wanted.specs[0].config.platform)
    files = layout_files(documents, image_blobs(documents, built.backend.open_blob), entries)
    if not output.tar:
        write_folder(files, entries, _place(output.dest), activity)
        return
    with written(output.dest) as sink:
        write_archive(files, sink, activity)


def _docker_archive(
    built: TargetImages, wanted: WantedImages, activity: Activity, sink: Sink
) -> None:
    documents = wanted.documents
    entries = index_entries(documents, wanted.names, wanted.specs[0].config.platform)
    blobs = image_blobs(documents, built.backend.open_blob)
    files = layout_files(documents, blobs, entries)
    write_archive(files + docker_files(documents.images[0], wanted.names), sink, activity)


def _write_tar(built: TargetImages, output: TarOutput, activity: Activity) -> None:
    with written(output.dest) as sink:
        if built.as_index:
            trees = {image.folder: image.top.tree() for image in built.images}
            write_rootfs_each(trees, sink, built.newest, activity)
        else:
            write_rootfs(built.images[0].top.tree(), sink, built.newest, activity)


def _write_local(built: TargetImages, output: LocalOutput, activity: Activity) -> None:
    for image in built.images:
        within = image.folder if built.as_index else ""
        tree = image.top.tree()
        write_rootfs_folder(tree, output.dest, built.newest, activity, within=within)


def _place(dest: Destination) -> str:
    return dest if isinstance(dest, str) else "-"
