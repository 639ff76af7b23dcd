"""The plan of a build as its event tells it: no values of variables, no logins."""

from __future__ import annotations

from pybuild.oci.reference import familiar
from pybuild.plan.steps import ContextSource, ImageSource, Plan, PlannedStage, Source, StageSource
from pybuild.remotes.locations import redacted
from pybuild.run.events import OriginKind, PlanMade, StageOrigin, StageOutline
from pybuild.run.schedule import sources


def plan_made(plan: Plan, file: str, source: bytes) -> PlanMade:
    """The event for `plan`, which was made of the Dockerfile `file` with the text `source`."""
    labels = {stage.index: stage.label for stage in plan.stages}
    targets = {target.stage.index for target in plan.targets}
    stages = tuple(
        _outline(stage, labels, is_target=stage.index in targets) for stage in plan.stages
    )
    return PlanMade(stages, file, without_logins(source))


def without_logins(source: bytes) -> bytes:
    """The text of a Dockerfile without the user names and passwords in its URLs."""
    text = source.decode("utf-8", "surrogateescape")
    return redacted(text).encode("utf-8", "surrogateescape")


def _outline(stage: PlannedStage, labels: dict[int, str], *, is_target: bool) -> StageOutline:
    parent = _origin(stage.parent, labels)
    found = (_origin(source, labels) for step in stage.steps for source in sources(step))
    taken = dict.fromkeys(origin for origin in found if origin is not None)
    return StageOutline(stage.label, len(stage.steps), parent, tuple(taken), is_target)


def _origin(source: Source, labels: dict[int, str]) -> StageOrigin | None:
    """None for scratch."""
    match source:
        case StageSource(index):
            return StageOrigin(OriginKind.STAGE, labels[index])
        case ContextSource(name):
            return StageOrigin(OriginKind.CONTEXT, name or "")
        case ImageSource(image):
            if image is None:
                return None
            return StageOrigin(OriginKind.IMAGE, familiar(image.reference), image.digest)
