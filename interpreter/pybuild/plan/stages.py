"""The stage graph of a Dockerfile: what each stage starts on, and what it takes files from.

Every algorithm here is iterative: a file may have a hundred thousand stages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from pybuild.dockerfile.arguments import suggestion
from pybuild.dockerfile.instructions import Copy, Dockerfile, From, Instruction, Run
from pybuild.dockerfile.mounts import parse_mount
from pybuild.dockerfile.words import expand_word
from pybuild.errors import (
    DockerfileError,
    SourceRange,
    StageCycle,
    StageNotFound,
    UsageError,
    located,
)
from pybuild.oci.platform import Platform, parse_platform
from pybuild.plan.contexts import (
    FilesContext,
    ImageContext,
    LayoutContext,
    NamedContext,
    StageContext,
    context_key,
    find_context,
)
from pybuild.plan.scope import expand
from pybuild.values import dataclass

SCRATCH = "scratch"


@dataclass(frozen=True, slots=True)
class StageOrigin:
    """Another stage, by its position in the Dockerfile."""

    index: int


@dataclass(frozen=True, slots=True)
class ContextOrigin:
    """The files of a named build context."""

    name: str


@dataclass(frozen=True, slots=True)
class ImageOrigin:
    """An image, by its name as written and expanded; in `layout` if it isn't None."""

    name: str
    layout: LayoutContext | None = None


@dataclass(frozen=True, slots=True)
class ScratchOrigin:
    """The empty file system."""


Origin = StageOrigin | ContextOrigin | ImageOrigin | ScratchOrigin


# comparing names costs the product of their lengths
_LONGEST_SLIP = 100
_MOST_NAMED = 10


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage as written. ``origin`` is what it starts on, ``platform`` FROM's flag.

    A stage is ``replaced`` where a named context has its name: ``origin`` is that context,
    and ``body`` is empty.
    """

    index: int
    head: From
    body: tuple[Instruction, ...]
    origin: Origin
    platform: Platform | None
    replaced: bool

    @property
    def label(self) -> str:
        return self.head.stage or f"stage-{self.index}"


class Contexts:
    """The named contexts, found by any form of their names."""

    def __init__(self, contexts: Mapping[str, NamedContext]) -> None:
        self._contexts = contexts
        self._keys = {context_key(name): name for name in contexts}

    def origin_of(self, name: str, platform: Platform, stages: Mapping[str, int]) -> Origin:
        """What a name that is no stage means."""
        if name == SCRATCH:
            return ScratchOrigin()
        return self.find(name, platform, stages) or ImageOrigin(name)

    def find(self, name: str, platform: Platform, stages: Mapping[str, int]) -> Origin | None:
        """The context called `name`, if there is one; `stages` are those it may lead to."""
        key = find_context(name, self._keys, platform)
        if key is None:
            return None
        match self._contexts[key]:
            case FilesContext():
                return ContextOrigin(key)
            case ImageContext(image):
                return ScratchOrigin() if image == SCRATCH else ImageOrigin(image)
            case LayoutContext() as layout:
                return ImageOrigin(key, layout)
            case StageContext(stage):
                index = stages.get(stage.lower())
                if index is None:
                    raise StageNotFound(
                        f'the named context "{key}" is the stage "{stage}", which isn\'t '
                        "defined above this line"
                    )
                return StageOrigin(index)


@dataclass(frozen=True, slots=True)
class StageGraph:
    """All stages of a Dockerfile. ``names`` leads to the last stage of a name."""

    stages: tuple[Stage, ...]
    names: Mapping[str, int]
    contexts: Contexts
    platform: Platform

    def target(self, name: str | None) -> Stage:
        """The stage to build: by name in any case, by index, or the last one for None."""
        if name is None:
            return self.stages[-1]
        index = self.names.get(name.lower())
        if index is None and name.isascii() and name.isdigit() and len(name) < 10:
            index = int(name)
        if index is None or index >= len(self.stages):
            close = self.stage_like(name)
            raise StageNotFound(
                f'target stage "{name}" could not be found',
                where=self.stages[-1].head.where,
                hint=f"did you mean {close}?" if close else self._list_of_stages(),
            )
        return self.stages[index]

    def _list_of_stages(self) -> str:
        named = list(self.names)[:_MOST_NAMED]
        more = ", ..." if len(self.names) > _MOST_NAMED else ""
        if not named:
            return 'no stage has a name; one gets it by "FROM image AS name"'
        return f"the stages are {', '.join(named)}{more}"

    def stage_like(self, name: str) -> str | None:
        """The stage whose name is nearly `name`, if there is one."""
        if len(name) > _LONGEST_SLIP:
            return None
        from difflib import get_close_matches  # noqa: PLC0415 - for a wrong name only

        return next(iter(get_close_matches(name.lower(), list(self.names)[:1000], n=1)), None)

    def mount_origin(self, name: str) -> Origin:
        """What ``RUN --mount=from=`` names: a stage, scratch, a context or an image."""
        index = self.names.get(name.lower())
        if index is not None:
            return self._stage_or_context(self.stages[index])
        return self.contexts.origin_of(name, self.platform, self.names)

    def copy_origin(self, name: str) -> Origin:
        """What ``COPY --from=`` names: as for a mount, or a stage by its index."""
        if name.isascii() and name.isdigit():
            if len(name) > 9 or int(name) >= len(self.stages):
                raise DockerfileError(f"invalid stage index {name}")
            return self._stage_or_context(self.stages[int(name)])
        return self.mount_origin(name)

    def takes_from(self, instruction: Instruction) -> list[Origin]:
        """Where the instruction takes files from, other than the main context."""
        with located(instruction.where):
            match instruction:
                case Copy(from_=str(name)):
                    _check_constant(name)
                    return [self.copy_origin(name)]
                case Run(mounts=mounts) if mounts:
                    sources = (parse_mount(raw, instruction.where).from_ for raw in mounts)
                    return [self.mount_origin(name) for name in sources if name]
                case _:
                    return []

    def _stage_or_context(self, stage: Stage) -> Origin:
        return stage.origin if stage.replaced else StageOrigin(stage.index)


def build_graph(
    dockerfile: Dockerfile,
    variables: Mapping[str, str],
    platform: Platform,
    contexts: Mapping[str, NamedContext],
) -> StageGraph:
    """Split the instructions into stages and find what each starts on.

    `variables` are the global ones, `platform` the target's. Raises DockerfileError.
    """
    known = Contexts(contexts)
    names: dict[str, int] = {}
    stages: list[Stage] = []
    for head, body in _split(dockerfile):
        with located(head.where):
            base = expand(head.image, variables, dockerfile.directives.escape)
            if not base:
                raise DockerfileError(f"base name ({head.image}) should not be blank")
            own = _platform(head, variables, dockerfile.directives.escape)
            replacement = known.find(head.stage, own or platform, names) if head.stage else None
            origin: Origin
            if replacement is not None:
                origin = replacement
            elif base in names:
                origin = StageOrigin(names[base])
            else:
                origin = known.origin_of(base, own or platform, names)
        replaced = replacement is not None
        stages.append(Stage(len(stages), head, () if replaced else body, origin, own, replaced))
        if head.stage:
            names[head.stage.lower()] = len(stages) - 1
    return StageGraph(tuple(stages), names, known, platform)


def reachable(starts: Iterable[int], edges: Mapping[int, Sequence[int]]) -> set[int]:
    """The stages that `starts` need, themselves included."""
    found: set[int] = set()
    waiting = list(starts)
    while waiting:
        index = waiting.pop()
        if index not in found:
            found.add(index)
            waiting.extend(edges.get(index, ()))
    return found


def find_cycle(edges: Mapping[int, Sequence[int]]) -> list[int] | None:
    """Stages that lead to each other in a circle, in order; None if there is no circle."""
    done: set[int] = set()
    for start in sorted(edges):
        if start in done:
            continue
        path: dict[int, Iterator[int]] = {start: iter(edges[start])}
        while path:
            top = next(reversed(path))
            for following in path[top]:
                if following in path:
                    circle = list(path)
                    return circle[circle.index(following) :]
                if following not in done:
                    path[following] = iter(edges.get(following, ()))
                    break
            else:
                done.add(top)
                del path[top]
    return None


def refuse_cycles(
    graph: StageGraph, edges: Mapping[int, Sequence[int]], where: Mapping[int, SourceRange]
) -> None:
    """Raise StageCycle if stages need each other; `where` has the place to blame by stage."""
    circle = find_cycle(edges)
    if circle:
        labels = [graph.stages[i].label for i in [*circle, circle[0]]]
        shown = labels if len(labels) < 10 else [*labels[:5], "…", *labels[-3:]]
        raise StageCycle(
            f"circular dependency detected on stage: {' -> '.join(shown)}",
            where=where.get(circle[-1], graph.stages[circle[-1]].head.where),
            hint="a stage can take files only from stages above it",
        )


def _split(dockerfile: Dockerfile) -> Iterator[tuple[From, tuple[Instruction, ...]]]:
    head: From | None = None
    body: list[Instruction] = []
    for instruction in dockerfile.instructions:
        if isinstance(instruction, From):
            if head is not None:
                yield head, tuple(body)
            head, body = instruction, []
        elif head is None:
            raise DockerfileError("no build stage in current context", where=instruction.where)
        else:
            body.append(instruction)
    if head is None:
        raise DockerfileError(
            "dockerfile contains no stages to build", where=SourceRange(dockerfile.name, 1, 1)
        )
    yield head, tuple(body)


def _platform(head: From, variables: Mapping[str, str], escape: str) -> Platform | None:
    if not head.platform:
        return None
    expansion = expand_word(head.platform, variables, escape)
    slips = (suggestion(name, variables) for name in sorted(expansion.unmatched)[:_MOST_NAMED])
    slip = next(filter(None, slips), None)
    if not expansion.text:
        raise DockerfileError(f"empty platform value from expression {head.platform}", hint=slip)
    try:
        return parse_platform(expansion.text)
    except UsageError as error:
        raise DockerfileError(error.message, hint=slip or error.hint) from error


def _check_constant(name: str) -> None:
    if expand_word(name, {}, "\\").text != name:
        raise DockerfileError(
            "variable expansion is not supported for --from",
            hint="define a new stage with FROM using ARG from global scope as a workaround",
        )
