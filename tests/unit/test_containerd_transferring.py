"""Pulls by containerd's transfer service, against a server of the test's own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from promptness import AT_ONCE
from pybuild.errors import BuildCancelled, ImageError
from pybuild.oci.auth import Credential, Credentials, DockerCredentials
from pybuild.oci.hosts import load_hosts
from pybuild.oci.platform import Platform
from pybuild.oci.reference import parse_reference
from pybuild.testkit.workbench import RecordingActivity
from pybuild_containerd import client as client_module
from pybuild_containerd import rpcs
from pybuild_containerd._proto import enum_value, message_class
from pybuild_containerd.backend import _may_transfer
from pybuild_containerd.client import Client
from pybuild_containerd.options import Options
from pybuild_containerd.probe import Probe
from pybuild_containerd.transferring import TransferService, WantedImage

TOP, A, B = (f"sha256:{letter * 64}" for letter in "1ab")
TYPES = "containerd.types.transfer"


@dataclass(frozen=True)
class Told:
    """A Transfer call as its server sees it, with the streams it names."""

    source: Any
    destination: Any
    metadata: dict[str, str]
    context: Any
    streams: Streams
    progress_stream: str

    def tell(self, event: str, digest: str = "", done: int = 0, *, name: str = "") -> None:
        descriptor = {"digest": digest} if digest else None
        self.streams.send(
            self.progress_stream,
            f"{TYPES}.Progress",
            message_class("TransferProgress")(
                event=event, name=name, progress=done, total=100, desc=descriptor
            ),
        )

    def ask(self, host: str) -> tuple[int, str, str]:
        """The kind, user and secret that the client answers for `host`."""
        stream = self.source.resolver.auth_stream
        question = message_class("AuthRequest")(host=host, reference=self.source.reference)
        self.streams.send(stream, f"{TYPES}.AuthRequest", question)
        answer = self.streams.receive(stream)
        assert answer.type_url == f"{TYPES}.AuthResponse"
        found = message_class("AuthResponse").FromString(answer.value)
        return found.auth_type, found.username, found.secret


class Streams:
    """The streaming service: clients open streams by id, and calls use them."""

    def __init__(self) -> None:
        self._incoming: dict[str, Iterator[Any]] = {}
        self._outgoing: dict[str, queue.Queue[Any]] = {}

    def serve(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        first = next(requests)
        assert first.type_url == "containerd.services.streaming.v1.StreamInit"
        name = message_class("StreamInit").FromString(first.value).id
        assert name not in self._outgoing
        outgoing = self._outgoing[name] = queue.Queue()
        self._incoming[name] = requests
        yield message_class("Any")(type_url="google.protobuf.Empty")
        while context.is_active():
            try:
                message = outgoing.get(timeout=0.02)
            except queue.Empty:
                continue
            if message is None:
                return
            yield message

    def send(self, name: str, kind: str, message: Any) -> None:
        packed = message_class("Any")(type_url=kind, value=message.SerializeToString())
        self._outgoing[name].put(packed)

    def receive(self, name: str) -> Any:
        return next(self._incoming[name])

    def close(self, name: str) -> None:
        if name in self._outgoing:
            self._outgoing[name].put(None)


Behaviour = Callable[[Told], None]


class _Services(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs alone
    def __init__(self, behave: Behaviour | None) -> None:
        self._behave = behave
        self._streams = Streams()

    def service(self, details: Any) -> Any:
        if details.method == rpcs.VERSION.path:
            version = message_class("VersionResponse")(version="v9")
            return _unary(rpcs.VERSION, lambda _request, _context: version)
        if self._behave is None:
            return None
        if details.method == rpcs.STREAM.path:
            return grpc.stream_stream_rpc_method_handler(
                self._streams.serve,
                request_deserializer=message_class("Any").FromString,
                response_serializer=message_class("Any").SerializeToString,
            )
        return _unary(rpcs.TRANSFER, self._transfer)

    def _transfer(self, request: Any, context: Any) -> Any:
        assert self._behave is not None
        assert request.source.type_url == f"{TYPES}.OCIRegistry"
        assert request.destination.type_url == f"{TYPES}.ImageStore"
        told = Told(
            message_class("OCIRegistry").FromString(request.source.value),
            message_class("ImageStore").FromString(request.destination.value),
            dict(context.invocation_metadata()),
            context,
            self._streams,
            request.options.progress_stream,
        )
        try:
            self._behave(told)
        finally:
            self._streams.close(told.progress_stream)
        return message_class("Empty")()


def _unary(method: rpcs.Method, behave: Callable[..., Any]) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        behave,
        request_deserializer=message_class(method.request).FromString,
        response_serializer=message_class(method.response).SerializeToString,
    )


@contextmanager
def connected(folder: Path, behave: Behaviour | None) -> Iterator[Client]:
    """A client of a server whose Transfer is `behave`; None for one without the service."""
    path = folder / "c.sock"
    with ThreadPoolExecutor(16) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((_Services(behave),))
        server.add_insecure_port(f"unix:{path}")
        server.start()
        try:
            with Client(str(path), "default", lease="kept") as client:
                yield client
        finally:
            server.stop(None).wait()


class Activity(RecordingActivity):
    """Keeps the progress too."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, int, int | None]] = []

    def progress(self, item: str, done: int, total: int | None) -> None:
        self.told.append((item, done, total))


def service(
    client: Client,
    credentials: Credentials | None = None,
    *,
    hosts_dir: Path | None = None,
    same_host: bool = True,
) -> TransferService:
    asked = credentials or DockerCredentials(None)
    return TransferService(client, load_hosts(hosts_dir), lambda: asked, same_host=same_host)


def wanted(name: str = "registry.example/team/app:1") -> WantedImage:
    layers = {A: 100, B: 100}
    return WantedImage(
        parse_reference(name), TOP, Platform("linux", "arm", "v7"), "http", layers, {"mine": "1"}
    )


def refusing(code: grpc.StatusCode, details: str) -> Behaviour:
    def refuse(told: Told) -> None:
        told.context.abort(code, details)

    return refuse


def test_the_very_digest_is_pulled_for_one_platform_under_our_lease(tmp_path: Path) -> None:
    calls: list[Told] = []
    with connected(tmp_path, calls.append) as client:
        assert service(client, hosts_dir=tmp_path).pull(wanted(), Activity())
    (told,) = calls
    assert told.source.reference == f"registry.example/team/app@{TOP}"
    assert told.source.resolver.host_dir == str(tmp_path)
    assert told.source.resolver.default_scheme == "http"
    assert told.destination.name == "registry.example/team/app:1"
    assert dict(told.destination.labels) == {"mine": "1"}
    (platform,) = told.destination.platforms
    assert (platform.os, platform.architecture, platform.variant) == ("linux", "arm", "v7")
    assert told.destination.manifest_limit == 1
    assert told.metadata["containerd-lease"] == "kept"
    assert told.metadata["containerd-namespace"] == "default"


def test_logins_are_given_for_the_images_own_host_alone(tmp_path: Path) -> None:
    asked = ["registry.example", "evil.example", "registry.example:80", "token.example"]
    answers: list[tuple[int, str, str]] = []
    login = {"auth": "bWU6cHc="}
    credentials = DockerCredentials({"auths": dict.fromkeys([*asked, "token.example"], login)})
    with connected(tmp_path, lambda told: answers.extend(map(told.ask, asked))) as client:
        assert service(client, credentials).pull(wanted(), Activity())
    nothing = (enum_value("AuthType", "NONE"), "", "")
    password = (enum_value("AuthType", "CREDENTIALS"), "me", "pw")
    assert answers == [password, nothing, nothing, nothing]


def test_a_configured_mirror_gets_its_own_login(tmp_path: Path) -> None:
    folder = tmp_path / "registry.example"
    folder.mkdir()
    (folder / "hosts.toml").write_text('[host."https://mirror.example"]\n')
    credentials = DockerCredentials({"auths": {"mirror.example": {"auth": "aXQ6bWlycm9y"}}})
    answers: list[tuple[int, str, str]] = []
    with connected(tmp_path, lambda told: answers.append(told.ask("mirror.example"))) as client:
        assert service(client, credentials, hosts_dir=tmp_path).pull(wanted(), Activity())
    assert answers == [(enum_value("AuthType", "CREDENTIALS"), "it", "mirror")]


class OneCredential:
    """The same for every host."""

    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    def for_host(self, host: str) -> Credential:  # the protocol's
        return self._credential


@pytest.mark.parametrize("host", ["registry-1.docker.io", "docker.io"])
def test_the_hub_is_asked_for_under_its_servers_name(tmp_path: Path, host: str) -> None:
    answers: list[tuple[int, str, str]] = []
    credentials = OneCredential(Credential("", identity_token="t0ken"))
    with connected(tmp_path, lambda told: answers.append(told.ask(host))) as client:
        assert service(client, credentials).pull(wanted("busybox"), Activity())
    assert answers == [(enum_value("AuthType", "REFRESH"), "", "t0ken")]


def test_a_broken_credential_helper_counts_as_no_login(tmp_path: Path) -> None:
    answers: list[tuple[int, str, str]] = []
    broken = DockerCredentials({"credsStore": "that-is-nowhere"})
    with connected(tmp_path, lambda told: answers.append(told.ask("registry.example"))) as client:
        assert service(client, broken).pull(wanted(), Activity())
    assert answers == [(enum_value("AuthType", "NONE"), "", "")]


def test_progress_is_told_of_each_layer_up_to_its_end(tmp_path: Path) -> None:
    def behave(told: Told) -> None:
        told.tell("Resolving from OCI Registry")
        told.tell("waiting", A)
        told.tell("downloading", A, 40)
        told.tell("downloading", TOP, 50)  # the manifest, of which nobody wants to hear
        told.tell("complete", A, 100)
        told.tell("downloading", B, -7)
        told.tell("downloading", name=f"layer-{B}", done=30)  # as 1.7 says it

    activity = Activity()
    with connected(tmp_path, behave) as client:
        assert service(client).pull(wanted(), activity)
    of_a = [entry for entry in activity.told if entry[0] == A]
    of_b = [entry for entry in activity.told if entry[0] == B]
    assert of_a[-1] == (A, 100, 100)
    assert of_a == sorted(of_a)
    assert of_b[-1] == (B, 100, 100)
    assert len(activity.told) == len(of_a) + len(of_b)


@pytest.mark.parametrize(
    ("code", "details", "is_tried_again"),
    [
        (grpc.StatusCode.NOT_FOUND, "app: not found", True),
        (grpc.StatusCode.UNKNOWN, "unexpected status from HEAD request: 401 Unauthorized", True),
        (grpc.StatusCode.INTERNAL, "", True),
        (grpc.StatusCode.UNAVAILABLE, "ref layer-sha256:1 locked for 1s: unavailable", True),
        (grpc.StatusCode.INVALID_ARGUMENT, "no unpack platforms defined", False),
        (grpc.StatusCode.UNIMPLEMENTED, "method Transfer not implemented", False),
    ],
)
def test_a_failed_transfer_is_for_our_own_pull_to_better(
    tmp_path: Path, code: grpc.StatusCode, details: str, is_tried_again: bool
) -> None:
    calls = 0

    def behave(told: Told) -> None:
        nonlocal calls
        calls += 1
        told.context.abort(code, details)

    activity = Activity()
    with connected(tmp_path, behave) as client:
        transfer = service(client)
        assert not transfer.pull(wanted(), activity)
        assert not transfer.pull(wanted(), activity)
    assert calls == (2 if is_tried_again else 1)
    assert activity.warnings == []


def test_a_server_without_streams_cannot_pull(tmp_path: Path) -> None:
    with connected(tmp_path, None) as client:
        assert not service(client).pull(wanted(), Activity())


@pytest.mark.parametrize("word", ["blocked pull of", "blocking pull of"])
def test_the_machines_policy_is_not_gone_around(tmp_path: Path, word: str) -> None:
    details = f"image verifier bindir {word} registry.example/team/app for reason: unsigned"
    refuse = refusing(grpc.StatusCode.UNKNOWN, details)
    with connected(tmp_path, refuse) as client, pytest.raises(ImageError, match="unsigned") as told:
        service(client).pull(wanted(), Activity())
    assert told.value.hint


def test_cancelling_the_build_ends_the_transfer(tmp_path: Path) -> None:
    begun, over = threading.Event(), threading.Event()

    def hang(told: Told) -> None:
        told.tell("downloading", A, 1)
        begun.set()
        while told.context.is_active():
            time.sleep(0.01)
        over.set()

    activity = Activity()

    def cancel() -> None:
        begun.wait(5)
        activity.cancel()

    with connected(tmp_path, hang) as client:
        canceller = threading.Thread(target=cancel)
        canceller.start()
        started = time.monotonic()
        with pytest.raises(BuildCancelled):
            service(client).pull(wanted(), activity)
        assert time.monotonic() - started < AT_ONCE
        assert over.wait(5)
        canceller.join()


def test_a_cancelled_build_begins_no_transfer(tmp_path: Path) -> None:
    activity = Activity()
    activity.cancel()
    calls: list[Told] = []
    with connected(tmp_path, calls.append) as client, pytest.raises(BuildCancelled):
        service(client).pull(wanted(), activity)
    assert calls == []


def test_a_transfer_without_a_sign_of_life_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "LONGEST_SILENCE", 0.3)

    def hang(told: Told) -> None:
        while told.context.is_active():
            time.sleep(0.01)

    with connected(tmp_path, hang) as client:
        assert not service(client).pull(wanted(), Activity())


def test_a_login_may_be_asked_for_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "LONGEST_SILENCE", 0.4)
    answers: list[tuple[int, str, str]] = []

    def behave(told: Told) -> None:
        for done in range(8):
            told.tell("downloading", A, done)
            time.sleep(0.1)
        answers.append(told.ask("registry.example"))

    with connected(tmp_path, behave) as client:
        login = OneCredential(Credential("me", "pw"))
        assert service(client, login).pull(wanted(), Activity())
    assert answers == [(enum_value("AuthType", "CREDENTIALS"), "me", "pw")]


@pytest.mark.parametrize(
    ("name", "same_host", "transfers"),
    [
        ("registry.example/app", True, True),
        ("registry.example/app", False, True),
        ("configured.example/app", True, True),
        ("configured.example/app", False, False),
        ("localhost:5000/app", True, True),
        ("localhost:5000/app", False, False),
        ("127.0.0.1/app", False, False),
        ("[::1]:5000/app", False, False),
    ],
)
def test_what_only_this_machine_knows_is_not_asked_of_another(
    tmp_path: Path, name: str, same_host: bool, transfers: bool
) -> None:
    (tmp_path / "configured.example").mkdir()
    (tmp_path / "configured.example" / "hosts.toml").write_text('server = "https://x.example"\n')
    calls: list[Told] = []
    with connected(tmp_path, calls.append) as client:
        transfer = service(client, hosts_dir=tmp_path, same_host=same_host)
        assert transfer.pull(wanted(name), Activity()) is transfers
    assert len(calls) == transfers
    assert all(told.source.resolver.host_dir == str(tmp_path) * same_host for told in calls)


@pytest.mark.parametrize(
    ("options", "service_is_there", "used"),
    [
        (Options(), True, True),
        (Options(), False, False),
        (Options(pull="own"), True, False),
        (Options(proxies={"https": "http://proxy.example"}), True, False),
        (Options(proxies={"no": "localhost"}), True, True),
    ],
)
def test_it_is_used_where_it_is_and_no_proxy_is_given(
    options: Options, service_is_there: bool, used: bool
) -> None:
    found = Probe(
        version="v2",
        transfer=service_is_there,
        rebase=True,
        snapshotters=("overlayfs",),
        snapshotter="overlayfs",
        shared_fs=True,
        can_mount=True,
        pidns=None,
        platforms=(),
    )
    assert _may_transfer(options, found) is used


def test_the_messages_have_containerds_numbers() -> None:
    source = message_class("OCIRegistry")(reference="r", resolver={"auth_stream": "a"})
    assert source.SerializeToString() == b"\x0a\x01r\x12\x03\x0a\x01a"
    store = message_class("ImageStore")(name="n", platforms=[{"os": "o"}], manifest_limit=1)
    assert store.SerializeToString() == b"\x0a\x01n\x1a\x03\x0a\x01o\x28\x01"
    answer = message_class("AuthResponse")(auth_type=1, secret="s", username="u")
    assert answer.SerializeToString() == b"\x08\x01\x12\x01s\x1a\x01u"
