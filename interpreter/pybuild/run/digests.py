"""The digests of files that a step reads, where they aren't known yet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from hashlib import sha256

from pybuild.backend import Activity
from pybuild.files.safepath import AwaitsDigest
from pybuild.files.trees import NewEntry, Tree, walk
from pybuild.oci.layerindex import Entry, Kind
from pybuild.run.schedule import workers
from pybuild.values import replace

_CHUNK = 1 << 20
_LARGE = 1 << 20
_FEW = 2


def digested(tree: Tree, path: bytes, activity: Activity | None = None) -> list[Entry]:
    """The entry at `path` and all below it, each regular file with its digest."""
    entries = [NewEntry(entry, partial(tree.open, entry.path)) for entry in walk(tree, path)]
    return with_digests(entries, activity)


def unread(entries: Sequence[NewEntry]) -> int:
    """How many bytes must be read before all digests are known."""
    return sum(new.entry.size for new in entries if is_unknown(new))


def with_digests(entries: Sequence[NewEntry], activity: Activity | None = None) -> list[Entry]:
    """The entries, of which regular files without a digest are read; raises BuildCancelled.

    Large files are read in threads, which hashing lets run at the same time.
    """
    large = [at for at, new in enumerate(entries) if new.entry.size >= _LARGE and is_unknown(new)]
    if len(large) < _FEW:
        return [_with_digest(new, activity) for new in entries]
    with workers(os.cpu_count()) as pool:
        try:
            futures = {at: pool.submit(_with_digest, entries[at], activity) for at in large}
            # small ones meanwhile in this thread: handing them over costs more than reading them
            found = {
                at: _with_digest(new, activity)
                for at, new in enumerate(entries)
                if at not in futures
            }
            found |= {at: future.result() for at, future in futures.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [found[at] for at in range(len(entries))]


def is_unknown(new: NewEntry) -> bool:
    """Whether it is a regular file that must be read before its digest is known."""
    entry = new.entry
    return entry.kind is Kind.FILE and entry.digest is None and new.content is not None


def _with_digest(new: NewEntry, activity: Activity | None) -> Entry:
    if not is_unknown(new) or new.content is None:
        return new.entry
    digest = sha256()
    with new.content() as stream:
        while chunk := stream.read(_CHUNK):
            if activity is not None:
                activity.raise_if_cancelled()
            digest.update(chunk)
        found = f"sha256:{digest.hexdigest()}"
        if isinstance(stream, AwaitsDigest) and stream.on_digest is not None:
            stream.on_digest(found)
    return replace(new.entry, digest=found)
