"""What a build returns."""

from __future__ import annotations

from dataclasses import dataclass

from pybuild.errors import SourceRange
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
class BuildResult:
    """A finished build: ``digest`` is of the image's manifest, ``config_digest`` of its config.

    ``names`` are normalised: ``docker.io/library/app:1``.
    """

    digest: str
    config_digest: str
    names: tuple[str, ...]
    platform: Platform
    steps: tuple[StepResult, ...]
    seconds: float
