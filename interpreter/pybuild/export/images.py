"""The images that a build made, and what each output wants of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO

from pybuild.backend import Activity, Backend, Image, ImageSpec, IndexSpec, ROLayer
from pybuild.errors import UsageError
from pybuild.export.outputs import ImageOptions
from pybuild.oci.manifest import Documents
from pybuild.oci.platform import Platform
from pybuild.oci.reference import Reference, parse_reference, with_default_tag
from pybuild.run.result import BuiltImage
from pybuild.values import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class TargetImage:
    """What was made for one platform: `spec`, without names, and the layer it describes."""

    platform: Platform
    spec: ImageSpec
    top: ROLayer

    @property
    def folder(self) -> str:
        """The name of its folder where the files of several images go, as ``linux_arm_v7``."""
        wanted = self.platform
        version = f"({wanted.os_version})" if wanted.os_version else ""
        return str(replace(wanted, os=wanted.os + version)).replace("/", "_")


@dataclass(frozen=True, slots=True)
class TargetImages:
    """What a build made, with its own names and annotations.

    With ``as_index`` there is to be an index; without it there is one image. ``newest`` is
    SOURCE_DATE_EPOCH in seconds since 1970, if there is one. ``blob_places`` say by digest
    where at a registry a blob is known to be.
    """

    backend: Backend
    images: tuple[TargetImage, ...]
    names: tuple[Reference, ...]
    as_index: bool = False
    index_annotations: Mapping[str, str] = field(default_factory=dict)
    newest: int | None = None
    blob_places: Mapping[str, Reference] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WantedImages:
    """The images as one output wants them: ``specs`` in the order of the build's images.

    If there is an ``index``, they are without the ``names``, which it has.
    """

    specs: tuple[ImageSpec, ...]
    names: tuple[Reference, ...]
    index: IndexSpec | None
    documents: Documents

    def results(self, built: TargetImages) -> dict[Platform, BuiltImage]:
        """The images by the platforms that `built` is for."""
        return {
            target.platform: BuiltImage(image.manifest.digest, image.config.digest)
            for target, image in zip(built.images, self.documents.images, strict=True)
        }


def image_name(text: str) -> Reference:
    """The normalised name `text` for a new image. Raises UsageError."""
    reference = parse_reference(text)
    if reference.digest:
        raise UsageError(
            f'the image can\'t be named "{text}"', hint="a name has no digest: that is made here"
        )
    return with_default_tag(reference)


def all_names(names: Sequence[Reference], options: ImageOptions) -> tuple[Reference, ...]:
    """The names that an image gets, each once. Raises UsageError."""
    return tuple(dict.fromkeys((*names, *map(image_name, options.names))))


def wanted_images(built: TargetImages, options: ImageOptions, activity: Activity) -> WantedImages:
    """The images as `options` say. Layers in another compression are made here."""
    names = all_names(built.names, options)
    own = () if built.as_index else names
    specs = tuple(
        _tuned(each.spec, built, own, options, activity=activity) for each in built.images
    )
    images = tuple(spec.documents() for spec in specs)
    if not built.as_index:
        return WantedImages(specs, names, None, Documents(images))
    index = IndexSpec(
        tuple(
            (Image(each.manifest, each.config.digest), target.platform)
            for target, each in zip(built.images, images, strict=True)
        ),
        names,
        {**built.index_annotations, **options.index_annotations},
        docker_media_types=not options.oci_media_types,
    )
    return WantedImages(specs, names, index, Documents(images, index.document()))


def store_images(built: TargetImages, wanted: WantedImages, activity: Activity) -> None:
    """Write the images, and the index if there is one, into the store of their backend."""
    for target, spec in zip(built.images, wanted.specs, strict=True):
        built.backend.create_image(spec, target.top, activity)
    if wanted.index is not None:
        built.backend.create_index(wanted.index, activity)


def load_images(
    wanted: WantedImages,
    backend: Backend,
    open_blob: Callable[[str], BinaryIO],
    activity: Activity,
) -> None:
    """Write the images into another backend's store; `open_blob` opens their layers' blobs."""
    for spec in wanted.specs:
        backend.load_image(spec, open_blob, activity)
    if wanted.index is not None:
        backend.create_index(wanted.index, activity)


def _tuned(
    spec: ImageSpec,
    built: TargetImages,
    names: tuple[Reference, ...],
    options: ImageOptions,
    *,
    activity: Activity,
) -> ImageSpec:
    layers = list(spec.layers)
    if options.packing is not None:
        own = len(spec.base.layers) if spec.base is not None else 0
        for position in range(0 if options.force_compression else own, len(layers)):
            activity.raise_if_cancelled()
            layers[position] = built.backend.recompress(layers[position], options.packing, activity)
    return replace(
        spec,
        layers=tuple(layers),
        names=names,
        annotations={**spec.annotations, **options.annotations},
        docker_media_types=not options.oci_media_types,
        for_index=built.as_index,
    )
