"""What a build made to one output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pybuild.backend import Activity
from pybuild.backends import open_backend
from pybuild.errors import UsageError
from pybuild.export.images import (
    TargetImages,
    WantedImages,
    all_names,
    load_images,
    store_images,
    wanted_images,
)
from pybuild.export.newfiles import check_destination
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
    place_of,
)
from pybuild.oci.reference import Reference
from pybuild.run.result import OutputResult

if TYPE_CHECKING:
    from pybuild.oci.registry import RegistryClient


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
            from pybuild.export.delivering import write_tar  # noqa: PLC0415  (as its docstring says)

            write_tar(built, output, activity)
            return OutputResult("tar", place_of(output.dest))
        case LocalOutput():
            from pybuild.export.delivering import write_local  # noqa: PLC0415

            write_local(built, output, activity)
            return OutputResult("local", output.dest)
        case _:
            wanted = wanted_images(built, output.image, activity)
            kind, dest = export_images(built, wanted, output, client, activity)
            return OutputResult(
                kind,
                place_of(dest),
                wanted.documents.descriptor,
                tuple(map(str, wanted.names)),
                wanted.results(built),
            )


def export_images(
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
    """Write the images; the kind and place of the result. Raises as :func:`export`."""
    if isinstance(output, ImageOutput):
        store_images(built, wanted, activity)
        if not output.push:
            return "image", ""
    from pybuild.export import delivering  # noqa: PLC0415  (as its docstring says)

    match output:
        case ImageOutput():
            delivering.push(built, wanted, client(), activity, by_digest=output.by_digest)
            return "image", ""
        case RegistryOutput():
            delivering.push(built, wanted, client(), activity, by_digest=output.by_digest)
            return "registry", ""
        case OciOutput():
            delivering.write_layout(built, wanted, output, activity)
            return "oci", output.dest
        case DockerOutput():
            delivering.write_docker_archive(built, wanted, output, activity)
            return "docker", output.dest
        case DockerLoadOutput():
            from pybuild.export.dockersocket import load_archive  # noqa: PLC0415  (imports http)

            archive = partial(delivering.docker_archive, built, wanted, activity)
            load_archive(output.host, archive, activity)
            return "docker", output.host
        case BackendLoadOutput():
            with open_backend(output.backend, output.options) as other:
                load_images(wanted, other, built.backend.open_blob, activity)
            return output.backend, ""
