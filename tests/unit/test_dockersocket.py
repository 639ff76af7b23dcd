from __future__ import annotations

import io
import os
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from building import NoActivity, build, memory_backend

from pybuild import Builder
from pybuild.errors import BuildCancelled, ExportFailed, UsageError
from pybuild.export.dockersocket import load_archive
from pybuild.export.outputs import DockerLoadOutput
from pybuild.run.activity import CancelToken
from pybuild.testkit.layouts import LayoutReader
from pybuild.testkit.validate import validate


class Docker:
    """Takes one request on a socket and gives `answer`, at once if it reads only the head."""

    def __init__(self, folder: Path, answer: bytes, *, reads: bool = True) -> None:
        self.path = folder / "d.sock"
        self.host = f"unix://{self.path}"
        self.head = b""
        self.body = b""
        self._answer = answer
        self._reads = reads
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(self.path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self.head:  # a connection without a request only asks if anybody is there
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._take(connection)

    def _take(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while (line := stream.readline()) not in {b"\r\n", b""}:
                self.head += line
            if not self.head:
                return
            while self._reads and (size := int(stream.readline() or b"0", 16)):
                self.body += stream.read(size)
                stream.readline()
            connection.sendall(self._answer)
            if not self._answer:
                stream.read()

    def close(self) -> None:
        socket.socket.shutdown(self._listener, socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()
        assert not self._thread.is_alive()


@pytest.fixture
def dockers() -> Iterator[list[Docker]]:
    started: list[Docker] = []
    yield started
    for docker in started:
        docker.close()


def test_docker_gets_the_archive_whole(tmp_path: Path, dockers: list[Docker]) -> None:
    docker = Docker(tmp_path, answer("200 OK", '{"stream":"Loaded image: app:1"}\r\n'))
    dockers.append(docker)
    with memory_backend() as backend:
        output = DockerLoadOutput(host=docker.host)
        result = build(backend, "FROM busybox\nRUN echo x > /x\n", tags=["app:1"], outputs=[output])
    assert docker.head.startswith(b"POST /images/load?quiet=1 HTTP/1.1\r\n")
    assert b"Content-Type: application/x-tar" in docker.head
    (tmp_path / "got.tar").write_bytes(docker.body)
    layout = LayoutReader(tmp_path / "got.tar")
    validate(layout, layout.images()["docker.io/library/app:1"])
    assert layout.read_json("manifest.json")[0]["RepoTags"] == ["app:1"]
    assert result.outputs[0].place == docker.host
    with tarfile.open(fileobj=io.BytesIO(docker.body)) as archive:
        assert archive.getnames()


def test_docker_gets_an_image_of_the_store_as_it_is(tmp_path: Path, dockers: list[Docker]) -> None:
    dockers.append(Docker(tmp_path, answer("200 OK", "{}")))
    with memory_backend() as backend, Builder(backend) as builder:
        image = builder.image(
            builder.build({"Dockerfile": "FROM busybox\nRUN touch /x\n"}, tags=["a:1"])
        )
        image.load_into(DockerLoadOutput(host=dockers[0].host))
    archive = tmp_path / "archive.tar"
    archive.write_bytes(dockers[0].body)
    (name, loaded), *_ = LayoutReader(archive).images().items()
    assert (name, loaded.manifest.digest) == ("docker.io/library/a:1", image.digest)


def answer(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            answer("200 OK", '{"stream":"x"}\n{"error":"no \x1b[31mspace"}\n'),
            r"can't load the image: no  \[31mspace",
        ),
        (answer("500 Oops", '{"message":"broken"}'), "answered 500: broken"),
        (answer("404 Not Found", "not JSON"), "answered 404$"),
        (b"nonsense\r\n", "can't load into Docker"),
    ],
)
def test_what_docker_refuses_is_told_in_its_words(
    tmp_path: Path, dockers: list[Docker], answer: bytes, message: str
) -> None:
    dockers.append(Docker(tmp_path, answer))
    with pytest.raises(ExportFailed, match=message):
        load_archive(dockers[0].host, lambda sink: sink(b"archive"), NoActivity())


def test_an_answer_that_comes_early_says_why(tmp_path: Path, dockers: list[Docker]) -> None:
    dockers.append(Docker(tmp_path, answer("413 Large", '{"message":"too much"}'), reads=False))

    def write(sink: object) -> None:
        for _ in range(64):
            sink(bytes(1 << 20))  # type: ignore[operator]

    with pytest.raises(ExportFailed, match=r"answered 413: too much|can't load into Docker"):
        load_archive(dockers[0].host, write, NoActivity())


def test_a_docker_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExportFailed, match="No such file") as caught:
        load_archive(f"unix://{tmp_path}/none", lambda sink: None, NoActivity())
    assert "DOCKER_HOST" in str(caught.value.hint)


def test_a_docker_that_is_not_there_is_told_before_the_build(tmp_path: Path) -> None:
    output = DockerLoadOutput(host=f"unix://{tmp_path}/none")
    with memory_backend() as backend, pytest.raises(ExportFailed, match="No such file"):
        build(backend, "FROM nowhere\n", outputs=[output])


@pytest.mark.parametrize("host", ["tcp://127.0.0.1:2375", "ssh://h.example", "unix://d", ""])
def test_another_kind_of_address_is_refused_before_the_build(host: str) -> None:
    with memory_backend() as backend, pytest.raises(UsageError, match="only unix:///path"):
        build(backend, "FROM nowhere\n", outputs=[DockerLoadOutput(host=host)])


def test_a_cancel_ends_the_wait_for_docker(tmp_path: Path, dockers: list[Docker]) -> None:
    dockers.append(Docker(tmp_path, b""))
    token = CancelToken()

    class Cancellable(NoActivity):
        on_cancel = staticmethod(token.on_cancel)  # type: ignore[assignment]
        raise_if_cancelled = staticmethod(token.raise_if_cancelled)  # type: ignore[assignment]

    timer = threading.Timer(0.2, token.cancel)
    timer.start()
    began = time.monotonic()
    with pytest.raises(BuildCancelled):
        load_archive(dockers[0].host, lambda sink: sink(b"x"), Cancellable())
    timer.join()
    assert time.monotonic() - began < 30
