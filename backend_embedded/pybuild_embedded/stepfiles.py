"""Where the processes of a step see their files, and what they change."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pybuild.files.trees import Tree
from pybuild.sandbox import spec
from pybuild_embedded.folders import LayerFolder
from pybuild_embedded.space import Space


class StepFiles(ABC):
    """The root file system of one step. The ``folder`` is its own, to be discarded or kept.

    ``record`` is how the folder was before the first process, see :class:`.requests.Pack`;
    None where it has nothing but the changes.
    """

    folder: LayerFolder
    record: Path | None = None

    @abstractmethod
    def shown(self, mounts: Sequence[spec.Mount], tree: Tree) -> AbstractContextManager[spec.Root]:
        """The root for one process. `tree` is what the step began with."""

    def unchanged(self) -> bool:
        """Whether it is plain without a worker that the processes left nothing."""
        return False


class LeftFiles(StepFiles):
    """What processes have left in `folder`, on which none runs any more."""

    def __init__(self, folder: LayerFolder) -> None:
        self.folder = folder

    def shown(self, *_: object) -> AbstractContextManager[spec.Root]:
        raise RuntimeError("a process was run on what others have left")


class OverlayFiles(StepFiles):
    """Folders of layers, bottom first, with a folder for the changes mounted over them."""

    def __init__(self, space: Space, lowers: Sequence[LayerFolder]) -> None:
        self._lowers = tuple(os.fsencode(lower.fs) for lower in reversed(lowers))
        self._count = 0
        self.folder = space.store.new_folder()
        # the root's attributes are those of the topmost folder
        mode = stat.S_IMODE(lowers[-1].fs.stat().st_mode) if lowers else 0o755
        self.folder.fs.chmod(mode)

    @contextmanager
    def shown(self, mounts: Sequence[spec.Mount], tree: Tree) -> Iterator[spec.Root]:  # noqa: ARG002 - an overlay has room for mount points
        work = self.folder.work / str(self._count)
        work.mkdir(mode=0o700)
        self._count += 1
        yield spec.Overlay(self._lowers, os.fsencode(self.folder.fs), os.fsencode(work))

    def unchanged(self) -> bool:
        try:
            with os.scandir(self.folder.fs) as entries:
                return next(entries, None) is None
        except OSError:  # the step has given its root to another user
            return False
