from __future__ import annotations

import io
import json
import os
import stat
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from building import (
    LINUX,
    NoActivity,
    Recorder,
    build,
    busybox_config,
    files_of,
    image_of,
    memory_backend,
)

from pybuild.backend import ImageSpec
from pybuild.errors import (
    BuildCancelled,
    ExportFailed,
    ImageNotFound,
    InvalidImage,
    UsageError,
)
from pybuild.export.outputs import (
    BackendLoadOutput,
    DockerOutput,
    ImageOptions,
    LocalOutput,
    OciOutput,
    TarOutput,
)
from pybuild.files.trees import NewEntry
from pybuild.oci.compression import Compression, Packing
from pybuild.oci.descriptor import DOCKER_MANIFEST, OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from pybuild.oci.layerindex import Entry, Kind
from pybuild.run.activity import CancelToken
from pybuild.run.events import Event, StepProgress, StepStarted, Warned
from pybuild.testkit.layouts import LayoutReader
from pybuild.testkit.memory import MemoryBackend
from pybuild.testkit.validate import validate
from pybuild.testkit.workbench import file, folder

DOCKERFILE = "FROM busybox\nRUN echo made > /made\nRUN echo more > /etc/more\nENV X=1\n"
EPOCH = 1_700_000_000


@pytest.fixture
def backend() -> Iterator[MemoryBackend]:
    with memory_backend() as made:
        yield made
        assert made.live_layers == 0


def export(backend: MemoryBackend, *outputs: Any, **options: Any) -> Any:
    return build(backend, options.pop("dockerfile", DOCKERFILE), outputs=outputs, **options)


def test_an_oci_archive_is_a_layout_whose_every_hash_is_right(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    archive = tmp_path / "image.tar"
    result = export(backend, f"type=oci,dest={archive}", tags=["app:1", "registry.example/app:2"])
    layout = LayoutReader(archive)
    images = layout.images()
    assert list(images) == ["docker.io/library/app:1", "registry.example/app:2"]
    assert {image.manifest.digest for image in images.values()} == {result.digest}
    config = validate(layout, images["docker.io/library/app:1"])
    assert "X=1" in config["config"]["Env"]
    entry = layout.read_json("index.json")["manifests"][0]
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "1"
    assert entry["platform"] == {"architecture": "amd64", "os": "linux"}
    assert result.outputs[0].place == str(archive)
    assert result.names == ("docker.io/library/app:1", "registry.example/app:2")


def test_an_archive_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    archives = []
    for number in range(2):
        with memory_backend() as backend:
            path = tmp_path / f"{number}.tar"
            export(backend, f"type=docker,dest={path}", tags=["app"], created=EPOCH)
            archives.append(path.read_bytes())
    assert archives[0] == archives[1]
    with tarfile.open(fileobj=io.BytesIO(archives[0])) as archive:
        members = archive.getmembers()
    assert [one.name for one in members] == sorted(one.name for one in members)
    assert {(one.mtime, one.uid, one.gid, one.uname) for one in members} == {(0, 0, 0, "")}


def test_nothing_is_named_in_the_store_but_by_an_image_output(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    export(backend, f"type=oci,dest={tmp_path / 'a'}", tags=["app"])
    with pytest.raises(ImageNotFound):
        image_of(backend)
    result = export(backend, f"type=oci,dest={tmp_path / 'a'}", "type=image", tags=["app"])
    assert image_of(backend).digest == result.digest
    assert [one.kind for one in result.outputs] == ["oci", "image"]


def test_a_docker_archive_has_what_old_and_new_dockers_read(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    archive = tmp_path / "image.tar"
    result = export(backend, DockerOutput(dest=str(archive)), tags=["app:1", "h.example/x:2"])
    layout = LayoutReader(archive)
    validate(layout, layout.images()["h.example/x:2"])
    (listed,) = layout.read_json("manifest.json")
    assert listed["RepoTags"] == ["app:1", "h.example/x:2"]
    assert listed["Config"] == f"blobs/{result.config_digest.replace(':', '/')}"
    assert set(listed["Layers"]) <= set(layout.paths)
    assert len(listed["Layers"]) == 3
    top = listed["Layers"][-1].rpartition("/")[2]
    assert layout.read_json("repositories") == {"app": {"1": top}, "h.example/x": {"2": top}}


def test_an_unnamed_image_is_exported_without_a_name(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    result = export(backend, f"type=docker,dest={tmp_path / 'a'}")
    layout = LayoutReader(tmp_path / "a")
    assert list(layout.images()) == [result.digest]
    assert layout.read_json("manifest.json")[0]["RepoTags"] is None
    assert "repositories" not in layout.paths


def test_a_folder_keeps_the_images_that_it_had(backend: MemoryBackend, tmp_path: Path) -> None:
    output = f"type=oci,tar=false,dest={tmp_path / 'layout'}"
    export(backend, output, tags=["one"])
    export(backend, output, tags=["two"])
    export(backend, output, tags=["one"], labels={"newer": "yes"})
    layout = LayoutReader(tmp_path / "layout")
    images = layout.images()
    assert sorted(images) == ["docker.io/library/one:latest", "docker.io/library/two:latest"]
    for image in images.values():
        validate(layout, image)
    assert images["docker.io/library/one:latest"] != images["docker.io/library/two:latest"]


def test_a_folder_that_is_something_else_is_left_alone(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(ExportFailed, match="neither empty nor a layout"):
        export(backend, f"type=oci,tar=false,dest={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("content", ["{", '{"manifests": 7}', '{"a":1,"a":2}'])
def test_a_layout_with_a_broken_index_is_not_overwritten(
    backend: MemoryBackend, tmp_path: Path, content: str
) -> None:
    (tmp_path / "oci-layout").write_text("{}")
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(ExportFailed, match="can't be added to"):
        export(backend, f"type=oci,tar=false,dest={tmp_path}")
    assert (tmp_path / "index.json").read_text() == content


@pytest.mark.parametrize(
    ("compression", "packing"),
    [
        ("zstd", Compression.ZSTD),
        ("uncompressed", Compression.NONE),
        ("gzip,compression-level=9", Compression.GZIP),
    ],
)
def test_the_layers_of_the_build_are_compressed_as_wanted(
    backend: MemoryBackend, tmp_path: Path, compression: str, packing: Compression
) -> None:
    plain = export(backend, TarOutput(dest=io.BytesIO()), created=EPOCH)
    archive = tmp_path / "a.tar"
    options = f"dest={archive},compression={compression}"
    result = export(backend, f"type=oci,{options}", tags=["app"], created=EPOCH)
    layout = LayoutReader(archive)
    validate(layout, layout.images()["docker.io/library/app:latest"])
    manifest = layout.read_json(f"blobs/{result.digest.replace(':', '/')}")
    types = [layer["mediaType"] for layer in manifest["layers"]]
    assert types == [OCI_LAYER_GZIP, packing.media_type, packing.media_type]
    assert (result.config_digest, result.digest == plain.digest) == (plain.config_digest, False)


def test_forced_compression_reaches_the_layers_of_the_base_image(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    archive = tmp_path / "a.tar"
    options = ImageOptions(packing=Packing(Compression.ZSTD), force_compression=True)
    result = export(backend, OciOutput(dest=str(archive), image=options))
    layout = LayoutReader(archive)
    manifest = layout.read_json(f"blobs/{result.digest.replace(':', '/')}")
    assert {layer["mediaType"] for layer in manifest["layers"]} == {OCI_LAYER_ZSTD}


def test_media_types_names_and_annotations_are_each_outputs_own(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    result = export(
        backend,
        "type=image,oci-mediatypes=false,name=other:3,annotation.note=here",
        f"type=oci,dest={tmp_path / 'a'}",
        tags=["app"],
        annotations={"all": "x"},
    )
    ours, theirs = (one.descriptor for one in result.outputs)
    assert (ours.media_type, result.digest) == (DOCKER_MANIFEST, ours.digest)
    assert theirs.digest != ours.digest
    assert image_of(backend, "other:3").digest == image_of(backend).digest == ours.digest
    with backend.open_blob(ours.digest) as stream:
        assert json.loads(stream.read())["annotations"] == {"all": "x", "note": "here"}
    assert list(LayoutReader(tmp_path / "a").images()) == ["docker.io/library/app:latest"]


def test_a_tar_has_the_merged_files_of_all_layers(backend: MemoryBackend) -> None:
    stream = io.BytesIO()
    result = export(
        backend,
        TarOutput(dest=stream),
        dockerfile="FROM busybox\nRUN rm /etc/group\nRUN echo made > /made\nUSER web\n",
        created=EPOCH,
    )
    assert result.outputs[0].descriptor is None
    assert result.digest.startswith("sha256:")
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue())) as archive:
        names = archive.getnames()
        assert names == sorted(names)
        assert "etc/group" not in names
        assert archive.getmember("bin").linkname == "usr/bin"
        assert archive.getmember("tmp").mode == 0o1777
        made = archive.extractfile("made")
        assert made is not None
        assert made.read() == b"made\n"
        assert max(member.mtime for member in archive) <= EPOCH


def test_a_folder_gets_the_files_with_modes_links_and_times(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    backend.add_image(
        "odd",
        busybox_config(),
        [
            folder(b"closed", 0o500),
            file(b"closed/in", b"in", 0o444),
            file(b"late", b"x" * 700_000, mtime=EPOCH + 5),
            *hard_links(b"first", b"second"),
        ],
    )
    dest = tmp_path / "new" / "out"
    export(backend, LocalOutput(dest=str(dest)), dockerfile="FROM odd\n", created=EPOCH)
    assert (dest / "closed/in").read_bytes() == b"in"
    assert stat.S_IMODE((dest / "closed").stat().st_mode) == 0o500
    assert stat.S_IMODE((dest / "closed/in").stat().st_mode) == 0o444
    assert (dest / "late").stat().st_size == 700_000
    assert (dest / "late").stat().st_mtime == EPOCH
    assert (dest / "first").stat().st_ino == (dest / "second").stat().st_ino
    (dest / "closed").chmod(0o700)


def hard_links(first: bytes, second: bytes) -> list[Any]:

    made = file(first, b"linked")
    other = replace(made, entry=replace(made.entry, path=second, link=first), content=None)
    return [made, other]


def test_a_folder_that_has_files_keeps_the_others_and_gets_new_ones_whole(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    dest = tmp_path / "out"
    (dest / "etc").mkdir(parents=True)
    (dest / "kept").write_text("mine")
    (dest / "made").symlink_to(outside)
    (dest / "tmp").write_text("a file where a folder goes")
    for _ in range(2):
        export(backend, str(dest))
    assert (dest / "kept").read_text() == "mine"
    assert (dest / "made").read_text() == "made\n"
    assert not (dest / "made").is_symlink()
    assert (dest / "tmp").is_dir()
    assert outside.read_text() == "untouched"


def test_a_folder_in_the_way_of_a_file_is_an_error_unless_it_is_empty(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    (tmp_path / "made").mkdir()
    export(backend, str(tmp_path))
    assert (tmp_path / "made").is_file()
    (tmp_path / "etc/more").unlink()
    (tmp_path / "etc/more/full").mkdir(parents=True)
    with pytest.raises(ExportFailed, match="can't write etc/more: Directory not empty"):
        export(backend, str(tmp_path))
    assert not list(tmp_path.rglob(".pybuild*"))


@pytest.mark.parametrize("kind", ["oci", "docker", "tar"])
def test_a_failure_leaves_the_file_that_was_there(
    backend: MemoryBackend, tmp_path: Path, kind: str
) -> None:
    dest = tmp_path / "a.tar"
    dest.write_text("before")
    damage(backend)
    with pytest.raises(InvalidImage):
        export(backend, f"type={kind},dest={dest}")
    assert dest.read_text() == "before"
    assert list(tmp_path.iterdir()) == [dest]


def test_a_failure_leaves_no_half_layout(backend: MemoryBackend, tmp_path: Path) -> None:
    damage(backend)
    with pytest.raises(InvalidImage):
        export(backend, f"type=oci,tar=false,dest={tmp_path / 'layout'}")
    assert list(tmp_path.iterdir()) == []


def damage(backend: MemoryBackend) -> None:
    """Flip a bit in the blob of busybox."""
    digest = image_of(backend, "busybox").layers[0].blob.digest
    content = bytearray(backend._store.blobs[digest])
    content[len(content) // 2] ^= 0x10
    backend._store.blobs[digest] = bytes(content)


class CancelOn:
    """Cancels the build once bytes of an output have been written."""

    def __init__(self, token: CancelToken, title: str) -> None:
        self._token = token
        self._title = title
        self._id = -1

    def report(self, event: Event) -> None:
        match event:
            case StepStarted(id=number, title=title) if self._title in title:
                self._id = number
            case StepProgress(id=number) if number == self._id:
                self._token.cancel()
            case _:
                pass


@pytest.mark.parametrize(
    ("output", "title"),
    [
        ("type=oci,dest={}/a.tar", "oci image format"),
        ("type=docker,dest={}/a.tar", "docker image format"),
        ("type=oci,tar=false,dest={}/layout", "oci image format"),
        ("type=tar,dest={}/a.tar", "tarball"),
    ],
)
def test_a_cancel_stops_an_output_and_leaves_nothing(
    backend: MemoryBackend, tmp_path: Path, output: str, title: str
) -> None:
    backend.add_image(
        "large", busybox_config(), *([file(b"f%d" % n, os.urandom(3 << 20))] for n in range(3))
    )
    token = CancelToken()
    with pytest.raises(BuildCancelled):
        export(
            backend,
            output.format(tmp_path),
            dockerfile="FROM large\n",
            cancel=token,
            reporter=CancelOn(token, title),
        )
    assert list(tmp_path.iterdir()) == []


def test_a_stream_gets_the_archive_and_stays_open(backend: MemoryBackend, tmp_path: Path) -> None:
    stream = io.BytesIO()
    export(backend, OciOutput(dest=stream), tags=["app"])
    (tmp_path / "a.tar").write_bytes(stream.getvalue())
    layout = LayoutReader(tmp_path / "a.tar")
    validate(layout, layout.images()["docker.io/library/app:latest"])


def test_what_is_no_file_is_written_to_as_it_is(backend: MemoryBackend, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    read: list[bytes] = []
    with open(reader, "rb") as stream:  # noqa: PTH123  (a descriptor)
        thread = threading.Thread(target=lambda: read.append(stream.read()))
        thread.start()
        export(backend, f"type=tar,dest=/dev/fd/{writer}")
        os.close(writer)
        thread.join()
    with tarfile.open(fileobj=io.BytesIO(read[0])) as archive:
        assert "made" in archive.getnames()


def test_a_link_to_a_file_stays_a_link(backend: MemoryBackend, tmp_path: Path) -> None:
    (tmp_path / "real").write_text("before")
    (tmp_path / "link").symlink_to("real")
    export(backend, f"type=tar,dest={tmp_path / 'link'}")
    assert (tmp_path / "link").is_symlink()
    assert tarfile.is_tarfile(tmp_path / "real")


class Full(io.RawIOBase):
    """A stream on a full disk that takes a few bytes at a time before."""

    def __init__(self, room: int) -> None:
        self.room = room

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        self.room -= 100
        return min(100, len(piece))


@pytest.mark.parametrize("kind", [OciOutput, DockerOutput, TarOutput])
def test_a_full_disk_is_told_plainly(backend: MemoryBackend, kind: Any) -> None:
    full: BinaryIO = Full(1000)  # type: ignore[assignment]  # a raw stream will do
    with pytest.raises(ExportFailed, match=r"can't write .* No space left on device"):
        export(backend, kind(dest=full))


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        ("type=registry", UsageError, "without a name"),
        ("type=image,push=true", UsageError, "without a name"),
        ("type=image,name=UPPER", UsageError, "lower case"),
        ("type=tar,dest={}/none/a.tar", ExportFailed, "there is no folder"),
        ("type=oci,dest={}", ExportFailed, "it is a folder"),
        ("type=docker,dest={}", ExportFailed, "it is a folder"),
        ("type=local,dest={}/file", ExportFailed, "it is no folder"),
        ("type=oci,tar=false,dest={}/file", ExportFailed, "it is no folder"),
        ("type=tar", ExportFailed, "needs the stream"),
        ("type=nothing", UsageError, "there is no type"),
    ],
)
def test_what_can_only_fail_fails_before_anything_is_built(
    backend: MemoryBackend, tmp_path: Path, output: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "file").write_text("")
    recorder = Recorder()
    with pytest.raises(error, match=message):
        export(backend, output.format(tmp_path), reporter=recorder)
    assert recorder.events == []


def test_special_files_are_left_out_with_one_warning_unless_root(
    backend: MemoryBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = [
        NewEntry(Entry(b"null", Kind.CHARACTER, 0o666, device=(1, 3))),
        NewEntry(Entry(b"pipe", Kind.FIFO, 0o600)),
    ]
    setuid = [file(b"su", b"#!", 0o4755)]
    backend.add_image("devices", busybox_config(), [*devices, *setuid])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    recorder = Recorder()
    export(
        backend,
        str(tmp_path),
        dockerfile="FROM devices\n",
        reporter=recorder,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["su"]
    (warning,) = recorder.of(Warned)
    assert warning.message == "null and 1 more can't be made here: only root makes special files"


def test_an_image_is_loaded_into_another_backends_store(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = memory_backend()
    monkeypatch.setattr("pybuild.export.exporting.open_backend", lambda name, options: other)
    result = export(backend, BackendLoadOutput(backend="memory"), tags=["app"])
    assert image_of(other).digest == result.digest
    assert result.outputs[0].kind == "memory"
    with pytest.raises(RuntimeError, match="closed"):
        other.checkout(None, NoActivity())


def test_an_image_loaded_from_elsewhere_can_be_built_upon(backend: MemoryBackend) -> None:
    export(backend, tags=["app"])
    made = image_of(backend)
    spec = ImageSpec(made.config, made.layers, (made.reference,))
    with MemoryBackend(platforms=[LINUX]) as other:
        other.load_image(spec, backend.open_blob, NoActivity())
        build(other, "FROM app\nRUN test -f /made\n", tags=["above"])
        assert files_of(other, "above")["made"] == b"made\n"


def test_every_output_is_a_unit_of_its_own(backend: MemoryBackend, tmp_path: Path) -> None:
    recorder = Recorder()
    export(
        backend, "type=image", f"type=tar,dest={tmp_path / 'a'}", tags=["app"], reporter=recorder
    )
    assert [event.title for event in recorder.of(StepStarted)][-2:] == [
        "exporting to image",
        "exporting to client tarball",
    ]
