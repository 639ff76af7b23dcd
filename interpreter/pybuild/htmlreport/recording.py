"""What a page is made of: the events of one build, as far as they are shown."""

from __future__ import annotations

from datetime import datetime
from heapq import nlargest
from operator import itemgetter
from typing import assert_never

from pybuild.dockerfile.lint import LintWarning
from pybuild.errors import PybuildError
from pybuild.files.trees import shown
from pybuild.oci.descriptor import LayerDiff
from pybuild.oci.layerindex import Kind, LayerIndex
from pybuild.oci.platform import Platform
from pybuild.run.events import (
    BuildFinished,
    Event,
    ImageMade,
    LintReported,
    PlanMade,
    StepFinished,
    StepLog,
    StepMissed,
    StepProgress,
    StepStarted,
    Warned,
)
from pybuild.run.miss import Miss
from pybuild.run.output import OutputTail
from pybuild.run.planmade import without_logins
from pybuild.run.result import BuildResult
from pybuild.values import dataclass, field

MOST_FILES = 60
"""So many files of a layer are shown one by one."""


@dataclass(frozen=True, slots=True)
class LayerContents:
    """The files in one layer: ``size`` is the sum of theirs in bytes, ``largest`` has paths and
    sizes, the largest first.
    """

    size: int
    files: int
    largest: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class RecordedImage:
    """``contents`` are those of the layers, bottom first; None where they aren't known."""

    platform: Platform
    layers: tuple[LayerDiff, ...]
    contents: tuple[LayerContents | None, ...]


@dataclass(slots=True)
class Unit:
    """A unit of work that began so many seconds after the build. ``finished`` is None while it runs."""

    started: StepStarted
    began: float
    finished: StepFinished | None = None
    miss: Miss | None = None
    printed: tuple[str, ...] = ()
    """The last lines, once it has finished."""

    @property
    def state(self) -> str:
        """done, cached, failed, cancelled or running."""
        match self.finished:
            case None:
                return "running"
            case StepFinished(cancelled=True):
                return "cancelled"
            case StepFinished(error=PybuildError()):
                return "failed"
            case StepFinished(cached=True):
                return "cached"
            case _:
                return "done"


@dataclass(slots=True)
class Recording:
    """One build. ``seconds`` and ``error`` are known when it has ended; a build that failed has no
    ``result``.
    """

    time: datetime
    units: dict[int, Unit] = field(default_factory=dict)
    tails: dict[int, OutputTail] = field(default_factory=dict)
    """What was printed last by units that still run."""
    plan: PlanMade | None = None
    warnings: list[Warned] = field(default_factory=list)
    lint: tuple[LintWarning, ...] = ()
    images: list[RecordedImage] = field(default_factory=list)
    result: BuildResult | None = None
    error: PybuildError | None = None
    seconds: float = 0.0

    @property
    def dockerfile(self) -> tuple[str, bytes]:
        """The Dockerfile's name and text; a build that failed early may have named none."""
        if self.plan is not None:
            return self.plan.file, self.plan.source
        if self.error is not None:
            for file, source in self.error.files.items():
                return file, without_logins(source)
        return "", b""

    def take(self, event: Event, seconds: float) -> None:
        """Note an event that came `seconds` after the build began."""
        match event:
            case StepStarted():
                self.units[event.id] = Unit(event, seconds)
            case StepMissed(number, miss):
                self.units[number].miss = miss
            case StepLog():
                self.tails.setdefault(event.id, OutputTail()).feed(event.data)
            case StepFinished():
                unit = self.units[event.id]
                unit.finished = event
                unit.printed = self.tails.pop(event.id, OutputTail()).lines()
            case Warned():
                self.warnings.append(event)
            case LintReported():
                self.lint = event.warnings
            case PlanMade():
                self.plan = event
            case ImageMade():
                self.images.append(_image(event))
            case BuildFinished(result):
                self.result = result
            case StepProgress():
                pass
            case _:
                assert_never(event)


def _image(event: ImageMade) -> RecordedImage:
    try:
        indexes = event.contents()
    except PybuildError:  # a damaged layer is no reason to lose the build
        indexes = (None,) * len(event.layers)
    return RecordedImage(event.platform, event.layers, tuple(map(_contents, indexes)))


def _contents(index: LayerIndex | None) -> LayerContents | None:
    if index is None:
        return None
    files = [(e.path, e.size) for e in index if e.kind is Kind.FILE and not e.link]
    largest = nlargest(MOST_FILES, files, key=itemgetter(1))
    return LayerContents(
        sum(size for _, size in files),
        len(files),
        tuple((f"/{shown(path)}", size) for path, size in largest),
    )
