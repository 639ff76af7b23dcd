"""Builds on a file system with little room: the first argument. The second is a roomy folder."""

from __future__ import annotations

import os
import re
import sys
from functools import partial
from io import BytesIO
from pathlib import Path

import pytest

from embedding import Stores
from pybuild import build
from pybuild.errors import PybuildError, RunFailed
from pybuild.files.trees import NewEntry
from pybuild.imagestore import PruneRequest
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.layerwriter import write_layer
from pybuild.oci.platform import host_platform
from pybuild.testkit.registry import Registry
from pybuild_embedded.backend import EmbeddedBackend

ROOM = 32 << 20  # of which the store takes a fourth


def main(folder: Path, context: Path) -> None:
    stores = Stores(folder)
    root = stores.new()
    (context / "small").write_text("small")
    (context / "large").write_bytes(os.urandom(ROOM))
    with Registry() as registry:
        add_large_image(registry)
        for dockerfile in (
            # the process has no room, the layer's blob has none
            "FROM busybox\nRUN dd if=/dev/urandom of=/large bs=1M count=32\n",
            "FROM busybox\nRUN dd if=/dev/urandom of=/large bs=1M count=16\n",
            "FROM busybox\nCOPY large /\n",
            f"FROM {registry.address}/large:1\nCOPY small /\n",
        ):
            with stores.opened(root) as backend:
                check_full(backend, context, dockerfile)
            with stores.opened(root) as backend:
                check_usable(backend, context)


def add_large_image(registry: Registry) -> None:
    parts: list[bytes] = []
    content = os.urandom(ROOM)
    entry = NewEntry(Entry(b"large", Kind.FILE, size=ROOM), partial(BytesIO, content))
    diff = write_layer([entry], parts.append).diff
    rootfs = {"type": "layers", "diff_ids": [diff.diff_id]}
    here = host_platform()
    config = {"os": here.os, "architecture": here.architecture, "rootfs": rootfs}
    registry.add_image("large:1", config, [b"".join(parts)])


def check_full(backend: EmbeddedBackend, context: Path, dockerfile: str) -> None:
    with pytest.raises(PybuildError) as caught:
        build(context, dockerfile=dockerfile.encode(), backend=backend)
    if isinstance(caught.value, RunFailed):
        said = "".join(caught.value.output)
    else:
        said = caught.value.message
        assert caught.value.hint
    assert re.search("no (room|space) (is )?left", said.lower()), said


def check_usable(backend: EmbeddedBackend, context: Path) -> None:
    """After it the store is sound, gets room, and builds."""
    images = backend.image_store()
    assert images is not None
    assert images.check(repair=False) == []
    images.prune(PruneRequest())
    build(context, dockerfile=b"FROM busybox\nCOPY small /\nRUN cat /small\n", backend=backend)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
