from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from building import LINUX, NoActivity, build, busybox_config, busybox_files, memory_backend

import pybuild
from pybuild.backend import ImageSpec, PullPolicy
from pybuild.backends import open_backend
from pybuild.errors import ExportFailed, ImageNotFound, UsageError
from pybuild.export.images import TargetImage
from pybuild.export.outputs import BackendLoadOutput, DockerLoadOutput, Output
from pybuild.oci.descriptor import DOCKER_INDEX, OCI_INDEX, OCI_LAYER_ZSTD, Descriptor
from pybuild.oci.manifest import parse_index, parse_manifest
from pybuild.oci.platform import Platform
from pybuild.oci.reference import parse_reference
from pybuild.testkit.layouts import LayoutReader
from pybuild.testkit.memory import MemoryBackend
from pybuild.testkit.registry import Registry
from pybuild.testkit.validate import validate_index

ARM = Platform("linux", "arm64")
BOTH = "linux/amd64,linux/arm64"
DOCKERFILE = (
    "FROM busybox\nARG TARGETARCH\nRUN echo $TARGETARCH > /arch\nRUN mkdir /d; echo 1 > /d/f\n"
)
ONE = {"BUILDKIT_MULTI_PLATFORM": "1"}


@pytest.fixture
def backend() -> Iterator[MemoryBackend]:
    with memory_backend() as made:
        made.add_image("busybox", replace(busybox_config(), platform=ARM), busybox_files())
        yield made
        assert made.live_layers == 0


def export(
    backend: MemoryBackend, *outputs: str | Output, platform: str = BOTH, **options: object
) -> pybuild.BuildResult:
    return build(backend, DOCKERFILE, outputs=outputs, platform=platform, **options)


def entries_of(layout: LayoutReader) -> list[Descriptor]:
    found = layout.read_json("index.json")["manifests"]
    return [Descriptor(entry["mediaType"], entry["digest"], entry["size"]) for entry in found]


@pytest.mark.parametrize("tar", ["true", "false"])
def test_a_layout_leads_to_the_index(backend: MemoryBackend, tmp_path: Path, tar: str) -> None:
    dest = tmp_path / "layout"
    result = export(backend, f"type=oci,dest={dest},tar={tar}", tags=["app:1", "b:2"])
    layout = LayoutReader(dest)
    assert entries_of(layout) == [result.descriptor] * 2
    first = layout.read_json("index.json")["manifests"][0]
    assert first["annotations"]["io.containerd.image.name"] == "docker.io/library/app:1"
    assert "platform" not in first
    configs = validate_index(layout, result.descriptor, base_layers=1)
    assert [config["architecture"] for config in configs] == ["amd64", "arm64"]
    [output] = result.outputs
    assert (output.descriptor, output.images) == (result.descriptor, result.images)
    assert output.names == result.names == ("docker.io/library/app:1", "docker.io/library/b:2")


def test_a_layout_of_an_index_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    archives = []
    for number in range(2):
        with memory_backend() as backend:
            backend.add_image("busybox", replace(busybox_config(), platform=ARM), busybox_files())
            path = tmp_path / f"{number}.tar"
            export(backend, f"type=oci,dest={path}", created=1_700_000_000)
            archives.append(path.read_bytes())
    assert archives[0] == archives[1]


def test_options_of_an_output_are_of_all_its_images_and_the_index(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    plain, tuned = tmp_path / "plain", tmp_path / "tuned"
    result = export(
        backend,
        f"type=oci,dest={plain}",
        f"type=oci,dest={tuned},compression=zstd,oci-mediatypes=false,annotation.a=1,"
        "annotation-index.b=2,name=more:1",
        index_annotations={"c": "3"},
    )
    assert result.descriptor.media_type == OCI_INDEX
    layout = LayoutReader(tuned)
    [index] = entries_of(layout)
    assert index.media_type == DOCKER_INDEX
    assert result.names == ("docker.io/library/more:1",)
    validate_index(layout, index, base_layers=1)
    parsed = parse_index(layout.open_blob(index.digest).read())
    assert parsed.annotations == {"b": "2", "c": "3"}
    for descriptor, _ in parsed.manifests:
        manifest = parse_manifest(layout.open_blob(descriptor.digest).read())
        assert manifest.annotations == {"a": "1"}
        assert manifest.layers[-1].media_type == OCI_LAYER_ZSTD
    assert parse_index(LayoutReader(plain).open_blob(result.digest).read()).annotations == {
        "c": "3"
    }


def test_an_index_is_pushed_after_its_manifests(backend: MemoryBackend) -> None:
    with Registry() as registry:
        name = f"{registry.address}/team/app:1"
        result = export(backend, f"type=image,push=true,name={name}", tags=[f"{name}-b"])
        for tag in ("1", "1-b"):
            descriptor, content = registry.read_manifest(f"team/app:{tag}")
            assert descriptor == result.descriptor
        puts = [
            each.path.rpartition("/")[2]
            for each in registry.requests
            if each.method == "PUT" and "/manifests/" in each.path
        ]
        manifests = [image.digest for image in result.images.values()]
        assert sorted(puts[:2]) == sorted(manifests)
        assert sorted(puts[2:]) == ["1", "1-b"]
        index = parse_index(content)
        assert [descriptor.digest for descriptor, _ in index.manifests] == manifests
    validate_index(backend, result.descriptor, base_layers=1)


def test_an_index_is_pushed_by_digest_without_a_tag(backend: MemoryBackend) -> None:
    with Registry() as registry:
        result = export(backend, f"type=registry,name={registry.address}/app:1,push-by-digest=true")
        assert registry.find_manifest("app", result.digest)[0] == result.digest
        with pytest.raises(KeyError):
            registry.read_manifest("app:1")


def test_an_index_is_loaded_into_the_store_of_another_backend(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    load = BackendLoadOutput(backend="embedded", options={"root": str(tmp_path / "store")})
    result = export(backend, load, tags=["app:1"])
    assert result.is_index
    with open_backend("embedded", {"root": str(tmp_path / "store")}) as other:
        validate_index(other, result.descriptor, base_layers=1)
        for platform, image in result.images.items():
            name = parse_reference("app:1")
            found = other.resolve(name, platform, PullPolicy.NEVER, NoActivity())
            assert found.digest == image.digest
    with pytest.raises(ImageNotFound):
        backend.resolve(parse_reference("app:1"), LINUX, PullPolicy.NEVER, NoActivity())


@pytest.mark.parametrize("to_docker", [True, False])
@pytest.mark.parametrize(
    ("platform", "args"), [(BOTH, {}), ("linux/amd64", ONE)], ids=["two", "one"]
)
def test_docker_takes_no_index(
    *, backend: MemoryBackend, tmp_path: Path, platform: str, args: dict[str, str], to_docker: bool
) -> None:
    dest = tmp_path / "a.tar"
    output = DockerLoadOutput() if to_docker else f"type=docker,dest={dest}"
    with pytest.raises(UsageError, match="does not currently support exporting manifest lists"):
        export(backend, output, platform=platform, build_args=args)
    assert not dest.exists()


def test_an_output_cannot_annotate_an_index_that_is_not_made(backend: MemoryBackend) -> None:
    with pytest.raises(UsageError, match="has no index"):
        export(backend, "type=image,annotation-index.a=b", platform="linux/amd64")


def test_files_go_into_a_folder_for_each_platform(backend: MemoryBackend, tmp_path: Path) -> None:
    result = export(backend, f"type=local,dest={tmp_path / 'out'}")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "linux_amd64",
        "linux_arm64",
    ]
    for name, text in (("linux_amd64", "amd64\n"), ("linux_arm64", "arm64\n")):
        assert (tmp_path / "out" / name / "arch").read_text() == text
        assert (tmp_path / "out" / name / "d" / "f").read_text() == "1\n"
    assert result.is_index
    assert result.outputs[0].descriptor is None
    assert list(result.images) == [LINUX, ARM]


def test_a_tar_has_a_folder_for_each_platform(backend: MemoryBackend, tmp_path: Path) -> None:
    build(
        backend,
        "FROM busybox\nARG TARGETARCH\nRUN echo $TARGETARCH > /arch\n"
        "RUN ln /arch /hard; ln -s arch /soft\n",
        platform=BOTH,
        outputs=[f"type=tar,dest={tmp_path / 'out.tar'}"],
        created=1_700_000_000,
    )
    with tarfile.open(tmp_path / "out.tar") as archive:
        names = archive.getnames()
        assert names == sorted(names)
        assert {name.partition("/")[0] for name in names} == {"linux_amd64", "linux_arm64"}
        assert archive.getmember("linux_arm64").isdir()
        assert archive.getmember("linux_arm64").mtime == 1_700_000_000
        for arch in ("amd64", "arm64"):
            for name in ("arch", "hard", "soft"):
                member = archive.extractfile(f"linux_{arch}/{name}")
                assert member is not None
                assert member.read() == f"{arch}\n".encode()
        assert archive.getmember("linux_arm64/hard").linkname == "linux_arm64/arch"


def test_an_index_of_one_platform_has_its_folder_too(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    export(backend, str(tmp_path / "out"), platform="linux/arm64", build_args=ONE)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["linux_arm64"]
    export(backend, str(tmp_path / "flat"), platform="linux/arm64")
    assert (tmp_path / "flat" / "arch").read_text() == "arm64\n"


def test_a_link_in_place_of_a_platforms_folder_is_not_followed(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "linux_arm64").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExportFailed, match="linux_arm64"):
        export(backend, f"type=local,dest={tmp_path / 'out'}")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("platform", "name"),
    [
        (Platform("linux", "arm", "v7"), "linux_arm_v7"),
        (Platform("windows", "amd64", os_version="10.0.1"), "windows(10.0.1)_amd64"),
        (Platform("linux", "../x"), "linux_.._x"),
    ],
)
def test_the_folder_of_a_platform_has_all_of_its_name(
    backend: MemoryBackend, platform: Platform, name: str
) -> None:
    base = backend.resolve(parse_reference("busybox"), LINUX, PullPolicy.NEVER, NoActivity())
    with backend.checkout(base, NoActivity()) as top:
        assert TargetImage(platform, ImageSpec(base.config, base.layers), top).folder == name


def test_a_step_that_one_stage_wants_fresh_is_fresh_for_all(backend: MemoryBackend) -> None:
    text = "FROM busybox AS a\nRUN echo 1 > /f\nFROM busybox AS b\nRUN echo 1 > /f\nFROM scratch\nCOPY --from=a /f /a\nCOPY --from=b /f /b\n"
    build(backend, text)
    runs = [step for step in build(backend, text).steps if "RUN" in step.title]
    assert [step.cached for step in runs] == [True, True]
    for wanted in ("a", "b"):
        again = build(backend, text, no_cache_filter=[wanted])
        runs = [step for step in again.steps if "RUN" in step.title]
        # one of them did it, whichever came first, and the other took it over
        assert sorted(step.cached for step in runs) == [False, True]
