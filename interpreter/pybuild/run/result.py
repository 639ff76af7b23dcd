"""What a build returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pybuild.errors import SourceRange
from pybuild.oci.descriptor import INDEX_TYPES, Descriptor
from pybuild.oci.platform import Platform
from pybuild.values import dataclass, field

if TYPE_CHECKING:
    from pybuild.run.miss import Miss


@dataclass(frozen=True, slots=True)
class StepResult:
    """How one step went. ``seconds`` is wall time; ``diff_id`` is None for an empty layer.

    ``miss`` says why it ran although the results of steps are kept; None for one that was
    ``cached``, that changed nothing, or that another stage had done as well.
    """

    stage: str
    title: str
    where: SourceRange
    seconds: float
    cached: bool
    diff_id: str | None
    miss: Miss | None = None


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """The image for one platform: ``digest`` is of its manifest."""

    digest: str
    config_digest: str


@dataclass(frozen=True, slots=True)
class OutputResult:
    """What one output became.

    ``kind`` is the output's type: image, registry, oci, docker, tar, local, or the name of the
    backend that it was loaded into. ``place`` is the path or address written to, ``-`` for a
    stream, empty for a store or registry. ``descriptor`` is of the manifest, or of the index of
    several, and None for files without an image; after a push the registries have it under
    ``names``. ``images`` are those of a :class:`BuildResult`.
    """

    kind: str
    place: str
    descriptor: Descriptor | None = None
    names: tuple[str, ...] = ()
    images: Mapping[Platform, BuiltImage] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A finished build: ``descriptor`` is of the image's manifest, or of the index of several.

    ``names`` are normalised: ``docker.io/library/app:1``. ``images`` are by the platforms
    asked for, in their order. Outputs may differ in their manifests; these are the first
    one's that has any.
    """

    descriptor: Descriptor
    names: tuple[str, ...]
    images: Mapping[Platform, BuiltImage]
    steps: tuple[StepResult, ...]
    seconds: float
    outputs: tuple[OutputResult, ...] = ()

    @property
    def digest(self) -> str:
        """The digest of :attr:`descriptor`, by which the image is known."""
        return self.descriptor.digest

    @property
    def is_index(self) -> bool:
        """Whether an index was made, which may have a single image."""
        return self.descriptor.media_type in INDEX_TYPES

    @property
    def platform(self) -> Platform:
        """The platform that was built for, the first of several."""
        return next(iter(self.images))

    @property
    def config_digest(self) -> str:
        """The digest of the config for :attr:`platform`."""
        return self.images[self.platform].config_digest
