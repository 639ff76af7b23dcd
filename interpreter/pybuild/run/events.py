"""What a build tells while it runs: typed events, in order, to one Reporter."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from pybuild.dockerfile.lint import LintWarning
from pybuild.errors import PybuildError, SourceRange
from pybuild.oci.descriptor import LayerDiff
from pybuild.oci.platform import Platform
from pybuild.run.result import BuildResult
from pybuild.values import dataclass

if TYPE_CHECKING:
    from pybuild.oci.layerindex import LayerIndex
    from pybuild.run.miss import Miss


@dataclass(frozen=True, slots=True)
class StepStarted:
    """A unit of work begins: a step of a stage, a pull, the context, the image's making.

    ``id`` numbers the units of a build from 1; later events name it. ``stage`` and
    ``position`` (``2/4``) are empty for units that are no step.
    """

    id: int
    title: str
    stage: str = ""
    position: str = ""
    where: SourceRange | None = None


@dataclass(frozen=True, slots=True)
class StepMissed:
    """The unit is the first step of its stage that isn't in the cache, and now it will run.

    Where no results are kept or sought (``--no-cache``) this doesn't come.
    """

    id: int
    miss: Miss


@dataclass(frozen=True, slots=True)
class StepLog:
    """One piece of a process's output, as it came; none comes after a cancel.

    ``stream`` is 1 or 2; ``time`` is the number of seconds since the step began.
    """

    id: int
    stream: int
    data: bytes
    time: float


@dataclass(frozen=True, slots=True)
class StepProgress:
    """`done` of `total` bytes of one item (a layer, a long copy)."""

    id: int
    item: str
    done: int
    total: int | None


@dataclass(frozen=True, slots=True)
class StepFinished:
    """The unit ended; ``error`` is None where it went well, ``seconds`` its wall time."""

    id: int
    seconds: float
    cached: bool = False
    error: PybuildError | None = None
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Warned:
    """Something that isn't an error. ``id`` is 0 where it concerns no unit."""

    id: int
    message: str
    where: SourceRange | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class LintReported:
    """What the build checks found, in order of lines, and the text of the Dockerfile.

    Comes once, behind all steps of a build, whether it succeeded or not; not at all where
    nothing was found.
    """

    warnings: tuple[LintWarning, ...]
    source: bytes


class OriginKind(StrEnum):
    """What a stage has files of."""

    STAGE = "stage"
    IMAGE = "image"
    CONTEXT = "context"


@dataclass(frozen=True, slots=True)
class StageOrigin:
    """A stage by its label, an image by its name and the digest of its manifest, or a named context
    (the build context itself has no name).
    """

    kind: OriginKind
    name: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class StageOutline:
    """One stage of the plan. ``label`` is that of its :class:`StepStarted`, ``steps`` how many it has.

    It starts from ``parent``, None for scratch, and takes files of ``takes``.
    """

    label: str
    steps: int
    parent: StageOrigin | None
    takes: tuple[StageOrigin, ...]
    is_target: bool


@dataclass(frozen=True, slots=True)
class PlanMade:
    """What is going to be done, before any of it is: the stages, each behind those it needs.

    ``source`` is the text of the Dockerfile ``file``, without logins in its URLs.
    """

    stages: tuple[StageOutline, ...]
    file: str
    source: bytes


@dataclass(frozen=True, slots=True)
class ImageMade:
    """One image, with its ``layers`` bottom first; comes once for each platform.

    ``contents`` may be called while the event is reported: it gives the index of each layer, and
    None for one that isn't known without fetching it.
    """

    platform: Platform
    layers: tuple[LayerDiff, ...]
    contents: Callable[[], tuple[LayerIndex | None, ...]]


@dataclass(frozen=True, slots=True)
class BuildFinished:
    """The last event of a build that succeeded."""

    result: BuildResult


Event = (
    StepStarted
    | StepMissed
    | StepLog
    | StepProgress
    | StepFinished
    | Warned
    | LintReported
    | PlanMade
    | ImageMade
    | BuildFinished
)


class Reporter(Protocol):
    """Takes events. Called from one thread at a time; must not block for long."""

    def report(self, event: Event) -> None: ...
