from __future__ import annotations

import inspect
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from urllib3 import exceptions as foreign
from urllib3.connection import HTTPConnection

from promptness import AT_ONCE
from pybuild.errors import BuildCancelled, UsageError
from pybuild.oci.http import DEFAULT_TLS, Activity, NoActivity, Request, RequestFailed, TlsOptions
from pybuild.oci.transport import FAILURES, Urllib3Transport, failure_of
from pybuild.testkit.registry import Fault, Registry

NOBODY = NoActivity()

FOREIGN = {
    one
    for _, one in inspect.getmembers(foreign, inspect.isclass)
    if issubclass(one, Exception)
    and not issubclass(one, Warning)
    and one.__module__ == foreign.__name__
}


class Cancellable:
    """An activity that a test cancels."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self._callbacks: list[Callable[[], None]] = []

    def progress(self, item: str, done: int, total: int | None) -> None:
        pass

    def raise_if_cancelled(self) -> None:
        if self.cancelled.is_set():
            raise BuildCancelled("cancelled")

    @contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        self._callbacks.append(callback)
        try:
            yield
        finally:
            self._callbacks.remove(callback)

    def cancel(self) -> None:
        self.cancelled.set()
        for callback in list(self._callbacks):
            callback()


def test_every_exception_of_urllib3_has_its_own_entry() -> None:
    assert FOREIGN
    assert FOREIGN - FAILURES.keys() == set()


@pytest.mark.parametrize("kind", sorted(FAILURES, key=str))
def test_every_exception_is_put_in_words(kind: type[Exception]) -> None:
    error = failure_of(kind.__new__(kind), "https://r.example/v2/a?token=canary")
    assert error is not None
    assert error.message.startswith("can't read from https://r.example/v2/a: ")
    assert "canary" not in str(error)


def test_an_exception_of_a_later_version_goes_by_its_base() -> None:
    class NewError(foreign.ReadTimeoutError):
        pass

    error = failure_of(NewError.__new__(NewError), "https://r.example/")
    assert error is not None
    assert error.temporary


def test_a_bug_of_ours_isnt_a_failed_request() -> None:
    assert failure_of(KeyError("x"), "https://r.example/") is None


def test_urllib3_still_dials_through_the_method_that_is_replaced() -> None:
    assert callable(HTTPConnection._new_conn)
    assert hasattr(HTTPConnection("127.0.0.1", 1), "_dns_host")


@pytest.fixture
def transport() -> Iterator[Urllib3Transport]:
    made = Urllib3Transport(connect_timeout=5, read_timeout=5)
    yield made
    made.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(
    transport: Urllib3Transport,
    url: str,
    activity: Activity = NOBODY,
    tls: TlsOptions = DEFAULT_TLS,
) -> int:
    response = transport.send(Request("GET", url, tls=tls), activity)
    try:
        while response.read(1 << 16):
            pass
        return response.status
    finally:
        response.close()


def test_connections_are_used_again(transport: Urllib3Transport) -> None:
    with Registry() as registry:
        for _ in range(3):
            assert get(transport, f"{registry.url}/v2/") == 200
        (pool,) = transport._pools.values()
        assert pool.connection_from_url(registry.url).num_connections == 1


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:{port}/", "can't be reached"),
        ("http://no-such-host.invalid/", "can't be resolved"),
        ("gopher://127.0.0.1/", "invalid"),
        ("http://127.0.0.1:x/", "invalid"),
    ],
)
def test_a_server_that_isnt_there_is_told(
    transport: Urllib3Transport, url: str, reason: str
) -> None:
    with pytest.raises(RequestFailed, match=reason) as caught:
        get(transport, url.format(port=free_port()))
    assert not caught.value.connected


def test_a_silent_server_times_out() -> None:
    transport = Urllib3Transport(read_timeout=0.2)
    with Registry() as registry:
        registry.add_fault(Fault("/v2/", delay=2))
        with pytest.raises(RequestFailed, match="didn't answer in time") as caught:
            get(transport, f"{registry.url}/v2/")
        transport.close()
    assert caught.value.temporary
    assert caught.value.connected


@pytest.mark.parametrize("stage", ["head", "body"])
def test_a_cancel_ends_a_wait_at_once(transport: Urllib3Transport, stage: str) -> None:
    activity = Cancellable()
    with Registry() as registry:
        digest = registry.add_blob("a", b"x" * 1000)
        registry.add_fault(
            Fault("blobs", delay=5) if stage == "head" else Fault("blobs", pace=(100, 5))
        )
        timer = threading.Timer(0.2, activity.cancel)
        timer.start()
        began = time.monotonic()
        with pytest.raises(BuildCancelled):
            get(transport, f"{registry.url}/v2/a/blobs/{digest}", activity)
        assert time.monotonic() - began < AT_ONCE
        timer.join()


def test_a_cancel_ends_a_connect_that_nobody_answers(transport: Urllib3Transport) -> None:
    activity = Cancellable()
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        # A full queue of connections leaves the next one waiting.
        waiting = [socket.socket() for _ in range(4)]
        try:
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
            timer = threading.Timer(0.2, activity.cancel)
            timer.start()
            began = time.monotonic()
            with pytest.raises(BuildCancelled):
                transport.send(Request("GET", f"http://127.0.0.1:{port}/"), activity)
            assert time.monotonic() - began < AT_ONCE
            timer.join()
        finally:
            for one in waiting:
                one.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEM file with a key and a certificate for 127.0.0.1, its own authority."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-nodes", "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", str(path), "-out", str(path.with_suffix(".crt"))),
    ]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl isn't installed")
    with path.open("a") as file:
        file.write(path.with_suffix(".crt").read_text())
    return path


@pytest.fixture
def secure(certificate: Path) -> Iterator[Registry]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Registry(tls=context) as registry:
        yield registry


def test_an_unknown_authority_isnt_trusted(transport: Urllib3Transport, secure: Registry) -> None:
    with pytest.raises(RequestFailed, match="isn't trusted") as caught:
        get(transport, f"{secure.url}/v2/")
    assert caught.value.untrusted
    assert not caught.value.temporary
    assert secure.requests == []


def test_an_authority_of_the_hosts_file_is_trusted(
    transport: Urllib3Transport, secure: Registry, certificate: Path
) -> None:
    tls = TlsOptions(ca_files=(certificate.with_suffix(".crt"),))
    assert get(transport, f"{secure.url}/v2/", tls=tls) == 200
    with pytest.raises(RequestFailed, match="isn't trusted"):
        get(transport, f"{secure.url.replace('127.0.0.1', 'localhost')}/v2/", tls=tls)


def test_verification_is_skipped_only_where_asked(
    transport: Urllib3Transport, secure: Registry
) -> None:
    assert get(transport, f"{secure.url}/v2/", tls=TlsOptions(skip_verify=True)) == 200
    with pytest.raises(RequestFailed, match="isn't trusted"):
        get(transport, f"{secure.url}/v2/")


def test_a_useless_certificate_file_is_named(transport: Urllib3Transport, tmp_path: Path) -> None:
    empty = tmp_path / "ca.pem"
    empty.touch()
    for tls in (
        TlsOptions(ca_files=(empty,)),
        TlsOptions(ca_files=(tmp_path / "missing.pem",)),
        TlsOptions(client_pairs=((empty, None),)),
    ):
        with pytest.raises(UsageError, match=r"\.pem"):
            get(transport, "https://127.0.0.1:1/", tls=tls)


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://r.example/v2/", "http://p.example:1"),
        ("http://r.example/v2/", "http://q.example:2"),
        ("https://sub.skipped.example/v2/", None),
        ("https://127.0.0.1/v2/", None),
        ("http://localhost:5000/v2/", None),
    ],
)
def test_proxies_are_those_of_the_caller(url: str, proxy: str | None) -> None:
    proxies = {"https": "http://p.example:1", "http": "http://q.example:2", "no": "skipped.example"}
    assert Urllib3Transport(proxies)._proxy(url) == proxy


def test_the_environments_proxies_arent_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://p.example:1")
    monkeypatch.setenv("NO_PROXY", "*")
    assert Urllib3Transport()._proxy("https://r.example/") is None
    assert Urllib3Transport({"https": "http://q:1"})._proxy("https://r.example/") == "http://q:1"


def test_a_proxy_that_isnt_there_is_told() -> None:
    transport = Urllib3Transport({"http": f"http://me:canary@127.0.0.1:{free_port()}"})
    with pytest.raises(RequestFailed, match="can't") as caught:
        get(transport, "http://r.example/v2/")
    assert "canary" not in str(caught.value)
    transport.close()
