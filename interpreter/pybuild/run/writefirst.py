"""COPY of files that no build has seen: one pass reads them for the layer and for its key.

The key counts what is in the files. As long as that isn't known, a layer that is there already
can't be found; but whether there may be one is told by paths and sizes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Self

from pybuild.backend import Activity, RWLayer
from pybuild.files.safepath import AwaitsDigest
from pybuild.files.trees import NewEntry
from pybuild.files.wholefiles import forget_oldest, write_whole
from pybuild.plan.cachekey import KEY_VERSION
from pybuild.plan.steps import Step
from pybuild.run.digests import is_unknown
from pybuild.run.execute import PreparedFiles
from pybuild.values import dataclass, replace

FOLDER = "shapes"
"""Where those that were seen are kept, below :meth:`.Backend.notes_folder`, as empty files."""

_MOST_SHAPES = 1000


@dataclass(frozen=True, slots=True)
class Shape:
    """What two steps with the same key have in common: the step, the paths, the sizes."""

    path: Path

    @classmethod
    def of(cls, notes: Path, step: Step, parent: str, prepared: PreparedFiles) -> Self:
        """The shape of a step on what got the key `parent`."""
        told = json.dumps([KEY_VERSION, step.key, parent]).encode()
        rows = (
            b"%d:%b%d" % (len(new.entry.path), new.entry.path, new.entry.size)
            for new in prepared.entries
        )
        return cls(notes / FOLDER / sha256(b"\n".join((told, *rows))).hexdigest())

    @property
    def text(self) -> str:
        """What no other shape has, in hexadecimal."""
        return self.path.name

    @property
    def was_seen(self) -> bool:
        """Whether a build had it; of many it is forgotten."""
        return self.path.exists()

    def keep(self) -> None:
        """Let later builds know; where that fails, files are read twice no more than before."""
        with suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self.path, b"")
            forget_oldest(self.path.parent, _MOST_SHAPES)


def put_first(layer: RWLayer, prepared: PreparedFiles, activity: Activity) -> PreparedFiles:
    """Put the files on the layer; the same, with all digests that became known by it."""
    digests: dict[int, str] = {}
    layer.put(_telling(prepared.entries, digests), activity)
    return PreparedFiles(
        tuple(
            NewEntry(replace(new.entry, digest=digests[at]), new.content, new.source)
            if at in digests
            else new
            for at, new in enumerate(prepared.entries)
        )
    )


def _telling(entries: Sequence[NewEntry], digests: dict[int, str]) -> list[NewEntry]:
    return [
        NewEntry(new.entry, partial(_open, new.content, digests, at), new.source)
        if new.content is not None and is_unknown(new)
        else new
        for at, new in enumerate(entries)
    ]


def _open(content: Callable[[], BinaryIO], digests: dict[int, str], at: int) -> BinaryIO:
    """The content, whose digest gets into `digests` under `at`."""
    stream = content()
    if isinstance(stream, AwaitsDigest):
        known = stream.on_digest

        def told(digest: str) -> None:
            digests[at] = digest
            if known is not None:
                known(digest)

        stream.on_digest = told
    return stream
