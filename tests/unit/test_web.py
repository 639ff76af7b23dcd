"""Files fetched over http, from a server on loopback."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from building import Recorder, build, config_of, files_of, image_of, memory_backend

import pybuild
from pybuild.diagnostics import describe_error
from pybuild.errors import BuildCancelled, ContextError, FetchFailed
from pybuild.oci.http import is_public
from pybuild.oci.session import Retry
from pybuild.remotes.locations import parse_web
from pybuild.remotes.options import RemoteOptions
from pybuild.remotes.web import WebClient
from pybuild.run.activity import CancelToken
from pybuild.secrets import Secret
from pybuild.testkit.memory import MemoryBackend
from pybuild.testkit.workbench import RecordingActivity
from serving import Answer, WebServer

QUICK = Retry(attempts=3, first_delay=0.01)


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


@pytest.fixture
def backend() -> Iterator[MemoryBackend]:
    with memory_backend() as made:
        yield made
        assert made.live_layers == 0


def fetch(
    url: str,
    *,
    checksum: str = "",
    secrets: dict[str, Secret] | None = None,
    activity: Any = None,
    **options: Any,
) -> bytes:
    client = WebClient(RemoteOptions(**options), secrets or {}, retry=QUICK)
    try:
        file = client.fetch(parse_web(url, checksum), activity or RecordingActivity())
        with file.spool, file.open() as stream:
            return stream.read()
    finally:
        client.close()


def archive(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def test_a_file_is_added_with_mode_600_and_the_time_it_was_modified(
    backend: MemoryBackend, server: WebServer
) -> None:
    server.answers["/a/b.txt"] = Answer(
        b"remote", headers={"Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT"}
    )
    text = f"FROM scratch\nADD {server.url}/a/b.txt?x=1 /d/\nADD --chmod=755 --chown=3:4 {server.url}/a/b.txt /e\n"
    build(backend, text, tags=["app"])
    with backend.checkout(image_of(backend), RecordingActivity()) as layer:
        entry, other = layer.tree().get(b"d/b.txt"), layer.tree().get(b"e")
    assert entry is not None
    assert other is not None
    assert (entry.mode, entry.mtime, entry.uid, entry.gid) == (0o600, 1700000000, 0, 0)
    assert (other.mode, other.uid, other.gid) == (0o755, 3, 4)
    assert files_of(backend) == {"d/b.txt": b"remote", "e": b"remote"}


def test_one_url_is_fetched_once_in_a_build(backend: MemoryBackend, server: WebServer) -> None:
    server.answers["/x"] = Answer(b"1")
    text = f"FROM scratch AS a\nADD {server.url}/x /\nFROM scratch\nADD {server.url}/x /y\nCOPY --from=a / /\n"
    build(backend, text, tags=["app"])
    assert len(server.asked) == 1


def test_an_archive_is_unpacked_only_if_asked_for(
    backend: MemoryBackend, server: WebServer
) -> None:
    packed = archive(inner=b"data")
    server.answers["/x.tgz"] = Answer(packed)
    text = f"FROM scratch\nADD {server.url}/x.tgz /one/\nADD --unpack {server.url}/x.tgz /two/\n"
    build(backend, text, tags=["app"])
    assert files_of(backend) == {"one/x.tgz": packed, "two/inner": b"data"}


def test_sources_are_copied_in_their_order(
    backend: MemoryBackend, server: WebServer, tmp_path: Path
) -> None:
    server.answers["/x"] = Answer(b"remote")
    (tmp_path / "x").write_text("local")
    first, last = f"{server.url}/x x", f"x {server.url}/x"
    for sources, expected in ((first, b"local"), (last, b"remote")):
        build(backend, f"FROM scratch\nADD {sources} /d/\n", tmp_path, tags=["app"])
        assert files_of(backend) == {"d/x": expected}


def test_the_key_is_of_the_content_that_was_fetched(
    backend: MemoryBackend, server: WebServer
) -> None:
    server.answers["/x"] = Answer(b"1")
    text = f"FROM scratch\nADD {server.url}/x /\n"
    assert [build(backend, text).steps[0].cached for _ in range(2)] == [False, True]
    server.answers["/x"] = Answer(b"2")
    assert not build(backend, text).steps[0].cached


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_a_checksum_is_verified(server: WebServer, algorithm: str) -> None:
    server.answers["/x"] = Answer(b"data")
    good = hashlib.new(algorithm, b"data").hexdigest()
    assert fetch(f"{server.url}/x", checksum=f"{algorithm}:{good}") == b"data"
    bad = hashlib.new(algorithm, b"other").hexdigest()
    with pytest.raises(FetchFailed, match="digest mismatch"):
        fetch(f"{server.url}/x", checksum=f"{algorithm}:{bad}")


def test_a_failing_add_is_told_with_its_line(backend: MemoryBackend, server: WebServer) -> None:
    with pytest.raises(FetchFailed, match="answered 404") as caught:
        build(backend, f"FROM scratch\nADD {server.url}/nothing /\n")
    assert caught.value.where is not None
    assert caught.value.where.start_line == 2
    assert caught.value.exit_code == 3


def test_what_fails_for_a_moment_is_tried_again(server: WebServer) -> None:
    answers = iter([Answer(status=503), Answer(b"da", length=4), Answer(b"data")])
    server.answers["/x"] = lambda: next(answers)
    assert fetch(f"{server.url}/x") == b"data"
    server.answers["/y"] = Answer(status=500)
    with pytest.raises(FetchFailed, match="answered 500"):
        fetch(f"{server.url}/y")
    assert len(server.asked) == 6


def test_a_login_is_sent_from_the_url_or_from_a_secret(server: WebServer) -> None:
    server.answers["/x"] = Answer(b"1")
    with_login = server.url.replace("//", "//me:pass@")
    fetch(f"{with_login}/x")
    token, header = Secret(b"abc\n"), Secret(b"Custom xyz")
    fetch(f"{server.url}/x", secrets={"HTTP_AUTH_TOKEN_127.0.0.1": token})
    both = {"HTTP_AUTH_TOKEN_127.0.0.1": token, "HTTP_AUTH_HEADER_127.0.0.1": header}
    fetch(f"{server.url}/x", secrets=both)
    fetch(f"{with_login}/x", secrets={"HTTP_AUTH_HEADER_127.0.0.1": header})
    fetch(f"{server.url}/x", secrets={"HTTP_AUTH_TOKEN_other.example": token})
    sent = [asked.headers.get("authorization") for asked in server.asked]
    assert sent == ["Basic bWU6cGFzcw==", "Bearer abc", "Bearer abc", "Custom xyz", None]
    with pytest.raises(FetchFailed, match="header"):
        fetch(f"{server.url}/x", secrets={"HTTP_AUTH_TOKEN_127.0.0.1": Secret(b"a\r\nX: y")})
    assert "abc" not in repr(token)


def test_no_login_goes_along_with_a_redirect_to_another_host(server: WebServer) -> None:
    with WebServer() as other:
        other.answers["/y"] = Answer(b"there")
        server.answers["/x"] = Answer(status=302, headers={"Location": f"{other.url}/y"})
        assert fetch(f"{server.url.replace('//', '//me:pass@')}/x") == b"there"
        assert "authorization" in server.asked[0].headers
        assert "authorization" not in other.asked[0].headers


@pytest.mark.parametrize(
    "target",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "gopher://h.example",
        "//",
        "http://u:p@h.example/",
    ],
)
def test_only_http_is_followed(server: WebServer, target: str) -> None:
    server.answers["/x"] = Answer(status=301, headers={"Location": target})
    with pytest.raises(FetchFailed, match="redirect"):
        fetch(f"{server.url}/x")


def test_a_circle_of_redirects_ends(server: WebServer) -> None:
    server.answers["/x"] = Answer(status=307, headers={"Location": "/x"})
    with pytest.raises(FetchFailed, match="loop"):
        fetch(f"{server.url}/x")
    assert len(server.asked) == 11


def test_a_body_beyond_the_limit_is_refused_announced_or_not(server: WebServer) -> None:
    server.answers["/announced"] = Answer(b"", length=1 << 40)
    server.answers["/chunked"] = Answer(b"x" * 5000, length=-1)
    for path in ("/announced", "/chunked"):
        with pytest.raises(FetchFailed, match="more than 1000 bytes"):
            fetch(f"{server.url}{path}", max_bytes=1000, patience=2.0)


def test_a_body_that_crawls_is_given_up(server: WebServer) -> None:
    server.answers["/x"] = Answer(b"x" * 1000, pace=0.05)
    began = time.monotonic()
    with pytest.raises(FetchFailed, match="too slowly"):
        fetch(f"{server.url}/x", patience=0.5)
    assert time.monotonic() - began < 10


def test_a_cancel_ends_a_transfer(server: WebServer) -> None:
    server.answers["/x"] = Answer(b"x" * 1000, pace=0.05)
    activity = RecordingActivity()
    threading.Timer(0.3, activity.cancel).start()
    began = time.monotonic()
    with pytest.raises(BuildCancelled):
        fetch(f"{server.url}/x", activity=activity)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.1", "224.0.0.1", "255.255.255.255", "::1", "fe80::1%eth0", "fd00::1", "::",
        "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff0e::1", "2001:0:1::",
    ],
)  # fmt: skip
def test_private_addresses_are_known(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_known(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_with_public_only_no_private_address_is_connected_to(server: WebServer, host: str) -> None:
    server.answers["/x"] = Answer(b"1")
    url = f"{server.url.replace('127.0.0.1', host)}/x"
    proxies = {"http": server.url}
    with pytest.raises(FetchFailed, match="no public address"):
        fetch(url, public_only=True, proxies=proxies)
    assert server.asked == []


def test_with_public_only_a_redirect_to_a_private_address_is_refused(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["/x"] = Answer(status=302, headers={"Location": f"{server.url}/private"})
    # the server's first answer comes as if from a public address
    answers = iter([True, False])
    monkeypatch.setattr("pybuild.oci.transport.is_public", lambda address: next(answers))
    server.answers["/x"] = Answer(status=302, headers={"Location": "http://localhost:1/private"})
    with pytest.raises(FetchFailed, match=r"localhost is .* no public address"):
        fetch(f"{server.url}/x", public_only=True)


def test_a_proxy_is_used(server: WebServer) -> None:
    server.answers["http://h.example/x"] = Answer(b"through a proxy")
    assert fetch("http://h.example/x", proxies={"http": server.url}) == b"through a proxy"


def test_a_tar_on_the_web_is_a_context(backend: MemoryBackend, server: WebServer) -> None:
    files = {
        "Dockerfile": b"FROM scratch\nCOPY . /\n",
        ".dockerignore": b"no\nDocker*\n",
        "a": b"1",
        "no": b"2",
    }
    server.answers["/c.tar.gz"] = Answer(archive(**files))
    pybuild.build(f"{server.url}/c.tar.gz", backend=backend, tags=["app"])
    assert files_of(backend) == {"a": b"1", ".dockerignore": b"no\nDocker*\n"}
    pybuild.build(
        f"{server.url}/c.tar.gz",
        dockerfile=b"FROM scratch\nCOPY a /b\n",
        backend=backend,
        tags=["app"],
    )
    assert files_of(backend) == {"b": b"1"}
    with pytest.raises(ContextError, match="no other in"):
        pybuild.build(f"{server.url}/c.tar.gz", dockerfile="other", backend=backend)


def test_another_file_on_the_web_is_the_dockerfile(
    backend: MemoryBackend, server: WebServer
) -> None:
    server.answers["/x"] = Answer(b"FROM busybox\nENV A=b\n")
    result = pybuild.build(f"{server.url}/x", backend=backend)
    assert ("A", "b") in config_of(backend, result).env
    with pytest.raises(ContextError, match="no tar archive"):
        pybuild.build(f"{server.url}/x", dockerfile="Dockerfile", backend=backend)


def test_a_named_context_may_be_on_the_web(backend: MemoryBackend, server: WebServer) -> None:
    server.answers["/c.tgz"] = Answer(archive(inner=b"1"))
    server.answers["/single"] = Answer(b"2")
    text = "FROM tar AS one\nFROM scratch\nCOPY --from=one / /a/\nCOPY --from=file / /b/\n"
    contexts = {"tar": f"{server.url}/c.tgz", "file": f"{server.url}/single"}
    build(backend, text, tags=["app"], contexts=contexts)
    assert files_of(backend) == {"a/inner": b"1", "b/context": b"2"}


def test_a_cancelled_fetch_cancels_the_build(backend: MemoryBackend, server: WebServer) -> None:
    server.answers["/x"] = Answer(b"x" * 1000, pace=0.05)
    cancel = CancelToken()
    threading.Timer(0.3, cancel.cancel).start()
    with pytest.raises(BuildCancelled):
        build(backend, f"FROM scratch\nADD {server.url}/x /\n", cancel=cancel)


def test_a_login_is_in_nothing_that_a_build_leaves_or_tells(
    backend: MemoryBackend, server: WebServer
) -> None:
    server.answers["/x"] = Answer(b"1")
    recorder = Recorder()
    url = f"{server.url.replace('//', '//me:canary@')}/x"
    secrets = {"HTTP_AUTH_HEADER_127.0.0.1": Secret(b"Bearer canary")}
    result = build(
        backend, f"FROM scratch\nADD {url} /\n", secrets=secrets, reporter=recorder, tags=["app"]
    )
    assert server.asked[0].headers["authorization"] == "Bearer canary"
    assert "canary" not in repr(recorder.events) + repr(result) + repr(config_of(backend, result))
    with pytest.raises(FetchFailed) as caught:
        build(backend, f"FROM scratch\nADD {url}y /\n", secrets=secrets)
    said = describe_error(caught.value, caught.value.files)
    assert "ADD http://xxx" in said
    assert "canary" not in said
