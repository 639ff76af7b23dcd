"""Our client against the registry that most people run, and our registry against skopeo."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pybuild.errors import AuthenticationRequired, ImageNotFound
from pybuild.oci.auth import DockerCredentials
from pybuild.oci.descriptor import Descriptor, digest_of
from pybuild.oci.http import NoActivity
from pybuild.oci.platform import parse_platform
from pybuild.oci.pull import download_all, fetch_image
from pybuild.oci.reference import Reference, parse_reference
from pybuild.oci.registry import RegistryClient
from pybuild.oci.sinks import Sink
from pybuild.testkit.registry import Registry

AMD64, ARM64 = parse_platform("linux/amd64"), parse_platform("linux/arm64")
NOBODY = NoActivity()
# The user "me" with the password "pw"; Docker's registry takes bcrypt only.
HTPASSWD = "me:$2b$04$ueNfo6e8XWOGzeVk3WBTOOPy75IIlgD07SmizOiGWcDoyiTqgHpDC\n"


def require(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{program} isn't installed")
        pytest.skip(f"{program} isn't installed")
    return found


@dataclass(frozen=True)
class DockerRegistry:
    address: str

    def refer(self, name: str) -> Reference:
        return parse_reference(f"{self.address}/{name}")


@contextmanager
def running_registry(folder: Path, htpasswd: str = "") -> Iterator[DockerRegistry]:
    program = require("docker-registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = (
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'store'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    if htpasswd:
        (folder / "htpasswd").write_text(htpasswd)
        config += f"auth: {{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}\n"
    (folder / "config.yml").write_text(config)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "serve", str(folder / "config.yml")], stdout=log, stderr=log
        )
    try:
        wait_for_port(process, port, folder / "log")
        yield DockerRegistry(f"127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(10)


def wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"docker-registry doesn't start: {log.read_text()}")


def skopeo(folder: Path, *arguments: str) -> None:
    """Run skopeo without the machine's configuration, which may allow nothing."""
    policy = folder / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    environment = {**os.environ, "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}
    command = [require("skopeo"), "--policy", str(policy), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def layer(name: str, size: int) -> tuple[bytes, str]:
    """A gzip layer with one file, and its diff id."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = size
        content = hashlib.shake_128(name.encode()).digest(size)
        archive.addfile(member, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), 1, mtime=0), digest_of(buffer.getvalue())


def fill(registry: Registry) -> None:
    """An index of two platforms, with the tag app:1, and an image of one, solo:1."""
    images = []
    for platform in (AMD64, ARM64):
        layers = [layer(f"{platform.architecture}-{number}", 300_000) for number in range(3)]
        config = {
            "os": platform.os,
            "architecture": platform.architecture,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
        }
        blobs = [blob for blob, _ in layers]
        images.append((registry.add_image("app", config, blobs), platform))
        registry.add_image(f"solo:{platform.architecture}", config, blobs)
    registry.add_index("app:1", images)


class Store:
    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    @contextmanager
    def sink(self, descriptor: Descriptor) -> Iterator[Sink]:
        store, content = self, bytearray()

        class Buffer:
            def write(self, piece: bytes, /) -> None:
                content.extend(piece)

            def restart(self) -> None:
                content.clear()

            def commit(self) -> None:
                store.blobs[descriptor.digest] = bytes(content)

        yield Buffer()


def copy(folder: Path, source: str, target: str, *options: str) -> None:
    tls = ("--src-tls-verify=false", "--dest-tls-verify=false")
    skopeo(folder, "copy", "--all", *tls, *options, f"docker://{source}", f"docker://{target}")


def test_an_image_is_pulled_from_dockers_registry(tmp_path: Path) -> None:
    with Registry() as ours, running_registry(tmp_path) as theirs, RegistryClient() as client:
        fill(ours)
        copy(tmp_path, f"{ours.address}/app:1", f"{theirs.address}/team/app:1")
        reference = theirs.refer("team/app:1")
        for platform in (AMD64, ARM64):
            image = fetch_image(client, reference, platform, NOBODY)
            assert image.target == client.resolve(reference)
            assert json.loads(image.config_bytes)["architecture"] == platform.architecture
            store = Store()
            download_all(client, reference, image.layers, store.sink, NOBODY)
            kept = ours.blobs("app")
            assert store.blobs == {one.digest: kept[one.digest] for one in image.layers}
        image = fetch_image(client, reference, ARM64, NOBODY)
        by_digest = theirs.refer(f"team/app@{image.descriptor.digest}")
        assert client.manifest(by_digest) == (image.descriptor, image.manifest_bytes)
        blob = image.layers[0]
        with client.blob(reference, blob, 1000) as stream:
            rest = b"".join(iter(stream.read, b""))
        assert rest == ours.blobs("app")[blob.digest][1000:]
        with pytest.raises(ImageNotFound):
            client.manifest(theirs.refer("team/app:2"))
        with pytest.raises(ImageNotFound):
            client.manifest(theirs.refer("nothing:1"))


def test_dockers_registry_with_a_login(tmp_path: Path) -> None:
    with Registry() as ours, running_registry(tmp_path, HTPASSWD) as theirs:
        fill(ours)
        copy(
            tmp_path,
            f"{ours.address}/solo:amd64",
            f"{theirs.address}/solo:1",
            "--dest-creds",
            "me:pw",
        )
        login = {"auths": {theirs.address: {"username": "me", "password": "pw"}}}
        with RegistryClient(credentials=DockerCredentials(login)) as client:
            image = fetch_image(client, theirs.refer("solo:1"), AMD64, NOBODY)
            assert len(image.layers) == 3
        with RegistryClient() as client, pytest.raises(AuthenticationRequired) as caught:
            client.manifest(theirs.refer("solo:1"))
        assert f"docker login {theirs.address}" in (caught.value.hint or "")


@pytest.mark.parametrize("tokens", [None, False, True], ids=["open", "basic", "tokens"])
def test_skopeo_pushes_to_our_registry(tmp_path: Path, tokens: bool | None) -> None:
    login = {} if tokens is None else {"username": "me", "password": "pw", "tokens": tokens}
    options = () if tokens is None else ("--dest-creds", "me:pw")
    with Registry() as source, Registry(**login) as target:  # type: ignore[arg-type]
        fill(source)
        copy(tmp_path, f"{source.address}/app:1", f"{target.address}/copied:1", *options)
        assert target.read_manifest("copied:1") == source.read_manifest("app:1")
        assert target.blobs("copied") == source.blobs("app")
        copy(
            tmp_path,
            f"{source.address}/solo:amd64",
            f"{target.address}/docker:1",
            *options,
            "--format",
            "v2s2",
        )
        assert "docker.distribution.manifest.v2" in target.read_manifest("docker:1")[0].media_type
