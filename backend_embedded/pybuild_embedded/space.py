"""What the layers of one backend share."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Protocol

from pybuild.backend import Activity
from pybuild.errors import PybuildError
from pybuild.files.layerfiles import LayerFiles
from pybuild.oci import http
from pybuild.oci.descriptor import Descriptor, LayerDiff
from pybuild.oci.reference import Reference
from pybuild.sandbox.mapping import Kind
from pybuild.values import dataclass, field
from pybuild_embedded.fetching import Fetcher
from pybuild_embedded.flights import Flights
from pybuild_embedded.machine import Machine
from pybuild_embedded.rootfolder import NOTES
from pybuild_embedded.store import Store

if TYPE_CHECKING:
    from pybuild.files.storedpieces import StoredPieces
    from pybuild_embedded.plaincopies import PlainCopies

ONE_ID = (
    "RUN has a single user id here: every file belongs to the step's user, changes of owner "
    "or user succeed without effect, and setuid programs give no rights"
)


class Unfinished(Protocol):
    """Something to be waited for before the store is closed."""

    def finish(self) -> None:
        """Wait until it is done, or give it up if its build was cancelled. Never raises."""


@dataclass(slots=True)
class Space:
    """The store and everything made on it. Safe in threads."""

    store: Store
    machine: Machine
    files: LayerFiles
    fetcher: Fetcher
    flights: Flights
    unfinished: list[Unfinished] = field(default_factory=list)
    """Work that goes on behind the build's back."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    copies: PlainCopies | None = None
    """Layers that arrived and will be unpacked, if any."""
    _told: set[str] = field(default_factory=set)
    _pieces: StoredPieces | None = None

    def pieces(self) -> StoredPieces:
        """What the layers that were written last consist of."""
        from pybuild.files.storedpieces import (  # noqa: PLC0415 - for a COPY
            FOLDER,
            StoredPieces,
        )

        with self.lock:
            if self._pieces is None:
                self._pieces = StoredPieces(
                    self.store.root / NOTES / FOLDER, self.store.has_blob, self.store.open_part
                )
            return self._pieces

    def warn_of_copies(self, activity: Activity) -> None:
        """Tell once that steps are slow here, and why, if they run on copies."""
        refusal = self.machine.overlay_refusal()
        if refusal is not None and self._is_first("copies"):
            activity.warn(
                f"RUN is slower in the store {self.store.root}, where overlayfs can't be used "
                f"({refusal.reason})",
                "put the store on another file system with --root",
            )

    def warn_of_one_id(self, activity: Activity) -> None:
        """Say once what doesn't hold in steps that have one id, and how to get more."""
        if not self.machine.keeps_owners and self._is_first("one id"):
            activity.warn(ONE_ID, self.machine.probe().hint)

    def _is_first(self, what: str) -> bool:
        with self.lock:
            told = what in self._told
            self._told.add(what)
        return not told

    def own_key(self, key: str) -> str:
        """The key of a step in this store: with one id, what a step leaves lacks its owners."""
        mapping = self.machine.probe().mapping
        single = mapping is not None and mapping.kind is Kind.SINGLE
        return f"single {key}" if single else key

    def fetch(
        self, layers: Sequence[LayerDiff], activity: http.Activity, *, runs: bool = True
    ) -> None:
        """Have the blobs of these layers here, as far as it is known where they come from.

        Without `runs` they are only read.
        """
        wanted: dict[Reference, dict[str, Descriptor]] = {}
        for layer in layers:
            digest = layer.blob.digest
            if self.store.has_blob(digest):
                continue
            origin = self.store.origins.find(digest)
            if origin is not None:
                wanted.setdefault(origin[0], {})[digest] = origin[1]
        if not wanted:
            return
        on_index = self.files.on_arrival(layers)
        if runs and self.copies is None and self.machine.is_announced:
            from pybuild_embedded.plaincopies import PlainCopies  # noqa: PLC0415 - before a RUN

            self.copies = PlainCopies(self.store.new_file)
        for reference, blobs in wanted.items():
            self.fetcher.fetch_layers(
                reference,
                list(blobs.values()),
                activity,
                on_index,
                self.copies if runs else None,
            )

    def mend_blob(self, layer: LayerDiff, activity: http.Activity) -> bool:
        """If a layer's blob is damaged, fetch it again; whether there is a new one."""
        digest = layer.blob.digest
        if not self.store.blobs.discard_damaged(digest):
            return False
        self.fetch([layer], activity)
        return self.store.has_blob(digest)

    def tidy(self) -> None:
        """Finish what was begun, and remove what nobody needs any more."""
        for each in list(self.unfinished):
            each.finish()
        if self.copies is not None:
            self.copies.close()
        if self.machine.running:
            self.store.discard_unsettled()
            self.machine.remove(self.store.worked_in())
        # a build that was killed may have left some, and is worth a sandbox then
        with nullcontext() if self.machine.running else suppress(PybuildError):
            self.store.empty_trash(self.machine.remove)
