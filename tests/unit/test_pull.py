from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from promptness import AT_ONCE
from pybuild.errors import BuildCancelled, InvalidImage, PlatformMismatch, RegistryError
from pybuild.oci.descriptor import OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST, Descriptor
from pybuild.oci.http import NoActivity
from pybuild.oci.platform import Platform, parse_platform
from pybuild.oci.pull import download, download_all, fetch_blob, fetch_image
from pybuild.oci.reference import Reference, parse_reference
from pybuild.oci.registry import RegistryClient
from pybuild.oci.session import Retry
from pybuild.oci.sinks import Sink
from pybuild.testkit.registry import Fault, Registry

AMD64, ARM64 = parse_platform("linux/amd64"), parse_platform("linux/arm64")
NOBODY = NoActivity()
MIB = 1 << 20


class Store:
    """Keeps committed blobs; its sinks forget the others."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.open = 0

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

        self.open += 1
        try:
            yield Buffer()
        finally:
            self.open -= 1


class Watcher:
    """An activity that records progress and can be cancelled."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, int, int | None]] = []
        self._cancelled = threading.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def progress(self, item: str, done: int, total: int | None) -> None:
        self.reports.append((item, done, total))

    def raise_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise BuildCancelled("cancelled")

    @contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        with self._lock:
            self._callbacks.append(callback)
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.remove(callback)

    def cancel(self) -> None:
        self._cancelled.set()
        with self._lock:
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as made:
        yield made


@pytest.fixture
def client() -> Iterator[RegistryClient]:
    with RegistryClient(retry=Retry(attempts=3, first_delay=0.001)) as made:
        yield made


def refer(registry: Registry, name: str) -> Reference:
    return parse_reference(f"{registry.address}/{name}")


def config(platform: str = "linux/amd64", **more: Any) -> dict[str, Any]:
    os, architecture = platform.split("/")
    return {"os": os, "architecture": architecture} | more


def content(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(size)


def blob_of(registry: Registry, data: bytes) -> Descriptor:
    return Descriptor(OCI_LAYER_GZIP, registry.add_blob("a", data), len(data))


def two_platforms(registry: Registry) -> dict[Platform, Descriptor]:
    images = {
        platform: registry.add_image("app", config(str(platform)), [str(platform).encode()])
        for platform in (AMD64, ARM64)
    }
    registry.add_index("app:1", [(image, platform) for platform, image in images.items()])
    return images


def test_an_image_without_an_index_is_fetched(registry: Registry, client: RegistryClient) -> None:
    stored = registry.add_image("app:1", b'{"os":"linux"}', [b"one", b"two"])
    image = fetch_image(client, refer(registry, "app:1"), AMD64, NOBODY)
    assert image.descriptor == image.target == stored
    assert image.config_bytes == b'{"os":"linux"}'
    assert [layer.size for layer in image.layers] == [3, 3]
    assert image.indexes == ()
    assert image.platform is None


def test_the_image_for_the_platform_is_chosen(registry: Registry, client: RegistryClient) -> None:
    images = two_platforms(registry)
    image = fetch_image(client, refer(registry, "app:1"), ARM64, NOBODY)
    assert image.descriptor == images[ARM64]
    assert image.platform == ARM64
    assert image.target.media_type == OCI_INDEX
    assert image.indexes == (registry.read_manifest("app:1"),)


def test_a_missing_platform_is_told_with_those_there_are(
    registry: Registry, client: RegistryClient
) -> None:
    two_platforms(registry)
    with pytest.raises(PlatformMismatch, match="isn't made for linux/s390x") as caught:
        fetch_image(client, refer(registry, "app:1"), parse_platform("linux/s390x"), NOBODY)
    assert caught.value.hint == "it has linux/amd64, linux/arm64"


def test_an_index_in_an_index_is_followed_once(registry: Registry, client: RegistryClient) -> None:
    image = registry.add_image("app", config())
    inner = registry.add_index("app", [(image, AMD64)])
    outer = registry.add_index("app:2", [(inner, None)])
    registry.add_index("app:3", [(outer, None)])
    fetched = fetch_image(client, refer(registry, "app:2"), AMD64, NOBODY)
    assert fetched.descriptor == image
    assert [descriptor for descriptor, _ in fetched.indexes] == [outer, inner]
    with pytest.raises(InvalidImage, match="nested"):
        fetch_image(client, refer(registry, "app:3"), AMD64, NOBODY)


def test_an_entry_without_a_platform_goes_by_its_config(
    registry: Registry, client: RegistryClient
) -> None:
    image = registry.add_image("app", config("linux/arm64"))
    registry.add_index("app:1", [(image, None)])
    assert fetch_image(client, refer(registry, "app:1"), ARM64, NOBODY).descriptor == image
    with pytest.raises(PlatformMismatch) as caught:
        fetch_image(client, refer(registry, "app:1"), AMD64, NOBODY)
    assert caught.value.hint == "it is made for linux/arm64"


def test_a_manifest_of_another_size_is_refused(registry: Registry, client: RegistryClient) -> None:
    image = registry.add_image("app", config())
    wrong = Descriptor(OCI_MANIFEST, image.digest, image.size + 1)
    registry.add_index("app:1", [(wrong, AMD64)])
    with pytest.raises(InvalidImage, match="bytes, not"):
        fetch_image(client, refer(registry, "app:1"), AMD64, NOBODY)


def test_a_small_blob_is_bounded(registry: Registry, client: RegistryClient) -> None:
    blob = blob_of(registry, b"abc")
    assert fetch_blob(client, refer(registry, "a"), blob, 3, NOBODY) == b"abc"
    with pytest.raises(InvalidImage, match="over 2"):
        fetch_blob(client, refer(registry, "a"), blob, 2, NOBODY)


def test_a_blob_arrives_whole_with_progress(registry: Registry, client: RegistryClient) -> None:
    store, watcher = Store(), Watcher()
    data = content(3 * MIB + 5)
    blob = blob_of(registry, data)
    download(client, refer(registry, "a"), blob, store.sink, watcher)
    assert store.blobs == {blob.digest: data}
    done = [report[1] for report in watcher.reports]
    assert done == sorted(done)
    assert watcher.reports[-1] == (blob.digest, blob.size, blob.size)


@pytest.mark.parametrize("size", [0, 1, MIB])
def test_any_size_of_blob_arrives(registry: Registry, client: RegistryClient, size: int) -> None:
    store = Store()
    blob = blob_of(registry, content(size))
    download(client, refer(registry, "a"), blob, store.sink, NOBODY)
    assert len(store.blobs[blob.digest]) == size


def test_a_download_continues_where_it_broke(registry: Registry, client: RegistryClient) -> None:
    store = Store()
    blob = blob_of(registry, content(8 * MIB))
    # It breaks seven times, though three attempts are allowed: each got further.
    registry.add_fault(Fault("/blobs/", truncate=MIB, times=7))
    download(client, refer(registry, "a"), blob, store.sink, NOBODY)
    assert len(store.blobs[blob.digest]) == blob.size
    ranges = [request.headers.get("range") for request in registry.requested("GET", "blobs")]
    assert ranges == [None, *(f"bytes={n * MIB}-" for n in range(1, 8))]


def test_a_download_that_gets_nowhere_ends(registry: Registry, client: RegistryClient) -> None:
    store = Store()
    registry.add_fault(Fault("/blobs/", truncate=10, times=None))
    with pytest.raises(RegistryError):
        download(client, refer(registry, "a"), blob_of(registry, content(MIB)), store.sink, NOBODY)
    assert store.blobs == {}
    assert len(registry.requests) == 3


@pytest.mark.parametrize("where", ["first", "always"])
def test_wrong_bytes_are_fetched_once_more(
    registry: Registry, client: RegistryClient, where: str
) -> None:
    store = Store()
    data = content(MIB)
    blob = blob_of(registry, data)
    wrong = bytes([data[0] ^ 1]) + data[1:]
    registry.add_fault(Fault("/blobs/", content=wrong, times=1 if where == "first" else None))
    if where == "first":
        download(client, refer(registry, "a"), blob, store.sink, NOBODY)
        assert store.blobs == {blob.digest: data}
        return
    with pytest.raises(InvalidImage, match="other bytes"):
        download(client, refer(registry, "a"), blob, store.sink, NOBODY)
    assert store.blobs == {}
    assert len(registry.requests) == 2


def test_other_bytes_in_each_attempt_make_a_digest_error(
    registry: Registry, client: RegistryClient
) -> None:
    store = Store()
    data = content(2 * MIB)
    blob = blob_of(registry, data)
    for _ in range(2):
        registry.add_fault(Fault("/blobs/", truncate=MIB))
        registry.add_fault(Fault("/blobs/", content=content(2 * MIB, seed=1)))
    with pytest.raises(InvalidImage, match="other bytes"):
        download(client, refer(registry, "a"), blob, store.sink, NOBODY)
    assert store.blobs == {}


def test_several_blobs_arrive_in_parallel_and_each_once(
    registry: Registry, client: RegistryClient
) -> None:
    store = Store()
    blobs = [blob_of(registry, content(1000, seed)) for seed in range(8)]
    registry.add_fault(Fault("/blobs/", delay=0.5, times=None))
    began = time.monotonic()
    download_all(client, refer(registry, "a"), [*blobs, *blobs], store.sink, NOBODY, workers=4)
    assert time.monotonic() - began < 3
    assert store.blobs.keys() == {blob.digest for blob in blobs}
    assert len(registry.requested("GET", "blobs")) == 8


def test_the_first_failure_stops_the_others(registry: Registry, client: RegistryClient) -> None:
    store = Store()
    good = [blob_of(registry, content(1000, seed)) for seed in range(6)]
    bad = blob_of(registry, b"bad")
    registry.add_fault(Fault(bad.digest, content=b"BAD", times=None))
    registry.add_fault(Fault("/blobs/", delay=10, times=None))
    began = time.monotonic()
    with pytest.raises(InvalidImage, match="other bytes"):
        download_all(client, refer(registry, "a"), [*good, bad], store.sink, NOBODY, workers=7)
    assert time.monotonic() - began < AT_ONCE
    assert (store.blobs, store.open) == ({}, 0)


def test_a_cancel_ends_all_at_once(registry: Registry, client: RegistryClient) -> None:
    store, watcher = Store(), Watcher()
    blobs = [blob_of(registry, content(1000, seed)) for seed in range(6)]
    registry.add_fault(Fault("/blobs/", pace=(10, 5), times=None))
    timer = threading.Timer(0.3, watcher.cancel)
    timer.start()
    began = time.monotonic()
    with pytest.raises(BuildCancelled):
        download_all(client, refer(registry, "a"), blobs, store.sink, watcher)
    assert time.monotonic() - began < AT_ONCE
    assert (store.blobs, store.open) == ({}, 0)
    timer.join()


def test_a_cancel_ends_the_wait_before_a_repetition(registry: Registry) -> None:
    watcher = Watcher()
    registry.add_fault(Fault(".", status=503, times=None))
    timer = threading.Timer(0.2, watcher.cancel)
    timer.start()
    began = time.monotonic()
    with (
        RegistryClient(retry=Retry(first_delay=30, longest_delay=30)) as slow,
        pytest.raises(BuildCancelled),
    ):
        fetch_image(slow, refer(registry, "app:1"), AMD64, watcher)
    assert time.monotonic() - began < AT_ONCE
    timer.join()


def test_a_sinks_own_error_passes(registry: Registry, client: RegistryClient) -> None:
    class Full:
        def write(self, piece: bytes, /) -> None:
            raise OSError(28, "No space left on device")

        def restart(self) -> None:
            raise AssertionError("there is nothing to fetch again")

        def commit(self) -> None:
            raise AssertionError("there is nothing to keep")

    @contextmanager
    def open_full(descriptor: Descriptor) -> Iterator[Sink]:
        yield Full()

    with pytest.raises(OSError, match="No space left"):
        download(client, refer(registry, "a"), blob_of(registry, b"abc"), open_full, NOBODY)
