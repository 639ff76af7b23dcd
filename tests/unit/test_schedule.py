from __future__ import annotations

import threading
from typing import Any

import pytest

from leftthreads import no_thread_left
from pybuild.errors import BackendFailed, BuildCancelled, SourceRange
from pybuild.oci.image_config import ImageConfig
from pybuild.oci.platform import Platform
from pybuild.plan.steps import (
    ContextSource,
    CopyStep,
    ImageSource,
    PlannedBind,
    PlannedStage,
    RunStep,
    StageSource,
    Step,
)
from pybuild.run.activity import CancelToken
from pybuild.run.schedule import run_stages, stages_needed, workers

WHERE = SourceRange("Dockerfile", 1, 1)
LINUX = Platform("linux", "amd64")


def stage(index: int, *needs: int, parent: int | None = None) -> PlannedStage:
    steps: tuple[Step, ...] = tuple(
        CopyStep(
            where=WHERE,
            title="COPY",
            key="",
            source=StageSource(other),
            patterns=("/x",),
            files=(),
            destination="/",
        )
        for other in needs
    )
    return PlannedStage(
        index=index,
        name=None,
        label=f"stage-{index}",
        platform=LINUX,
        parent=ImageSource(None) if parent is None else StageSource(parent),
        steps=steps,
        config=ImageConfig(LINUX),
        inherited=(),
        history=(),
        where=WHERE,
    )


def run(
    stages: list[PlannedStage], work: Any, cancel: CancelToken | None = None, **options: Any
) -> None:
    run_stages(
        stages,
        lambda each: work(each.index),
        cancel=cancel or CancelToken(),
        stop=options.pop("stop", CancelToken()),
        **options,
    )


def test_a_stage_needs_its_parent_its_copies_and_its_mounts() -> None:
    step = RunStep(
        where=WHERE,
        title="RUN",
        key="",
        args=("x",),
        env=(),
        cwd="/",
        user="",
        mounts=(
            PlannedBind("/m", StageSource(7), "", True),
            PlannedBind("/c", ContextSource(), "", True),
        ),
    )
    base = stage(9, 3, 4, parent=2)
    whole = PlannedStage(
        index=9,
        name=None,
        label="stage-9",
        platform=LINUX,
        parent=base.parent,
        steps=(*base.steps, step),
        config=base.config,
        inherited=(),
        history=(),
        where=WHERE,
    )
    assert stages_needed(whole) == {2, 3, 4, 7}


def test_stages_run_after_those_that_they_need() -> None:
    order: list[int] = []
    lock = threading.Lock()

    def work(index: int) -> None:
        with lock:
            order.append(index)

    run([stage(0), stage(1, parent=0), stage(2), stage(3, 2, parent=1)], work)
    assert sorted(order) == [0, 1, 2, 3]
    assert order.index(0) < order.index(1) < order.index(3)
    assert order.index(2) < order.index(3)


def test_independent_stages_run_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=10)
    run([stage(0), stage(1), stage(2), stage(3, 0, 1, 2)], lambda i: i < 3 and meeting.wait())


def test_the_number_of_stages_at_the_same_time_is_bounded() -> None:
    lock = threading.Lock()
    running = most = 0

    def work(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.01)
        with lock:
            running -= 1

    run([stage(index) for index in range(8)], work, max_workers=2)
    assert most == 2


def test_the_first_error_cancels_the_others_and_is_raised() -> None:
    stop = CancelToken()
    waiting = threading.Event()
    ended: list[str] = []

    def work(index: int) -> None:
        if index == 0:
            assert waiting.wait(10)
            raise BackendFailed("broken")
        cancelled = threading.Event()
        with stop.on_cancel(cancelled.set):
            waiting.set()
            assert cancelled.wait(10)
        ended.append("cancelled")
        stop.raise_if_cancelled()

    with pytest.raises(BackendFailed, match="broken"):
        run([stage(0), stage(1), stage(2, 0)], work, stop=stop)
    assert ended == ["cancelled"]


def test_no_thread_is_left_after_an_error() -> None:
    def work(index: int) -> None:
        raise ValueError(index)

    with no_thread_left(), pytest.raises(ValueError, match=r"[0-3]"):
        run([stage(index) for index in range(4)], work)


def test_a_stage_behind_a_failed_one_never_starts() -> None:
    started: list[int] = []

    def work(index: int) -> None:
        started.append(index)
        raise BackendFailed("broken")

    with pytest.raises(BackendFailed):
        run([stage(0), stage(1, parent=0)], work)
    assert started == [0]


def test_a_cancelled_build_raises_build_cancelled_whatever_its_stages_raise() -> None:
    cancel = CancelToken()

    def work(_: int) -> None:
        cancel.cancel()
        raise BackendFailed("killed")

    with pytest.raises(BuildCancelled):
        run([stage(0), stage(1)], work, cancel)


def test_a_build_cancelled_before_it_starts_runs_nothing() -> None:
    cancel = CancelToken()
    cancel.cancel()
    started: list[int] = []
    with pytest.raises(BuildCancelled):
        run([stage(0)], started.append, cancel)
    assert started == []


def test_there_are_at_least_four_workers() -> None:
    with workers() as pool:
        assert pool._max_workers >= 4
