"""What the embedded backend's store takes up, and how room is made in it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pybuild.backend import Image
from pybuild.errors import UsageError
from pybuild.imagestore import PruneRequest, Usage, UsageKind, usual_ceiling
from pybuild.oci.descriptor import LayerDiff, digest_of
from pybuild.oci.platform import Platform, host_platform
from pybuild.oci.reference import parse_reference
from pybuild_embedded.images import Images
from pybuild_embedded.options import parse_options
from pybuild_embedded.store import Store
from storing import (
    FLAVOUR,
    disk_usage,
    images_of,
    put_blob,
    put_documents,
    put_folder,
    put_image,
    put_index,
    put_layer,
    put_step,
    remove_trees,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inherent: runs on Linux only")

EVERYTHING = PruneRequest(images=True, all_images=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    """A store that something was done in before."""
    with Store.open(root) as filled:
        base = put_layer(filled, os.urandom(300_000))
        put_image(filled, "base", layers=[base])
        layers = put_step(filled, "old", [base])
        put_folder(filled, layers, b"old")
        layers = put_step(filled, "new", layers)
        put_image(filled, "built", layers=layers)
        put_image(filled, comment="unnamed")
        (filled.cache_folder("cache").fs / "file").write_bytes(os.urandom(200_000))
        grow_old(filled)
    with Store.open(root) as store:
        yield store


@pytest.fixture
def images(store: Store) -> Images:
    return images_of(store)


def grow_old(store: Store, *, steps: int = 2000, others: int = 1000) -> None:
    """Say that everything was used a while ago (in seconds); the step "new" a little later."""
    now = int(time.time())
    with store.database.writing() as connection:
        connection.execute("UPDATE steps SET used=?", (now - steps,))
        connection.execute("UPDATE steps SET used=? WHERE key='new'", (now - steps + 1,))
        for statement in (
            "UPDATE folders SET used=?",
            "UPDATE caches SET used=?",
            "UPDATE images SET used=?",
        ):
            connection.execute(statement, (now - others,))


def by_kind(lines: Sequence[Usage]) -> dict[UsageKind, Usage]:
    assert [line.kind for line in lines] == list(UsageKind)
    return {line.kind: line for line in lines}


class TestUsage:
    def test_the_lines_together_are_what_du_says(self, store: Store, images: Images) -> None:
        store.new_file().write_bytes(os.urandom(150_000))
        folder = store.new_folder()
        (folder.fs / "sub").mkdir()
        (folder.fs / "sub" / "file").write_bytes(os.urandom(70_000))
        os.link(folder.fs / "sub" / "file", folder.fs / "same file")
        store.discard(store.new_folder())
        total = sum(line.size for line in images.usage())
        assert total == pytest.approx(disk_usage(store.root), rel=0.02)

    def test_each_kind_has_what_belongs_to_it(self, store: Store, images: Images) -> None:
        lines = by_kind(images.usage())
        counts = {kind: line.count for kind, line in lines.items()}
        assert counts == {
            UsageKind.IMAGES: 3,
            UsageKind.STEPS: 2,
            UsageKind.LAYERS: 1,
            UsageKind.INDEXES: 3,
            UsageKind.CACHE_MOUNTS: 1,
            UsageKind.WORK: 0,
            UsageKind.OTHER: 0,
        }
        assert lines[UsageKind.IMAGES].size >= 300_000
        assert lines[UsageKind.CACHE_MOUNTS].size >= 200_000
        # an image has all layers of the steps
        assert lines[UsageKind.STEPS].size == 0

    def test_blobs_of_steps_and_of_nobody_are_told_apart(
        self, store: Store, images: Images
    ) -> None:
        images.remove("built")
        with Store.open(store.root) as other:
            digest = put_blob(other, os.urandom(100_000))
            running = by_kind(images.usage())
            assert running[UsageKind.STEPS].size >= 100_000
            assert running[UsageKind.STEPS].reclaimable < 100_000
        assert store.blobs.size(digest) == 100_000
        lines = by_kind(images.usage())
        assert 0 < lines[UsageKind.STEPS].size < 100_000
        assert lines[UsageKind.WORK].reclaimable >= 100_000

    def test_what_a_session_uses_is_not_reclaimable(self, store: Store, images: Images) -> None:
        before = by_kind(images.usage())
        with Store.open(store.root) as other:
            assert other.step("old")
            other.cache_folder("cache")
            assert images_of(other).find_base(parse_reference("base"), host_platform())
            during = by_kind(images.usage())
        assert before[UsageKind.IMAGES].reclaimable == before[UsageKind.IMAGES].size
        assert during[UsageKind.IMAGES].reclaimable < 100_000
        assert during[UsageKind.CACHE_MOUNTS].reclaimable == 0
        assert during[UsageKind.LAYERS].reclaimable == before[UsageKind.LAYERS].size

    def test_a_folders_size_is_taken_from_who_settled_it(self, store: Store) -> None:
        asked: list[Path] = []

        def measure(folders: Sequence[Path]) -> list[int]:
            asked.extend(folders)
            return [0] * len(folders)

        folder = store.settle(store.new_folder(), digest_of(b"chain"), FLAVOUR, size=1 << 30)
        lines = by_kind(Images(store, remove_trees, measure).usage())
        assert (1 << 30) <= lines[UsageKind.LAYERS].size < (1 << 30) + 50_000
        assert folder.path not in asked


class TestPrune:
    def test_without_a_limit_all_but_images_goes(self, store: Store, images: Images) -> None:
        before = disk_usage(store.root)
        pruned = images.prune(PruneRequest())
        assert sorted(text.partition(" ")[0] for text in pruned.removed) == [
            "cache",
            "step",
            "step",
            "unpacked",
        ]
        assert store.step("new") is None
        assert list((store.root / "layers").iterdir()) == []
        assert list((store.root / "cachemounts").iterdir()) == []
        assert list((store.root / "trash").iterdir()) == []
        assert len(images.images()) == 3
        assert all(image.size for image in images.images())
        # the indexes of its layers are an image's
        assert len(list(store.index_folder.iterdir())) == 3
        assert pruned.left == pytest.approx(disk_usage(store.root), rel=0.02)
        assert pruned.freed == pytest.approx(before - disk_usage(store.root), rel=0.1)

    @pytest.mark.parametrize(
        ("request_", "left"),
        [
            (PruneRequest(images=True), ["built", "base"]),
            (EVERYTHING, []),
            (PruneRequest(all_images=True), []),
        ],
    )
    def test_images_go_when_asked_for(
        self, store: Store, images: Images, request_: PruneRequest, left: list[str]
    ) -> None:
        images.prune(request_)
        names = [
            name.repository.removeprefix("library/") for x in images.images() for name in x.names
        ]
        assert sorted(names) == sorted(left)
        blobs = [path for path in store.blobs.folder.rglob("*") if path.is_file()]
        assert bool(blobs) == bool(left)
        assert bool(list(store.index_folder.iterdir())) == bool(left)

    def test_the_least_recently_used_goes_first(self, store: Store, images: Images) -> None:
        images.remove("built")
        images.prune(PruneRequest(max_size=1 << 40))  # its documents
        limit = sum(line.size for line in images.usage()) - 1
        pruned = images.prune(PruneRequest(max_size=limit))
        # the older step's layer is below the newer's: it frees nothing alone
        assert pruned.removed == ("step old", "step new")
        assert pruned.left <= limit
        assert [image.names for image in images.images() if image.names]

    def test_nothing_goes_while_there_is_room(self, store: Store, images: Images) -> None:
        pruned = images.prune(PruneRequest(max_size=1 << 40, images=True, all_images=True))
        assert pruned.removed == ()
        assert store.step("new")
        assert len(images.images()) == 3

    def test_images_go_last_and_named_ones_after_the_others(
        self, store: Store, images: Images
    ) -> None:
        pruned = images.prune(PruneRequest(max_size=0, images=True, all_images=True))
        kinds = [text.partition(" ")[0] for text in pruned.removed]
        assert kinds[-3:] == ["image"] * 3
        assert "sha256:" in pruned.removed[-3]
        assert "image" not in kinds[:-3]

    def test_what_was_used_lately_is_spared(self, store: Store, images: Images) -> None:
        pruned = images.prune(PruneRequest(unused_for=1500, images=True, all_images=True))
        assert pruned.removed == ("step old", "step new")
        images.prune(PruneRequest(unused_for=500))
        assert list((store.root / "layers").iterdir()) == []

    def test_using_something_makes_it_the_latest(self, store: Store, images: Images) -> None:
        with Store.open(store.root) as other:
            assert other.step("old")
            assert images_of(other).find_base(parse_reference("base"), host_platform())
            other.cache_folder("cache")
        pruned = images.prune(PruneRequest(unused_for=500, images=True, all_images=True))
        assert not {"step old", "image docker.io/library/base:latest"} & set(pruned.removed)
        assert "step new" in pruned.removed
        assert list((store.root / "cachemounts").iterdir())

    def test_the_images_of_an_index_are_spared_and_go_together(
        self, store: Store, images: Images
    ) -> None:
        images.prune(EVERYTHING)
        made = [
            put_documents(store, [put_layer(store, arch.encode())], Platform("linux", arch))
            for arch in ("amd64", "arm64")
        ]
        index = put_index(store, [(manifest, Platform("linux", "amd64")) for manifest, _ in made])
        whole = [Image(manifest, config) for manifest, config in made]
        images.record_index([parse_reference("app")], index, whole)
        with store.database.writing() as connection:
            connection.execute("DELETE FROM pins")
            row = (made[0][0].digest,)
            connection.execute("UPDATE images SET used=1 WHERE digest=?", row)
        spared = images.prune(PruneRequest(unused_for=1500, images=True, all_images=True))
        assert spared.removed == ()
        assert len(images.images()) == 2
        limit = sum(line.size for line in images.usage()) - 1
        images.prune(PruneRequest(max_size=limit, images=True, all_images=True))
        assert images.images() == []

    def test_a_dry_run_tells_and_removes_nothing(self, store: Store, images: Images) -> None:
        told = images.prune(PruneRequest(images=True, dry_run=True))
        assert len(list((store.root / "layers").iterdir())) == 1
        assert len(images.images()) == 3
        store.close()
        with Store.open(store.root) as later:
            done = images_of(later).prune(PruneRequest(images=True))
        assert done.removed == told.removed
        assert done.freed == pytest.approx(told.freed, rel=0.1)
        assert done.left == pytest.approx(told.left, rel=0.1)

    def test_what_a_running_build_uses_stays(self, store: Store, images: Images) -> None:
        with Store.open(store.root) as other:
            step = other.step("new")
            assert step is not None
            below = other.step("old")
            assert below is not None
            folder = other.folder(below.chain, FLAVOUR)
            assert folder is not None
            cache = other.cache_folder("cache")
            made = other.new_folder()
            unfinished = other.new_file()
            unfinished.touch()
            blob = put_blob(other, b"just written")
            base = images_of(other).find_base(parse_reference("base"), host_platform())
            assert base is not None
            images.prune(EVERYTHING)
            for layer in (*step.layers, *base.layers):
                assert other.blob_path(layer.blob.digest).exists()
            paths = (folder.fs / "file", cache.fs / "file", made.fs, unfinished)
            assert all(path.exists() for path in paths)
            assert other.blob_path(blob).exists()
            assert other.step("new") == step
            assert len(images_of(other).images()) == 1
        images.prune(EVERYTHING)
        assert not folder.path.exists()

    def test_an_index_that_a_build_just_wrote_stays(self, store: Store, images: Images) -> None:
        with Store.open(store.root) as other:
            fresh = other.index_folder / digest_of(b"new").replace(":", "-")
            time.sleep(0.02)  # the file system's clock ticks in between
            fresh.write_bytes(b"x")
            images.prune(EVERYTHING)
            assert fresh.exists()

    def test_what_nobody_refers_to_is_always_removed(self, root: Path) -> None:
        with Store.open(root) as store:
            blob = put_blob(store, b"garbage")
            index = store.index_folder / digest_of(b"x").replace(":", "-")
            index.write_bytes(b"x")
            for folder in ("layers", "cachemounts", "trash"):
                (root / folder / "orphan" / "fs").mkdir(parents=True)
        time.sleep(0.02)
        with Store.open(root) as store:
            pruned = images_of(store).prune(PruneRequest(max_size=1 << 40))
            assert not store.has_blob(blob)
            assert not index.exists()
            assert not list(root.glob("*/orphan"))
            assert pruned.removed == ()
            assert pruned.freed > 0

    def test_a_chain_of_a_thousand_layers_is_no_trouble(self, root: Path) -> None:
        with Store.open(root) as store:
            layer = put_layer(store, b"content")
            layers = [LayerDiff(digest_of(b"%d" % number), layer.blob) for number in range(1000)]
            store.record_step("key", store.record_layers(layers), own=True)
        with Store.open(root) as store:
            assert images_of(store).prune(PruneRequest()).removed == ("step key",)
            assert store.layers(layers[0].diff_id) is None

    def test_folders_are_removed_by_who_may(self, store: Store) -> None:
        removed: list[Path] = []

        def remove(folders: Sequence[Path]) -> None:
            removed.extend(folders)
            remove_trees(folders)

        Images(store, remove).prune(EVERYTHING)
        assert len(removed) == 2
        assert all(path.parent == store.root / "trash" for path in removed)


class TestCeiling:
    def test_the_usual_one_is_a_tenth_of_the_disk_and_two_gigabytes_at_least(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for total, ceiling in ((10**12, 10**11), (10**10, 2 * 10**9)):
            values = list(os.statvfs(tmp_path))
            values[1:3] = 1000, total // 1000  # the size of a block, and how many there are
            disk = os.statvfs_result(values)
            monkeypatch.setattr(os, "statvfs", lambda _, disk=disk: disk)
            assert usual_ceiling(tmp_path) == ceiling
            assert usual_ceiling(tmp_path, "25%") == total // 4

    @pytest.mark.parametrize("value", [0, 1 << 40, "0%", "100%"])
    def test_it_is_a_number_of_bytes_or_a_share(self, value: int | str) -> None:
        assert parse_options({"max_size": value}).max_size == value

    @pytest.mark.parametrize("value", [-1, "20g", "101%", "", True, 1.5])
    def test_what_is_neither_is_refused(self, value: object) -> None:
        with pytest.raises(UsageError, match="max_size"):
            parse_options({"max_size": value})

    def test_images_by_digest_alone_count_as_unnamed(self, store: Store, images: Images) -> None:
        manifest = put_image(store, f"base@{digest_of(b'other')}", comment="by digest")
        store.close()
        with Store.open(store.root) as later:
            pruned = images_of(later).prune(PruneRequest(images=True))
            assert f"image docker.io/library/base@{digest_of(b'other')}" in pruned.removed
            assert later.blobs.size(manifest.digest) is None
            assert len(images_of(later).images()) == 2
