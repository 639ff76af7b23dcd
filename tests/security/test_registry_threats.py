"""What a hostile registry, mirror or network may try; see the advisories named."""

from __future__ import annotations

import resource
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from pybuild.errors import ImageError, InvalidImage, RegistryError
from pybuild.oci.auth import DockerCredentials
from pybuild.oci.descriptor import OCI_LAYER_GZIP, Descriptor
from pybuild.oci.hosts import Endpoint, Hosts
from pybuild.oci.http import Activity, NoActivity, Request, RequestFailed, Response
from pybuild.oci.platform import parse_platform
from pybuild.oci.pull import download, fetch_image
from pybuild.oci.reference import parse_reference
from pybuild.oci.registry import RegistryClient
from pybuild.oci.session import Retry, Session, redirected
from pybuild.oci.sinks import Sink
from pybuild.testkit.registry import Fault, Registry

AMD64 = parse_platform("linux/amd64")
NOBODY = NoActivity()
QUICK = Retry(attempts=3, first_delay=0.001)
CONFIG = {"os": "linux", "architecture": "amd64"}
CANARY = "canary-password"


@contextmanager
def logged_in(registry: Registry, hosts: Hosts | None = None) -> Iterator[RegistryClient]:
    login = {"username": "me", "password": CANARY}
    credentials = DockerCredentials({"auths": {registry.address: login}})
    with RegistryClient(hosts, credentials, retry=QUICK, read_timeout=5) as client:
        yield client


def pull(client: RegistryClient, registry: Registry) -> None:
    fetch_image(client, parse_reference(f"{registry.address}/app:1"), AMD64, NOBODY)


@pytest.mark.parametrize("tokens", [False, True], ids=["basic", "tokens"])
def test_a_redirect_carries_no_login_to_another_host(tokens: bool) -> None:
    """containerd CVE-2020-15157, distribution CVE-2026-33540."""
    with (
        Registry() as other,
        Registry(username="me", password=CANARY, tokens=tokens) as registry,
        logged_in(registry) as client,
    ):
        registry.add_image("app:1", CONFIG)
        image = other.add_image("app:1", CONFIG)
        target = f"{other.url}/v2/app/manifests/{image.digest}"
        fault = Fault("/manifests/", skip=1, status=307, headers={"Location": target}, times=None)
        registry.add_fault(fault)
        pull(client, registry)
        assert any("authorization" in request.headers for request in registry.requests)
        assert other.requests
        assert not any("authorization" in request.headers for request in other.requests)


def test_a_login_asked_for_after_a_redirect_is_refused() -> None:
    """The other host's challenge must not draw the first host's login."""
    with (
        Registry(username="me", password=CANARY) as other,
        Registry() as registry,
        logged_in(registry) as client,
    ):
        other.add_image("app:1", CONFIG)
        target = f"{other.url}/v2/app/manifests/1"
        registry.add_fault(Fault(".", status=307, headers={"Location": target}, times=None))
        with pytest.raises(RegistryError):
            pull(client, registry)
        assert not any("authorization" in request.headers for request in other.requests)


def test_a_realm_on_another_plain_host_gets_no_login() -> None:
    """c/image CVE-2019-10214, docker/cli CVE-2021-41092."""
    with Registry(username="me", password=CANARY, tokens=True) as registry:
        registry.realm = "http://registry.invalid/token"
        with logged_in(registry) as client, pytest.raises(RegistryError, match="unencrypted"):
            pull(client, registry)


def test_a_hosts_files_secret_header_stays_at_home(tmp_path: Path) -> None:
    with Registry() as other, Registry() as registry:
        image = other.add_image("app:1", CONFIG)
        target = f"{other.url}/v2/app/manifests/{image.digest}"
        registry.add_fault(Fault("/manifests/", status=307, headers={"Location": target}))
        folder = tmp_path / registry.address
        folder.mkdir()
        (folder / "hosts.toml").write_text(
            f'server = "{registry.url}"\n[header]\nx-api-key = "{CANARY}"\nCookie = "{CANARY}"'
        )
        with logged_in(registry, Hosts(tmp_path)) as client:
            client.manifest(parse_reference(f"{registry.address}/app:1"))
        assert registry.requests[0].headers["x-api-key"] == CANARY
        assert not any(CANARY in str(request.headers) for request in other.requests)


def test_a_login_for_one_port_isnt_sent_to_another() -> None:
    first = Request("GET", "https://r.example:5000/v2/", {"Authorization": "Basic x"})
    for location in (
        "https://r.example:5001/",
        "https://r.example/",
        "https://r.example.evil:5000/",
        "https://xr.example:5000/",
        "//evil.example/",
    ):
        assert "Authorization" not in redirected(first, location).headers
    for location in ("/elsewhere", "https://R.EXAMPLE:5000/x", "?page=2"):
        assert "Authorization" in redirected(first, location).headers


@pytest.mark.parametrize(
    "location",
    [
        "http://r.example/v2/",
        "http://127.0.0.1/v2/",
        "file:///etc/passwd",
        "ftp://r.example/",
        "https://me:pw@r.example/",
        "https://r.example:99999/",
        "https://[::1/",
        "javascript:alert(1)",
        "https://r.example/\r\nX-Evil: 1",
    ],
)
def test_a_redirect_to_anything_unsafe_is_refused(location: str) -> None:
    with pytest.raises(RegistryError):
        redirected(Request("GET", "https://r.example/v2/"), location)


def test_a_redirect_elsewhere_keeps_verification_and_no_client_certificate() -> None:
    tls = Endpoint("https://r.example/v2").tls
    first = Request(
        "GET",
        "https://r.example/v2/",
        tls=type(tls)((Path("ca"),), ((Path("c"), None),), skip_verify=True),
    )
    elsewhere = redirected(first, "https://blobs.example/").tls
    assert (elsewhere.ca_files, elsewhere.client_pairs) == ((Path("ca"),), ())
    assert not elsewhere.skip_verify


def test_a_redirect_loop_ends() -> None:
    with Registry() as registry, logged_in(registry) as client:
        headers = {"Location": "/v2/app/manifests/1"}
        registry.add_fault(Fault(".", status=302, headers=headers, times=None))
        with pytest.raises(RegistryError, match="loop"):
            pull(client, registry)
        assert len(registry.requests) < 30


class Script:
    """A transport that answers from a list and keeps the requests."""

    def __init__(self, *answers: tuple[int, dict[str, str]] | RequestFailed) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []

    def send(self, request: Request, activity: Activity) -> Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, RequestFailed):
            raise answer
        return Canned(*answer)

    def close(self) -> None:
        pass


class Canned:
    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self.headers = headers

    def read(self, size: int) -> bytes:
        return b""

    def close(self) -> None:
        pass


@pytest.mark.parametrize("untrusted", [False, True])
def test_there_is_no_fallback_to_plain_http(untrusted: bool) -> None:
    """moby CVE-2014-5277."""
    failed = RequestFailed("no TLS", temporary=False, connected=False, untrusted=untrusted)
    script = Script(failed)
    session = Session(script, DockerCredentials(None), QUICK)
    with pytest.raises(RequestFailed):
        session.request(Endpoint("https://r.example/v2"), "app", "manifests/1", NOBODY)
    assert [request.url[:8] for request in script.requests] == ["https://"]


def test_this_machines_own_registry_may_speak_plain_http_but_not_with_a_bad_certificate() -> None:
    endpoint = Endpoint("https://localhost:5000/v2", plain_fallback=True)
    failed = RequestFailed("no TLS", temporary=False, connected=False)
    script = Script(failed, (200, {}), (200, {}))
    session = Session(script, DockerCredentials(None), QUICK)
    for _ in range(2):
        session.request(endpoint, "app", "manifests/1", NOBODY)
    assert [request.url[:5] for request in script.requests] == ["https", "http:", "http:"]
    bad = RequestFailed("untrusted", temporary=False, connected=False, untrusted=True)
    script = Script(bad)
    with pytest.raises(RequestFailed, match="untrusted"):
        Session(script, DockerCredentials(None), QUICK).request(
            endpoint, "app", "manifests/1", NOBODY
        )
    assert len(script.requests) == 1


def test_a_local_registry_that_spoke_https_never_gets_plain_http() -> None:
    endpoint = Endpoint("https://localhost:5000/v2", plain_fallback=True)
    failed = RequestFailed("reset", temporary=True)
    script = Script((200, {}), failed, failed, failed)
    session = Session(script, DockerCredentials(None), QUICK)
    session.request(endpoint, "app", "manifests/1", NOBODY)
    with pytest.raises(RequestFailed, match="reset"):
        session.request(endpoint, "app", "manifests/1", NOBODY)
    assert {request.url[:6] for request in script.requests} == {"https:"}


def test_a_self_signed_local_registry_isnt_trusted_silently(tmp_path: Path) -> None:
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-nodes", "-days", "2", "-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "crt.pem")),
    ]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl isn't installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "crt.pem", tmp_path / "key.pem")
    with Registry(tls=context) as registry:
        registry.add_image("app:1", CONFIG)
        with logged_in(registry) as client, pytest.raises(RequestFailed, match="isn't trusted"):
            pull(client, registry)
        assert registry.requests == []
        folder = tmp_path / "certs.d" / registry.address
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text(f'server = "{registry.url}"\nca = "../../crt.pem"')
        with logged_in(registry, Hosts(tmp_path / "certs.d")) as client:
            pull(client, registry)


def test_an_echoed_token_isnt_shown() -> None:
    with (
        Registry(username="me", password=CANARY) as registry,
        logged_in(registry) as client,
    ):
        registry.add_image("app:1", CONFIG)
        reference = parse_reference(f"{registry.address}/app:1")
        client.manifest(reference)
        sent = registry.requests[-1].headers["authorization"].split()[1]
        body = f'{{"errors":[{{"code":"X","message":"you sent {sent}"}}]}}'.encode()
        registry.add_fault(Fault(".", status=400, body=body))
        with pytest.raises(RegistryError) as caught:
            client.manifest(reference)
        assert sent not in str(caught.value)
        assert CANARY not in repr(vars(client))


@pytest.mark.parametrize(
    "fault",
    [
        Fault("/manifests/", content=b"x" * (32 << 20)),
        Fault("/manifests/", content=b'{"a":' * 500_000),
        Fault("/manifests/", content=b"[" * (4 << 20)),
        Fault("/manifests/", headers={"X-Big": "x" * 70_000}),
        Fault("/manifests/", headers={f"X-{n}": "x" for n in range(500)}),
        Fault("/manifests/", headers={"Content-Length": "5"}),
        Fault("/manifests/", headers={"Content-Length": "9" * 12}),
        Fault("/manifests/", headers={"Content-Length": None, "Transfer-Encoding": "chunked"}),
        Fault("/manifests/", status=200, body=b""),
        Fault("/manifests/", status=204),
        Fault("/manifests/", status=304),
        Fault(
            "/manifests/",
            status=401,
            headers={"WWW-Authenticate": 'Bearer realm="' + "\\" * 60_000},
        ),
        Fault("/manifests/", status=401, headers={"WWW-Authenticate": "Bearer"}),
        Fault("/manifests/", status=401, headers={"WWW-Authenticate": 'Bearer realm="file:///x"'}),
        Fault("/manifests/", status=500, body=b'{"errors":' + b"[" * 60_000),
        Fault("/manifests/", status=500, body=b"x" * (1 << 20)),
        Fault("/manifests/", status=302, headers={"Location": "http://[::1"}),
        Fault("/manifests/", status=302, headers={"Location": "\x00"}),
    ],
    ids=range(18),
)
def test_a_hostile_answer_is_an_error_of_ours_in_bounded_time_and_memory(fault: Fault) -> None:
    fault.times = None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with Registry() as registry, logged_in(registry) as client:
        registry.add_image("app:1", CONFIG)
        registry.add_fault(fault)
        with pytest.raises(ImageError) as caught:
            pull(client, registry)
    assert time.monotonic() - began < 10
    assert len(str(caught.value)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


@contextmanager
def raw_server(answer: bytes) -> Iterator[int]:
    """Answers each connection with the same bytes, whatever is asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        stopped = threading.Event()

        def serve() -> None:
            while not stopped.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(1)
                    try:
                        connection.recv(65536)
                        connection.sendall(answer)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            stopped.set()
            thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00" * 1000,
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 xyz\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n{}\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n{}",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 200,
        b"HTTP/1.1 307 X\r\nLocation: http://\xff\xfe/\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_what_is_no_http_is_an_error_of_ours(answer: bytes) -> None:
    with raw_server(answer) as port, RegistryClient(retry=QUICK, read_timeout=2) as client:
        reference = parse_reference(f"127.0.0.1:{port}/app:1")
        with pytest.raises(ImageError):
            client.manifest(reference)


def test_a_digest_never_becomes_a_path_unchecked() -> None:
    """c/image CVE-2024-3727."""
    with Registry() as registry, logged_in(registry) as client:
        blob = Descriptor(OCI_LAYER_GZIP, "../../../../token?x", 1)
        with pytest.raises(InvalidImage, match="no digest"):
            client.blob(parse_reference(f"{registry.address}/app"), blob)
        assert registry.requests == []


def test_a_foreign_layers_url_is_never_fetched() -> None:
    """containerd CVE-2020-15157: the URL of a foreign layer drew credentials."""
    with Registry() as other, Registry() as registry, logged_in(registry) as client:
        config = registry.add_blob("app", b"{}")
        document = (
            '{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json",'
            f'"digest":"{config}","size":2}},"layers":[{{"mediaType":"{OCI_LAYER_GZIP}",'
            f'"digest":"{config}","size":2,"urls":["{other.url}/layer"]}}]}}'
        )
        registry.add_manifest("app:1", document.encode())
        with pytest.raises(InvalidImage, match="never followed"):
            pull(client, registry)
        assert other.requests == []


def test_a_slow_trickle_of_a_manifest_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pybuild.oci.session._BODY_SECONDS", 0.3)
    with Registry() as registry, logged_in(registry) as client:
        registry.add_image("app:1", CONFIG)
        registry.add_fault(Fault("/manifests/", pace=(1, 0.05), times=None))
        with pytest.raises(RegistryError, match="too slowly"):
            pull(client, registry)


def test_nothing_is_stored_of_a_blob_that_isnt_what_it_says() -> None:
    kept: list[bytes] = []

    class Keeper:
        def write(self, piece: bytes, /) -> None:
            pass

        def restart(self) -> None:
            pass

        def commit(self) -> None:
            kept.append(b"")

    @contextmanager
    def keep(descriptor: Descriptor) -> Iterator[Sink]:
        yield Keeper()

    with Registry() as registry, logged_in(registry) as client:
        data = b"x" * 1000
        blob = Descriptor(OCI_LAYER_GZIP, registry.add_blob("app", data), len(data))
        reference = parse_reference(f"{registry.address}/app")
        for fault in (
            Fault("/blobs/", content=b"y" * 1000, times=None),
            Fault("/blobs/", content=b"x" * 999, times=None),
            Fault("/blobs/", content=b"x" * 1001, times=None),
            Fault("/blobs/", truncate=999, ignore_range=True, times=None),
            Fault("/blobs/", headers={"Content-Length": "999"}, times=None),
            Fault("/blobs/", headers={"Content-Encoding": "gzip"}, content=b"z", times=None),
        ):
            registry.add_fault(fault)
            with pytest.raises(ImageError):
                download(client, reference, blob, keep, NOBODY)
            fault.times = 0
        assert kept == []
        download(client, reference, blob, keep, NOBODY)
        assert kept == [b""]
