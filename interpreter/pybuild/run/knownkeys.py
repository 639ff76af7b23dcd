"""Content keys by what lstat(2) says of the files that they count.

A step that reads a large folder of a context has its key by every file in it. As long as the
folder's :class:`~pybuild.files.statcache.StatDigest` is the same so is the key, and no file need
be looked at any closer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Self

from pybuild.files.context import ContextTree
from pybuild.files.wholefiles import forget_oldest, write_whole
from pybuild.plan.cachekey import KEY_VERSION
from pybuild.plan.steps import Step
from pybuild.values import dataclass

FOLDER = "keys"
"""Where they are kept, below :meth:`.Backend.notes_folder`, each in a file of its own."""
FEWEST_FILES = 100
"""Of fewer, the key is made as fast as it is found."""
MOST_KEYS = 1000

_LENGTH = 64


@dataclass(frozen=True, slots=True)
class KnownKey:
    """The key of one step: ``text`` is empty if it isn't known yet.

    Whoever owns the folder with `path` is trusted, as with digests of files.
    """

    path: Path
    text: str

    @classmethod
    def of(
        cls, notes: Path, step: Step, parent: str, read: Sequence[tuple[ContextTree, bytes]]
    ) -> Self | None:
        """What is known of the key of `step`, which reads no files but those at and below `read`.

        `parent` is the key that the step below really got. None where nothing can be known.
        """
        found = [tree.stat_digest(path) for tree, path in read]
        digests = [each for each in found if each is not None]
        if len(digests) < len(found) or sum(each.files for each in digests) < FEWEST_FILES:
            return None
        asked = json.dumps([KEY_VERSION, step.key, parent, [each.text for each in digests]])
        path = notes / FOLDER / sha256(asked.encode()).hexdigest()
        text = ""
        with suppress(OSError, ValueError):
            text = path.read_text("ascii")
        return cls(path, text if len(text) == _LENGTH else "")

    def keep(self, text: str) -> None:
        """Keep the key for later builds; where that fails, it is made again."""
        if text == self.text:
            return
        folder = self.path.parent
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self.path, text.encode())
            forget_oldest(folder, MOST_KEYS)
