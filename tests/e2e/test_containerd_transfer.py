"""Pulls by the transfer service of a real containerd."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from promptness import AT_ONCE
from pybuild.backend import BaseImage, PullPolicy
from pybuild.errors import (
    AuthenticationRequired,
    BuildCancelled,
    ImageError,
    ImageNotFound,
    InvalidImage,
)
from pybuild.oci.image_config import ImageConfig, serialize_config
from pybuild.oci.layerwriter import write_layer
from pybuild.oci.platform import Platform
from pybuild.oci.reference import parse_reference
from pybuild.testkit.containerd import PrivateContainerd, check_nothing_left, private_containerd
from pybuild.testkit.registry import Fault, Registry
from pybuild.testkit.workbench import RecordingActivity, Workbench, content, file
from pybuild_containerd.backend import ContainerdBackend, open_backend
from pybuild_containerd.transferring import TransferService, WantedImage

pytestmark = [pytest.mark.root, pytest.mark.containerd]

HERE = Platform("linux", "amd64")
ELSEWHERE = Platform("linux", "s390x")
LOGIN = "bWU6cHc="  # me:pw
_VERIFIERS = """
[plugins."io.containerd.image-verifier.v1.bindir"]
bin_dir = "{folder}"
max_verifiers = 10
per_verifier_timeout = "10s"
"""


class Store:
    """A namespace of the session's containerd, for one test."""

    def __init__(self, daemon: PrivateContainerd, namespace: str, cache: Path) -> None:
        self._daemon = daemon
        self._namespace = namespace
        self._cache = cache

    def open(self, **options: object) -> ContainerdBackend:
        given = {"address": self._daemon.address, "namespace": self._namespace}
        backend = open_backend({**given, "cache_dir": self._cache, **options})
        assert isinstance(backend, ContainerdBackend)
        return backend

    def ctr(self, *arguments: str) -> str:
        command = ["ctr", "-a", self._daemon.address, "-n", self._namespace, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def anywhere(
    containerd: PrivateContainerd, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Store]:
    """A store of any containerd."""
    name = f"transfer-{abs(hash(request.node.nodeid))}"
    yield Store(containerd, name, tmp_path / "cache")
    check_nothing_left(containerd.address, name, containerd.folder)


@pytest.fixture
def store(anywhere: Store) -> Store:
    """A store of a containerd that has the service."""
    with anywhere.open() as backend:
        if dict(backend.describe())["transfer service"] == "no":
            pytest.skip("inherent: this containerd has no transfer service")
    return anywhere


class Activity(RecordingActivity):
    """Keeps the progress, and can cancel at the first of it."""

    def __init__(self, *, cancels: bool = False) -> None:
        super().__init__()
        self.told: list[tuple[str, int, int | None]] = []
        self._cancels = cancels

    def progress(self, item: str, done: int, total: int | None) -> None:
        self.told.append((item, done, total))
        if self._cancels and done:
            self.cancel()


def add(registry: Registry, name: str, platform: Platform = HERE, *, size: int = 0) -> Any:
    """An image of two layers in the registry, such as no namespace has yet; its manifest."""
    layers, diff_ids = [], []
    for path, text in ((b"name", f"{name} {platform}".encode()), (b"more", bytes(size))):
        blob = bytearray()
        new = file(b"new", secrets.token_bytes())
        written = write_layer([file(path, text), new], blob.extend)
        layers.append(bytes(blob))
        diff_ids.append(written.diff.diff_id)
    config = serialize_config(ImageConfig(platform, diff_ids=tuple(diff_ids)))
    return registry.add_image(name, config, layers)


def pull(
    backend: ContainerdBackend,
    name: str,
    activity: RecordingActivity | None = None,
    policy: PullPolicy = PullPolicy.ALWAYS,
) -> tuple[BaseImage, bytes]:
    """Resolve and check out; the image and its file "name"."""
    activity = activity or RecordingActivity()
    base = backend.resolve(parse_reference(name), HERE, policy, activity)
    with backend.checkout(base, activity) as layer:
        return base, content(layer, b"name")


def fetchers(registry: Registry, base: BaseImage) -> set[str]:
    """The programs that asked for the image's layers."""
    digests = {layer.blob.digest for layer in base.layers}
    return {
        request.headers["user-agent"].partition("/")[0]
        for request in registry.requests
        if request.method == "GET" and request.path.rpartition("/")[2] in digests
    }


def test_the_backend_says_who_pulls(anywhere: Store) -> None:
    with anywhere.open() as backend, anywhere.open(pull="own") as own:
        found = dict(backend.describe())
        there = found["transfer service"] == "yes"
        assert found["images are pulled by"] == ("containerd" if there else "pybuild")
        assert dict(own.describe())["images are pulled by"] == "pybuild"


def test_containerd_fetches_the_layers_and_the_image_is_complete(
    store: Store, registry: Registry
) -> None:
    listed = [(add(registry, f"app:{p.architecture}", p), p) for p in (ELSEWHERE, HERE)]
    index = registry.add_index("app:1", listed)
    name = f"{registry.address}/app:1"
    activity = Activity()
    with store.open() as backend, Workbench(backend, "") as bench:
        base, text = pull(backend, name, activity)
        assert text == b"app:amd64 linux/amd64"
        layer = bench.hold(backend.checkout(base, bench.activity))
        bench.create(bench.put(layer, file(b"own", b"x")), "made", base=base)
    assert fetchers(registry, base) == {"containerd"}
    for layer_diff in base.layers:
        size = layer_diff.blob.size
        assert (layer_diff.blob.digest, size, size) in activity.told
    lines = {line.split()[0]: line for line in store.ctr("images", "check").splitlines()[1:]}
    assert "complete (3/3)" in lines[name] or "complete (4/4)" in lines[name]
    assert "complete" in lines["docker.io/library/made:latest"]
    assert index.digest in store.ctr("images", "ls")
    before = len(registry.requests)
    with store.open() as backend:
        assert pull(backend, name, policy=PullPolicy.NEVER)[0] == base
    assert len(registry.requests) == before


def test_no_layer_is_fetched_before_it_is_needed(store: Store, registry: Registry) -> None:
    add(registry, "app:1")
    with store.open() as backend:
        name = parse_reference(f"{registry.address}/app:1")
        base = backend.resolve(name, HERE, PullPolicy.ALWAYS, RecordingActivity())
        assert fetchers(registry, base) == set()
    assert store.ctr("images", "ls", "-q") == ""


def test_with_the_own_pull_chosen_containerd_asks_for_nothing(
    store: Store, registry: Registry
) -> None:
    add(registry, "app:1")
    with store.open(pull="own") as backend:
        base, _ = pull(backend, f"{registry.address}/app:1")
    assert fetchers(registry, base) == {"pybuild"}


@pytest.mark.parametrize("tokens", [False, True])
def test_containerd_logs_in_with_dockers_login(store: Store, tmp_path: Path, tokens: bool) -> None:
    with Registry(username="me", password="pw", tokens=tokens) as registry:
        add(registry, "app:1")
        config = tmp_path / "config.json"
        config.write_text(f'{{"auths": {{"{registry.address}": {{"auth": "{LOGIN}"}}}}}}')
        with store.open(docker_config=config) as backend:
            base, _ = pull(backend, f"{registry.address}/app:1")
        assert fetchers(registry, base) == {"containerd"}
        with store.open() as backend, pytest.raises(AuthenticationRequired):
            pull(backend, f"{registry.address}/app:1")


def test_containerd_uses_our_hosts_file_for_a_mirror(
    store: Store, registry: Registry, tmp_path: Path
) -> None:
    add(registry, "app:1")
    folder = tmp_path / "hosts" / "registry.invalid"
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(f'[host."{registry.url}"]\n')
    with store.open(hosts_dir=tmp_path / "hosts") as backend:
        base, _ = pull(backend, "registry.invalid/app:1")
    assert fetchers(registry, base) == {"containerd"}
    assert "registry.invalid/app:1" in store.ctr("images", "ls", "-q")


def test_what_containerd_cannot_pull_pybuild_pulls(
    store: Store, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(registry, "app:1")
    nowhere = f"sha256:{'0' * 64}"
    source = TransferService._source
    monkeypatch.setattr(
        TransferService,
        "_source",
        lambda self, image, stream: source(self, _with_digest(image, nowhere), stream),
    )
    activity = RecordingActivity()
    with store.open() as backend:
        base, text = pull(backend, f"{registry.address}/app:1", activity)
    assert text == b"app:1 linux/amd64"
    assert registry.requested("HEAD", f".*/manifests/{nowhere}"), "containerd wasn't asked"
    assert fetchers(registry, base) == {"pybuild"}
    assert activity.warnings == []


def _with_digest(image: WantedImage, digest: str) -> WantedImage:
    return replace(image, digest=digest)


def test_a_layer_that_is_gone_ends_with_our_own_error(store: Store, registry: Registry) -> None:
    add(registry, "app:1")
    with store.open() as backend:
        name = parse_reference(f"{registry.address}/app:1")
        activity = RecordingActivity()
        base = backend.resolve(name, HERE, PullPolicy.ALWAYS, activity)
        digest = base.layers[0].blob.digest
        registry.add_fault(Fault(f".*{digest}", times=None, status=404))
        with pytest.raises(ImageNotFound):
            backend.checkout(base, activity)
    assert fetchers(registry, base) == {"containerd", "pybuild"}
    assert store.ctr("images", "ls", "-q") == ""


def test_wrong_bytes_are_refused(store: Store, registry: Registry) -> None:
    add(registry, "app:1")
    with store.open() as backend:
        name = parse_reference(f"{registry.address}/app:1")
        activity = RecordingActivity()
        base = backend.resolve(name, HERE, PullPolicy.ALWAYS, activity)
        blob = base.layers[0].blob
        registry.add_fault(Fault(f".*{blob.digest}", times=None, content=bytes(blob.size)))
        with pytest.raises(InvalidImage):
            backend.checkout(base, activity)
        assert blob.digest not in store.ctr("content", "ls", "-q")
    assert store.ctr("images", "ls", "-q") == ""


def test_a_cancelled_transfer_ends_at_once_and_leaves_nothing(
    store: Store, registry: Registry
) -> None:
    add(registry, "app:1", size=300 << 20)
    with store.open() as backend:
        name = parse_reference(f"{registry.address}/app:1")
        base = backend.resolve(name, HERE, PullPolicy.ALWAYS, RecordingActivity())
        slow = Fault(f".*{base.layers[1].blob.digest}", times=None, pace=(10_000, 0.1))
        registry.add_fault(slow)
        activity = Activity(cancels=True)
        started = time.monotonic()
        with pytest.raises(BuildCancelled):
            backend.checkout(base, activity)
        assert time.monotonic() - started < AT_ONCE
    assert store.ctr("images", "ls", "-q") == ""


def test_an_image_that_the_machines_verifiers_forbid_is_not_pulled_otherwise(
    store: Store, registry: Registry, tmp_path: Path
) -> None:
    del store  # has found that there is the service
    add(registry, "app:1")
    verifiers = tmp_path / "verifiers"
    verifiers.mkdir()
    (verifiers / "no").write_text("#!/bin/sh\necho unsigned\nexit 1\n")
    (verifiers / "no").chmod(0o755)
    with private_containerd() as daemon:
        with (daemon.folder / "config.toml").open("a") as config:
            config.write(_VERIFIERS.format(folder=verifiers))
        daemon.restart()
        with (
            Store(daemon, "default", tmp_path / "cache").open() as backend,
            pytest.raises(ImageError, match="unsigned"),
        ):
            pull(backend, f"{registry.address}/app:1")
        check_nothing_left(daemon.address, "default", daemon.folder)


def test_marks_on_the_images_record_stay(store: Store, registry: Registry) -> None:
    add(registry, "app:1")
    name = f"{registry.address}/app:1"
    with store.open() as backend:
        old, _ = pull(backend, name)
    store.ctr("images", "label", name, "mine=1")
    add(registry, "app:1", ELSEWHERE)
    with store.open() as backend:
        new, _ = pull(backend, name)
    assert new.digest != old.digest
    line = store.ctr("images", "ls").splitlines()[1]
    assert new.digest in line
    assert "mine=1" in line
