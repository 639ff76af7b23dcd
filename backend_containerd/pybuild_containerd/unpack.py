"""Layers as snapshots: chains are found, kept, or unpacked blob by blob."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pybuild.backend import Activity
from pybuild.errors import BackendError, InvalidImage
from pybuild.files.keyedlocks import KeyedLocks
from pybuild.files.layerfiles import LayerFiles
from pybuild.oci.descriptor import Descriptor, LayerDiff, digest_of
from pybuild_containerd import rpcs
from pybuild_containerd.client import Client
from pybuild_containerd.content import ContentStore
from pybuild_containerd.errors_table import AlreadyExists
from pybuild_containerd.filling import NotFilled, Stacked, fill, writable_folders
from pybuild_containerd.snapshots import Mount, Snapshots

if TYPE_CHECKING:
    from pybuild_containerd.arrivingfiles import ArrivingFiles, MadeFiles

# bytes of a blob that takes long enough to unpack for the user to wonder
_WORTH_TELLING = 4 << 20
_REF_LABEL = "containerd.io/snapshot.ref"


class Unpacker:
    """Makes the snapshots of chains of layers. Safe in threads; two don't unpack the same chain.

    A chain's snapshot is named by its chain id, as containerd's own clients name it, so an
    image that is unpacked already costs one look. With `fills` this process may write to the
    folders of snapshots: it makes the files itself then, which takes half of containerd's time.
    `fills_early` says that it may make them before anyone needs the snapshot.
    """

    def __init__(
        self,
        client: Client,
        snapshots: Snapshots,
        content: ContentStore,
        files: LayerFiles,
        *,
        fills: bool,
        fills_early: bool,
    ) -> None:
        self._client = client
        self._snapshots = snapshots
        self._content = content
        self._files = files
        self._fills = fills
        self._fills_early = fills and fills_early
        self._locks = KeyedLocks()
        # chains that are known to be there and to be kept by the session's lease
        self._kept: set[str] = set()
        # by diff id, the files of layers that lie on no other
        self._made: dict[str, MadeFiles] = {}

    def close(self) -> None:
        """Drop what was made and not needed. Idempotent."""
        while self._made:
            self._made.popitem()[1].drop()

    def ensure(self, layers: tuple[LayerDiff, ...], activity: Activity) -> str:
        """Unpack what isn't; return the chain id of all `layers`, empty for scratch.

        The blobs must be in the content store. Raises InvalidImage for a blob whose
        content isn't what its diff id says.
        """
        chains = chain_ids(layers)
        missing = len(chains)
        while missing and not self._is_there(chains[missing - 1]):
            missing -= 1
        for position in range(missing, len(chains)):
            activity.raise_if_cancelled()
            parent = chains[position - 1] if position else ""
            with self._locks.holding(chains[position]):
                if not self._is_there(chains[position]):
                    self._unpack(layers[: position + 1], parent, chains[position], activity)
        return chains[-1] if chains else ""

    def begin_early(self, below: tuple[LayerDiff, ...]) -> tuple[str, Path] | None:
        """An active snapshot on `below` and the folder for the files of the next layer.

        None if they are better made later: nothing is unpacked for this alone.
        """
        if not self._fills_early or not all(map(self._files.knows, below)):
            return None
        chain = "".join(chain_ids(below)[-1:])
        if chain and not self._is_there(chain):
            return None
        key = f"pybuild-{secrets.token_hex(16)}"
        folders = writable_folders(self._snapshots.prepare(key, chain), len(below))
        if folders is None or folders.upper is None:
            self._snapshots.remove(key)
            return None
        return key, Path(folders.upper)

    def arriving(self, layers: Sequence[LayerDiff], blob: Descriptor) -> ArrivingFiles | None:
        """What makes the files of the layer in `blob` while it arrives, one of an image's `layers`.

        None if they are better made later: only the lowest needs no other.
        """
        lowest = layers[0]
        if not self._fills_early or blob.digest != lowest.blob.digest:
            return None
        if self._is_there(lowest.diff_id):
            return None
        from pybuild_containerd.arrivingfiles import ArrivingFiles  # noqa: PLC0415 - for a pull

        return ArrivingFiles(self._snapshots, partial(self.begin_early, ()), self._keep_made)

    def _keep_made(self, diff_id: str, made: MadeFiles) -> None:
        before = self._made.pop(diff_id, None)
        if before is not None:
            before.drop()
        self._made[diff_id] = made

    def stacked(self, layers: tuple[LayerDiff, ...]) -> Stacked:
        """The topmost of `layers`, whose indexes are known."""
        below = self._files.tree(layers[:-1])
        index = self._files.index(layers[-1])
        return Stacked(layers[-1], index, len(layers) - 1, below, self._files.tree(layers))

    def commit(self, key: str, chain: str) -> None:
        """Make the active snapshot `key` the snapshot of `chain`, unless there is one already."""
        with self._locks.holding(chain):
            self._snapshots.commit(key, chain)
            self._kept.add(chain)

    def _unpack(
        self, layers: tuple[LayerDiff, ...], parent: str, chain: str, activity: Activity
    ) -> None:
        layer = layers[-1]
        # containerd has other rules, and no limits
        self._files.check(layer)
        made = None if parent else self._made.pop(chain, None)
        if made is not None and self._finished(made, layer):
            self._kept.add(chain)
            return
        key = f"extract-{secrets.token_hex(8)} {chain}"
        try:
            mounts = self._snapshots.prepare(key, parent, {_REF_LABEL: chain})
        except AlreadyExists:
            # a snapshotter that fetches layers itself says so of a chain that it has
            if self._snapshots.exists(chain):
                self._kept.add(chain)
                return
            raise
        with _removed_on_error(self._snapshots, key):
            if layer.blob.size >= _WORTH_TELLING:
                activity.progress(f"unpacking {layer.blob.digest}", 0, None)
            self._make_files(layers, mounts, activity)
            self._snapshots.commit(key, chain)
        self._kept.add(chain)

    def _finished(self, made: MadeFiles, layer: LayerDiff) -> bool:
        """Whether `made` is now the snapshot of the layer; if not, it is gone."""
        is_done = False
        try:
            if made.finish(self.stacked((layer,))):
                self._snapshots.commit(made.key, layer.diff_id)
                is_done = True
        finally:
            if not is_done:
                made.drop()
        return is_done

    def _make_files(
        self, layers: tuple[LayerDiff, ...], mounts: tuple[Mount, ...], activity: Activity
    ) -> None:
        # to read lower layers for their indexes takes longer than what is won
        if self._fills and all(map(self._files.knows, layers)):
            with contextlib.suppress(NotFilled):
                fill(self.stacked(layers), mounts, self._content.open, activity)
                return
        apply_layer(self._client, layers[-1], mounts, activity)

    def _is_there(self, chain: str) -> bool:
        if chain in self._kept:
            return True
        if self._snapshots.exists(chain):
            self._kept.add(chain)
            return True
        return False


def chain_ids(layers: Sequence[LayerDiff]) -> list[str]:
    """The chain id of each layer with all below it (OCI `config.md`, ChainID)."""
    chains: list[str] = []
    for layer in layers:
        below = chains[-1] if chains else ""
        chains.append(digest_of(f"{below} {layer.diff_id}".encode()) if below else layer.diff_id)
    return chains


def apply_layer(
    client: Client, layer: LayerDiff, mounts: tuple[Mount, ...], activity: Activity
) -> None:
    """Have containerd unpack a blob into a snapshot's mounts, and check what it unpacked."""
    applied = client.call(
        rpcs.DIFF_APPLY,
        activity=activity,
        diff={
            "media_type": layer.blob.media_type,
            "digest": layer.blob.digest,
            "size": layer.blob.size,
        },
        mounts=[mount.fields() for mount in mounts],
    ).applied
    if applied.digest != layer.diff_id:
        raise InvalidImage(
            f"layer {layer.blob.digest} holds {applied.digest}, "
            f"but the image's config says {layer.diff_id}"
        )


@contextlib.contextmanager
def _removed_on_error(snapshots: Snapshots, key: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(BackendError):  # the first error tells more
            snapshots.remove(key)
        raise
