"""Why a step was not found in the cache: values for programs, and their texts for people."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pybuild.run.output import cut
from pybuild.values import dataclass

MOST_CAUSES = 100
"""So many causes of one miss are kept."""

_LONGEST_VALUE = 40
_SHORT_DIGEST = len("sha256:") + 12


class CauseKind(StrEnum):
    """What a :class:`Cause` is about, and what its ``name``, ``before`` and ``after`` say."""

    FILE_CONTENT = "file-content"
    """The file ``name`` has other content."""
    FILE_ADDED = "file-added"
    FILE_REMOVED = "file-removed"
    FILE_TYPE = "file-type"
    """``before`` and ``after``: file, dir, symlink, char, block, fifo."""
    FILE_MODE = "file-mode"
    """Octal permission bits."""
    FILE_OWNER = "file-owner"
    """``uid:gid``."""
    FILE_LINK = "file-link"
    """A link leads elsewhere."""
    FILE_ATTRIBUTES = "file-attributes"
    """Extended attributes, or the numbers of a device."""
    FILES = "files"
    """Files differ; which ones isn't known."""
    ARG = "arg"
    """The variable ``name``."""
    ENV = "env"
    BASE_IMAGE = "base-image"
    """The image ``name`` of a FROM has another digest, platform or config."""
    BASE_CHANGED = "base-changed"
    """The FROM names another image: ``before`` and ``after``."""
    IMAGE = "image"
    """The image ``name``, which files are read from, has another digest."""
    INSTRUCTION = "instruction"
    """The text of the instruction, or what it is made of besides that, called ``name``.

    Without `before` it is new; without `after`, one that stood before it is gone.
    """
    SETTING = "setting"
    """What an earlier instruction or the command line says: WORKDIR, USER, --network."""
    STAGE_BELOW = "stage-below"
    """The stage ``name``, which this one starts from, came out differently."""
    STEP_BELOW = "step-below"
    """An earlier step of the stage was no hit."""
    NEVER_BUILT = "never-built"
    """No build that is remembered made it."""
    ENTRY_PRUNED = "entry-pruned"
    """An earlier build made it, and it is gone."""
    LAST_RUN_FAILED = "last-run-failed"
    LAST_RUN_CANCELLED = "last-run-cancelled"
    NO_CACHE_FILTER = "no-cache-filter"
    """It wasn't sought, as the caller wished."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason. ``source`` is empty for files of the build context, else ``stage build``,
    ``context docs``, ``image nginx:1`` or an URL.

    Values of variables are those that the image's history has; logins in URLs are left out.
    ``before`` and ``after`` are None where there was or is nothing.
    """

    kind: CauseKind
    name: str = ""
    before: str | None = None
    after: str | None = None
    source: str = ""

    def __str__(self) -> str:
        if not self.source:
            return _text(self)
        if self.kind is CauseKind.FILES:
            return f"files of {self.source} changed"
        return f"files of {self.source} changed: {self.name} {_OF_FILES[self.kind].removeprefix('changed ')}"


@dataclass(frozen=True, slots=True)
class Miss:
    """Why a step ran although steps are kept: ``causes``, the weightiest first, never none.

    ``more`` tells how many causes there are beyond those. ``against`` is when the earlier build
    began that was compared with; None if there is none.
    """

    causes: tuple[Cause, ...]
    more: int = 0
    against: datetime | None = None

    def __str__(self) -> str:
        others = len(self.causes) - 1 + self.more
        return f"{self.causes[0]}{f' and {others} more' if others else ''}"


def miss_as_json(miss: Miss) -> dict[str, Any]:
    """A miss in JSON's types; ``text`` is what people are told."""
    return {
        "text": str(miss),
        "causes": [
            {
                "kind": cause.kind.value,
                "name": cause.name,
                "before": cause.before,
                "after": cause.after,
                "source": cause.source,
            }
            for cause in miss.causes
        ],
        "more": miss.more,
        "against": None if miss.against is None else miss.against.isoformat(),
    }


_FIXED = {
    CauseKind.STEP_BELOW: "an earlier step of the stage was no hit",
    CauseKind.NEVER_BUILT: "never built here",
    CauseKind.ENTRY_PRUNED: "entry pruned",
    CauseKind.LAST_RUN_FAILED: "the last run of this step failed",
    CauseKind.LAST_RUN_CANCELLED: "the last run of this step was cancelled",
    CauseKind.NO_CACHE_FILTER: "--no-cache-filter",
    CauseKind.FILES: "files changed",
}
_OF_FILES = {
    CauseKind.FILE_CONTENT: "changed (content)",
    CauseKind.FILE_ADDED: "is new",
    CauseKind.FILE_REMOVED: "was removed",
    CauseKind.FILE_TYPE: "changed (type)",
    CauseKind.FILE_MODE: "changed (mode)",
    CauseKind.FILE_OWNER: "changed (owner)",
    CauseKind.FILE_LINK: "changed (link)",
    CauseKind.FILE_ATTRIBUTES: "changed (attributes)",
}


def _text(cause: Cause) -> str:
    if cause.kind in _FIXED:
        return _FIXED[cause.kind]
    if cause.kind in _OF_FILES:
        return f"{cause.name} {_OF_FILES[cause.kind]}"
    match cause.kind:
        case CauseKind.ARG | CauseKind.ENV:
            return _change(f"{cause.kind.upper()} {cause.name}", cause)
        case CauseKind.BASE_IMAGE:
            return _image(f"base image {cause.name}", cause)
        case CauseKind.IMAGE:
            return _image(f"image {cause.name}", cause)
        case CauseKind.BASE_CHANGED:
            return _change("base image", cause)
        case CauseKind.INSTRUCTION if cause.name:
            return f"instruction changed ({cause.name})"
        case CauseKind.INSTRUCTION if cause.after is None and cause.before is not None:
            return "an instruction before it was removed"
        case CauseKind.INSTRUCTION:
            return f"instruction {'is new' if cause.before is None else 'changed'}"
        case CauseKind.STAGE_BELOW:
            return f"stage {cause.name} below changed"
        case _:
            return _change(cause.name, cause)


def _change(what: str, cause: Cause) -> str:
    before, after = cause.before, cause.after
    if before is None and after is None:
        return f"{what} changed"
    if before is None or after is None:
        value = cut(after or before or "", _LONGEST_VALUE)
        return f"{what} {'was removed' if after is None else 'is new'} ({value})"
    if before == after:
        return f"{what} changed"
    return f"{what} {' -> '.join(_around_the_difference(before, after))}"


def _around_the_difference(before: str, after: str) -> tuple[str, str]:
    """Both, or as much of them as fits from where they begin to differ."""
    start = 0
    if max(len(before), len(after)) > _LONGEST_VALUE:
        pairs = enumerate(zip(before, after, strict=False))
        differs = next((i for i, (x, y) in pairs if x != y), min(len(before), len(after)))
        start = max(0, differs - _LONGEST_VALUE // 4)
    return _from(before, start), _from(after, start)


def _from(text: str, start: int) -> str:
    return cut(f"{'…' if start else ''}{text[start:]}", _LONGEST_VALUE) or '""'


def _image(what: str, cause: Cause) -> str:
    if cause.before == cause.after:
        return f"{what} has another config or platform"
    return f"{what} now {(cause.after or '')[:_SHORT_DIGEST]}"
