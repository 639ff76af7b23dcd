"""What a build does with caches that travel: one value for its whole course."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial

from pybuild.backend import Backend, Capability
from pybuild.cachetransfer.document import CACHE_ANNOTATION
from pybuild.cachetransfer.exporting import (
    WantedMount,
    check_export,
    describe_export,
    export_cache,
    inline_annotation,
)
from pybuild.cachetransfer.importing import RemoteSteps
from pybuild.cachetransfer.places import (
    CacheExport,
    CacheImport,
    CacheMode,
    InlineExport,
    LocalExport,
    RegistryExport,
    parse_cache_from,
    parse_cache_to,
)
from pybuild.errors import ImageError
from pybuild.export.images import TargetImage, TargetImages, all_names
from pybuild.export.outputs import ImageOutput, Output, RegistryOutput
from pybuild.oci.reference import Reference
from pybuild.oci.registry import RegistryClient
from pybuild.plan.steps import Plan, PlannedCache, PlannedStage, RunStep, StageSource
from pybuild.run.activity import CancelToken, Events, StepActivity
from pybuild.run.elsewhere import KeptStep
from pybuild.run.execute import cache_ident
from pybuild.run.stage import StageRunner
from pybuild.run.stagesettings import StageSettings
from pybuild.values import dataclass, replace


@dataclass(frozen=True, slots=True)
class CacheRequest:
    """Where a build's caches come from and go to."""

    imports: tuple[CacheImport, ...]
    exports: tuple[CacheExport, ...]


def cache_request(
    cache_from: Sequence[CacheImport | str], cache_to: Sequence[CacheExport | str]
) -> CacheRequest:
    """The values, or the texts that ``--cache-from`` and ``--cache-to`` take. Raises UsageError."""
    imports: list[CacheImport] = []
    for one in cache_from:
        imports += parse_cache_from(one) if isinstance(one, str) else [one]
    exports = (parse_cache_to(one) if isinstance(one, str) else one for one in cache_to)
    return CacheRequest(tuple(dict.fromkeys(imports)), tuple(dict.fromkeys(exports)))


class Caches:
    """The caches of one build. ``steps`` are those to look into, None where it looks into none.

    Raises UnsupportedByBackend or ExportFailed for caches that can't be filled.
    """

    def __init__(
        self,
        request: CacheRequest,
        plan: Plan,
        backend: Backend,
        client: Callable[[], RegistryClient],
        *,
        events: Events,
        cancel: CancelToken,
        looks: bool,
    ) -> None:
        check_export(backend, request.exports)
        self._exports = request.exports
        self._plan = plan
        self._backend = backend
        self._client = client
        self._events = events
        self._cancel = cancel
        self.steps: RemoteSteps | None = None
        if request.imports and looks:
            platforms = tuple(dict.fromkeys(stage.platform for stage in plan.stages))
            self.steps = RemoteSteps(
                request.imports, backend, client, platforms, events=events, cancel=cancel
            )

    def close(self) -> None:
        """Close what was opened of caches. Idempotent."""
        if self.steps is not None:
            self.steps.close()

    def settings(self, settings: StageSettings) -> StageSettings:
        """The same, for stages that look into these caches and keep what is to be written.

        Where no results are to be used, all steps are done again, and have keys nevertheless.
        """
        fresh, use_cache = settings.fresh_stages, settings.use_cache
        if self._exports and not use_cache:
            fresh = frozenset((stage.name or "").lower() for stage in self._plan.stages)
            use_cache = True
        return replace(
            settings,
            use_cache=use_cache,
            fresh_stages=fresh,
            elsewhere=self.steps,
            keeps_steps=bool(self._exports),
        )

    def run(self, build: Callable[[], StageRunner]) -> StageRunner:
        """Call `build` to run all stages.

        A backend may have taken over layers that it fetches when they are needed. If one of
        them turns out to be none, all is run once more, with layers looked at first.
        """
        try:
            return build()
        except ImageError as error:
            if self.steps is None or not self.steps.start_over():
                raise
            self._events.warn(
                f"a layer of the build cache can't be used: {error.message}", hint=error.hint
            )
            return build()

    def fetch_for(self, outputs: Sequence[Output], runner: StageRunner) -> None:
        """Have the layers that the outputs will read: then it is too late to run steps."""
        if self.steps is not None and any(map(_reads_layers, outputs)):
            for target in self._plan.targets:
                runner.finished(target.stage.index).layer.layer.tree().children(b"")

    def blob_places(self) -> Mapping[str, Reference]:
        """By its digest, where at a registry each blob is that came from a cache."""
        return {} if self.steps is None else self.steps.blob_places()

    def annotated(
        self, images: tuple[TargetImage, ...], runner: StageRunner, created: datetime | None
    ) -> tuple[TargetImage, ...]:
        """The images, with the cache in each that is to have one."""
        if InlineExport() not in self._exports:
            return images
        with self._events.unit(describe_export(InlineExport()), self._cancel):
            return tuple(self._with_cache(image, runner, created) for image in images)

    def export(
        self,
        runner: StageRunner,
        build_args: Mapping[str, str],
        built: TargetImages,
        outputs: Sequence[Output],
    ) -> None:
        """Write what is to be written, after `built` went to its `outputs`.

        Raises ExportFailed, BuildCancelled.
        """
        for export in self._exports:
            if isinstance(export, InlineExport):
                continue
            with self._events.unit(describe_export(export), self._cancel) as activity:
                known = {**_pushed(built, outputs), **self.blob_places()}
                steps = self._kept(runner, export.mode)
                namespace = build_args.get("BUILDKIT_CACHE_MOUNT_NS", "")
                mounts = list(self._mounts(export, namespace, activity))
                export_cache(
                    export,
                    self._backend,
                    steps,
                    mounts,
                    self._client,
                    known=known,
                    activity=activity,
                )

    def _with_cache(
        self, image: TargetImage, runner: StageRunner, created: datetime | None
    ) -> TargetImage:
        stage = next(t.stage for t in self._plan.targets if t.platform == image.platform)
        layers = image.spec.layers
        diff_ids = [layer.diff_id for layer in layers]
        steps = [
            step
            for each in self._below(stage)
            for step in runner.finished(each.index).kept
            if [layer.diff_id for layer in step.layers] == diff_ids[: len(step.layers)]
        ]
        text = inline_annotation(
            steps,
            [layer.blob for layer in layers],
            created,
            owners=Capability.FILE_OWNERS in self._backend.capabilities,
        )
        annotations = {**image.spec.annotations, CACHE_ANNOTATION: text}
        return replace(image, spec=replace(image.spec, annotations=annotations))

    def _kept(self, runner: StageRunner, mode: CacheMode) -> list[KeptStep]:
        stages: Sequence[PlannedStage] = self._plan.stages
        if mode is CacheMode.MIN:
            below = {s.index for t in self._plan.targets for s in self._below(t.stage)}
            stages = [stage for stage in stages if stage.index in below]
        return [step for stage in stages for step in runner.finished(stage.index).kept]

    def _below(self, stage: PlannedStage) -> list[PlannedStage]:
        """The stage and those that it was begun on, the lowest first."""
        by_index = {each.index: each for each in self._plan.stages}
        found = [stage]
        while isinstance(found[-1].parent, StageSource):
            found.append(by_index[found[-1].parent.index])
        return found[::-1]

    def _mounts(
        self, export: RegistryExport | LocalExport, namespace: str, activity: StepActivity
    ) -> Iterator[WantedMount]:
        """The cache mounts of the plan that have the ids which the export names."""
        planned = [
            mount
            for stage in self._plan.stages
            for step in stage.steps
            if isinstance(step, RunStep)
            for mount in step.mounts
            if isinstance(mount, PlannedCache) and mount.source is None
        ]
        for name in export.mounts:
            idents = {cache_ident(m) for m in planned if m.ident == f"{namespace}/{name}"}
            if not idents:
                activity.warn(
                    f'no RUN of this build has a cache mount "{name}" that begins empty',
                    "mounts= takes the ids of --mount=type=cache, which are the targets by default",
                )
            for ident in sorted(idents):
                elsewhere = None if self.steps is None else partial(self.steps.mount, ident)
                yield WantedMount(ident, name, elsewhere)


def _pushed(built: TargetImages, outputs: Sequence[Output]) -> dict[str, Reference]:
    """By its digest, where the outputs have put each blob of the images at a registry."""
    return {
        layer.blob.digest: all_names(built.names, output.image)[0]
        for output in outputs
        if isinstance(output, RegistryOutput) or (isinstance(output, ImageOutput) and output.push)
        for image in built.images
        for layer in image.spec.layers
    }


def _reads_layers(output: Output) -> bool:
    """Whether the output needs the blobs of the image's layers, even if a registry has them."""
    if isinstance(output, ImageOutput | RegistryOutput):
        return output.image.packing is not None
    return True
