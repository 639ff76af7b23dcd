"""Makes the files of an image's lowest layer in a snapshot while its blob arrives.

What needs no other layer, and is told by a file's own header, is done then; the rest, and what
of the layer turns out to be otherwise, once its index is there. Nothing of it counts before the
blob has proved to be the one that was asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Self

from pybuild.errors import BackendError
from pybuild.oci.layerindex import NO_NAMES, WHITEOUT, Entry, Kind
from pybuild.oci.layertar import OnFile, allowed_xattrs
from pybuild.oci.tarformat import Member
from pybuild_containerd.alongside import FilesAlongside
from pybuild_containerd.filling import TIMES, Attributes, NotFilled, Stacked
from pybuild_containerd.snapshots import Snapshots

_FILES = b"07"


class MadeFiles:
    """An active snapshot on nothing, and the files of a layer in it; dropped or committed."""

    def __init__(self, snapshots: Snapshots, key: str, upper: Path) -> None:
        self._snapshots = snapshots
        self._files = FilesAlongside(upper, None)
        self.key = key

    @property
    def is_whole(self) -> bool:
        """Whether all files that came are there."""
        return self._files.is_whole

    def take(self, member: Member) -> Callable[[memoryview], object] | None:
        """Make a file; what is given takes its content. Raises BackendFailed if the disk is full."""
        path = member.name.removeprefix(b"./")
        names = path.split(b"/")
        if member.type not in _FILES or names[-1].startswith(WHITEOUT):
            return None
        if not NO_NAMES.isdisjoint(names) or member.mtime not in TIMES:
            self._files.give_up()
            return None
        entry = Entry(
            path,
            Kind.FILE,
            member.mode,
            member.uid,
            member.gid,
            member.size,
            member.mtime,
            xattrs=allowed_xattrs(member.xattrs),
        )
        self._files.begin(entry)
        return self._take

    def _take(self, piece: memoryview) -> None:
        if not self._files.write(piece):
            self._files.end()

    def finish(self, stacked: Stacked) -> bool:
        """Make the rest of the layer; whether all of it is there."""
        try:
            return self._files.finish(stacked)
        finally:
            self._files.close()

    def drop(self) -> None:
        """Remove the snapshot."""
        self._files.close()
        with contextlib.suppress(BackendError):  # the session's lease removes it later
            self._snapshots.remove(self.key)


class ArrivingFiles:
    """A :class:`pybuild.oci.arriving.PlainSink`."""

    def __init__(
        self,
        snapshots: Snapshots,
        begin: Callable[[], tuple[str, Path] | None],
        keep: Callable[[str, MadeFiles], object],
    ) -> None:
        """`begin` makes an active snapshot on nothing, if it can: its key and folder.

        `keep` gets the diff id of a layer, and its files, which are its own from then on.
        """
        self._snapshots = snapshots
        self._begin = begin
        self._keep = keep
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._made: MadeFiles | None = None
        self._is_wanted = True
        self._attributes = Attributes()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.restart()

    def write(self, piece: bytes, /) -> None:
        """Look at a piece of the tar."""
        if self._is_wanted:
            try:
                self._attributes.look(piece)
            except NotFilled:
                self._is_wanted = False

    @property
    def on_file(self) -> OnFile | None:
        """Makes a file."""
        return self._take

    def _take(self, member: Member) -> Callable[[memoryview], object] | None:
        if not self._is_wanted:
            return None
        if self._made is None:
            self._made = self._begun()
        if self._made is None or not self._made.is_whole:
            self._is_wanted = False
            return None
        return self._made.take(member)

    def _begun(self) -> MadeFiles | None:
        """A new snapshot. None if there is none: whoever needs one gets the error."""
        with contextlib.suppress(BackendError):
            begun = self._begin()
            if begun is not None:
                try:
                    return MadeFiles(self._snapshots, *begun)
                except OSError:
                    self._snapshots.remove(begun[0])
        return None

    def restart(self) -> None:
        """Drop what isn't kept."""
        if self._made is not None:
            self._made.drop()
        self._begin_anew()

    def keep(self, diff_id: str, /) -> None:
        """All files have come."""
        if self._made is not None and self._is_wanted and self._made.is_whole:
            self._keep(diff_id, self._made)
            self._made = None
