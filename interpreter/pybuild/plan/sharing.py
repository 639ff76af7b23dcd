"""The stages of several platforms in one plan: what comes out the same stands there once."""

from __future__ import annotations

from pybuild.errors import SourceRange
from pybuild.oci.platform import Platform
from pybuild.plan.steps import Plan, PlannedStage, PlanTarget
from pybuild.values import replace


class SharedStages:
    """Collects stages, those of one platform after those of another.

    Two stages are the same if they start on the same, do the same steps, which their plan
    keys tell, and leave the same config and history.
    """

    def __init__(self, positions: int) -> None:
        """`positions` is the number of stages in the Dockerfile."""
        self._positions = positions
        self._stages: dict[int, PlannedStage] = {}
        self._variants: dict[int, list[PlannedStage]] = {}
        self._users: dict[int, list[Platform]] = {}
        self._targets: list[tuple[Platform, int]] = []

    def add(self, stage: PlannedStage, platform: Platform) -> PlannedStage:
        """The stage of the plan that is the same as `stage`, which a target for `platform` needs.

        ``stage.index`` is the position in the Dockerfile, that of the result is the plan's;
        both agree for the first platform.
        """
        variants = self._variants.setdefault(stage.index, [])
        for variant in variants:
            if replace(stage, index=variant.index) == variant:
                self._users[variant.index].append(platform)
                return variant
        added = replace(stage, index=stage.index + len(variants) * self._positions)
        variants.append(added)
        self._stages[added.index] = added
        self._users[added.index] = [platform]
        return added

    def add_target(self, platform: Platform, stage: PlannedStage) -> None:
        """Say which of the stages becomes the image for `platform`."""
        self._targets.append((platform, stage.index))

    def plan(self, warnings: tuple[tuple[str, SourceRange | None], ...]) -> Plan:
        """The plan of all that was added."""
        several = len(self._targets) > 1
        stages = {
            index: self._labelled(stage) if several else stage
            for index, stage in self._stages.items()
        }
        targets = tuple(PlanTarget(platform, stages[index]) for platform, index in self._targets)
        return Plan(tuple(stages.values()), targets, warnings)

    def _labelled(self, stage: PlannedStage) -> PlannedStage:
        """The stage with its platform in the label, and whom it is for where that is another."""
        users = self._users[stage.index]
        arrow = f"->{users[0]}" if len(users) == 1 and users[0] != stage.platform else ""
        return replace(stage, label=f"{stage.platform}{arrow} {stage.label}")
