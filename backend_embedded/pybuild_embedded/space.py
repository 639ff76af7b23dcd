"""What the layers of one backend share."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pybuild.backend import Activity, BaseImage
from pybuild.files.layerfiles import LayerFiles
from pybuild.oci.descriptor import Descriptor, LayerDiff
from pybuild.oci.reference import Reference
from pybuild.sandbox.mapping import Kind
from pybuild_embedded.fetching import Fetcher
from pybuild_embedded.machine import Machine
from pybuild_embedded.store import Store


class Unfinished(Protocol):
    """Something to be waited for before the store is closed."""

    def finish(self) -> None:
        """Wait until it is done, or give it up if its build was cancelled. Never raises."""


@dataclass(slots=True)
class Space:
    """The store and everything made on it. Safe in threads.

    ``origins`` are the images that blobs can be fetched from, by the blobs' digests.
    """

    store: Store
    machine: Machine
    files: LayerFiles
    fetcher: Fetcher
    origins: dict[str, tuple[Reference, Descriptor]] = field(default_factory=dict)
    litter: list[Path] = field(default_factory=list)
    """Folders to be removed at the end by who may: those that overlayfs leaves."""
    unfinished: list[Unfinished] = field(default_factory=list)
    """Work that goes on behind the build's back."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    _warned: bool = False

    def warn_of_copies(self, activity: Activity) -> None:
        """Tell once that steps are slow here, and why, if they run on copies."""
        refusal = self.machine.overlay_refusal()
        with self.lock:
            warned, self._warned = self._warned, True
        if refusal is not None and not warned:
            activity.warn(
                f"RUN is slower in the store {self.store.root}, where overlayfs can't be used: "
                f"{refusal.reason}",
                "put the store on another file system with --root",
            )

    def remember_origins(self, image: BaseImage) -> None:
        """Know where the image's layers can be fetched, should they be needed."""
        with self.lock:
            for layer in image.layers:
                self.origins[layer.blob.digest] = image.reference, layer.blob

    def own_key(self, key: str) -> str:
        """The key of a step in this store: with one id, what a step leaves lacks its owners."""
        mapping = self.machine.probe().mapping
        single = mapping is not None and mapping.kind is Kind.SINGLE
        return f"single {key}" if single else key

    def fetch(self, layers: Sequence[LayerDiff], activity: Activity) -> None:
        """Have the blobs of these layers here, as far as it is known where they come from."""
        wanted: dict[Reference, dict[str, Descriptor]] = {}
        for layer in layers:
            digest = layer.blob.digest
            if digest in self.origins and not self.store.has_blob(digest):
                reference, descriptor = self.origins[digest]
                wanted.setdefault(reference, {})[digest] = descriptor
        for reference, blobs in wanted.items():
            self.fetcher.fetch_layers(reference, list(blobs.values()), activity)

    def tidy(self) -> None:
        """Finish what was begun, and remove what nobody needs any more."""
        for each in list(self.unfinished):
            each.finish()
        if self.machine.running:
            self.store.discard_unsettled()
            self.machine.remove(self.litter)
            self.store.empty_trash(self.machine.remove)

    def index_paths(self, layers: Sequence[LayerDiff]) -> tuple[Path, ...]:
        """The files with the indexes of these layers."""
        return tuple(self.files.index_path(layer) for layer in layers)
