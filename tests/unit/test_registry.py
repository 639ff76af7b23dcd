from __future__ import annotations

import email.utils
import subprocess
import sys
import time
from pathlib import Path

import pytest

from promptness import AT_ONCE
from pybuild.errors import (
    AuthenticationRequired,
    ImageNotFound,
    InvalidImage,
    RegistryError,
)
from pybuild.oci.auth import DockerCredentials
from pybuild.oci.descriptor import (
    DOCKER_CONFIG,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    digest_of,
)
from pybuild.oci.hosts import Hosts
from pybuild.oci.http import RequestFailed
from pybuild.oci.reference import Reference, parse_reference
from pybuild.oci.registry import RegistryClient
from pybuild.oci.session import Retry
from pybuild.testkit.registry import Fault, Registry

CONFIG = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}}
QUICK = Retry(attempts=3, first_delay=0.001, longest_wait=1.0)
BLOB = bytes(range(256)) * 1024


def refer(registry: Registry, name: str) -> Reference:
    return parse_reference(f"{registry.address}/{name}")


def client_for(
    hosts: Hosts | None = None, login: dict[str, dict[str, str]] | None = None
) -> RegistryClient:
    return RegistryClient(hosts, DockerCredentials({"auths": login or {}}), retry=QUICK)


def blob_of(registry: Registry, repository: str = "a", content: bytes = BLOB) -> Descriptor:
    return Descriptor(OCI_LAYER_GZIP, registry.add_blob(repository, content), len(content))


def read_all(
    client: RegistryClient, reference: Reference, blob: Descriptor, offset: int = 0
) -> bytes:
    with client.blob(reference, blob, offset) as stream:
        return b"".join(iter(stream.read, b""))


def write_hosts(folder: Path, registry: str, text: str) -> Hosts:
    (folder / registry).mkdir()
    (folder / registry / "hosts.toml").write_text(text)
    return Hosts(folder)


def test_a_manifest_is_fetched_by_tag_and_by_digest() -> None:
    with Registry() as registry, client_for() as client:
        stored = registry.add_image("team/app:1", CONFIG)
        by_tag, content = client.manifest(refer(registry, "team/app:1"))
        assert by_tag == stored
        assert digest_of(content) == stored.digest
        by_digest, _ = client.manifest(refer(registry, f"team/app@{stored.digest}"))
        assert by_digest == stored
        assert client.resolve(refer(registry, "team/app:1")) == stored
        assert registry.requested("HEAD", "manifests/1")


def test_a_registry_that_was_reached_by_plain_http_is_known_for_it(tmp_path: Path) -> None:
    with Registry() as registry, client_for() as client:
        registry.add_image("app:1", CONFIG)
        assert client.scheme(registry.address) == "https"
        client.manifest(refer(registry, "app:1"))
        assert client.scheme(registry.address) == "http"
    hosts = write_hosts(tmp_path, "plain.example", 'server = "http://plain.example"\n')
    with client_for(hosts) as client:
        assert client.scheme("plain.example") == "http"


def test_the_tag_latest_is_asked_for_where_none_is_given() -> None:
    with Registry() as registry, client_for() as client:
        stored = registry.add_image("app:latest", CONFIG)
        assert client.manifest(refer(registry, "app"))[0] == stored


def test_docker_media_types_are_kept() -> None:
    with Registry() as registry, client_for() as client:
        registry.add_image(
            "app:1",
            CONFIG,
            [b"layer"],
            layer_type=DOCKER_LAYER_GZIP,
            config_type=DOCKER_CONFIG,
            media_type=DOCKER_MANIFEST,
        )
        assert client.manifest(refer(registry, "app:1"))[0].media_type == DOCKER_MANIFEST


def test_resolving_works_without_the_digest_header() -> None:
    with Registry() as registry, client_for() as client:
        stored = registry.add_image("app:1", CONFIG)
        registry.add_fault(Fault("/app/", "HEAD", headers={"Docker-Content-Digest": None}))
        assert client.resolve(refer(registry, "app:1")) == stored


def test_a_missing_image_is_told_with_its_name() -> None:
    with Registry() as registry, client_for() as client:
        registry.add_image("app:1", CONFIG)
        for name in ("app:2", "other:1", f"app@{digest_of(b'x')}"):
            with pytest.raises(ImageNotFound, match=name):
                client.manifest(refer(registry, name))


def test_a_manifest_with_other_bytes_is_refused() -> None:
    with Registry() as registry, client_for() as client:
        stored = registry.add_image("app:1", CONFIG)
        registry.add_fault(Fault("/manifests/", content=b'{"schemaVersion":2}', times=None))
        with pytest.raises(InvalidImage, match="digest"):
            client.manifest(refer(registry, f"app@{stored.digest}"))
        with pytest.raises(InvalidImage, match="digest"):
            client.manifest(refer(registry, "app:1"))


def test_a_truncated_manifest_is_asked_for_again() -> None:
    with Registry() as registry, client_for() as client:
        stored = registry.add_image("app:1", CONFIG)
        registry.add_fault(Fault("/manifests/", truncate=10, times=2))
        assert client.manifest(refer(registry, "app:1"))[0] == stored


def test_blobs_are_read_whole_and_from_an_offset() -> None:
    with Registry() as registry, client_for() as client:
        blob, reference = blob_of(registry), refer(registry, "a")
        assert read_all(client, reference, blob) == BLOB
        assert read_all(client, reference, blob, 1000) == BLOB[1000:]
        assert registry.requested("GET", "blobs")[-1].headers["range"] == "bytes=1000-"


def test_an_ignored_range_is_skipped_by_reading() -> None:
    with Registry() as registry, client_for() as client:
        registry.add_fault(Fault("/blobs/", ignore_range=True))
        assert read_all(client, refer(registry, "a"), blob_of(registry), 100_000) == BLOB[100_000:]


def test_an_empty_blob_is_read() -> None:
    with Registry() as registry, client_for() as client:
        assert read_all(client, refer(registry, "a"), blob_of(registry, content=b"")) == b""


@pytest.mark.parametrize(
    "wrong",
    [
        "bytes 0-99/262144",
        "bytes 1000-262143/999999",
        "bytes 1000-2000/262144",
        "bytes 1001-262143/262144",
        "bytes 1000-999999/*",
        "1000-262143/262144",
        "",
    ],
)
def test_a_wrong_range_is_refused(wrong: str) -> None:
    with Registry() as registry, client_for() as client:
        registry.add_fault(Fault("/blobs/", headers={"Content-Range": wrong}))
        with pytest.raises(RequestFailed, match="wrong range"):
            read_all(client, refer(registry, "a"), blob_of(registry), 1000)


def test_a_range_that_wasnt_asked_for_is_refused() -> None:
    with Registry() as registry, client_for() as client:
        blob = blob_of(registry)
        headers = {"Content-Range": f"bytes 5-9/{blob.size}"}
        registry.add_fault(Fault("/blobs/", status=206, body=BLOB[5:10], headers=headers))
        with pytest.raises(RequestFailed, match="wrong range"):
            read_all(client, refer(registry, "a"), blob)


@pytest.mark.parametrize("length", ["10", "262145", "9" * 30])
def test_a_wrong_length_is_refused(length: str) -> None:
    with Registry() as registry, client_for() as client:
        registry.add_fault(Fault("/blobs/", headers={"Content-Length": length}))
        with pytest.raises(RegistryError):
            read_all(client, refer(registry, "a"), blob_of(registry))


def test_a_blob_without_a_length_is_bounded_by_its_descriptor() -> None:
    with Registry() as registry, client_for() as client:
        blob, reference = blob_of(registry), refer(registry, "a")
        registry.add_fault(
            Fault(
                "/blobs/",
                content=BLOB * 100,
                headers={"Content-Length": None, "Connection": "close"},
            )
        )
        with pytest.raises(InvalidImage, match="more than 262144 bytes"):
            read_all(client, reference, blob)


def test_a_broken_blob_raises_and_ends_nowhere_early() -> None:
    with Registry() as registry, client_for() as client:
        registry.add_fault(Fault("/blobs/", truncate=1000))
        with pytest.raises(RequestFailed) as caught:
            read_all(client, refer(registry, "a"), blob_of(registry))
        assert caught.value.temporary


def test_a_crawling_blob_is_given_up() -> None:
    with Registry() as registry, RegistryClient(patience=0.2, retry=QUICK) as client:
        registry.add_fault(Fault("/blobs/", pace=(10, 0.02)))
        with pytest.raises(RequestFailed, match="too slowly"):
            read_all(client, refer(registry, "a"), blob_of(registry))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_temporary_answer_is_waited_out(status: int) -> None:
    with Registry() as registry, client_for() as client:
        stored = registry.add_image("app:1", CONFIG)
        registry.add_fault(Fault("/manifests/", status=status, times=2))
        assert client.manifest(refer(registry, "app:1"))[0] == stored


def test_a_reset_is_waited_out() -> None:
    with Registry() as registry, client_for() as client:
        stored = registry.add_image("app:1", CONFIG)
        client.resolve(refer(registry, "app:1"))
        registry.add_fault(Fault("/manifests/", reset=True, times=1))
        assert client.manifest(refer(registry, "app:1"))[0] == stored


@pytest.mark.parametrize("status", [400, 410, 418, 501, 599])
def test_a_lasting_answer_isnt_repeated(status: int) -> None:
    with Registry() as registry, client_for() as client:
        body = b'{"errors":[{"code":"BAD","message":"so\\u001b[31m it is"}]}'
        registry.add_fault(Fault("/manifests/", status=status, body=body, times=None))
        with pytest.raises(RegistryError, match=rf"answered {status} .*BAD: so \[31m it is"):
            client.manifest(refer(registry, "app:1"))
        assert len(registry.requested("GET", "manifests")) == 1


def test_a_server_that_stays_broken_is_told_after_the_last_attempt() -> None:
    with Registry() as registry, client_for() as client:
        registry.add_fault(Fault("/manifests/", status=503, times=None))
        with pytest.raises(RegistryError, match="answered 503"):
            client.manifest(refer(registry, "app:1"))
        assert len(registry.requested("GET", "manifests")) == QUICK.attempts


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(form: str) -> None:
    # A date has whole seconds, so one of 2 s is at least 1 s away.
    text = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
    retry = Retry(attempts=3, first_delay=0.001, longest_wait=5.0)
    with Registry() as registry, RegistryClient(retry=retry) as client:
        stored = registry.add_image("app:1", CONFIG)
        client.resolve(refer(registry, "app:1"))
        registry.add_fault(Fault("/manifests/", status=429, headers={"Retry-After": text}))
        began = time.monotonic()
        assert client.manifest(refer(registry, "app:1"))[0] == stored
        assert time.monotonic() - began > 0.9


@pytest.mark.parametrize("text", ["3600", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_long_retry_after_is_an_error_at_once(text: str) -> None:
    with Registry() as registry, client_for() as client:
        headers = {"Retry-After": text}
        registry.add_fault(Fault("/manifests/", status=429, headers=headers, times=None))
        with pytest.raises(RegistryError, match="no more requests") as caught:
            client.manifest(refer(registry, "app:1"))
        assert "docker login" in (caught.value.hint or "")
        assert len(registry.requested("GET", "manifests")) == 1


def test_a_malformed_retry_after_is_ignored() -> None:
    with Registry() as registry, client_for() as client:
        stored = registry.add_image("app:1", CONFIG)
        registry.add_fault(Fault("/manifests/", status=429, headers={"Retry-After": "soon"}))
        assert client.manifest(refer(registry, "app:1"))[0] == stored


@pytest.mark.parametrize("tokens", [False, True], ids=["basic", "tokens"])
def test_a_login_is_used_when_asked_for(tokens: bool) -> None:
    with Registry(username="me", password="pw", tokens=tokens) as registry:
        stored = registry.add_image("app:1", CONFIG, [b"layer"])
        blob = blob_of(registry, "app")
        login = {registry.address: {"username": "me", "password": "pw"}}
        with client_for(login=login) as client:
            reference = refer(registry, "app:1")
            assert client.manifest(reference)[0] == stored
            assert read_all(client, reference, blob) == BLOB
            assert len(registry.requested("GET", "^/token")) == (1 if tokens else 0)
            assert "authorization" not in registry.requests[0].headers


def test_an_identity_token_is_used() -> None:
    with Registry(username="me", password="pw", tokens=True, identity_token="id") as registry:
        stored = registry.add_image("app:1", CONFIG)
        with client_for(login={registry.address: {"identitytoken": "id"}}) as client:
            assert client.manifest(refer(registry, "app:1"))[0] == stored


def test_an_anonymous_token_is_fetched() -> None:
    with (
        Registry(username="me", password="pw", tokens=True, anonymous_pull=True) as registry,
        client_for() as client,
    ):
        stored = registry.add_image("app:1", CONFIG)
        assert client.manifest(refer(registry, "app:1"))[0] == stored


def test_an_expired_token_is_replaced() -> None:
    with Registry(username="me", password="pw", tokens=True) as registry:
        registry.add_image("app:1", CONFIG)
        login = {registry.address: {"username": "me", "password": "pw"}}
        with client_for(login=login) as client:
            client.manifest(refer(registry, "app:1"))
            registry.expire_tokens()
            client.manifest(refer(registry, "app:1"))
        assert len(registry.requested("GET", "^/token")) == 2


@pytest.mark.parametrize("tokens", [False, True], ids=["basic", "tokens"])
@pytest.mark.parametrize("password", [None, "canary"])
def test_a_missing_or_wrong_login_is_told_with_the_command(
    tokens: bool, password: str | None
) -> None:
    with Registry(username="me", password="pw", tokens=tokens) as registry:
        registry.add_image("app:1", CONFIG)
        login = {registry.address: {"username": "me", "password": password}} if password else {}
        with (
            client_for(login=login) as client,
            pytest.raises(AuthenticationRequired) as caught,
        ):
            client.manifest(refer(registry, "app:1"))
        assert f"docker login {registry.address}" in (caught.value.hint or "")
        assert "canary" not in str(caught.value)
        assert len(registry.requests) <= 4


def test_mirrors_are_tried_before_the_registry(tmp_path: Path) -> None:
    with Registry() as upstream, Registry() as mirror:
        stored = mirror.add_image("app:1", CONFIG)
        hosts = write_hosts(
            tmp_path,
            "r.example",
            f'server = "{upstream.url}"\n[host."{mirror.url}"]',
        )
        with client_for(hosts) as client:
            assert client.manifest(parse_reference("r.example/app:1"))[0] == stored
        assert upstream.requests == []
        assert mirror.requests[-1].target.endswith("?ns=r.example")


@pytest.mark.parametrize(
    "fault",
    [
        Fault(".", status=404, times=None),
        Fault(".", status=500, times=None),
        Fault(".", status=401, times=None),
        Fault(".", status=403, times=None),
        Fault(".", reset=True, times=None),
        Fault("manifests", content=b"{}", times=None),
        Fault("manifests", content=b" " * (5 << 20), times=None),
        Fault(".", status=307, headers={"Location": "/"}, times=None),
    ],
    ids=lambda fault: f"{fault.status or ''}{fault.reset or ''}{len(fault.content or b'')}",
)
def test_a_mirror_that_fails_is_followed_by_the_registry(tmp_path: Path, fault: Fault) -> None:
    with Registry() as upstream, Registry() as mirror:
        stored = upstream.add_image("app:1", CONFIG)
        mirror.add_image("app:1", CONFIG)
        mirror.add_fault(fault)
        hosts = write_hosts(
            tmp_path,
            "r.example",
            f'server = "{upstream.url}"\n[host."{mirror.url}"]',
        )
        with client_for(hosts) as client:
            assert client.manifest(parse_reference("r.example/app:1"))[0] == stored


def test_a_mirror_that_isnt_there_is_asked_once(tmp_path: Path) -> None:
    with Registry() as upstream:
        stored = upstream.add_image("app:1", CONFIG)
        hosts = write_hosts(
            tmp_path,
            "r.example",
            f'server = "{upstream.url}"\n[host."http://127.0.0.1:9"]',
        )
        with RegistryClient(hosts, retry=Retry(first_delay=5.0)) as client:
            began = time.monotonic()
            assert client.manifest(parse_reference("r.example/app:1"))[0] == stored
            assert time.monotonic() - began < AT_ONCE
            assert client._unreachable == {"http://127.0.0.1:9/v2"}


def test_a_mirror_without_the_capability_isnt_asked_for_tags(tmp_path: Path) -> None:
    with Registry() as upstream, Registry() as mirror:
        stored = upstream.add_image("app:1", CONFIG)
        mirror.add_image("app:1", {"os": "other", "architecture": "amd64"})
        blob = blob_of(mirror, "app")
        hosts = write_hosts(
            tmp_path,
            "r.example",
            f'server = "{upstream.url}"\n[host."{mirror.url}"]\ncapabilities = ["pull"]',
        )
        reference = parse_reference("r.example/app:1")
        with client_for(hosts) as client:
            assert client.manifest(reference)[0] == stored
            assert mirror.requests == []
            assert read_all(client, reference, blob) == BLOB
            assert upstream.requested("GET", "blobs") == []


def test_no_host_for_a_task_is_an_error(tmp_path: Path) -> None:
    hosts = write_hosts(tmp_path, "r.example", 'server = "http://x"\ncapabilities = ["push"]')
    with client_for(hosts) as client, pytest.raises(RegistryError, match="may resolve"):
        client.manifest(parse_reference("r.example/app:1"))


def test_the_registrys_own_error_is_told_not_the_mirrors(tmp_path: Path) -> None:
    with Registry() as upstream, Registry() as mirror:
        mirror.add_fault(Fault(".", status=403, times=None))
        hosts = write_hosts(
            tmp_path, "r.example", f'server = "{upstream.url}"\n[host."{mirror.url}"]'
        )
        with client_for(hosts) as client, pytest.raises(ImageNotFound):
            client.manifest(parse_reference("r.example/app:1"))


def test_a_hosts_files_headers_are_sent(tmp_path: Path) -> None:
    with Registry() as registry:
        registry.add_image("app:1", CONFIG)
        hosts = write_hosts(
            tmp_path, "r.example", f'server = "{registry.url}"\n[header]\nx-key = "v"'
        )
        with client_for(hosts) as client:
            client.manifest(parse_reference("r.example/app:1"))
        assert registry.requests[0].headers["x-key"] == "v"


def test_no_http_library_is_imported_before_a_request() -> None:
    script = (
        "import sys; from pybuild.oci.registry import RegistryClient; import pybuild.oci.pull\n"
        "with RegistryClient(): pass\n"
        "print([one for one in ('urllib3', 'ssl', 'http.client') if one in sys.modules])"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_closed_client_says_so() -> None:
    client = client_for()
    client.close()
    client.close()
    with pytest.raises(RegistryError, match="closed"):
        client.manifest(parse_reference("127.0.0.1:1/a"))


def test_a_general_content_type_is_forgiven() -> None:
    with Registry() as registry, client_for() as client:
        registry.add_image("app:1", CONFIG)
        registry.add_fault(Fault("/manifests/", headers={"Content-Type": "text/plain"}))
        assert client.manifest(refer(registry, "app:1"))[0].media_type == OCI_MANIFEST
