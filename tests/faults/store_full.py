"""A store on a file system that is full, or has no inodes left. Its folder is the argument."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from pybuild.errors import BackendFailed
from pybuild.imagestore import PruneRequest
from pybuild_embedded.store import Store
from storing import images_of, put_blob, put_image, put_layer, put_step


def fill(folder: Path) -> None:
    """Take whatever room and inodes are left, to the last."""
    folder.mkdir()
    with suppress(OSError):
        for number in range(1000):
            (folder / str(number)).touch()
    with suppress(OSError), (folder / "0").open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)


def assert_full(error: BackendFailed) -> None:
    assert "no room is left" in error.message, error
    assert error.hint


def main(root: Path) -> None:
    with Store.open(root) as store:
        put_image(store, "kept", layers=[put_layer(store, b"kept")])
        put_step(store, "old")
        put_blob(store, os.urandom(200_000))
    store = Store.open(root)
    fill(root.parent / "filling")
    failures = 0
    for attempt in (
        lambda: put_blob(store, os.urandom(200_000)),
        lambda: put_step(store, "new"),
        lambda: [store.record_step(f"{i}", "", own=True) for i in range(20_000)],
        store.new_folder,
    ):
        try:
            attempt()
        except BackendFailed as error:
            assert_full(error)
            failures += 1
    assert failures >= 2, failures
    with suppress(BackendFailed):
        store.close()
    with Store.open(root) as store:
        assert images_of(store).check(repair=False) == []
        assert images_of(store).find("kept").size
    with Store.open(root) as store:
        # the reserve makes it possible
        assert images_of(store).prune(PruneRequest()).freed > 0
    shutil.rmtree(root.parent / "filling")
    with Store.open(root) as store:
        put_step(store, "new")
        assert store.step("new")
        assert (root / "reserve").exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
