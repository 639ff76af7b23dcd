"""FROM references -> base images, and the ONBUILD triggers they bring. Planning's only I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from itertools import chain

from pybuild.backend import BaseImage
from pybuild.dockerfile.instructions import From, Instruction, Maintainer, Onbuild
from pybuild.dockerfile.parse import parse_trigger
from pybuild.errors import (
    DockerfileError,
    DockerfileSyntaxError,
    ImageError,
    SourceRange,
    StageCycle,
    UsageError,
    located,
)
from pybuild.oci.platform import Platform
from pybuild.oci.reference import Reference, parse_reference, with_default_tag
from pybuild.plan.contexts import LayoutContext
from pybuild.plan.stages import (
    ImageOrigin,
    Origin,
    Stage,
    StageGraph,
    StageOrigin,
    reachable,
    refuse_cycles,
)
from pybuild.values import dataclass

ImageName = Reference | LayoutContext
"""How an image is asked for: by its name at a registry, or by its place in a layout."""

Resolve = Callable[[ImageName, Platform, SourceRange], BaseImage]

# An image's config can hold millions of triggers; no Dockerfile writes more than a few.
_MAX_TRIGGERS = 1000


@dataclass(frozen=True, slots=True)
class Body:
    """What a stage executes: the triggers of what it starts on, then its own instructions."""

    triggers: tuple[Instruction, ...]
    own: tuple[Instruction, ...]

    def __iter__(self) -> Iterator[Instruction]:
        yield from self.triggers
        yield from self.own


@dataclass(frozen=True, slots=True)
class Resolved:
    """The stages that the target needs, in order of the file, and their images."""

    graph: StageGraph
    stages: tuple[Stage, ...]
    bodies: dict[int, Body]
    images: dict[tuple[ImageName, Platform], BaseImage]
    default_platform: Platform

    def image(self, origin: ImageOrigin, platform: Platform | None) -> BaseImage:
        """The image of `origin`, which was resolved before."""
        return self.images[image_name(origin), platform or self.default_platform]


def image_name(origin: ImageOrigin) -> ImageName:
    """What to ask for where `origin` is wanted. Raises DockerfileError."""
    if origin.layout is not None:
        return origin.layout
    try:
        return with_default_tag(parse_reference(origin.name))
    except UsageError as error:
        raise DockerfileError(error.message, hint=error.hint) from error


def resolve_stages(
    graph: StageGraph,
    targets: Sequence[Stage],
    default_platform: Platform,
    resolve: Resolve,
    *,
    escape: str,
    executor: Executor | None,
) -> Resolved:
    """Resolve every image that the `targets` need and add the triggers to the stages.

    Each reference is asked for once per platform. Triggers may need more stages and images,
    so this goes round until nothing is new.
    """
    search = _Search(graph, default_platform, resolve, escape=escape, executor=executor)
    refuse_cycles(graph, search.file_edges(), search.blame)
    needed = search.complete(targets)
    refuse_cycles(graph, {i: search.edges[i] for i in needed}, search.blame)
    search.refuse_forward(needed)
    stages = tuple(graph.stages[i] for i in sorted(needed))
    bodies = {stage.index: search.bodies[stage.index] for stage in stages}
    return Resolved(graph, stages, bodies, search.images, default_platform)


class _Search:
    """The state of :func:`resolve_stages`."""

    def __init__(
        self,
        graph: StageGraph,
        default_platform: Platform,
        resolve: Resolve,
        *,
        escape: str,
        executor: Executor | None,
    ) -> None:
        self.graph = graph
        self.default_platform = default_platform
        self.images: dict[tuple[ImageName, Platform], BaseImage] = {}
        self.bodies = {stage.index: Body((), stage.body) for stage in graph.stages}
        self.edges: dict[int, list[int]] = {}
        self.blame: dict[int, SourceRange] = {}
        self._copied: dict[int, list[tuple[ImageOrigin, SourceRange]]] = {}
        self._forward: dict[int, tuple[int, SourceRange]] = {}
        self._triggered: set[int] = set()
        self._written: dict[ImageName, str] = {}
        self._resolve = resolve
        self._escape = escape
        self._executor = executor
        for stage in graph.stages:
            self.edges[stage.index] = []
            self._copied[stage.index] = []
            if not stage.replaced:
                self._connect(stage, stage.body)

    def file_edges(self) -> dict[int, list[int]]:
        """The edges of COPY and RUN alone."""
        return {index: list(found) for index, found in self.edges.items() if found}

    def complete(self, targets: Sequence[Stage]) -> set[int]:
        """Resolve, trigger, look again; the stages that are needed in the end."""
        for stage in self.graph.stages:
            if isinstance(stage.origin, StageOrigin):
                self.edges[stage.index].append(stage.origin.index)
        while True:
            needed = reachable([target.index for target in targets], self.edges)
            self._resolve_images(needed)
            fresh = sorted(needed - self._triggered)
            if not fresh:
                return needed
            for index in fresh:
                self._trigger(self.graph.stages[index])

    def refuse_forward(self, needed: Iterable[int]) -> None:
        """Raise StageCycle where a stage takes files from one below it."""
        for index in sorted(needed):
            if index in self._forward:
                source, where = self._forward[index]
                label = self.graph.stages[source].label
                raise StageCycle(
                    f'cannot copy from stage "{label}", it needs to be defined before current '
                    f'stage "{self.graph.stages[index].label}"',
                    where=where,
                )

    def _connect(self, stage: Stage, instructions: Iterable[Instruction]) -> None:
        for instruction in instructions:
            for origin in self.graph.takes_from(instruction):
                if isinstance(origin, StageOrigin):
                    self.edges[stage.index].append(origin.index)
                    self.blame.setdefault(stage.index, instruction.where)
                    if origin.index > stage.index:
                        self._forward.setdefault(stage.index, (origin.index, instruction.where))
                elif isinstance(origin, ImageOrigin):
                    self._copied[stage.index].append((origin, instruction.where))

    def _resolve_images(self, needed: Iterable[int]) -> None:
        wanted: dict[tuple[ImageName, Platform], SourceRange] = {}
        for index in sorted(needed):
            stage = self.graph.stages[index]
            if isinstance(stage.origin, ImageOrigin):
                self._want(stage.origin, stage.platform, stage.head.where, wanted)
            for origin, where in self._copied[index]:
                self._want(origin, None, where, wanted)
        self.images |= _resolve_all(wanted, self._resolve_image, self._executor)

    def _resolve_image(self, asked: ImageName, platform: Platform, where: SourceRange) -> BaseImage:
        """Resolve one image; a name that is nearly a stage's is probably a slip."""
        try:
            return self._resolve(asked, platform, where)
        except ImageError as error:
            if isinstance(asked, LayoutContext):
                raise
            name = self._written[asked]
            if close := self.graph.stage_like(name):
                error.hint = f'there is no stage "{name}"; did you mean {close}?'
            elif name.isalnum() and any(name == copied.name for copied, _ in self._all_copied()):
                error.hint = f'there is no stage "{name}", so it is taken for an image'
            raise

    def _all_copied(self) -> Iterator[tuple[ImageOrigin, SourceRange]]:
        return chain.from_iterable(self._copied.values())

    def _want(
        self,
        origin: ImageOrigin,
        platform: Platform | None,
        where: SourceRange,
        wanted: dict[tuple[ImageName, Platform], SourceRange],
    ) -> None:
        with located(where):
            key = (image_name(origin), platform or self.default_platform)
            self._written.setdefault(key[0], origin.name)
            if key not in self.images:
                wanted.setdefault(key, where)

    def _trigger(self, stage: Stage) -> None:
        """Put the triggers of what `stage` starts on before its own instructions."""
        self._triggered.add(stage.index)
        texts = self._trigger_texts(stage.origin, stage.platform)
        if not texts or stage.replaced:
            return
        where = stage.head.where
        if len(texts) > _MAX_TRIGGERS:
            raise DockerfileError(
                f"the base image has more than {_MAX_TRIGGERS} ONBUILD triggers", where=where
            )
        triggers = tuple(_parse_trigger(text, where, self._escape) for text in texts)
        self.bodies[stage.index] = Body(triggers, stage.body)
        self._connect(stage, triggers)

    def _trigger_texts(self, origin: Origin, platform: Platform | None) -> Sequence[str]:
        match origin:
            case ImageOrigin():
                image = self.images[image_name(origin), platform or self.default_platform]
                return image.config.onbuild
            case StageOrigin(index):
                own = self.graph.stages[index].body
                return [i.trigger for i in own if isinstance(i, Onbuild)]
            case _:
                return ()


def _resolve_all(
    wanted: dict[tuple[ImageName, Platform], SourceRange],
    resolve: Resolve,
    executor: Executor | None,
) -> dict[tuple[ImageName, Platform], BaseImage]:
    def one(key: tuple[ImageName, Platform], where: SourceRange) -> BaseImage:
        with located(where):
            return resolve(*key, where)

    if executor is None or len(wanted) < 2:
        return {key: one(key, where) for key, where in wanted.items()}
    pending: dict[tuple[ImageName, Platform], Future[BaseImage]] = {
        key: executor.submit(one, key, where) for key, where in wanted.items()
    }
    try:
        return {key: future.result() for key, future in pending.items()}
    finally:
        for future in pending.values():
            future.cancel()


def _parse_trigger(text: str, where: SourceRange, escape: str) -> Instruction:
    with located(where):
        instruction = parse_trigger(text, where, escape)
    if isinstance(instruction, (From, Maintainer, Onbuild)):
        word = type(instruction).__name__.upper()
        raise DockerfileSyntaxError(
            f"{word} isn't allowed as an ONBUILD trigger of the base image", where=where
        )
    return instruction
