"""The images of the embedded backend's store: found for a FROM, listed, tagged, removed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pybuild.backend import Image
from pybuild.errors import ImageNotFound, InvalidImage, PlatformMismatch
from pybuild.imagestore import ListedImage, PruneRequest
from pybuild.oci.descriptor import Descriptor, digest_of
from pybuild.oci.manifest import parse_manifest
from pybuild.oci.platform import Platform, host_platform
from pybuild.oci.reference import parse_reference
from pybuild_embedded.images import Images
from pybuild_embedded.store import Store
from storing import images_of, put_documents, put_image, put_index, put_layer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inherent: runs on Linux only")

HERE = host_platform()
OTHER = Platform("linux", "s390x" if HERE.architecture != "s390x" else "amd64")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        yield store


@pytest.fixture
def images(store: Store) -> Images:
    return images_of(store)


def put_two_platforms(store: Store, *names: str) -> tuple[Descriptor, Descriptor, Descriptor]:
    """An index with an image for this machine and one for another; both are here."""
    layer = put_layer(store, b"content")
    made = [put_documents(store, [layer], platform) for platform in (HERE, OTHER)]
    index = put_index(store, [(made[0][0], HERE), (made[1][0], OTHER)])
    for manifest, config in made:
        images_of(store).record(list(map(parse_reference, names)), index, manifest, config)
    return index, made[0][0], made[1][0]


def names_of(image: ListedImage) -> list[str]:
    return [str(name) for name in image.names]


class TestRecordIndex:
    def test_all_platforms_are_recorded_or_none(self, store: Store, images: Images) -> None:
        layer = put_layer(store, b"content")
        made = [put_documents(store, [layer], platform) for platform in (HERE, OTHER)]
        index = put_index(store, [(made[0][0], HERE), (made[1][0], OTHER)])
        whole = [Image(manifest, config) for manifest, config in made]
        wrong = [whole[0], Image(made[1][0], made[0][1])]
        with pytest.raises(InvalidImage):
            images.record_index([parse_reference("app")], index, wrong)
        assert images.images() == []
        images.record_index([parse_reference("app")], index, whole)
        listed = images.images()
        assert {image.digest for image in listed} == {manifest.digest for manifest, _ in made}
        assert [names_of(image) for image in listed] == [["docker.io/library/app:latest"]] * 2


class TestFindBase:
    def test_an_image_is_found_by_its_name(self, store: Store, images: Images) -> None:
        layer = put_layer(store, b"content")
        manifest = put_image(store, "app:1", layers=[layer])
        reference = parse_reference("docker.io/library/app:1")
        base = images.find_base(reference, HERE)
        assert base is not None
        assert (base.reference, base.digest, base.layers) == (reference, manifest.digest, (layer,))
        assert base.config.platform == HERE
        assert images.find_base(parse_reference("app"), HERE) is None

    def test_no_tag_means_latest(self, store: Store, images: Images) -> None:
        put_image(store, "app")
        assert images.find_base(parse_reference("app:latest"), HERE) is not None
        assert images.find_base(parse_reference("app"), HERE) is not None

    def test_the_index_chooses_the_platform(self, store: Store, images: Images) -> None:
        index, here, other = put_two_platforms(store, "app")
        for platform, manifest in ((HERE, here), (OTHER, other)):
            base = images.find_base(parse_reference("app"), platform)
            assert base is not None
            assert base.digest == manifest.digest
        for digest in (index.digest, here.digest):
            base = images.find_base(parse_reference(f"app@{digest}"), HERE)
            assert base is not None
            assert base.digest == here.digest

    def test_a_digest_finds_the_image_under_any_name(self, store: Store, images: Images) -> None:
        digest = put_image(store, "app").digest
        assert images.find_base(parse_reference(f"other@{digest}"), HERE) is not None
        assert images.find_base(parse_reference(f"app@{digest_of(b'x')}"), HERE) is None

    def test_another_platform_is_a_mismatch(self, store: Store, images: Images) -> None:
        put_image(store, "single", platform=OTHER)
        put_two_platforms(store, "several")
        for name, hint in (("single", "it is made for"), ("several", "it has")):
            with pytest.raises(PlatformMismatch, match=f"{name} is not made for") as caught:
                images.find_base(parse_reference(name), Platform("linux", "mips"))
            assert str(caught.value.hint).startswith(hint)

    def test_a_platform_of_the_index_that_was_not_fetched_is_not_here(
        self, store: Store, images: Images
    ) -> None:
        manifest, config = put_documents(store, [], HERE)
        absent = Descriptor(manifest.media_type, digest_of(b"absent"), 6)
        index = put_index(store, [(manifest, HERE), (absent, OTHER)])
        images.record([parse_reference("app")], index, manifest, config)
        assert images.find_base(parse_reference("app"), HERE) is not None
        assert images.find_base(parse_reference("app"), OTHER) is None

    def test_layers_need_not_be_here(self, store: Store, images: Images) -> None:
        layer = put_layer(store, b"content")
        put_image(store, "app", layers=[layer])
        store.blob_path(layer.blob.digest).unlink()
        base = images.find_base(parse_reference("app"), HERE)
        assert base is not None
        assert base.layers == (layer,)
        assert images.find("app").size is None

    @pytest.mark.parametrize("document", ["manifest", "config"])
    def test_without_its_documents_an_image_is_not_here(
        self, store: Store, images: Images, document: str
    ) -> None:
        manifest, config = put_documents(store, [], HERE)
        images.record([parse_reference("app")], manifest, manifest, config)
        store.blob_path(config if document == "config" else manifest.digest).unlink()
        assert images.find_base(parse_reference("app"), HERE) is None
        assert images.images() == []

    def test_what_it_found_stays_while_the_session_lasts(
        self, store: Store, images: Images
    ) -> None:
        put_image(store, "app", layers=[put_layer(store, b"content")])
        with Store.open(store.root) as other:
            base = images_of(other).find_base(parse_reference("app"), HERE)
            assert base is not None
            store.close()
            with Store.open(store.root) as third:
                images_of(third).remove("app")
                images_of(third).prune(PruneRequest(images=True, all_images=True))
            for digest in (base.digest, base.layers[0].blob.digest):
                assert other.blob_path(digest).exists()

    def test_a_damaged_manifest_is_refused(self, store: Store, images: Images) -> None:
        manifest = put_image(store, "app")
        store.blob_path(manifest.digest).write_bytes(b"{}")
        with pytest.raises(InvalidImage, match="damaged"):
            images.find_base(parse_reference("app"), HERE)


class TestRecord:
    def test_a_new_image_takes_the_name_of_another(self, store: Store, images: Images) -> None:
        old = put_image(store, "app", "kept", comment="old")
        new = put_image(store, "app", comment="new")
        assert images.find("app").digest == new.digest
        assert names_of(images.find(old.digest)) == ["docker.io/library/kept:latest"]

    def test_without_a_name_it_is_known_by_its_digest(self, store: Store, images: Images) -> None:
        manifest = put_image(store)
        assert images.find(manifest.digest).names == ()

    def test_recorded_again_it_keeps_its_age(self, store: Store, images: Images) -> None:
        put_image(store, "app")
        made = images.find("app").made
        put_image(store, "again")
        assert images.find("again").made == made
        assert len(images.images()) == 1

    def test_documents_must_be_here(self, store: Store, images: Images) -> None:
        manifest, config = put_documents(store, [], HERE)
        absent = replace(manifest, digest=digest_of(b"absent"))
        names = [parse_reference("app")]
        with pytest.raises(ImageNotFound):
            images.record(names, absent, manifest, config)
        with pytest.raises(ImageNotFound):
            images.record(names, manifest, absent, config)
        with pytest.raises(InvalidImage, match="is not the config"):
            images.record(names, manifest, manifest, digest_of(b"other"))
        store.blob_path(config).unlink()
        with pytest.raises(ImageNotFound):
            images.record(names, manifest, manifest, config)
        assert images.images() == []

    def test_a_config_with_other_layers_is_refused(self, store: Store, images: Images) -> None:
        layer = put_layer(store, b"content")
        _, config = put_documents(store, [], HERE)
        manifest, _ = put_documents(store, [layer], HERE)
        # a manifest of one layer with the config of none
        document = store.blob_path(manifest.digest).read_bytes()
        right = images_config(document)
        wrong = document.replace(right.encode(), config.encode())
        wrong = wrong.replace(
            b'"size":%d' % store.blob_path(right).stat().st_size,
            b'"size":%d' % store.blob_path(config).stat().st_size,
        )
        with store.blob_writer() as writer:
            writer.write(wrong)
            writer.commit(digest_of(wrong), len(wrong))
        bad = Descriptor(manifest.media_type, digest_of(wrong), len(wrong))
        with pytest.raises(InvalidImage, match="its config names 0"):
            images.record([], bad, bad, config)

    def test_nested_indexes_stay_with_the_image(self, store: Store, images: Images) -> None:
        manifest, config = put_documents(store, [], HERE)
        inner = put_index(store, [(manifest, HERE)])
        outer = put_index(store, [(inner, HERE)])
        images.record([parse_reference("app")], outer, manifest, config)
        store.close()
        with Store.open(store.root) as later:
            images_of(later).prune(PruneRequest())
            base = images_of(later).find_base(parse_reference("app"), HERE)
            assert base is not None
            assert base.digest == manifest.digest


class TestListing:
    def test_the_newest_comes_first_with_all_that_is_known(
        self, store: Store, images: Images
    ) -> None:
        layer = put_layer(store, b"content")
        old = put_image(store, "old", comment="old")
        new = put_image(store, "new:2", "new:1", layers=[layer], comment="new")
        with store.database.writing() as connection:
            query = "UPDATE images SET made=made-60 WHERE digest=?"
            connection.execute(query, (old.digest,))
        first, second = images.images()
        assert (first.digest, second.digest) == (new.digest, old.digest)
        assert names_of(first) == ["docker.io/library/new:1", "docker.io/library/new:2"]
        assert first.layers == (layer,)
        blobs = (first.digest, first.config_digest, layer.blob.digest)
        assert first.size == sum(store.blob_path(digest).stat().st_size for digest in blobs)
        assert first.config.labels == {"comment": "new"}

    @pytest.mark.parametrize("length", [71, 64, 12, 8])
    def test_a_beginning_of_any_digest_is_enough(
        self, store: Store, images: Images, length: int
    ) -> None:
        layer = put_layer(store, b"content")
        manifest, config = put_documents(store, [layer], HERE)
        index = put_index(store, [(manifest, HERE)])
        images.record([parse_reference("app")], index, manifest, config)
        put_image(store, "other", comment="other")
        for digest in (manifest.digest, config, index.digest):
            text = digest if length == 71 else digest.removeprefix("sha256:")[:length]
            assert images.find(text).digest == manifest.digest

    def test_a_name_comes_before_a_digest(self, store: Store, images: Images) -> None:
        one = put_image(store, comment="one")
        name = one.digest.removeprefix("sha256:")[:8]
        other = put_image(store, name, comment="other")
        assert images.find(name).digest == other.digest

    def test_what_fits_several_images_is_refused_with_their_digests(
        self, store: Store, images: Images
    ) -> None:
        made = [put_image(store, f"app{i}", comment=str(i)) for i in range(17)]
        digits = [manifest.digest.removeprefix("sha256:")[0] for manifest in made]
        twice = next(digit for digit in digits if digits.count(digit) > 1)
        with pytest.raises(ImageNotFound, match="several") as caught:
            images.find(twice)
        for manifest, digit in zip(made, digits, strict=True):
            assert digit != twice or manifest.digest in str(caught.value.hint)

    @pytest.mark.parametrize(
        "text", ["nothing", "app:2", "sha256:", "", "A B", "%", "app@sha256:00", "0" * 64, "*"]
    )
    def test_what_fits_none_is_not_found(self, store: Store, images: Images, text: str) -> None:
        put_image(store, "app:1")
        for method in (images.find, images.remove):
            with pytest.raises(ImageNotFound, match="no image"):
                method(text)
        with pytest.raises(ImageNotFound):
            images.tag(text, parse_reference("new"))

    def test_a_name_of_several_platforms_means_this_machines(
        self, store: Store, images: Images
    ) -> None:
        index, here, other = put_two_platforms(store, "app")
        assert images.find("app").digest == here.digest
        assert images.find(index.digest).digest == here.digest
        assert images.find(other.digest).digest == other.digest
        assert [names_of(image) for image in images.images()] == [
            ["docker.io/library/app:latest"]
        ] * 2


class TestTagAndRemove:
    def test_a_tag_is_one_more_name(self, store: Store, images: Images) -> None:
        manifest = put_image(store, "app")
        images.tag("app", parse_reference("localhost:5000/app"))
        images.tag(manifest.digest[:20], parse_reference("third:3"))
        assert names_of(images.find("third:3")) == [
            "docker.io/library/app:latest",
            "docker.io/library/third:3",
            "localhost:5000/app:latest",
        ]

    def test_a_tag_of_several_platforms_has_them_all(self, store: Store, images: Images) -> None:
        _, here, other = put_two_platforms(store, "app")
        images.tag("app", parse_reference("again"))
        for platform, manifest in ((HERE, here), (OTHER, other)):
            base = images.find_base(parse_reference("again"), platform)
            assert base is not None
            assert base.digest == manifest.digest
        images.tag(other.digest, parse_reference("one"))
        assert images.find("one").digest == other.digest

    def test_a_tag_takes_the_name_from_another(self, store: Store, images: Images) -> None:
        old = put_image(store, "app", comment="old")
        put_image(store, "new", comment="new")
        images.tag("new", parse_reference("app"))
        assert images.find(old.digest).names == ()

    def test_the_image_goes_with_its_last_name(self, store: Store, images: Images) -> None:
        manifest = put_image(store, "app:1", "app:2")
        assert images.remove("app:1").digest == manifest.digest
        assert names_of(images.find(manifest.digest)) == ["docker.io/library/app:2"]
        images.remove("app:2")
        assert images.images() == []

    def test_a_digest_removes_all_names(self, store: Store, images: Images) -> None:
        manifest = put_image(store, "app:1", "app:2")
        kept = put_image(store, "kept", comment="kept")
        images.remove(manifest.digest)
        assert [image.digest for image in images.images()] == [kept.digest]

    def test_removing_a_name_leaves_unnamed_images_alone(
        self, store: Store, images: Images
    ) -> None:
        unnamed = put_image(store, comment="unnamed")
        put_image(store, "app")
        images.remove("app")
        assert [image.digest for image in images.images()] == [unnamed.digest]

    def test_all_platforms_go_with_the_name(self, store: Store, images: Images) -> None:
        put_two_platforms(store, "app", "again")
        images.remove("app")
        assert len(images.images()) == 2
        images.remove("again")
        assert images.images() == []

    def test_an_unnamed_index_keeps_its_images_when_the_name_of_another_goes(
        self, store: Store, images: Images
    ) -> None:
        index, here, other = put_two_platforms(store)
        manifest, config = put_documents(store, [put_layer(store, b"content")], HERE)
        assert manifest == here
        images.record([parse_reference("app")], manifest, manifest, config)
        images.remove("app")
        assert {image.digest for image in images.images()} == {here.digest, other.digest}
        for platform in (HERE, OTHER):
            found = images.find_base(parse_reference(f"app@{index.digest}"), platform)
            assert found is not None

    def test_the_digest_of_an_index_removes_that_alone(self, store: Store, images: Images) -> None:
        index, here, _ = put_two_platforms(store, "app")
        _, config = put_documents(store, [put_layer(store, b"content")], HERE)
        images.record([parse_reference("single")], here, here, config)
        images.remove(index.digest)
        [left] = images.images()
        assert (left.digest, names_of(left)) == (here.digest, ["docker.io/library/single:latest"])

    def test_layers_shared_with_another_image_stay(self, store: Store, images: Images) -> None:
        layer = put_layer(store, b"shared")
        put_image(store, "app", layers=[layer], comment="app")
        put_image(store, "other", layers=[layer], comment="other")
        images.remove("app")
        store.close()
        with Store.open(store.root) as later:
            images_of(later).prune(PruneRequest(images=True))
            assert later.has_blob(layer.blob.digest)


def images_config(document: bytes) -> str:
    return parse_manifest(document).config.digest
