"""Makes what a build is for from its finished stages: an image, or an index of several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pybuild.backend import Backend, Image, ImageSpec, IndexSpec
from pybuild.oci.descriptor import Descriptor
from pybuild.oci.platform import Platform
from pybuild.oci.reference import Reference
from pybuild.plan.steps import Plan, PlanTarget
from pybuild.run.activity import StepActivity
from pybuild.run.result import BuiltImage
from pybuild.run.stage import StageRunner, base_image, final_config


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """How what is built is to be named and described.

    ``annotations`` are of each manifest. ``created`` is as in :func:`.final_config`. With
    ``as_index`` there will be an index; without it, the plan has one target.
    """

    names: tuple[Reference, ...]
    annotations: Mapping[str, str]
    index_annotations: Mapping[str, str]
    created: datetime | None
    as_index: bool


@dataclass(frozen=True, slots=True)
class Exported:
    """What was made: ``descriptor`` is the index's if there is one, else the only manifest's."""

    descriptor: Descriptor
    names: tuple[str, ...]
    images: Mapping[Platform, BuiltImage]


def export(
    plan: Plan,
    runner: StageRunner,
    backend: Backend,
    request: ExportRequest,
    activity: StepActivity,
) -> Exported:
    """Make an image of each target, and an index of them if one is wanted."""
    made = [
        (_make_image(target, plan, runner, backend, request, activity=activity), target.platform)
        for target in plan.targets
    ]
    descriptor, names = made[0][0].manifest, made[0][0].names
    if request.as_index:
        activity.raise_if_cancelled()
        spec = IndexSpec(tuple(made), request.names, request.index_annotations)
        descriptor, names = backend.create_index(spec, activity), request.names
        activity.note(f"exporting manifest list {descriptor.digest}")
    for name in names:
        activity.note(f"naming to {name}")
    images = {
        platform: BuiltImage(image.manifest.digest, image.config_digest) for image, platform in made
    }
    return Exported(descriptor, tuple(map(str, names)), images)


def _make_image(
    target: PlanTarget,
    plan: Plan,
    runner: StageRunner,
    backend: Backend,
    request: ExportRequest,
    *,
    activity: StepActivity,
) -> Image:
    activity.raise_if_cancelled()
    finished = runner.finished(target.stage.index)
    spec = ImageSpec(
        config=final_config(target.stage, finished, request.created),
        layers=finished.layer.layer.diffs,
        names=() if request.as_index else request.names,
        annotations=request.annotations,
        base=base_image(plan, target.stage),
        for_index=request.as_index,
    )
    image = backend.create_image(spec, finished.layer.layer, activity)
    activity.note(f"exporting manifest {image.manifest.digest}")
    activity.note(f"exporting config {image.config_digest}")
    return image
