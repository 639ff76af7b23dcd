"""A built image to one output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pybuild.backend import Activity, Backend, ImageSpec, ROLayer
from pybuild.backends import open_backend
from pybuild.errors import UsageError
from pybuild.export.folder import write_folder as write_rootfs_folder
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
from pybuild.export.rootfs import write_rootfs
from pybuild.oci.blobs import image_blobs
from pybuild.oci.push import push_image
from pybuild.oci.reference import Reference, parse_reference, with_default_tag
from pybuild.oci.registry import RegistryClient
from pybuild.run.result import OutputResult


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """What a build made: `spec` with the build's own names, and the layer it describes.

    ``newest`` is SOURCE_DATE_EPOCH in seconds since 1970, if there is one.
    """

    backend: Backend
    spec: ImageSpec
    top: ROLayer
    newest: int | None = None


def image_name(text: str) -> Reference:
    """The normalised name `text` for a new image. Raises UsageError."""
    reference = parse_reference(text)
    if reference.digest:
        raise UsageError(
            f'the image can\'t be named "{text}"', hint="a name has no digest: that is made here"
        )
    return with_default_tag(reference)


def check_output(output: Output, names: Sequence[Reference]) -> None:
    """Refuse, before anything is built, an output that would fail in the end.

    `names` are the build's. Raises UsageError, ExportFailed.
    """
    match output:
        case RegistryOutput() | ImageOutput(push=True):
            if not all_names(names, output.image):
                raise UsageError("an image can't be pushed without a name", hint="name it with -t")
        case ImageOutput() | BackendLoadOutput():
            all_names(names, output.image)
        case OciOutput():
            all_names(names, output.image)
            check_destination(output.dest, folder=not output.tar)
        case DockerOutput():
            all_names(names, output.image)
            check_destination(output.dest, folder=False)
        case DockerLoadOutput():
            from pybuild.export.dockersocket import check_docker  # noqa: PLC0415  (imports http)

            all_names(names, output.image)
            check_docker(output.host)
        case TarOutput():
            check_destination(output.dest, folder=False)
        case LocalOutput():
            check_destination(output.dest, folder=True)


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
    image: BuiltImage, output: Output, client: Callable[[], RegistryClient], activity: Activity
) -> OutputResult:
    """Write the image to `output`. `client` is asked only if something is pushed.

    Raises ExportFailed, RegistryError, BackendError, InvalidImage, BuildCancelled; what was
    at the destination before stays then, but in a folder of files.
    """
    activity.raise_if_cancelled()
    match output:
        case ImageOutput():
            spec = _tuned(image, output.image, activity)
            image.backend.create_image(spec, image.top, activity)
            if output.push:
                _push(image, spec, client(), activity, by_digest=output.by_digest)
            return _result("image", spec)
        case RegistryOutput():
            spec = _tuned(image, output.image, activity)
            _push(image, spec, client(), activity, by_digest=output.by_digest)
            return _result("registry", spec)
        case OciOutput():
            spec = _tuned(image, output.image, activity)
            _write_layout(image, spec, output, activity)
            return _result("oci", spec, output.dest)
        case DockerOutput():
            spec = _tuned(image, output.image, activity)
            with written(output.dest) as sink:
                _docker_archive(image, spec, activity, sink)
            return _result("docker", spec, output.dest)
        case DockerLoadOutput():
            from pybuild.export.dockersocket import load_archive  # noqa: PLC0415  (imports http)

            spec = _tuned(image, output.image, activity)
            load_archive(output.host, partial(_docker_archive, image, spec, activity), activity)
            return _result("docker", spec, output.host)
        case BackendLoadOutput():
            spec = _tuned(image, output.image, activity)
            with open_backend(output.backend, output.options) as other:
                other.load_image(spec, image.backend.open_blob, activity)
            return _result(output.backend, spec)
        case TarOutput():
            with written(output.dest) as sink:
                write_rootfs(image.top.tree(), sink, image.newest, activity)
            return OutputResult("tar", _place(output.dest))
        case LocalOutput():
            write_rootfs_folder(image.top.tree(), output.dest, image.newest, activity)
            return OutputResult("local", output.dest)


def all_names(names: Sequence[Reference], options: ImageOptions) -> tuple[Reference, ...]:
    """The names that an image gets, each once. Raises UsageError."""
    return tuple(dict.fromkeys((*names, *map(image_name, options.names))))


def _tuned(image: BuiltImage, options: ImageOptions, activity: Activity) -> ImageSpec:
    """The image as an output wants it. Layers in another compression are made here."""
    spec, wanted = image.spec, options.packing
    layers = list(spec.layers)
    if wanted is not None:
        own = len(spec.base.layers) if spec.base is not None else 0
        for position in range(0 if options.force_compression else own, len(layers)):
            activity.raise_if_cancelled()
            layers[position] = image.backend.recompress(layers[position], wanted, activity)
    return replace(
        spec,
        layers=tuple(layers),
        names=all_names(spec.names, options),
        annotations={**spec.annotations, **options.annotations},
        docker_media_types=not options.oci_media_types,
    )


def _push(
    image: BuiltImage,
    spec: ImageSpec,
    client: RegistryClient,
    activity: Activity,
    *,
    by_digest: bool,
) -> None:
    documents = spec.documents()
    names = spec.names
    if by_digest:
        names = tuple(
            dict.fromkeys(
                replace(name, tag=None, digest=documents.manifest.digest) for name in names
            )
        )
    base = spec.base
    known = {layer.blob.digest: base.reference for layer in base.layers} if base else {}
    push_image(client, documents, image.backend.open_blob, names, activity, known=known)


def _write_layout(
    image: BuiltImage, spec: ImageSpec, output: OciOutput, activity: Activity
) -> None:
    documents = spec.documents()
    entries = index_entries(documents, spec.names, spec.config.platform)
    blobs = image_blobs(documents, image.backend.open_blob)
    files = layout_files(documents, blobs, entries)
    if not output.tar:
        write_folder(files, entries, _place(output.dest), activity)
        return
    with written(output.dest) as sink:
        write_archive(files, sink, activity)


def _docker_archive(image: BuiltImage, spec: ImageSpec, activity: Activity, sink: Sink) -> None:
    documents = spec.documents()
    entries = index_entries(documents, spec.names, spec.config.platform)
    blobs = image_blobs(documents, image.backend.open_blob)
    files = layout_files(documents, blobs, entries) + docker_files(documents, spec.names)
    write_archive(files, sink, activity)


def _result(kind: str, spec: ImageSpec, dest: Destination = "") -> OutputResult:
    return OutputResult(kind, _place(dest), spec.documents().manifest, tuple(map(str, spec.names)))


def _place(dest: Destination) -> str:
    return dest if isinstance(dest, str) else "-"
