"""The backend suite's part on images: resolve, checkout, create_image, open_blob, close."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from pybuild.backend import (
    Backend,
    BaseImage,
    Capability,
    Image,
    ImageSpec,
    IndexSpec,
    PullPolicy,
)
from pybuild.errors import (
    BuildCancelled,
    ImageError,
    ImageNotFound,
    InvalidImage,
    UnsupportedByBackend,
)
from pybuild.files.layout import open_layout
from pybuild.files.trees import NewEntry, walk
from pybuild.oci.compression import Compression, Packing
from pybuild.oci.descriptor import (
    DOCKER_INDEX,
    DOCKER_LAYER_TAR,
    DOCKER_MANIFEST,
    OCI_INDEX,
    is_digest,
)
from pybuild.oci.image_config import Healthcheck, HistoryEntry, ImageConfig
from pybuild.oci.layerindex import Kind
from pybuild.oci.layerwriter import write_layer
from pybuild.oci.manifest import parse_manifest
from pybuild.oci.platform import Platform
from pybuild.oci.reference import parse_reference
from pybuild.testkit.layouts import LayoutWriter
from pybuild.testkit.suite_base import SuiteBase, needs
from pybuild.testkit.validate import validate, validate_index
from pybuild.testkit.workbench import Workbench, content, file, folder

_ALIEN = Platform("plan9", "mips")
_FOREIGN = Platform("linux", "s390x")


def _resolve(bench: Workbench, name: str, platform: Platform | None = None) -> BaseImage:
    """Find an image among those that are here."""
    return bench.backend.resolve(
        parse_reference(name),
        platform or bench.backend.platforms[0],
        PullPolicy.NEVER,
        bench.activity,
    )


def _for_index(
    bench: Workbench, text: bytes, platform: Platform, *, docker: bool = False
) -> tuple[Image, Platform]:
    """An image with one file `a`, to go into an index."""
    top = bench.put(bench.scratch(), file(b"a", text))
    diff_ids = tuple(diff.diff_id for diff in top.diffs)
    config = ImageConfig(platform, history=(HistoryEntry("COPY a /a"),), diff_ids=diff_ids)
    spec = ImageSpec(config, top.diffs, docker_media_types=docker, for_index=True)
    return bench.backend.create_image(spec, top, bench.activity), platform


def _layout(folder: Path, platform: Platform, *entries: NewEntry) -> Path:
    """A layout with an image of one layer, called localhost/laid/out:1."""
    parts: list[bytes] = []
    layer = write_layer(entries, parts.append).diff
    writer = LayoutWriter(folder)
    writer.add_blob(b"".join(parts), layer.blob.media_type)
    config = ImageConfig(platform, history=(HistoryEntry("layer"),), diff_ids=(layer.diff_id,))
    writer.add_image(["localhost/laid/out:1"], config, [layer])
    return writer.finish()


class ImageSuite(SuiteBase):
    """Images go in and come out as they were."""

    def test_a_backend_declares_what_it_is(self, backend: Backend) -> None:
        assert isinstance(backend.name, str)
        assert backend.name
        assert backend.platforms
        assert all(isinstance(platform, Platform) for platform in backend.platforms)
        assert backend.capabilities <= frozenset(Capability)

    def test_resolve_finds_the_base_image(self, bench: Workbench) -> None:
        image = bench.image()
        assert is_digest(image.digest)
        assert image.layers
        assert image.config.diff_ids == tuple(layer.diff_id for layer in image.layers)
        assert image.config.platform.os == bench.backend.platforms[0].os

    def test_resolve_finds_a_resolved_image_again_without_a_registry(
        self, bench: Workbench
    ) -> None:
        image = bench.image()
        with bench.backend.checkout(image, bench.activity) as layer:
            layer.tree().get(b"etc/passwd")
        again = _resolve(bench, self.base_reference)
        assert (again.digest, again.config, again.layers) == (
            image.digest,
            image.config,
            image.layers,
        )

    def test_resolve_refuses_an_unknown_image(self, bench: Workbench) -> None:
        with pytest.raises(ImageNotFound):
            _resolve(bench, "localhost/pybuild/nowhere:none")

    def test_resolve_refuses_an_unknown_digest(self, bench: Workbench) -> None:
        with pytest.raises(ImageNotFound):
            _resolve(bench, f"localhost/pybuild/nowhere@sha256:{'0' * 64}")

    def test_resolve_refuses_another_platform(self, bench: Workbench) -> None:
        bench.image()
        with pytest.raises(ImageError):
            _resolve(bench, self.base_reference, _ALIEN)

    def test_a_cancelled_activity_stops_resolve(self, bench: Workbench) -> None:
        bench.activity.cancel()
        with pytest.raises(BuildCancelled):
            bench.image()

    def test_an_image_in_a_layout_is_a_base_under_no_name(
        self, bench: Workbench, tmp_path: Path
    ) -> None:
        folder = _layout(tmp_path / "layout", bench.backend.platforms[0], file(b"a", b"laid out"))
        with open_layout(folder) as layout:
            found = layout.find(bench.backend.platforms[0], tag="1")
            base = bench.backend.import_image(found, bench.activity)
        assert (base.digest, base.layers) == (found.descriptor.digest, found.layers)
        below = bench.hold(bench.backend.checkout(base, bench.activity))
        assert content(below, b"a") == b"laid out"
        above = bench.put(below, file(b"b", b"above"))
        image = bench.create(above, "localhost/from-layout:1", base=base)
        validate(bench.backend, image, base_layers=1)
        with pytest.raises(ImageNotFound):
            _resolve(bench, "localhost/laid/out:1")

    def test_a_layout_whose_blob_is_another_is_refused(
        self, bench: Workbench, tmp_path: Path
    ) -> None:
        folder = _layout(tmp_path / "layout", bench.backend.platforms[0], file(b"a", b"changed"))
        with open_layout(folder) as layout:
            found = layout.find(bench.backend.platforms[0], tag="1")
            blob = folder / "blobs" / found.layers[0].blob.digest.replace(":", "/")
            blob.write_bytes(bytes(found.layers[0].blob.size))
        with open_layout(folder) as layout, pytest.raises(InvalidImage):
            bench.backend.import_image(replace(found, layout=layout), bench.activity)
        with pytest.raises(ImageNotFound):
            bench.backend.open_blob(found.layers[0].blob.digest).read()

    def test_scratch_is_empty(self, bench: Workbench) -> None:
        scratch = bench.scratch()
        assert scratch.diff is None
        assert scratch.diffs == ()
        assert [entry for entry in walk(scratch.tree(), b"") if entry.path] == []

    def test_a_checked_out_image_has_its_layers_and_no_diff(self, bench: Workbench) -> None:
        assert bench.base().diffs == bench.image().layers
        assert bench.base().diff is None

    def test_the_tree_of_a_base_image_can_be_read(self, bench: Workbench) -> None:
        tree = bench.base().tree()
        passwd = tree.get(b"etc/passwd")
        assert passwd is not None
        assert passwd.kind is Kind.FILE
        data = content(bench.base(), b"etc/passwd")
        assert len(data) == passwd.size
        assert data.startswith(b"root:")
        assert b"passwd" in tree.children(b"etc")
        assert tree.get(b"etc/nowhere") is None

    def test_an_image_of_one_layer_is_valid(self, bench: Workbench) -> None:
        image = bench.create(bench.put(bench.scratch(), file(b"a", b"x")), "localhost/one:1")
        config = validate(bench.backend, image)
        assert len(config["rootfs"]["diff_ids"]) == 1

    def test_an_image_on_a_base_is_valid(self, bench: Workbench) -> None:
        base = bench.image()
        top = bench.put(bench.base(), folder(b"new"), file(b"new/a", b"x"))
        image = bench.create(top, "localhost/based:1", base=base)
        config = validate(bench.backend, image, base_layers=len(base.layers))
        assert tuple(config["rootfs"]["diff_ids"][:-1]) == base.config.diff_ids

    def test_an_image_may_have_no_layer_at_all(self, bench: Workbench) -> None:
        image = bench.create(bench.scratch(), "localhost/empty:1", labels={"a": "b"})
        assert validate(bench.backend, image)["config"]["Labels"] == {"a": "b"}

    def test_an_image_is_found_by_each_of_its_names(self, bench: Workbench) -> None:
        top = bench.put(bench.scratch(), file(b"a", b"x"))
        names = ("localhost/named:1", "localhost/other/named:2")
        image = bench.create(top, *names)
        assert tuple(map(str, image.names)) == names
        assert {_resolve(bench, name).digest for name in names} == {image.manifest.digest}

    def test_a_made_image_can_be_built_upon(self, bench: Workbench) -> None:
        top = bench.put(bench.scratch(), folder(b"d"), file(b"d/a", b"below"))
        bench.create(top, "localhost/below:1")
        found = _resolve(bench, "localhost/below:1")
        layer = bench.hold(bench.backend.checkout(found, bench.activity))
        above = bench.put(layer, file(b"d/b", b"above"))
        assert (content(above, b"d/a"), content(above, b"d/b")) == (b"below", b"above")
        image = bench.create(above, "localhost/above:1", base=found)
        validate(bench.backend, image)

    def test_a_name_moves_to_the_newer_image(self, bench: Workbench) -> None:
        for text in (b"old", b"new"):
            top = bench.put(bench.scratch(), file(b"a", text))
            image = bench.create(top, "localhost/moving:1")
            assert _resolve(bench, "localhost/moving:1").digest == image.manifest.digest

    def test_an_image_without_a_name_is_known_by_its_digest(self, bench: Workbench) -> None:
        image = bench.create(bench.put(bench.scratch(), file(b"a", b"nameless")))
        assert image.names == ()
        validate(bench.backend, image)

    def test_the_same_input_gives_the_same_image(self, bench: Workbench) -> None:
        made = {
            bench.create(
                bench.put(bench.scratch(), file(b"a", b"same")), f"localhost/same:{n}"
            ).manifest.digest
            for n in range(2)
        }
        assert len(made) == 1

    def test_annotations_are_in_the_manifest(self, bench: Workbench) -> None:
        top = bench.put(bench.scratch(), file(b"a", b"x"))
        image = bench.create(top, "localhost/noted:1", annotations={"b": "2", "a": "ü"})
        with closing(bench.backend.open_blob(image.manifest.digest)) as stream:
            assert json.loads(stream.read())["annotations"] == {"a": "ü", "b": "2"}
        validate(bench.backend, image)

    def test_an_image_may_have_recompressed_layers_and_docker_media_types(
        self, bench: Workbench
    ) -> None:
        top = bench.put(bench.scratch(), file(b"a", b"x"))
        wanted = Packing(Compression.NONE)
        layers = tuple(bench.backend.recompress(x, wanted, bench.activity) for x in top.diffs)
        config = ImageConfig(
            bench.backend.platforms[0],
            history=(HistoryEntry("COPY a /a"),),
            diff_ids=tuple(x.diff_id for x in layers),
        )
        names = (parse_reference("localhost/plain:1"),)
        spec = ImageSpec(config, layers, names, docker_media_types=True)
        image = bench.backend.create_image(spec, top, bench.activity)
        assert image.manifest.media_type == DOCKER_MANIFEST
        with closing(bench.backend.open_blob(image.manifest.digest)) as stream:
            manifest = parse_manifest(stream.read(), DOCKER_MANIFEST)
        assert manifest.layers[0].media_type == DOCKER_LAYER_TAR
        assert manifest.layers[0].digest == layers[0].diff_id
        found = _resolve(bench, "localhost/plain:1")
        assert [x.blob.digest for x in found.layers] == [layers[0].diff_id]

    def test_an_index_has_an_image_for_each_platform(self, bench: Workbench) -> None:
        here = bench.backend.platforms[0]
        images = (_for_index(bench, b"here", here), _for_index(bench, b"there", _FOREIGN))
        names = (parse_reference("localhost/index:1"), parse_reference("localhost/index:2"))
        spec = IndexSpec(images, names, {"b": "2", "a": "ü"})
        index = bench.backend.create_index(spec, bench.activity)
        assert index == spec.document().index
        assert index.media_type == OCI_INDEX
        validate_index(bench.backend, index)
        with closing(bench.backend.open_blob(index.digest)) as stream:
            assert json.loads(stream.read())["annotations"] == {"a": "ü", "b": "2"}
        for name in ("localhost/index:1", "localhost/index:2"):
            for (image, platform), text in zip(images, (b"here", b"there"), strict=True):
                found = _resolve(bench, name, platform)
                assert found.digest == image.manifest.digest
                assert found.config.platform == platform
                layer = bench.hold(bench.backend.checkout(found, bench.activity))
                assert content(layer, b"a") == text
            with pytest.raises(ImageError):
                _resolve(bench, name, _ALIEN)

    def test_a_docker_manifest_list_has_docker_manifests(self, bench: Workbench) -> None:
        platforms = (bench.backend.platforms[0], _FOREIGN)
        images = tuple(_for_index(bench, b"same", each, docker=True) for each in platforms)
        spec = IndexSpec(images, docker_media_types=True)
        index = bench.backend.create_index(spec, bench.activity)
        assert index.media_type == DOCKER_INDEX
        validate_index(bench.backend, index)

    def test_an_index_may_have_one_image_and_no_name(self, bench: Workbench) -> None:
        images = (_for_index(bench, b"only", bench.backend.platforms[0]),)
        index = bench.backend.create_index(IndexSpec(images), bench.activity)
        assert len(validate_index(bench.backend, index)) == 1

    def test_a_name_moves_from_an_image_to_an_index_and_back(self, bench: Workbench) -> None:
        name, here = "localhost/both:1", bench.backend.platforms[0]
        bench.create(bench.put(bench.scratch(), file(b"a", b"alone")), name)
        image, _ = _for_index(bench, b"in the index", here)
        spec = IndexSpec(((image, here),), (parse_reference(name),))
        bench.backend.create_index(spec, bench.activity)
        assert _resolve(bench, name).digest == image.manifest.digest
        again = bench.create(bench.put(bench.scratch(), file(b"a", b"alone again")), name)
        assert _resolve(bench, name).digest == again.manifest.digest

    def test_a_cancelled_activity_stops_an_index(self, bench: Workbench) -> None:
        images = (_for_index(bench, b"late", bench.backend.platforms[0]),)
        bench.activity.cancel()
        with pytest.raises(BuildCancelled):
            bench.backend.create_index(IndexSpec(images), bench.activity)

    def test_an_image_made_elsewhere_is_stored_and_built_upon(self, bench: Workbench) -> None:
        parts: list[bytes] = []
        layer = write_layer([folder(b"d"), file(b"d/a", b"from elsewhere")], parts.append).diff
        config = ImageConfig(
            bench.backend.platforms[0],
            history=(HistoryEntry("COPY a /d/a"),),
            diff_ids=(layer.diff_id,),
        )
        spec = ImageSpec(config, (layer,), (parse_reference("localhost/elsewhere:1"),))
        blob = b"".join(parts)
        for _ in range(2):
            try:
                image = bench.backend.load_image(spec, lambda _: BytesIO(blob), bench.activity)
            except UnsupportedByBackend:
                pytest.skip("inherent: the backend takes no images from elsewhere")
            assert image.manifest.digest == spec.documents().manifest.digest
            validate(bench.backend, image)
        found = _resolve(bench, "localhost/elsewhere:1")
        below = bench.hold(bench.backend.checkout(found, bench.activity))
        assert content(bench.put(below, file(b"d/b", b"")), b"d/a") == b"from elsewhere"

    def test_the_config_comes_back_as_it_was(self, bench: Workbench) -> None:
        top = bench.put(bench.scratch(), file(b"a", b"x"))
        config = ImageConfig(  # noqa: S604  (a value, no process)
            platform=bench.backend.platforms[0],
            env=(("PATH", "/bin"), ("EMPTY", ""), ("ODD", 'a=b "c" <&>')),
            entrypoint=("/a", "b c"),
            cmd=(),
            user="web:7",
            working_dir="/srv",
            exposed_ports=frozenset({"80/tcp", "53/udp"}),
            volumes=frozenset({"/data"}),
            labels={"one": "1"},
            stop_signal="SIGINT",
            shell=("/bin/sh", "-ec"),
            healthcheck=Healthcheck(("CMD", "true"), interval=5_000_000_000, retries=3),
            onbuild=("RUN true",),
            author="someone",
            created="2024-01-02T03:04:05Z",
            history=(
                HistoryEntry("COPY a /a", created="2024-01-02T03:04:05Z"),
                HistoryEntry("ENV X=1", empty_layer=True, comment="note"),
            ),
            diff_ids=tuple(diff.diff_id for diff in top.diffs),
        )
        names = (parse_reference("localhost/config:1"),)
        image = bench.backend.create_image(ImageSpec(config, top.diffs, names), top, bench.activity)
        validate(bench.backend, image)
        found = _resolve(bench, "localhost/config:1").config
        assert replace(found, cmd=found.cmd or ()) == config

    def test_an_image_outlives_its_layers(self, bench: Workbench) -> None:
        with bench.scratch() as scratch:
            top = bench.put(scratch, file(b"a", b"kept"))
        image = bench.create(top, "localhost/outlives:1")
        top.release()
        validate(bench.backend, image)
        found = _resolve(bench, "localhost/outlives:1")
        layer = bench.hold(bench.backend.checkout(found, bench.activity))
        assert content(layer, b"a") == b"kept"

    def test_an_unknown_blob_is_refused(self, backend: Backend) -> None:
        with pytest.raises(ImageNotFound):
            backend.open_blob(f"sha256:{'0' * 64}").read()

    def test_closing_twice_is_the_same_as_once(self, backend: Backend) -> None:
        backend.close()
        backend.close()

    def test_a_committed_key_is_found(self, backend: Backend, bench: Workbench) -> None:
        needs(backend, Capability.STEP_CACHE)
        made = bench.put(bench.scratch(), file(b"a", b"cached"), key="sha256:key-1")
        found = backend.lookup("sha256:key-1")
        assert found is not None
        bench.hold(found)
        assert (found.diff, found.diffs) == (made.diff, made.diffs)
        assert found.made is not None
        assert found.made == made.made
        made.release()
        assert content(bench.put(found, file(b"b", b"")), b"a") == b"cached"

    def test_a_key_never_committed_is_not_found(self, backend: Backend, bench: Workbench) -> None:
        with bench.scratch().begin(runs=False) as rw:
            rw.put([file(b"a", b"x")], bench.activity)
        assert backend.lookup("sha256:key-2") is None

    def test_without_a_step_cache_nothing_is_found(
        self, backend: Backend, bench: Workbench
    ) -> None:
        if Capability.STEP_CACHE in backend.capabilities:
            pytest.skip("inherent: the backend has a step cache")
        bench.put(bench.scratch(), file(b"a", b"x"), key="sha256:key-3")
        assert backend.lookup("sha256:key-3") is None
