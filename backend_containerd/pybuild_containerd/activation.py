"""Mounts that containerd prepares before they can be mounted (2.2 and later).

Such snapshotters, as erofs, describe a snapshot by several mounts of which a later one refers
to where an earlier one is. Running and unpacking resolve that by themselves; the diff service
takes what the kernel takes.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import Final

from pybuild.errors import BackendError
from pybuild_containerd import rpcs
from pybuild_containerd.client import Client
from pybuild_containerd.errors_table import Unimplemented
from pybuild_containerd.snapshots import Mount, mounts_of

_PLAIN: Final = frozenset({"bind", "overlay"})


@contextlib.contextmanager
def activated(client: Client, mounts: tuple[Mount, ...]) -> Iterator[tuple[Mount, ...]]:
    """The mounts as the kernel takes them, for as long as the context lasts.

    They stay as they are where containerd has nothing to prepare, or is too old to.
    """
    if all(mount.type in _PLAIN for mount in mounts):
        yield mounts
        return
    name = f"pybuild-{secrets.token_hex(16)}"
    try:
        info = client.call(
            rpcs.MOUNT_ACTIVATE, name=name, mounts=[mount.fields() for mount in mounts]
        ).info
    except Unimplemented:
        yield mounts
        return
    try:
        # nothing is left for the kernel where containerd mounted the last one too
        yield mounts_of(info.system) or tuple(_bind(m.mount_point) for m in info.active[-1:])
    finally:
        with contextlib.suppress(BackendError):  # the session's lease ends it later
            client.call(rpcs.MOUNT_DEACTIVATE, name=name)


def _bind(folder: str) -> Mount:
    return Mount("bind", folder, ("rbind", "ro"))
