"""What is remembered of a build, as values: its stages, their steps, and what each step's key is of."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from enum import Enum

from pybuild.plan.keyinputs import KeyInput
from pybuild.run.explaining.filerows import FileRows
from pybuild.run.miss import CauseKind, Miss
from pybuild.values import dataclass


class StepState(Enum):
    """What became of a step."""

    CACHED = "cached"
    MADE = "made"
    EMPTY = "empty"
    """It had nothing to do, so there was nothing to keep."""
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    """It was not to miss, and did: it didn't run."""


@dataclass(frozen=True, slots=True)
class ReadFiles:
    """Files that went into a key. ``source`` is as in :class:`~pybuild.run.miss.Cause`.

    ``digest`` tells whether two are the same; ``rows`` gives them, or None where they weren't
    kept or are damaged.
    """

    source: str
    digest: str
    rows: Callable[[], FileRows | None]


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """A step that was begun. ``key`` is its content key; ``title`` the instruction as written.

    ``files`` are by mount target, under an empty one those of COPY and ADD. ``images`` are the
    digests, by name, of the images that it reads files from.
    """

    title: str
    line: int
    key: str
    state: StepState
    inputs: tuple[KeyInput, ...]
    images: dict[str, str]
    files: dict[str, ReadFiles]
    miss: Miss | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """What a stage's chain of stages starts from; ``key`` has all that counts of it.

    ``name`` is a familiar reference, or scratch, which has no digest.
    """

    name: str
    digest: str
    key: str


@dataclass(frozen=True, slots=True)
class Variable:
    """The last value of an ARG or ENV of a stage."""

    kind: CauseKind
    value: str


@dataclass(frozen=True, slots=True)
class RecordedStage:
    """A stage as far as it came: ``steps`` are the first of its ``titles``.

    ``below`` is the stage that it starts from, empty for an image, and ``below_key`` that
    stage's last content key.
    """

    label: str
    base: Base
    below: str
    below_key: str
    variables: dict[str, Variable]
    titles: tuple[str, ...]
    steps: tuple[RecordedStep, ...]


@dataclass(frozen=True, slots=True)
class RecordedBuild:
    """A build in which a step missed. ``began`` is in UTC.

    ``outcome`` is succeeded, failed or cancelled; ``platforms`` are those asked for, with commas
    between; ``target`` is empty for the last stage.
    """

    began: datetime
    outcome: str
    target: str
    platforms: str
    stages: tuple[RecordedStage, ...]
