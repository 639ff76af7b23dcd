"""Every sample builds, and does what it says."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from pybuild.testkit.containerd import PrivateContainerd

pytestmark = [pytest.mark.root, pytest.mark.containerd]

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
Call = Callable[..., str]


@pytest.fixture
def build(base_images: PrivateContainerd, tmp_path: Path) -> Call:
    """``pybuild`` on a sample; gives what it prints on standard output."""

    def call(sample: str, *options: str) -> str:
        program = [sys.executable, "-m", "pybuild"]
        address = ["--containerd-address", base_images.address]
        done = subprocess.run(
            [*program, *address, "-t", f"{sample}:1", *options, str(SAMPLES / sample)],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"docker.io/library/{sample}:1 sha256:")
        return done.stderr

    return call


@pytest.fixture
def ctr(base_images: PrivateContainerd) -> Call:
    def call(*arguments: str) -> str:
        command = ["ctr", "--address", base_images.address, *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def _run(ctr: Call, sample: str, *command: str) -> str:
    name = f"docker.io/library/{sample}:1"
    return ctr("run", "--rm", name, f"{sample}-{os.getpid()}", *command)


def test_there_is_a_test_for_every_sample() -> None:
    tested = {"hello", "static-file", "gcc-scratch", "python-web"}
    assert {path.name for path in SAMPLES.iterdir() if path.is_dir()} == tested
    for sample in tested:
        assert (SAMPLES / sample / "Dockerfile").exists()
        assert (SAMPLES / sample / "README.md").read_text().startswith(f"# {sample}\n")


def test_hello_greets(build: Call, ctr: Call) -> None:
    build("hello", "--build-arg", "WHO=reader")
    assert _run(ctr, "hello") == "Hello, reader, from an image that pybuild made.\n"


def test_static_file_holds_its_one_file(build: Call, ctr: Call, tmp_path: Path) -> None:
    build("static-file")
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    ctr("images", "mount", "docker.io/library/static-file:1", str(mounted))
    try:
        assert [path.name for path in mounted.iterdir()] == ["index.html"]
        page = (SAMPLES / "static-file" / "index.html").read_bytes()
        assert (mounted / "index.html").read_bytes() == page
    finally:
        ctr("images", "unmount", "--rm", str(mounted))


@pytest.mark.debootstrap
@pytest.mark.usefixtures("debian_image")
def test_gcc_scratch_counts_primes(build: Call, ctr: Call) -> None:
    log = build("gcc-scratch")
    assert "test $(./primes" not in log  # the stage `test` isn't needed
    assert _run(ctr, "gcc-scratch", "/primes", "20") == "2 3 5 7 11 13 17 19\n"
    build("gcc-scratch", "--target", "test")


@pytest.mark.debootstrap
@pytest.mark.usefixtures("debian_image")
def test_python_web_answers(build: Call, ctr: Call) -> None:
    log = build("python-web")
    assert "Ran 3 tests" in log
    name = f"python-web-{os.getpid()}"
    image = "docker.io/library/python-web:1"
    ctr("run", "--detach", "--net-host", "--env", "PORT=18431", image, name)
    try:
        assert "built by pybuild" in _read("http://127.0.0.1:18431/")
        assert _read("http://127.0.0.1:18431/health") == "well\n"
    finally:
        ctr("tasks", "kill", "--signal", "KILL", name)
        ctr("tasks", "delete", "--force", name)
        ctr("containers", "delete", name)


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
