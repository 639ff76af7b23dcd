"""Runs the stages of a plan, those that don't depend on each other at the same time.

The only place of the interpreter that starts threads for the work of a build.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter

from pybuild.plan.steps import (
    CopyStep,
    PlannedBind,
    PlannedCache,
    PlannedStage,
    RunStep,
    Source,
    StageSource,
    Step,
)
from pybuild.run.activity import CancelToken


def workers(count: int | None = None) -> ThreadPoolExecutor:
    """The threads for a build's work.

    Stages mostly wait for processes and downloads, so few processors are no reason for few.
    """
    return ThreadPoolExecutor(
        count or min(32, max(4, os.cpu_count() or 1)), thread_name_prefix="pybuild"
    )


def sources(step: Step) -> tuple[Source, ...]:
    """What the files of `step` come from, besides the layer that it runs on."""
    if isinstance(step, CopyStep):
        return (step.source,) if step.patterns else ()
    if isinstance(step, RunStep):
        mounts = [each for each in step.mounts if isinstance(each, PlannedBind | PlannedCache)]
        return tuple(mount.source for mount in mounts if mount.source is not None)
    return ()


def stages_needed(stage: PlannedStage) -> frozenset[int]:
    """The indexes of the stages that `stage` starts from or takes files of."""
    every: list[Source] = [stage.parent]
    for step in stage.steps:
        every += sources(step)
    return frozenset(source.index for source in every if isinstance(source, StageSource))


def run_stages(
    stages: Iterable[PlannedStage],
    run_stage: Callable[[PlannedStage], None],
    *,
    cancel: CancelToken,
    stop: CancelToken,
    max_workers: int | None = None,
) -> None:
    """Call `run_stage` for each stage once those that it needs are done.

    The first failure cancels `stop`, which ends the other stages, and is raised when all
    threads have ended. `cancel` is the caller's own token: once it is cancelled, whatever
    the stages failed with, BuildCancelled is raised.
    """
    by_index = {stage.index: stage for stage in stages}
    graph = {index: stages_needed(stage) for index, stage in by_index.items()}
    with cancel.on_cancel(stop.cancel):
        error = _run_graph(
            graph,
            lambda index: run_stage(by_index[index]),
            stop,
            max_workers,
        )
    cancel.raise_if_cancelled()
    if error is not None:
        raise error


def _run_graph(
    graph: Mapping[int, frozenset[int]],
    work: Callable[[int], None],
    stop: CancelToken,
    max_workers: int | None,
) -> BaseException | None:
    sorter = TopologicalSorter(graph)
    sorter.prepare()
    running: dict[Future[None], int] = {}
    first: BaseException | None = None
    with workers(max_workers) as pool:
        try:
            while sorter.is_active():
                if first is None and not stop.cancelled:
                    for index in sorter.get_ready():
                        running[pool.submit(work, index)] = index
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    index = running.pop(future)
                    error = future.exception()
                    if error is None:
                        sorter.done(index)
                    elif first is None:
                        first = error
                        stop.cancel()
        except BaseException:
            # An interrupt of the waiting thread: the others end before it goes on.
            stop.cancel()
            raise
    return first
