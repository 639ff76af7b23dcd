"""What a build does with its plan: run it, make the images, write them to the outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from pybuild.backend import Backend, ImageSpec
from pybuild.export.exporting import describe_output, export
from pybuild.export.images import TargetImage, TargetImages, wanted_images
from pybuild.export.outputs import ImageOptions, Output
from pybuild.oci.ondemand import OnDemand
from pybuild.oci.reference import Reference
from pybuild.plan.steps import Plan, PlanRequest
from pybuild.planning import BuildSource
from pybuild.run.activity import CancelToken, Events
from pybuild.run.events import ImageMade
from pybuild.run.inputs import Context, DockerfileSource
from pybuild.run.layers import releasing
from pybuild.run.misses import Misses
from pybuild.run.result import BuildResult, OutputResult
from pybuild.run.schedule import run_stages
from pybuild.run.stage import StageRunner, final_config
from pybuild.run.stagesettings import StageSettings
from pybuild.values import dataclass

if TYPE_CHECKING:
    from pybuild.cachetransfer.caches import CacheRequest, Caches
    from pybuild.oci.registry import RegistryClient
    from pybuild.run.explaining.projects import Project


@dataclass(frozen=True, slots=True)
class WantedImages:
    """What is to become of the stages. ``created`` fixes all times, None for when things happen.

    ``annotations`` are of each manifest.
    """

    names: tuple[Reference, ...]
    as_index: bool
    annotations: Mapping[str, str]
    index_annotations: Mapping[str, str]
    created: datetime | None
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class Building:
    """What the parts of a build share. ``client`` is asked for once a registry is needed."""

    plan: Plan
    backend: Backend
    wanted: WantedImages
    client: Callable[[], RegistryClient]
    events: Events
    cancel: CancelToken


def opened_caches(
    this: Building, request: CacheRequest | None, stack: ExitStack, *, no_cache: bool
) -> Caches | None:
    if request is None:
        return None
    from pybuild.cachetransfer.caches import Caches  # noqa: PLC0415  (as above)

    caches = Caches(
        request,
        this.plan,
        this.backend,
        this.client,
        events=this.events,
        cancel=this.cancel,
        looks=not no_cache,
    )
    stack.callback(caches.close)
    return caches


def registry_client(
    registry: RegistryClient | None, stack: ExitStack
) -> Callable[[], RegistryClient]:
    """Gives `registry`, or a client of our own, made when it is first asked for."""
    if registry is not None:
        return lambda: registry

    def connect() -> RegistryClient:
        from pybuild.oci.registry import RegistryClient  # noqa: PLC0415  (few builds need one)

        return RegistryClient()

    own = OnDemand(connect)
    stack.callback(own.close)
    return own.client


def run_plan(
    this: Building,
    settings: StageSettings,
    misses: Callable[[], Misses],
    caches: Caches | None,
    stack: ExitStack,
    *,
    max_workers: int | None,
) -> StageRunner:
    """Run all stages. What they left is released with `stack`."""

    def run() -> StageRunner:
        stop = CancelToken()
        with misses() as noted:
            runner = StageRunner(this.plan, this.backend, this.events, stop, settings, misses=noted)
            stack.enter_context(releasing(runner.release, this.events.warn))
            with settings.on_failure.afterwards(this.backend, this.events, this.cancel):
                run_stages(
                    this.plan.stages,
                    runner.run,
                    cancel=this.cancel,
                    stop=stop,
                    max_workers=max_workers,
                )
            if caches is not None:
                caches.fetch_for(this.wanted.outputs, runner)
        return runner

    if caches is None:
        return run()
    settings = caches.settings(settings)
    return caches.run(run)


def noting_misses(
    this: Building,
    source: BuildSource,
    given: tuple[Context, DockerfileSource],
    requests: Sequence[PlanRequest],
    names: Sequence[Reference],
    *,
    began: datetime,
    refused: Collection[int],
) -> Callable[[], Misses]:
    """Gives what notes the misses of one run of all stages, those in the `refused` as errors.

    `given` are context and Dockerfile as the caller named them.
    """

    def project() -> Project:
        from pybuild.run.explaining.projects import Origin, project_of  # noqa: PLC0415  (few need it)

        platforms = [request.platform for request in requests]
        origin = Origin(*given, source.inputs.name, names, source.stage_names)
        return project_of(this.backend.notes_folder(), origin, platforms, requests[0].target)

    return partial(Misses, this.plan, project, began, refused)


def made_images(this: Building, runner: StageRunner, caches: Caches | None) -> TargetImages:
    """The images that the finished stages of `runner` make."""
    wanted, found = this.wanted, []
    for target in this.plan.targets:
        made = runner.finished(target.stage.index)
        spec = ImageSpec(
            config=final_config(target.stage, made, wanted.created),
            layers=made.layer.layer.diffs,
            annotations=dict(wanted.annotations),
            base=this.plan.base_image(target.stage),
        )
        found.append(TargetImage(target.platform, spec, made.layer.layer))
    images, places = tuple(found), {}
    if caches is not None:
        images = caches.annotated(images, runner, wanted.created)
        places = dict(caches.blob_places())
    newest = None if wanted.created is None else int(wanted.created.timestamp())
    annotations = wanted.index_annotations
    return TargetImages(
        this.backend, images, wanted.names, wanted.as_index, annotations, newest, places
    )


def _export(this: Building, built: TargetImages) -> tuple[OutputResult, ...]:
    results = []
    for output in this.wanted.outputs:
        with this.events.unit(describe_output(output), this.cancel) as activity:
            result = export(built, output, this.client, activity)
            for image in result.images.values():
                activity.note(f"exporting manifest {image.digest}")
                activity.note(f"exporting config {image.config_digest}")
            if built.as_index and result.descriptor is not None:
                activity.note(f"exporting manifest list {result.descriptor.digest}")
            for name in result.names:
                activity.note(f"naming to {name}")
        results.append(result)
    return tuple(results)


def delivered(
    this: Building,
    built: TargetImages,
    runner: StageRunner,
    clock: float,
) -> BuildResult:
    """Write the outputs, and give the result of a build that began at `clock`.

    It has the digests of the first output that has any, else those in the store.
    """
    outputs = _export(this, built)
    for output in outputs:
        if output.descriptor is not None:
            descriptor, images = output.descriptor, output.images
            break
    else:
        stored = wanted_images(built, ImageOptions(), this.events.silent(this.cancel))
        descriptor, images = stored.documents.descriptor, stored.results(built)
    names = tuple(dict.fromkeys(name for one in outputs for name in one.names))
    for image in built.images:
        made = ImageMade(image.platform, image.spec.layers, image.top.contents)
        this.events.send(made)
    seconds = time.monotonic() - clock
    return BuildResult(descriptor, names, images, runner.step_results(), seconds, outputs)
