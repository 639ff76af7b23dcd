"""Reading OCI image layouts: which image is meant, and that no byte is taken on trust."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pybuild.errors import ImageNotFound, InvalidImage, PlatformMismatch
from pybuild.files.layout import open_layout
from pybuild.oci.descriptor import OCI_INDEX, digest_of
from pybuild.oci.http import NoActivity
from pybuild.oci.image_config import HistoryEntry, ImageConfig
from pybuild.oci.layerwriter import write_layer
from pybuild.oci.platform import Platform
from pybuild.testkit.layouts import LayoutWriter
from pybuild.testkit.workbench import file

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")


def add_image(writer: LayoutWriter, name: str, platform: Platform, text: bytes = b"x") -> str:
    parts: list[bytes] = []
    layer = write_layer([file(b"a", text)], parts.append).diff
    writer.add_blob(b"".join(parts), layer.blob.media_type)
    config = ImageConfig(platform, history=(HistoryEntry("layer"),), diff_ids=(layer.diff_id,))
    return writer.add_image([name], config, [layer])


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """Images ``one`` for two platforms, and ``two`` for one."""
    writer = LayoutWriter(tmp_path / "layout")
    add_image(writer, "localhost/a:one", AMD64)
    add_image(writer, "localhost/a:one", ARM64)
    add_image(writer, "localhost/a:two", AMD64, b"two")
    return writer.finish()


def index_of(layout: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((layout / "index.json").read_bytes())
    return document


def put_index(layout: Path, document: dict[str, Any]) -> None:
    (layout / "index.json").write_text(json.dumps(document))


def blob_of(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def found_digest(path: Path, platform: Platform = AMD64, **chosen: str) -> str:
    with open_layout(path) as layout:
        return layout.find(platform, **chosen).descriptor.digest


def test_a_tag_and_a_platform_choose_the_image(layout: Path) -> None:
    one, arm, two = [entry["digest"] for entry in index_of(layout)["manifests"]]
    assert found_digest(layout, tag="one") == one
    assert found_digest(layout, ARM64, tag="one") == arm
    assert found_digest(layout, tag="two") == two
    assert found_digest(layout, tag="two", digest=arm, platform=ARM64) == arm


def test_without_a_tag_the_only_image_is_meant_or_the_latest(tmp_path: Path, layout: Path) -> None:
    with pytest.raises(ImageNotFound, match="latest") as caught:
        found_digest(layout)
    assert caught.value.hint == "it has one, two"
    writer = LayoutWriter(tmp_path / "single")
    digest = add_image(writer, "localhost/a:single", AMD64)
    assert found_digest(writer.finish()) == digest


def test_a_platform_that_is_not_there_is_named(layout: Path) -> None:
    with pytest.raises(PlatformMismatch) as caught:
        found_digest(layout, Platform("linux", "riscv64"), tag="one")
    assert caught.value.hint == "it has linux/amd64, linux/arm64"
    arm = index_of(layout)["manifests"][1]["digest"]
    with pytest.raises(PlatformMismatch):
        found_digest(layout, digest=arm)


@pytest.mark.parametrize("compression", ["", "gz"])
def test_a_layout_may_be_a_tar(tmp_path: Path, layout: Path, compression: str) -> None:
    with tarfile.open(tmp_path / "x.tar", f"w:{compression}") as tar:
        tar.add(layout, ".")
    assert found_digest(tmp_path / "x.tar", tag="two") == found_digest(layout, tag="two")


def test_an_index_below_the_index_is_gone_through(layout: Path) -> None:
    document = index_of(layout)
    inner = json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": document["manifests"][:2]}
    )
    digest = digest_of(inner.encode())
    blob_of(layout, digest).write_text(inner)
    entry = {"mediaType": OCI_INDEX, "digest": digest, "size": len(inner)}
    put_index(layout, {**document, "manifests": [entry]})
    arm = document["manifests"][1]["digest"]
    assert found_digest(layout, ARM64) == arm
    assert found_digest(layout, ARM64, digest=arm) == arm  # not in index.json itself


def test_a_blob_is_copied_whole_and_verified(layout: Path) -> None:
    parts: list[bytes] = []
    with open_layout(layout) as opened:
        image = opened.find(AMD64, tag="two")
        blob = image.layers[0].blob
        opened.copy(blob, parts.append, NoActivity())
    assert b"".join(parts) == blob_of(layout, blob.digest).read_bytes()


def test_every_link_stays_in_the_layout(tmp_path: Path, layout: Path) -> None:
    digest = index_of(layout)["manifests"][2]["digest"]
    blob = blob_of(layout, digest)
    shutil.move(blob, layout / "elsewhere")
    blob.symlink_to("/elsewhere")  # the layout's root
    assert found_digest(layout, tag="two") == digest
    shutil.move(layout / "elsewhere", tmp_path / "outside")
    blob.unlink()
    blob.symlink_to(tmp_path / "outside")
    with pytest.raises(InvalidImage, match="lacks the blob"):
        found_digest(layout, tag="two")


@pytest.mark.parametrize("change", ["bytes", "short", "gone", "pipe", "folder"])
def test_a_manifest_that_is_not_what_its_digest_says_is_refused(layout: Path, change: str) -> None:
    blob = blob_of(layout, index_of(layout)["manifests"][2]["digest"])
    size = blob.stat().st_size
    blob.unlink()
    match change:
        case "bytes":
            blob.write_bytes(b" " * size)
        case "short":
            blob.write_bytes(b"{}")
        case "pipe":
            os.mkfifo(blob)
        case "folder":
            blob.mkdir()
    with pytest.raises(InvalidImage):
        found_digest(layout, tag="two")


@pytest.mark.parametrize(
    "entry",
    [
        {"digest": "sha256:../../../../etc/passwd"},
        {"digest": "md5:0"},
        {"size": -1},
        {"size": 1 << 62},
        {"urls": ["http://localhost/"]},
        {"mediaType": 7},
    ],
)
def test_a_hostile_entry_of_the_index_is_refused(layout: Path, entry: dict[str, Any]) -> None:
    document = index_of(layout)
    document["manifests"][2] |= entry
    put_index(layout, document)
    with pytest.raises(InvalidImage):
        found_digest(layout, tag="two")


def test_what_is_no_layout_is_refused(tmp_path: Path, layout: Path) -> None:
    with pytest.raises(ImageNotFound):
        found_digest(tmp_path / "nowhere")
    with pytest.raises(InvalidImage, match="no OCI image layout"):
        found_digest(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidImage, match="neither a folder nor a file"):
        found_digest(tmp_path / "pipe")
    (tmp_path / "text").write_text("no tar")
    with pytest.raises(InvalidImage, match="can't be read"):
        found_digest(tmp_path / "text")
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"2.0.0"}')
    with pytest.raises(InvalidImage, match="unknown version"):
        found_digest(layout, tag="one")
    (layout / "oci-layout").write_text("[" * 100_000)
    with pytest.raises(InvalidImage):
        found_digest(layout, tag="one")


def test_indexes_that_lead_to_themselves_end(layout: Path) -> None:
    inner: dict[str, Any] = index_of(layout)["manifests"][0]
    for _ in range(6):
        document = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [inner]})
        inner = {
            "mediaType": OCI_INDEX,
            "digest": digest_of(document.encode()),
            "size": len(document),
        }
        blob_of(layout, inner["digest"]).write_text(document)
    put_index(layout, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [inner]})
    with pytest.raises(InvalidImage, match="nested too deeply"):
        found_digest(layout)


def test_a_tar_that_leads_out_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        member = tarfile.TarInfo("../oci-layout")
        member.size = 2
        tar.addfile(member, io.BytesIO(b"{}"))
    with pytest.raises(InvalidImage):
        found_digest(tmp_path / "x.tar")
