"""Every sample builds, and does what it says, on both backends."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commandline import CommandLine, OnContainerd, OnEmbedded

from pybuild.errors import BuildCancelled
from pybuild.run.activity import CancelToken
from pybuild.running import run_image

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
Build = Callable[..., str]


@pytest.fixture(params=["containerd", "embedded"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def build(pybuild: CommandLine) -> Build:
    """``pybuild`` on a sample; gives what it prints on standard error."""

    def call(sample: str, *options: str) -> str:
        ended = pybuild.build("-t", f"{sample}:1", *options, SAMPLES / sample)
        assert ended.out.startswith(f"docker.io/library/{sample}:1 sha256:")
        return ended.err

    return call


@pytest.fixture
def debian_option(request: pytest.FixtureRequest, backend: str) -> Callable[[str], list[str]]:
    """The options for an image that Debian stands in for."""
    if backend == "containerd":
        request.getfixturevalue("debian_image")
        return lambda _name: []
    layout = request.getfixturevalue("debian")
    return lambda name: ["--build-context", f"{name}=oci-layout://{layout}"]


@contextmanager
def serving(command: CommandLine, image: str, port: int) -> Iterator[None]:
    """The image runs in the machine's network."""
    if isinstance(command, OnContainerd):
        name = f"sample-{port}"
        options = ("--detach", "--net-host", "--env", f"PORT={port}")
        command.ctr("run", *options, f"docker.io/library/{image}", name)
        try:
            yield
        finally:
            command.ctr("tasks", "kill", "--signal", "KILL", name)
            command.ctr("tasks", "delete", "--force", name)
            command.ctr("containers", "delete", name)
        return
    assert isinstance(command, OnEmbedded)
    cancel = CancelToken()

    def serve() -> None:
        with pytest.raises(BuildCancelled):
            run_image(
                image,
                backend="embedded",
                backend_options={"root": command.root},
                env={"PORT": str(port)},
                cancel=cancel,
            )

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        cancel.cancel()
        thread.join()


def test_there_is_a_test_for_every_sample() -> None:
    tested = {"hello", "static-file", "gcc-scratch", "python-web", "pytest"}
    assert {path.name for path in SAMPLES.iterdir() if path.is_dir()} == tested
    for sample in tested:
        assert (SAMPLES / sample / "Dockerfile").exists()
        assert (SAMPLES / sample / "README.md").read_text().startswith(f"# {sample}\n")


def test_hello_greets(build: Build, pybuild: CommandLine) -> None:
    build("hello", "--build-arg", "WHO=reader")
    assert pybuild.run("hello:1") == "Hello, reader, from an image that pybuild made.\n"


def test_static_file_holds_its_one_file(build: Build, pybuild: CommandLine) -> None:
    build("static-file", "--output", f"type=local,dest={pybuild.folder}/out", "--output=type=image")
    assert [path.name for path in (pybuild.folder / "out").iterdir()] == ["index.html"]
    page = (SAMPLES / "static-file" / "index.html").read_bytes()
    assert (pybuild.folder / "out/index.html").read_bytes() == page


@pytest.mark.debootstrap
def test_gcc_scratch_counts_primes(
    build: Build, pybuild: CommandLine, debian_option: Callable[[str], list[str]]
) -> None:
    options = debian_option("gcc")
    log = build("gcc-scratch", *options)
    assert "test $(./primes" not in log  # the stage `test` isn't needed
    program = [] if isinstance(pybuild, OnEmbedded) else ["/primes"]
    assert pybuild.run("gcc-scratch:1", *program, "20") == "2 3 5 7 11 13 17 19\n"
    build("gcc-scratch", *options, "--target", "test")


@pytest.mark.debootstrap
def test_python_web_answers(
    build: Build, pybuild: CommandLine, debian_option: Callable[[str], list[str]]
) -> None:
    log = build("python-web", *debian_option("python:3-slim"))
    assert "Ran 3 tests" in log
    port = 18431
    with serving(pybuild, "python-web:1", port):
        assert "built by pybuild" in _read(f"http://127.0.0.1:{port}/")
        assert _read(f"http://127.0.0.1:{port}/health") == "well\n"


def _read(address: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 20
    while True:
        try:
            with opener.open(address, timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
