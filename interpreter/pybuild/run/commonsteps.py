"""Steps that several stages begin with: what cross-compiles for each platform fetches the same."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import datetime
from hashlib import sha256

from pybuild.plan.steps import Plan, PlannedStage, StageSource
from pybuild.run.keys import ContentKey
from pybuild.run.layers import SharedLayer, release_all
from pybuild.run.schedule import sources
from pybuild.values import dataclass

StepIdentity = tuple[str, str]
"""The plan key, which includes the steps before, and a digest of the stages that all read."""


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What a step left: ``layer`` is None if it made none."""

    layer: SharedLayer | None
    key: ContentKey
    cached: bool
    ended: datetime


class CommonSteps:
    """Does each step of a plan once, for the first of the stages that come to it."""

    def __init__(self, plan: Plan) -> None:
        self._lock = threading.Lock()
        self._outcomes: dict[StepIdentity, Future[StepOutcome]] = {}
        # How many stages have yet to come; while there are any, the layer has one more user.
        self._to_come = Counter(each for stage in plan.stages for each in step_identities(stage))

    def once(
        self, identity: StepIdentity, work: Callable[[], StepOutcome]
    ) -> tuple[StepOutcome, bool]:
        """The outcome of a step, and whether it comes of `work`, called here.

        The caller becomes a user of its layer. Waits for another thread that does the step,
        and raises what it fails with.
        """
        with self._lock:
            done = self._outcomes.get(identity)
            own = self._outcomes[identity] = done or Future()
        if done is not None:
            return self._come_later(identity, done.result()), False
        try:
            outcome = work()
        except BaseException as error:
            own.set_exception(error)
            raise
        with self._lock:
            self._to_come[identity] -= 1
            if self._to_come[identity] and outcome.layer is not None:
                outcome.layer.share()
        own.set_result(outcome)
        return outcome, True

    def _come_later(self, identity: StepIdentity, outcome: StepOutcome) -> StepOutcome:
        with self._lock:
            self._to_come[identity] -= 1
            is_last = self._to_come[identity] == 0
            # the last to come takes over the use that was held for it
            if outcome.layer is not None and not is_last:
                outcome.layer.share()
        return outcome

    def release(self) -> None:
        """Let go of the layers that stages never came for. No thread may be at work."""
        held = []
        with self._lock:
            for identity, outcome in self._outcomes.items():
                if self._to_come.pop(identity, 0) and outcome.done() and not outcome.exception():
                    layer = outcome.result().layer
                    held += [layer.release] if layer is not None else []
        release_all(held)


def step_identities(stage: PlannedStage) -> Iterator[StepIdentity]:
    """What tells, of each step of the stage, whether it does the same as another stage's."""
    read = sha256()
    if isinstance(stage.parent, StageSource):
        read.update(b"%d," % stage.parent.index)
    for step in stage.steps:
        for source in sources(step):
            if isinstance(source, StageSource):
                read.update(b"%d," % source.index)
        yield step.key, read.hexdigest()
