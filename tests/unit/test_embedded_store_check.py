"""Damage in the embedded backend's store: found, removed, and made again."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybuild.oci.platform import host_platform
from pybuild.oci.reference import parse_reference
from pybuild_embedded.database import TABLES
from pybuild_embedded.images import Images
from pybuild_embedded.store import LayerFolder, Store
from storing import FLAVOUR, images_of, put_folder, put_image, put_layer, put_step

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inherent: runs on Linux only")

CONTENT = b"content of a file"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    root = tmp_path / "store"
    with Store.open(root) as filled:
        layers = put_step(filled, "key", [put_layer(filled, b"base")])
        put_folder(filled, layers, b"key")
        put_image(filled, "app", layers=layers)
        filled.cache_folder("cache")
    with Store.open(root) as store:
        yield store


@pytest.fixture
def images(store: Store) -> Images:
    return images_of(store)


def flip(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x40
    path.write_bytes(content)


def the_folder(store: Store) -> LayerFolder:
    step = store.step("key")
    assert step is not None
    folder = store.folder(step.chain, FLAVOUR)
    assert folder is not None
    return folder


def check_and_mend(images: Images, what: str) -> None:
    """The first fault is about `what`; it is only told, then mended, then gone."""
    told = images.check(repair=False)
    assert told
    assert what in told[0].what
    assert not any(fault.mended for fault in told)
    mended = images.check(repair=True)
    assert mended[0] == type(told[0])(told[0].what, told[0].problem, mended=True)
    assert all(fault.mended for fault in mended)
    assert images.check(repair=False) == []


def test_a_sound_store_has_no_faults(images: Images) -> None:
    assert images.check(repair=True) == []


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_blob_is_removed_and_made_again(
    store: Store, images: Images, damage: str
) -> None:
    step = store.step("key")
    assert step is not None
    path = store.blob_path(step.layers[1].blob.digest)
    if damage == "flipped":
        flip(path)
    else:
        os.truncate(path, 10)
    check_and_mend(images, f"blob {step.layers[1].blob.digest}")
    store.close()
    with Store.open(store.root) as later:
        assert later.step("key") is None
        put_step(later, "key", [put_layer(later, b"base")])
        assert later.step("key")
        assert images_of(later).check(repair=False) == []


def test_what_is_no_blob_is_removed(store: Store, images: Images) -> None:
    (store.blobs.folder / "stray").touch()
    check_and_mend(images, "stray")


def test_a_damaged_index_is_removed(store: Store, images: Images) -> None:
    flip(next(iter(store.index_folder.iterdir())))
    check_and_mend(images, "layer index")
    assert len(list(store.index_folder.iterdir())) == 1


@pytest.mark.parametrize("damage", ["flipped", "missing", "fifo", "folder missing"])
def test_a_damaged_unpacked_layer_is_removed(store: Store, images: Images, damage: str) -> None:
    folder = the_folder(store)
    store.close()
    file = folder.fs / "file"
    match damage:
        case "flipped":
            flip(file)
        case "missing":
            file.unlink()
        case "fifo":
            file.unlink()
            os.mkfifo(file)
        case _:
            file.unlink()
            folder.fs.rmdir()
    with Store.open(store.root) as later:
        check_and_mend(images_of(later), "unpacked layer")
        assert not folder.path.exists()


def test_a_damaged_layer_in_use_is_kept_from_others(store: Store, images: Images) -> None:
    with Store.open(store.root) as other:
        folder = the_folder(other)
        flip(folder.fs / "file")
        check_and_mend(images, "unpacked layer")
        assert folder.path.exists()
        step = store.step("key")
        assert step is not None
        assert store.folder(step.chain, FLAVOUR) is None


def test_links_in_an_unpacked_layer_are_not_followed(
    store: Store, images: Images, tmp_path: Path
) -> None:
    folder = the_folder(store)
    (folder.fs / "file").unlink()
    outside = tmp_path / "outside"
    os.mkfifo(outside)  # opening it would hang
    (folder.fs / "file").symlink_to(outside)
    assert images.check(repair=False) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("UPDATE chains SET diff_id='x' WHERE parent<>''", "layers sha256:"),
        ("UPDATE chains SET digest='../x' WHERE parent<>''", "layers sha256:"),
        ("UPDATE chains SET size=1 WHERE parent<>''", "layers sha256:"),
        ("DELETE FROM chains WHERE parent=''", "step key"),
        ("UPDATE steps SET chain='x'", "step key"),
        ("UPDATE names SET target='x'", "image name docker.io/library/app:latest"),
    ],
)
def test_a_wrong_row_is_removed(store: Store, images: Images, change: str, what: str) -> None:
    with store.database.writing() as connection:
        connection.execute(change)
    check_and_mend(images, what)


@pytest.mark.parametrize("document", ["manifest", "config"])
def test_an_image_without_its_documents_is_removed(
    store: Store, images: Images, document: str
) -> None:
    image = images.find("app")
    digest = image.digest if document == "manifest" else image.config_digest
    store.blob_path(digest).unlink()
    check_and_mend(images, f"image {image.digest}")
    assert images.find_base(parse_reference("app"), host_platform()) is None


def damage_page(root: Path, table: str) -> None:
    """Overwrite the page of a table, on disk and unseen by anyone."""
    connection = sqlite3.connect(root / "db.sqlite")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    query = "SELECT rootpage FROM sqlite_schema WHERE name=?"
    (page,) = connection.execute(query, (table,)).fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    with (root / "db.sqlite").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


def test_a_damaged_page_of_the_database_is_found_and_the_rest_saved(store: Store) -> None:
    store.close()
    damage_page(store.root, "steps")
    with Store.open(store.root) as later:
        assert later.step("key") is None
        check_and_mend(images_of(later), "the database")
        assert images_of(later).find("app")
        put_step(later, "key", [put_layer(later, b"base")])
        assert later.step("key")


@pytest.mark.parametrize("table", list(TABLES))
def test_a_store_opens_whichever_page_is_damaged(store: Store, table: str) -> None:
    store.close()
    damage_page(store.root, table)
    with Store.open(store.root) as later:
        images_of(later).check(repair=True)
        assert images_of(later).check(repair=False) == []
        put_step(later, "key", [put_layer(later, b"base")])
        assert later.step("key")


def test_the_database_is_not_taken_from_another_session(store: Store) -> None:
    store.close()
    damage_page(store.root, "steps")
    with Store.open(store.root) as one:
        with Store.open(store.root):
            (fault,) = images_of(one).check(repair=True)
            assert not fault.mended
        (fault,) = images_of(one).check(repair=True)
        assert fault.mended
