from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from building import NoActivity, build, image_of, memory_backend

from pybuild.errors import (
    AuthenticationRequired,
    BuildCancelled,
    InvalidImage,
    RegistryError,
)
from pybuild.oci.auth import DockerCredentials
from pybuild.oci.descriptor import OCI_LAYER_GZIP, Descriptor, digest_of
from pybuild.oci.hosts import load_hosts
from pybuild.oci.image_config import ImageConfig
from pybuild.oci.manifest import Documents, ImageDocuments, image_documents, parse_manifest
from pybuild.oci.platform import Platform
from pybuild.oci.push import push_image
from pybuild.oci.reference import parse_reference
from pybuild.oci.registry import RegistryClient
from pybuild.oci.session import Retry
from pybuild.run.activity import CancelToken
from pybuild.testkit.registry import Fault, Registry

QUICK = Retry(attempts=3, first_delay=0.001, longest_wait=1.0)
BIG = hashlib.shake_128(b"layer").digest(5 << 20)
SMALL = b"another layer"
UPLOAD = "/blobs/uploads/[0-9a-f]+"


@pytest.fixture
def client() -> Iterator[RegistryClient]:
    with RegistryClient(retry=QUICK) as made:
        yield made


class Image:
    """Documents and blobs to be pushed; counts how often blobs are opened."""

    def __init__(self, *layers: bytes) -> None:
        self.blobs = {digest_of(layer): layer for layer in layers}
        self.opened: list[str] = []
        named = [Descriptor(OCI_LAYER_GZIP, digest_of(one), len(one)) for one in layers]
        config = ImageConfig(
            Platform("linux", "amd64"), diff_ids=tuple(one.digest for one in named)
        )
        self.documents: ImageDocuments = image_documents(config, named)

    def open(self, digest: str) -> BinaryIO:
        self.opened.append(digest)
        return BytesIO(self.blobs[digest])

    def seed(self, registry: Registry, repository: str) -> None:
        """Have the config there already, so that the layers' requests are the only ones."""
        registry.add_blob(repository, self.documents.config_bytes)

    def push(self, client: RegistryClient, registry: Registry, *names: str, **options: Any) -> None:
        references = [parse_reference(f"{registry.address}/{name}") for name in names]
        activity = options.pop("activity", NoActivity())
        push_image(client, Documents((self.documents,)), self.open, references, activity, **options)


def check(registry: Registry, image: Image, name: str) -> None:
    """The registry has the image whole; it checked every digest itself."""
    descriptor, content = registry.read_manifest(name)
    assert descriptor.digest == image.documents.manifest.digest
    manifest = parse_manifest(content)
    needed = {manifest.config.digest, *(layer.digest for layer in manifest.layers)}
    assert needed <= registry.blobs(name.partition(":")[0]).keys()


def test_an_image_comes_as_a_whole_and_its_manifest_last(
    registry: Registry, client: RegistryClient
) -> None:
    image = Image(BIG, SMALL, SMALL)
    image.push(client, registry, "team/app:1")
    check(registry, image, "team/app:1")
    writes = [one.path for one in registry.requests if one.method == "PUT"]
    assert writes[-1] == "/v2/team/app/manifests/1"
    assert len(writes) == 4
    assert sorted(image.opened) == sorted(image.blobs)


def test_blobs_that_are_there_are_not_sent_again(
    registry: Registry, client: RegistryClient
) -> None:
    image = Image(BIG, SMALL)
    registry.add_blob("team/app", BIG)
    image.push(client, registry, "team/app:1", "team/app:2")
    check(registry, image, "team/app:1")
    check(registry, image, "team/app:2")
    assert image.opened == [digest_of(SMALL)]
    assert len(registry.requested("POST", "/uploads/")) == 2


def test_blobs_of_the_base_image_are_mounted_from_its_repository(
    registry: Registry, client: RegistryClient
) -> None:
    registry.add_blob("library/base", BIG)
    image = Image(BIG, SMALL)
    base = parse_reference(f"{registry.address}/library/base:1")
    elsewhere = parse_reference("elsewhere.example/base:1")
    known = {digest_of(BIG): base, digest_of(SMALL): elsewhere}
    image.push(client, registry, "team/app:1", known=known)
    check(registry, image, "team/app:1")
    assert image.opened == [digest_of(SMALL)]
    assert not any("elsewhere" in one.target for one in registry.requests)


def test_a_second_repository_gets_its_blobs_by_mounting(
    registry: Registry, client: RegistryClient
) -> None:
    image = Image(BIG, SMALL)
    image.push(client, registry, "one:1", "two:1")
    check(registry, image, "two:1")
    assert len(image.opened) == 2
    assert len(registry.requested("PUT", UPLOAD)) == 3


def test_a_mount_that_is_refused_becomes_an_upload(
    registry: Registry, client: RegistryClient
) -> None:
    image = Image(BIG)
    base = parse_reference(f"{registry.address}/gone:1")
    image.push(client, registry, "app:1", known={digest_of(BIG): base})
    check(registry, image, "app:1")
    image.seed(registry, "other")
    registry.add_fault(Fault("/v2/other/blobs/uploads/$", "POST", status=405))
    image.push(client, registry, "other:1", known={digest_of(BIG): base})
    check(registry, image, "other:1")


def test_an_upload_that_breaks_off_goes_on_where_the_registry_says(
    registry: Registry, client: RegistryClient
) -> None:
    image = Image(BIG)
    image.seed(registry, "app")
    registry.add_fault(Fault(UPLOAD, "PUT", take=2 << 20))
    registry.add_fault(Fault(UPLOAD, "PUT", take=1 << 20))
    image.push(client, registry, "app:1")
    check(registry, image, "app:1")
    begun = [one.headers.get("content-range", "") for one in registry.requested("PUT", UPLOAD)]
    last = len(BIG) - 1
    assert begun == ["", f"{2 << 20}-{last}", f"{3 << 20}-{last}"]


def test_progress_is_what_makes_an_upload_last(registry: Registry, client: RegistryClient) -> None:
    image = Image(BIG)
    image.seed(registry, "app")
    registry.add_fault(Fault(UPLOAD, "PUT", take=1 << 20, times=4))
    image.push(client, registry, "app:1")
    check(registry, image, "app:1")
    crawling = Image(b"x" + BIG)
    crawling.seed(registry, "app")
    registry.add_fault(Fault(UPLOAD, "PUT", take=100, times=None))
    with pytest.raises(RegistryError, match="connection broke"):
        crawling.push(client, registry, "app:2")


@pytest.mark.parametrize("answer", [{"Range": "0-0"}, {"Range": None}, {"Range": "5-9"}])
def test_an_upload_of_which_nothing_is_known_begins_anew(
    registry: Registry, client: RegistryClient, answer: dict[str, str | None]
) -> None:
    image = Image(BIG)
    image.seed(registry, "app")
    registry.add_fault(Fault(UPLOAD, "PUT", take=1 << 20))
    registry.add_fault(Fault(UPLOAD, "GET", headers=answer))
    image.push(client, registry, "app:1")
    check(registry, image, "app:1")
    assert len(registry.requested("POST", "/uploads/")) == 2


def test_a_lost_upload_begins_anew(registry: Registry, client: RegistryClient) -> None:
    image = Image(BIG)
    image.seed(registry, "app")
    registry.add_fault(Fault(UPLOAD, "PUT", take=1 << 20, times=2))
    registry.add_fault(Fault(UPLOAD, "GET", status=404, times=None))
    image.push(client, registry, "app:1")
    check(registry, image, "app:1")
    assert not any("content-range" in one.headers for one in registry.requested("PUT", UPLOAD))


def test_an_answer_that_gets_lost_is_no_failure(registry: Registry, client: RegistryClient) -> None:
    image = Image(SMALL)
    registry.add_fault(Fault(UPLOAD, "PUT", finish=True, reset=True, times=2))
    image.push(client, registry, "app:1")
    check(registry, image, "app:1")
    assert len(registry.requested("PUT", UPLOAD)) == 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_is_temporary_is_tried_again(
    registry: Registry, client: RegistryClient, status: int
) -> None:
    headers = {"Retry-After": "0"}
    for method, path in (("HEAD", "/blobs/"), ("POST", "/uploads/"), ("PUT", UPLOAD)):
        registry.add_fault(Fault(path, method, status=status, headers=headers, times=2))
    registry.add_fault(Fault("/manifests/", "PUT", status=status, headers=headers))
    image = Image(SMALL)
    image.push(client, registry, "app:1")
    check(registry, image, "app:1")


def test_a_registry_that_keeps_failing_is_given_up_with_its_words(
    registry: Registry, client: RegistryClient
) -> None:
    body = b'{"errors": [{"code": "UNAVAILABLE", "message": "disk full"}]}'
    registry.add_fault(Fault(UPLOAD, "PUT", status=503, body=body, times=None))
    with pytest.raises(RegistryError, match=r"answered 503 for app \(UNAVAILABLE: disk full\)"):
        Image(SMALL).push(client, registry, "app:1")
    assert len(registry.requested("PUT", f"{UPLOAD}$")) <= 2 * QUICK.attempts


def test_a_wait_that_is_too_long_is_an_error_at_once(
    registry: Registry, client: RegistryClient
) -> None:
    registry.add_fault(
        Fault(UPLOAD, "PUT", status=429, headers={"Retry-After": "3600"}, times=None)
    )
    with pytest.raises(RegistryError, match="allows no more requests"):
        Image(SMALL).push(client, registry, "app:1")


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, AuthenticationRequired, "refuses to push to app without a login"),
        (403, AuthenticationRequired, "refuses to push to app without a login"),
        (404, RegistryError, "has no repository app to push to"),
        (405, RegistryError, "answered 405 for app"),
    ],
)
def test_a_refusal_says_what_to_do(
    registry: Registry, client: RegistryClient, status: int, error: type[Exception], message: str
) -> None:
    registry.add_fault(Fault("/uploads/", "POST", status=status, times=None))
    with pytest.raises(error, match=message) as caught:
        Image(SMALL).push(client, registry, "app:1")
    assert type(caught.value) is error


def test_a_damaged_blob_is_never_pushed(registry: Registry, client: RegistryClient) -> None:
    image = Image(BIG, SMALL)
    image.blobs[digest_of(BIG)] = b"x" + BIG[1:]
    with pytest.raises(InvalidImage, match="is damaged"):
        image.push(client, registry, "app:1")
    assert registry.requested("PUT", "/manifests/") == []
    assert digest_of(BIG) not in registry.blobs("app")


@pytest.mark.parametrize("tokens", [False, True])
def test_a_login_is_used_for_everything(tokens: bool) -> None:
    with Registry(username="me", password="pw", tokens=tokens) as registry:
        registry.add_blob("base", BIG)
        login = DockerCredentials(
            {"auths": {registry.address: {"username": "me", "password": "pw"}}}
        )
        with RegistryClient(None, login, retry=QUICK) as client:
            image = Image(BIG, SMALL)
            base = parse_reference(f"{registry.address}/base")
            image.push(client, registry, "app:1", known={digest_of(BIG): base})
            check(registry, image, "app:1")
            assert image.opened == [digest_of(SMALL)]
            registry.expire_tokens()
            Image(b"later").push(client, registry, "app:2")


def test_a_repository_that_may_not_be_read_is_not_mounted_from() -> None:
    with Registry(username="me", password="pw", tokens=True) as registry:
        registry.closed.add("base")
        registry.add_blob("base", BIG)
        login = DockerCredentials(
            {"auths": {registry.address: {"username": "me", "password": "pw"}}}
        )
        with RegistryClient(None, login, retry=QUICK) as client:
            image = Image(BIG)
            base = parse_reference(f"{registry.address}/base")
            image.push(client, registry, "app:1", known={digest_of(BIG): base})
            check(registry, image, "app:1")


def test_a_login_that_may_only_read_is_told_so() -> None:
    with Registry(username="me", password="pw", tokens=True) as registry:
        registry.read_only.add("app")
        login = DockerCredentials(
            {"auths": {registry.address: {"username": "me", "password": "pw"}}}
        )
        with (
            RegistryClient(None, login, retry=QUICK) as client,
            pytest.raises(AuthenticationRequired, match="refuses to push to app to your login"),
        ):
            Image(SMALL).push(client, registry, "app:1")


def test_no_login_is_told_so() -> None:
    with (
        Registry(username="me", password="pw", tokens=True) as registry,
        RegistryClient(retry=QUICK) as client,
        pytest.raises(AuthenticationRequired, match="without a login"),
    ):
        Image(SMALL).push(client, registry, "app:1")


def test_credentials_do_not_follow_an_upload_to_another_host() -> None:
    with Registry() as store, Registry(username="me", password="pw") as registry:
        digest = digest_of(SMALL)
        upload = store.begin_upload()
        location = f"{store.url}/v2/app/blobs/uploads/{upload}?signature=s"
        registry.add_fault(
            Fault("/uploads/", "POST", status=202, headers={"Location": location}, times=1)
        )
        login = DockerCredentials(
            {"auths": {registry.address: {"username": "me", "password": "pw"}}}
        )
        image = Image(SMALL)
        registry.add_blob("app", image.documents.config_bytes)
        with RegistryClient(None, login, retry=QUICK) as client:
            registry.add_fault(Fault("/manifests/", "PUT", status=201))
            image.push(client, registry, "app:1")
        (sent,) = store.requested("PUT", "/uploads/")
        assert store.blobs("app") == {digest: SMALL}
        assert "signature=s&digest=sha256%3A" in sent.target
        assert "authorization" not in sent.headers


@pytest.mark.parametrize("location", ["ftp://h.example/x", "http://me:pw@h.example/", "//["])
def test_a_location_where_nothing_may_be_sent_is_refused(
    registry: Registry, client: RegistryClient, location: str
) -> None:
    registry.add_fault(
        Fault("/uploads/", "POST", status=202, headers={"Location": location}, times=None)
    )
    with pytest.raises(RegistryError, match="redirects"):
        Image(SMALL).push(client, registry, "app:1")


def test_an_upload_without_a_location_is_an_error(
    registry: Registry, client: RegistryClient
) -> None:
    registry.add_fault(Fault("/uploads/", "POST", status=202, times=None))
    with pytest.raises(RegistryError, match="where to upload to"):
        Image(SMALL).push(client, registry, "app:1")


def test_a_manifest_that_is_stored_as_another_is_an_error(
    registry: Registry, client: RegistryClient
) -> None:
    headers = {"Docker-Content-Digest": "sha256:" + "0" * 64}
    registry.add_fault(Fault("/manifests/", "PUT", headers=headers))
    with pytest.raises(RegistryError, match="stored the manifest"):
        Image(SMALL).push(client, registry, "app:1")


def test_the_first_failure_stops_the_other_uploads(
    registry: Registry, client: RegistryClient
) -> None:
    registry.add_fault(Fault(f"/blobs/{digest_of(SMALL)}", "HEAD", status=400, times=None))
    registry.add_fault(Fault(UPLOAD, "PUT", delay=30, times=None))
    began = time.monotonic()
    with pytest.raises(RegistryError, match="answered 400"):
        Image(BIG, SMALL).push(client, registry, "app:1")
    assert time.monotonic() - began < 25


def test_a_cancel_ends_a_stalled_upload(registry: Registry, client: RegistryClient) -> None:
    registry.add_fault(Fault(UPLOAD, "PUT", delay=60, times=None))
    token = CancelToken()

    class Cancellable(NoActivity):
        def progress(self, item: str, done: int, total: int | None) -> None:
            threading.Timer(0.1, token.cancel).start()

        def raise_if_cancelled(self) -> None:
            token.raise_if_cancelled()

        def on_cancel(self, callback: Any) -> AbstractContextManager[None]:
            return token.on_cancel(callback)

    began = time.monotonic()
    with pytest.raises(BuildCancelled):
        Image(SMALL).push(client, registry, "app:1", activity=Cancellable())
    assert time.monotonic() - began < 30
    assert registry.requested("PUT", "/manifests/") == []


def test_a_hosts_file_says_where_to_push(registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "registry.example"
    folder.mkdir()
    with Registry() as mirror:
        (folder / "hosts.toml").write_text(
            f'[host."{mirror.url}"]\ncapabilities = ["pull"]\n'
            f'[host."{registry.url}"]\ncapabilities = ["pull", "resolve", "push"]\n'
        )
        image = Image(SMALL)
        with RegistryClient(load_hosts(tmp_path), retry=QUICK) as client:
            name = parse_reference("registry.example/app:1")
            push_image(client, Documents((image.documents,)), image.open, [name], NoActivity())
        check(registry, image, "app:1")
        assert mirror.requests == []
        assert all("ns=registry.example" in one.target for one in writes(registry.requests))


def writes(requests: Sequence[Any]) -> list[Any]:
    return [one for one in requests if one.method == "POST"]


def test_a_build_is_pushed_under_all_its_names(registry: Registry) -> None:
    with memory_backend() as backend, RegistryClient(retry=QUICK) as client:
        result = build(
            backend,
            "FROM busybox\nRUN echo x > /x\n",
            tags=[f"{registry.address}/app:1"],
            outputs=[f"type=image,push=true,name={registry.address}/other:2"],
            registry=client,
        )
        assert result.names == (f"{registry.address}/app:1", f"{registry.address}/other:2")
        for name in ("app:1", "other:2"):
            assert registry.read_manifest(name)[0].digest == result.digest
        assert image_of(backend, f"{registry.address}/other:2").digest == result.digest


def test_a_build_pushed_by_digest_sets_no_tag(registry: Registry) -> None:
    with memory_backend() as backend:
        result = build(
            backend,
            "FROM busybox\n",
            tags=[f"{registry.address}/app:1"],
            outputs=["type=registry,push-by-digest=true"],
        )
    assert registry.tags("app") == []
    assert registry.find_manifest("app", result.digest)[0] == result.digest
