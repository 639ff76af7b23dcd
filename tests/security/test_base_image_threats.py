"""Hostile base images from a registry: refused or harmless, in bounded time and memory."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from threatening import NAMESPACE, Builds, Ended, assert_clear, run_command

from pybuild.errors import ImageError, PybuildError, StepFailed
from pybuild.files.trees import walk
from pybuild.oci.descriptor import OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from pybuild.testkit.baseimages import busybox_entries
from pybuild.testkit.containerd import PrivateContainerd
from pybuild.testkit.registry import Registry
from pybuild.testkit.workbench import file, folder, symlink

pytestmark = pytest.mark.root
about_containerd = pytest.mark.parametrize("runner", ["auto"], scope="module")

MIB = 1024 * 1024
PLATFORM = {"os": "linux", "architecture": "amd64"}
Members = list[tuple[tarfile.TarInfo, bytes]]


def member(name: str, kind: bytes = tarfile.REGTYPE, body: bytes = b"", **fields: Any) -> Any:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = fields.pop("mode", 0o755 if kind == tarfile.DIRTYPE else 0o644)
    info.size = fields.pop("size", len(body))
    for field, value in fields.items():
        setattr(info, field, value)
    return info, body


def link(name: str, target: str) -> Any:
    return member(name, tarfile.SYMTYPE, linkname=target)


def hard(name: str, target: str) -> Any:
    return member(name, tarfile.LNKTYPE, linkname=target)


def marked(name: str, **attributes: str) -> Any:
    records = {f"SCHILY.xattr.{key.replace('_', '.')}": value for key, value in attributes.items()}
    return member(name, tarfile.DIRTYPE, pax_headers=records)


def tar(members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, body in members:
            archive.addfile(info, io.BytesIO(body))
    return out.getvalue()


def add(registry: Registry, *layers: bytes, config: dict[str, Any] | None = None) -> str:
    """An image of plain tars, gzipped; its name."""
    diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    whole = {**PLATFORM, "rootfs": {"type": "layers", "diff_ids": diff_ids}, **(config or {})}
    registry.add_image("evil:1", json.dumps(whole).encode(), [gzip.compress(x, 1) for x in layers])
    return f"{registry.address}/evil:1"


def archives(out: str) -> dict[str, Sequence[Any]]:
    """Hostile layers that would change files below `out`, a folder of the host."""
    up = "../" * 20
    return {
        "a name with dots": [member(f"{up}{out}/secret", body=b"evil")],
        "dots behind a folder": [member(f"a/b/{up}{out}/secret", body=b"evil")],
        "an absolute name": [member(f"/{out}/secret", body=b"evil")],
        "through a link": [link("l", out), member("l/secret", body=b"evil")],
        "through a relative link": [link("l", f"{up}{out}"), member("l/new", body=b"evil")],
        "through links to links": [
            link("a", "b"),
            link("b", "c"),
            link("c", f"{up}{out}"),
            member("a/secret", body=b"evil"),
        ],
        "a link in a folder of the link": [
            member("d", tarfile.DIRTYPE),
            link("d/l", "../../../../../../.."),
            member(f"d/l{out}/secret", body=b"evil"),
        ],
        "a hard link out": [hard("h", f"{up}{out}/secret"), member("h", body=b"evil")],
        "an absolute hard link": [
            hard("h", f"{out}/secret"),
            member("h", body=b"evil", mode=0o777),
        ],
        "a hard link through a link": [link("l", out), hard("h", "l/secret")],
        "a hard link beside us": [hard("h", "outside/secret"), member("h", body=b"evil")],
        "a hard link to a link": [
            link("l", f"{out}/secret"),
            hard("h", "l"),
            member("h", body=b"e"),
        ],
        "a mode by a hard link": [link("l", f"{out}/secret"), hard("h", "l"), hard("i", "h")],
        "a folder over a link": [link("l", out), member("l", tarfile.DIRTYPE, mode=0o777)],
        "a folder behind a link": [link("l", out), member("l/empty", tarfile.DIRTYPE, mode=0o777)],
        "a removal with dots": [member(f"{up}{out}/.wh.secret")],
        "a removal through a link": [link("l", out), member("l/.wh.secret")],
        "a removal of dots": [member("d/.wh..."), member(".wh...")],
        "a removal of nothing": [member(".wh.")],
        "all removed behind a link": [link("l", out), member("l/.wh..wh..opq")],
        "a removal that is a link": [link(".wh.l", out), member(".wh.l/secret", body=b"evil")],
        "a mark that is a link": [link(".wh..wh..opq", out)],
        "an aufs link": [member(".wh..wh.plnk/1.2", body=b"x"), hard("h", ".wh..wh.plnk/1.2")],
        "removed twice": [member(".wh.x"), member(".wh.x"), member("x"), member("./.wh.x")],
        "the root as a link": [link(".", out), member("secret", body=b"evil")],
        "the root as a link, with slash": [link("./", out), member("./secret", body=b"evil")],
        "the root as a file": [member("/", body=b"evil")],
        "the root as a hard link": [hard(".", out)],
        "a device of removal": [member("etc", tarfile.CHRTYPE, devmajor=0, devminor=0)],
        "a disk": [member("disk", tarfile.BLKTYPE, devmajor=8, devminor=0)],
        "an opaque mark": [marked("d", trusted_overlay_opaque="y")],
        "a redirect": [marked("d", trusted_overlay_redirect="/etc"), member("d/x")],
        "a copied-up name": [marked("d", trusted_overlay_metacopy="")],
        "a user's mark": [marked("d", user_overlay_opaque="y", user_overlay_whiteout="y")],
        "zero in a name": [member("a\0b", body=b"x")],
        "a file as a folder": [member("f", body=b"x"), member("f/x", body=b"x")],
        "a folder as a file": [member("d/x", body=b"x"), member("d", body=b"x"), member("d/y")],
        "a link to itself": [link("l", "l"), member("l/x", body=b"evil")],
        "a long path": [member("/".join(["d" * 250] * 16 + [".."] * 40 + [out, "new"]))],
        "two thousand folders": [member("d/" * 2000 + "x", body=b"x")],
        "a pipe": [member("etc/passwd", tarfile.FIFOTYPE)],
        "a name of 300 bytes": [member("n" * 300)],
        "a link of 5000 bytes": [link("l", "t" * 5000)],
        "an odd kind": [member("x", b"Z")],
        "a forged owner": [member("x", pax_headers={"uid": "-1", "gid": "99999999999"})],
        "a forged size": [member("x", pax_headers={"size": "-5"})],
        "a forged name": [member("x", pax_headers={"path": f"{up}{out}/secret"})],
        "a forged link": [hard("x", "y"), link("x", "y")],
    }


@pytest.mark.parametrize("name", archives(""))
def test_a_hostile_layer_changes_nothing_of_the_host(
    builds: Builds, registry: Registry, host: Path, name: str
) -> None:
    """containerd CVE-2021-32760, umoci CVE-2021-29136, buildah CVE-2020-10696, moby CVE-2014-9356."""
    base = tar([member("etc", tarfile.DIRTYPE)])
    image = add(registry, base, tar(archives(str(host))[name]))
    for text in (f"FROM {image}\n", f'FROM {image}\nCOPY <<E /x\ny\nE\nRUN ["/bin/none"]\n'):
        try:
            builds.build(text)
        except PybuildError as error:
            assert error.exit_code in (1, 3, 4), error  # 4: containerd itself refused it  # noqa: PT017
            assert len(str(error)) < 4_000  # noqa: PT017


@pytest.fixture
def unpacking(builds: Builds, registry: Registry) -> Callable[..., Ended]:
    """Builds FROM an image with the command, unpacked in the end, as its users do."""

    def build(image: str, text: str = "") -> Ended:
        return run_command(
            "--progress=plain",
            *builds.options,
            stdin=f"FROM {image}\n{text}".encode(),
            env={"XDG_CACHE_HOME": str(builds.state.parent / "cache")},
        )

    return build


@about_containerd
@pytest.mark.parametrize(
    "name",
    [
        "an opaque mark",
        "a redirect",
        "a copied-up name",
        "a user's mark",
        "a device of removal",
        "a name with dots",
        "the root as a link",
        "a removal of dots",
        "a file as a folder",
        "two thousand folders",
    ],
)
def test_containerd_is_never_given_a_hostile_layer_to_unpack(
    unpacking: Callable[..., Ended],
    containerd: PrivateContainerd,
    registry: Registry,
    host: Path,
    name: str,
) -> None:
    """With nothing but FROM, nobody else looks at the layers."""
    before = _unpacked(containerd)
    ended = unpacking(add(registry, tar(archives(str(host))[name])))
    assert_clear(ended, codes=(3,))
    containerd.collect_garbage(NAMESPACE)
    # what earlier builds left may be gone as well
    assert _unpacked(containerd) <= before


def _unpacked(containerd: PrivateContainerd) -> set[str]:
    root = containerd.folder / "root" / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"
    return set(os.listdir(root))  # noqa: PTH208


def zeros(count: int, compress: Callable[[bytes], bytes]) -> tuple[bytes, str]:
    """A layer whose one file holds `count` MiB of zeros, compressed, and its diff id."""
    info, _ = member("zeros", size=count * MIB)
    head = info.tobuf(tarfile.PAX_FORMAT)
    piece, digest = bytes(16 * MIB), hashlib.sha256(head)
    for _ in range(count // 16):
        digest.update(piece)
    digest.update(bytes(1024))
    blob = compress(head) + compress(piece) * (count // 16) + compress(bytes(1024))
    return blob, f"sha256:{digest.hexdigest()}"


def test_a_bomb_is_stopped_before_it_fills_the_disk(
    unpacking: Callable[..., Ended], registry: Registry
) -> None:
    """containers/storage CVE-2021-20291: 6 GiB in 200 kB."""
    blob, diff_id = zeros(6 * 1024, zstd.compress)
    assert len(blob) < MIB
    config = {**PLATFORM, "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
    registry.add_image("evil:1", json.dumps(config).encode(), [blob], layer_type=OCI_LAYER_ZSTD)
    ended = unpacking(f"{registry.address}/evil:1")
    assert_clear(ended, codes=(3,))
    assert "larger than" in ended.err


def test_a_password_file_of_a_gibibyte_is_not_read(
    unpacking: Callable[..., Ended], registry: Registry
) -> None:
    """containerd CVE-2026-47262."""
    info, _ = member("etc/passwd", size=768 * MIB)
    piece = bytes(16 * MIB)
    head = info.tobuf(tarfile.PAX_FORMAT)
    digest = hashlib.sha256(head)
    for _ in range(48):
        digest.update(piece)
    digest.update(bytes(1024))
    blob = gzip.compress(head) + gzip.compress(piece, 9) * 48 + gzip.compress(bytes(1024))
    diff_ids = [f"sha256:{digest.hexdigest()}"]
    config = {**PLATFORM, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    registry.add_image("evil:1", json.dumps(config).encode(), [blob])
    ended = unpacking(f"{registry.address}/evil:1", "USER someone\nRUN true\n")
    assert_clear(ended, codes=(1,))
    assert "/etc/passwd in the image is larger than" in ended.err


@pytest.mark.parametrize("kind", ["fifo", "link to a device", "link to the host", "folder"])
def test_a_password_file_that_is_none_is_refused_or_the_images_own(
    builds: Builds, host: Path, kind: str
) -> None:
    from pybuild.files.trees import NewEntry  # noqa: PLC0415
    from pybuild.oci.layerindex import Entry, Kind  # noqa: PLC0415

    secret = str(host / "secret").encode()
    passwd = {
        "fifo": NewEntry(Entry(b"etc/passwd", Kind.FIFO, 0o644)),
        "link to a device": symlink(b"etc/passwd", b"/dev/zero"),
        "link to the host": symlink(b"etc/passwd", secret),
        "folder": folder(b"etc/passwd"),
    }[kind]
    builds.image("nobody", passwd)
    with pytest.raises(StepFailed):
        builds.build("FROM nobody\nUSER someone\nRUN true\n")


@pytest.mark.parametrize("name", ["dev", "proc", "sys", "etc", "etc/hosts", "etc/resolv.conf"])
@pytest.mark.parametrize(
    "target", ["{host}", "../../../../../..{host}", "/proc/self/fd", "loop", "/dev"]
)
def test_system_places_that_are_links_lead_nowhere_outside(
    builds: Builds, host: Path, name: str, target: str
) -> None:
    """runc CVE-2019-16884, CVE-2023-28642; crun CVE-2026-47766."""
    place = target.format(host=host) if target != "loop" else f"/{name}"
    entries = [e for e in busybox_entries() if not e.entry.path.startswith(name.encode())]
    from pybuild.testkit.workbench import Workbench  # noqa: PLC0415

    with Workbench(builds.backend, "") as bench:
        top = bench.put(bench.scratch(), *entries, symlink(name.encode(), place.encode()))
        bench.create(top, "linked", env=(("PATH", "/bin"),))
    try:
        builds.build(f"FROM linked\nRUN ls {host}; cat {host}/secret; echo x > {host}/new; true\n")
    except StepFailed:
        assert "host secret" not in builds.log
        return
    assert "host secret" not in builds.log
    inside = {entry.path for entry in walk(builds.tree(), b"")}
    assert str(host / "secret").encode()[1:] not in inside


# Documents


def served(registry: Registry, manifest: object, config: object = None) -> str:
    """An image of these documents as they are; a string or bytes count as they stand."""
    raw = config if isinstance(config, bytes) else json.dumps(config or PLATFORM).encode()
    digest = registry.add_blob("evil", raw)
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    text = text.replace(b"CONFIG", digest.encode()).replace(b'"SIZE"', str(len(raw)).encode())
    registry.add_manifest("evil:1", text)
    return f"{registry.address}/evil:1"


MANIFEST: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {"mediaType": OCI_CONFIG, "digest": "CONFIG", "size": "SIZE"},
    "layers": [],
}


def layer(**fields: Any) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(b'').hexdigest()}"
    one = {"mediaType": OCI_LAYER_GZIP, "digest": digest, "size": 10, **fields}
    return {**MANIFEST, "layers": [one]}


MANIFESTS: dict[str, object] = {
    "both": {**MANIFEST, "manifests": []},
    "an index by its type": {**MANIFEST, "mediaType": OCI_INDEX},
    "a path as digest": layer(digest="../../../../etc/passwd"),
    "a path behind sha256": layer(digest="sha256:../../../../etc/passwd"),
    "an unknown algorithm": layer(digest="md5:d41d8cd98f00b204e9800998ecf8427e"),
    "upper case": layer(digest="sha256:" + "A" * 64),
    "a negative size": layer(size=-1),
    "a huge size": layer(size=2**70),
    "a broken size": layer(size=1.5),
    "a foreign address": layer(urls=["http://127.0.0.1:1/x"], size=0),
    "an odd kind of layer": layer(mediaType="application/x-sh"),
    "deep": b"[" * 100_000,
    "deep annotations": b'{"annotations":' * 50_000,
    "no object": [],
    "no JSON": b"<html>",
    "huge": b'{"a":"' + b"x" * (5 * MIB) + b'"}',
    "too many layers": {**MANIFEST, "layers": layer()["layers"] * 10_000},
    "a huge number": b'{"schemaVersion":' + b"9" * 1_000_000 + b"}",
    "no config": {**MANIFEST, "config": {}},
    "a member twice": json.dumps(MANIFEST).encode()[:-1] + b',"layers":[]}',
    "schema 1": {"schemaVersion": 1, "fsLayers": []},
}

CONFIGS: dict[str, object] = {
    "a list": b"[]",
    "no JSON": b"\xff\xfe",
    "deep": b'{"config":' * 50_000,
    "huge": b'{"a":"' + b"x" * (9 * MIB) + b'"}',
    "too many diff ids": {**PLATFORM, "rootfs": {"diff_ids": ["sha256:" + "0" * 64] * 5}},
    "a diff id that is a path": {**PLATFORM, "rootfs": {"diff_ids": ["../../etc"]}},
    "env as an object": {**PLATFORM, "config": {"Env": {"a": "b"}}},
    "env of numbers": {**PLATFORM, "config": {"Env": [1, 2]}},
    "a command as text": {**PLATFORM, "config": {"Cmd": "rm -rf /"}},
    "a user as number": {**PLATFORM, "config": {"User": 0}},
    "labels as list": {**PLATFORM, "config": {"Labels": ["a=b"]}},
    "an os as number": {"os": 1, "architecture": "amd64"},
    "a health check of text": {**PLATFORM, "config": {"Healthcheck": "x"}},
    "a retry count beyond": {**PLATFORM, "config": {"Healthcheck": {"Retries": 10**400}}},
    "a history of text": {**PLATFORM, "history": "x"},
    "a history of a million": {**PLATFORM, "history": [{}] * 1_000_000},
    "another rootfs": {**PLATFORM, "rootfs": {"type": "chains", "diff_ids": []}},
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_hostile_manifest_is_refused(
    unpacking: Callable[..., Ended], registry: Registry, name: str
) -> None:
    """CVE-2021-41190, CVE-2024-3727, containerd CVE-2023-25153."""
    ended = unpacking(served(registry, MANIFESTS[name]))
    assert_clear(ended, codes=(3,))
    assert len(ended.err) < 10_000


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_config_is_refused(
    unpacking: Callable[..., Ended], registry: Registry, name: str
) -> None:
    ended = unpacking(served(registry, MANIFEST, CONFIGS[name]), "RUN x\n")
    assert_clear(ended, codes=(1, 3))
    assert len(ended.err) < 10_000


def test_an_absurd_environment_reaches_no_process_of_the_host(
    builds: Builds, registry: Registry
) -> None:
    config = {"Env": ["LD_PRELOAD=/evil.so", "PATH=/evil", "=x", "A", "B=\0", "PYTHONPATH=/evil"]}
    image = served(registry, MANIFEST, {**PLATFORM, "config": config})
    try:
        builds.build(f"FROM {image}\n")
    except ImageError:
        return
    assert "LD_PRELOAD" not in os.environ


@pytest.mark.parametrize("damage", ["digest", "size", "diff id", "truncated", "garbage behind"])
def test_a_layer_that_is_not_what_it_says_is_refused_and_not_kept(
    builds: Builds, registry: Registry, unpacking: Callable[..., Ended], damage: str
) -> None:
    plain = tar([member("x", body=damage.encode() * 1000)])
    blob = gzip.compress(plain)
    diff_id = hashlib.sha256(plain).hexdigest()
    stored, size = blob, len(blob)
    match damage:
        case "size":
            size += 1
        case "diff id":
            diff_id = hashlib.sha256(b"other").hexdigest()
        case "truncated":
            stored = blob = blob[:-20]
            size = len(blob)
        case "garbage behind":
            stored = blob = blob + b"garbage"
            size = len(blob)
    digest = registry.add_blob("evil", stored)
    if damage == "digest":
        registry.add_blob("evil", blob)
        registry._repository("evil").blobs[digest] = b"evil" + blob[4:]
    config = {**PLATFORM, "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]}}
    manifest = {
        **MANIFEST,
        "layers": [{"mediaType": OCI_LAYER_GZIP, "digest": digest, "size": size}],
    }
    ended = unpacking(served(registry, manifest, config))
    assert_clear(ended, codes=(3,))


@about_containerd
def test_an_images_labels_never_become_containerds(
    builds: Builds, registry: Registry, containerd: PrivateContainerd
) -> None:
    """containerd CVE-2026-53488."""
    labels = {
        "containerd.io/gc.root": "2020",
        "containerd.io/gc.ref.content.x": "sha256:" + "0" * 64,
        "containerd.io/snapshot/overlay.size": "1",
        "io.cri-containerd.image": "managed",
        "pybuild/session": "x",
    }
    config = {"Labels": labels}
    manifest = {**MANIFEST, "annotations": labels}
    image = served(registry, manifest, {**PLATFORM, "config": config})
    builds.build(f"FROM {image}\nLABEL containerd.io/gc.flat=1\nCOPY <<E /x\ny\nE\n", labels=labels)
    from pybuild_containerd import rpcs  # noqa: PLC0415
    from pybuild_containerd.client import Client  # noqa: PLC0415

    with Client(containerd.address, NAMESPACE) as client:
        seen = [dict(i.labels) for i in client.call(rpcs.IMAGE_LIST).images]
        with client.stream(rpcs.CONTENT_LIST) as pages:
            seen += [dict(info.labels) for page in pages for info in page.info]
    # records of the step cache keep themselves
    names = {name for labels in seen if "pybuild/step" not in labels for name in labels}
    assert not names & {"containerd.io/gc.root", "containerd.io/gc.flat", "pybuild/session"}
    assert not names & {"containerd.io/gc.ref.content.x", "io.cri-containerd.image"}
    assert not names & {"containerd.io/snapshot/overlay.size"}


def test_the_image_runs_nothing_on_the_host(builds: Builds, host: Path) -> None:
    """moby CVE-2019-14271: no NSS module, no tar, no sh of the image is used outside it."""
    names = [b"bin/tar", b"usr/bin/tar", b"usr/bin/gzip", b"usr/bin/xz", b"lib/libnss_evil.so.2"]
    script = f"#!/bin/sh\ntouch {host}/evil\n".encode()
    builds.image(
        "nss",
        folder(b"lib64"),
        file(b"etc/nsswitch.conf", b"passwd: evil\ngroup: evil\n"),
        *(file(name, script, 0o755) for name in names),
        file(b"etc/passwd", b"root:x:0:0::/:/bin/sh\nweb:x:5:5::/:/bin/sh\n"),
    )
    builds.build("FROM nss\nUSER web\nCOPY --chown=web <<E /x\ny\nE\nRUN id -u\n")
    assert builds.log == "5\n"
