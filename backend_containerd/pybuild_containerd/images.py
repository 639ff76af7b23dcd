"""Images in containerd's store: found, recorded, and made from layers."""

from __future__ import annotations

from collections.abc import Mapping

from pybuild.backend import BaseImage, ImageSpec, IndexSpec
from pybuild.errors import ImageNotFound, InvalidImage, PlatformMismatch
from pybuild.oci.descriptor import (
    INDEX_TYPES,
    Descriptor,
    LayerDiff,
    digest_of,
)
from pybuild.oci.image_config import ImageConfig, parse_config
from pybuild.oci.manifest import (
    MAX_CONFIG_SIZE,
    MAX_MANIFEST_SIZE,
    Manifest,
    parse_index,
    parse_manifest,
    select,
)
from pybuild.oci.platform import Platform, matches
from pybuild.oci.reference import Reference, familiar
from pybuild.values import dataclass, field
from pybuild_containerd import rpcs
from pybuild_containerd.client import Client
from pybuild_containerd.content import ContentStore, gc_labels, index_gc_labels
from pybuild_containerd.errors_table import AlreadyExists, NotFound
from pybuild_containerd.moby import container_config

_DEEPEST_INDEX = 4


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A local image for one platform. ``from_index`` says that an index chose it for that."""

    manifest: Descriptor
    base: BaseImage
    from_index: bool


@dataclass(frozen=True, slots=True)
class WrittenImage:
    """The documents of a new image, stored and kept by the session's lease."""

    manifest: Descriptor
    config_digest: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """What the image's record gets, beyond its name and target."""


class Images:
    """The image records of a namespace."""

    def __init__(self, client: Client, content: ContentStore) -> None:
        self._client = client
        self._content = content

    def find(self, reference: Reference, platform: Platform) -> StoredImage | None:
        """The local image, None if it isn't here or not completely described.

        A reference with a digest finds any record of that digest. Raises PlatformMismatch
        if the image is here for other platforms only, InvalidImage.
        """
        target = self.target(reference)
        if target is None:
            return None
        try:
            return self._described(reference, target, platform)
        except NotFound:
            return None

    def target(self, reference: Reference) -> Descriptor | None:
        """What the local image's record points to: an index or a manifest."""
        try:
            image = self._client.call(rpcs.IMAGE_GET, name=str(reference)).image
        except NotFound:
            if reference.digest is None:
                return None
            filters = [f"target.digest=={reference.digest}"]
            found = self._client.call(rpcs.IMAGE_LIST, filters=filters).images
            if not found:
                return None
            image = found[0]
        target = Descriptor(image.target.media_type, image.target.digest, image.target.size)
        # a record can have any name, also one with another digest in it
        if reference.digest is not None and target.digest != reference.digest:
            return None
        return target

    def labels(self, reference: Reference) -> Mapping[str, str]:
        """The labels of the image's record; none where there is no record."""
        try:
            return dict(self._client.call(rpcs.IMAGE_GET, name=str(reference)).image.labels)
        except NotFound:
            return {}

    def record(self, name: str, target: Descriptor, labels: Mapping[str, str]) -> None:
        """Point `name` to `target`, from wherever it pointed. An empty label is unset."""
        image = {
            "name": name,
            "target": {
                "media_type": target.media_type,
                "digest": target.digest,
                "size": target.size,
            },
            "labels": dict(labels),
        }
        paths = ["target", *(f"labels.{label}" for label in labels)]
        while True:
            try:
                self._client.call(rpcs.IMAGE_CREATE, image=image)
            except AlreadyExists:
                try:
                    self._client.call(rpcs.IMAGE_UPDATE, image=image, update_mask={"paths": paths})
                except NotFound:
                    continue  # removed between the two calls
            return

    def write(
        self, spec: ImageSpec, snapshot_label: Mapping[str, str], *, moby: bool
    ) -> WrittenImage:
        """Store the image's config and manifest; the record is made by `record`.

        `snapshot_label` makes the config keep the image's snapshots. With `moby`, what
        Docker's classic builder adds is added.
        """
        documents = spec.documents()
        target, config_digest = documents.manifest, documents.config.digest
        config_labels = dict(snapshot_label)
        labels: dict[str, str] = {}
        if moby:
            document = container_config(documents.config_bytes)
            digest = digest_of(document)
            self._content.write_small(
                document, digest, {"org.mobyproject.content.image": target.digest}
            )
            config_labels["containerd.io/gc.ref.content.moby/container.config"] = digest
            labels = self._moby_labels(spec.base, digest)
        layers = tuple(layer.blob.digest for layer in spec.layers)
        self._content.write_small(documents.config_bytes, config_digest, config_labels)
        self._content.write_small(
            documents.manifest_bytes, target.digest, gc_labels(config_digest, layers)
        )
        return WrittenImage(target, config_digest, labels)

    def write_index(self, spec: IndexSpec) -> Descriptor:
        """Store the index; its record is made by `record`."""
        document = spec.document()
        manifests = tuple(image.manifest.digest for image, _ in spec.images)
        self._content.write_small(
            document.index_bytes, document.index.digest, index_gc_labels(manifests)
        )
        return document.index

    def _moby_labels(self, base: BaseImage | None, container_config_digest: str) -> dict[str, str]:
        parent = ""
        if base is not None:
            # Docker compares it with what the parent's record points to, maybe an index
            target = self.target(base.reference)
            parent = target.digest if target else base.digest
        return {
            "org.mobyproject.image.parent": parent,
            "org.mobyproject.image.fromscratch": "" if base else "1",
            "org.mobyproject.image.containerconfig": container_config_digest,
        }

    def _described(
        self, reference: Reference, target: Descriptor, platform: Platform
    ) -> StoredImage:
        found = target
        depth = 0
        while found.media_type in INDEX_TYPES:
            if depth == _DEEPEST_INDEX:
                raise InvalidImage(f"{familiar(reference)} has indexes nested too deeply")
            depth += 1
            document = self._content.read(found.digest, MAX_MANIFEST_SIZE)
            try:
                found = select(parse_index(document, found.media_type), platform)
            except PlatformMismatch as error:
                raise _other_platform(reference, platform, error.hint) from None
        document = self._content.read(found.digest, MAX_MANIFEST_SIZE)
        manifest = parse_manifest(document, found.media_type)
        config = parse_config(self._content.read(manifest.config.digest, MAX_CONFIG_SIZE))
        if not depth and not matches(platform, config.platform):
            raise _other_platform(reference, platform, f"it is made for {config.platform}")
        base = base_image(reference, found.digest, manifest, config)
        return StoredImage(found, base, from_index=depth > 0)


def base_image(
    reference: Reference, digest: str, manifest: Manifest, config: ImageConfig
) -> BaseImage:
    """The image as the interpreter wants it. Raises InvalidImage if layers are missing."""
    if len(config.diff_ids) != len(manifest.layers):
        raise InvalidImage(
            f"{familiar(reference)} has {len(manifest.layers)} layers, "
            f"but its config names {len(config.diff_ids)}"
        )
    layers = tuple(map(LayerDiff, config.diff_ids, manifest.layers))
    return BaseImage(reference, digest, config, layers)


def not_here(reference: Reference, platform: Platform, *, recorded: bool) -> ImageNotFound:
    """The error for an image that may not be fetched.

    One that is `recorded` nevertheless is an index of which other platforms were fetched.
    """
    whole = f" completely for {platform}" if recorded else ""
    return ImageNotFound(
        f"{familiar(reference)} is not in containerd's store{whole}",
        hint="it may be pulled with --pull",
    )


def _other_platform(reference: Reference, platform: Platform, hint: str | None) -> PlatformMismatch:
    return PlatformMismatch(
        f"the local image {familiar(reference)} is not made for {platform}", hint=hint
    )
