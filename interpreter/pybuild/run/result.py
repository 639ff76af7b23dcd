"""What a build returns."""

from __future__ import annotations

from dataclasses import dataclass

from pybuild.errors import SourceRange
from pybuild.oci.descriptor import Descriptor
from pybuild.oci.platform import Platform


@dataclass(frozen=True, slots=True)
class StepResult:
    """How one step went. ``seconds`` is wall time; ``diff_id`` is None for an empty layer."""

    stage: str
    title: str
    where: SourceRange
    seconds: float
    cached: bool
    diff_id: str | None


@dataclass(frozen=True, slots=True)
class OutputResult:
    """What one output became.

    ``kind`` is the output's type: image, registry, oci, docker, tar, local, or the name of the
    backend that it was loaded into. ``place`` is the path or address written to, ``-`` for a
    stream, empty for a store or registry. ``manifest`` is None for files without an image;
    after a push the registries have it under ``names``.
    """

    kind: str
    place: str
    manifest: Descriptor | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A finished build: ``manifest`` describes the image's manifest, ``config_digest`` its config.

    ``names`` are normalised: ``docker.io/library/app:1``. Outputs may differ in their manifests;
    this is the first one's that has any.
    """

    manifest: Descriptor
    config_digest: str
    names: tuple[str, ...]
    platform: Platform
    steps: tuple[StepResult, ...]
    seconds: float
    outputs: tuple[OutputResult, ...] = ()

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return self.manifest.digest
