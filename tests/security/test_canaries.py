"""Secrets, keys and passwords that a build is given are found nowhere afterwards.

BuildKit CVE-2025-0495, and threats.md's rows on secrets: layers, history, config, keys of the
step cache, messages, the store, files of the build, arguments of processes.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import pytest

from embedding import busybox_registry, check_store, remove_store
from pybuild.testkit.containerd import PrivateContainerd, check_nothing_left
from searching import contents
from serving import Repository, WebServer

pytestmark = [pytest.mark.root, pytest.mark.git]

PROGRAM = (sys.executable, "-m", "pybuild")
DOCKERFILE = """\
FROM {registry}/busybox
ADD {web}/private.git /private
RUN --mount=type=secret,id=file --mount=type=secret,id=variable,env=TOKEN \
    --mount=type=ssh --mount=type=cache,target=/c \
    cat /run/secrets/file > /dev/null; test -n "$TOKEN" && test -S $SSH_AUTH_SOCK && \
    test -n "$https_proxy" && echo used; sleep 3; echo made > /made
"""


@dataclass(frozen=True)
class Canaries:
    """What must not be found, by what it is."""

    secret: str
    variable: str
    proxy: str
    git: str
    password: str
    key: str

    def all(self) -> list[bytes]:
        """All, and the logins in the form in which they are sent."""
        logins = f"me:{self.password}", f"x-access-token:{self.git}"
        return [
            *(str(value).encode() for value in vars(self).values()),
            *(b64encode(login.encode()) for login in logins),
        ]

    def in_text(self, text: bytes) -> list[bytes]:
        return [canary for canary in self.all() if canary in text]

    def in_files(self, *tops: Path) -> list[str]:
        """The files below `tops` that hold one of them, as they are or compressed."""
        found = []
        for path, content in contents(*tops):
            plain = b""
            with suppress(OSError, EOFError):  # not whole, or no gzip
                plain = gzip.decompress(content)
            found += [f"{path}: {canary!r}" for canary in self.in_text(content + plain)]
        return found

    def in_processes(self) -> list[str]:
        """Processes whose arguments hold one of them."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            found += [f"{process}: {words!r}" for _ in self.in_text(words)]
        return found


@pytest.fixture
def canaries(tmp_path: Path) -> Canaries:
    key = tmp_path / "key"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    values = [f"canary-{token_hex(8)}" for _ in range(5)]
    return Canaries(*values, key.read_text().splitlines()[2])


@pytest.fixture
def dockerfile(canaries: Canaries, tmp_path: Path) -> Iterator[str]:
    """Its base image and a repository that it adds are for those who have a login."""
    repository = Repository(tmp_path / "served" / "private.git")
    repository.commit({"file": "private"})
    repository.publish()
    login = b64encode(f"x-access-token:{canaries.git}".encode()).decode()
    with (
        busybox_registry(canaries.password) as registry,
        WebServer(tmp_path / "served") as web,
    ):
        web.login = f"basic {login}"
        home = tmp_path / "home" / ".docker"
        home.mkdir(parents=True)
        auth = b64encode(f"me:{canaries.password}".encode()).decode()
        (home / "config.json").write_text(json.dumps({"auths": {registry.address: {"auth": auth}}}))
        yield DOCKERFILE.format(registry=registry.address, web=web.url)


@dataclass(frozen=True)
class Building:
    """How the Dockerfile is built with everything that it may be lent."""

    canaries: Canaries
    dockerfile: str
    folder: Path

    @property
    def context(self) -> Path:
        return self.folder / "context"

    @property
    def flags(self) -> list[str]:
        return [
            "--progress=rawjson",
            f"--secret=id=file,src={self.folder / 'given'}",
            "--secret=id=variable,env=GIVEN",
            "--secret=id=GIT_AUTH_TOKEN,env=GIT",
            f"--ssh=default={self.folder / 'key'}",
            "--build-arg=https_proxy",
            "--metadata-file=metadata",
            "-t=canary",
        ]

    def __call__(self, backend: Mapping[str, str], places: Sequence[Path], *flags: str) -> None:
        """Build, looking for canaries meanwhile, afterwards, and in what a dry run prints.

        `backend` are variables that choose it, `places` are folders where it keeps things.
        """
        self.context.mkdir(exist_ok=True)
        (self.context / "Dockerfile").write_text(self.dockerfile)
        (self.folder / "given").write_text(self.canaries.secret)
        environment = {
            **os.environ,
            "HOME": str(self.folder / "home"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "GIVEN": self.canaries.variable,
            "GIT": self.canaries.git,
            "https_proxy": f"http://user:{self.canaries.proxy}@127.0.0.1:1",
            **backend,
        }
        with subprocess.Popen(
            [*PROGRAM, *self.flags, *flags, str(self.context)],
            cwd=self.context,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            seen = []
            while process.poll() is None and not seen:
                seen = self.canaries.in_processes()
                time.sleep(0.02)
            out, err = process.communicate()
        assert process.returncode == 0, err.decode()
        assert b"used" in err or b"cached" in err.lower()
        assert seen == []
        assert self.canaries.in_text(out + err) == []
        assert self.canaries.in_files(self.folder / "home")  # the search itself works
        tops = [*places, self.folder / "cache", self.context, Path(tempfile.gettempdir())]
        assert self.canaries.in_files(*tops, *Path("/dev/shm").glob("pybuild-*")) == []
        dry = [*PROGRAM, "--dry-run=json", *self.flags, str(self.context)]
        planned = subprocess.run(
            dry, check=True, capture_output=True, cwd=self.context, env=environment
        )
        assert self.canaries.in_text(planned.stdout + planned.stderr) == []


@pytest.fixture
def build(canaries: Canaries, dockerfile: str, tmp_path: Path) -> Building:
    return Building(canaries, dockerfile, tmp_path)


def test_on_containerd(containerd: PrivateContainerd, build: Building) -> None:
    namespace = f"canary-{token_hex(4)}"
    backend = {
        "PYBUILD_BACKEND": "containerd",
        "CONTAINERD_ADDRESS": containerd.address,
        "CONTAINERD_NAMESPACE": namespace,
    }
    build(backend, [containerd.folder])
    client = ["ctr", "-a", containerd.address, "-n", namespace]
    export = [*client, "images", "export", "-", "docker.io/library/canary:latest"]
    image = subprocess.run(export, check=True, capture_output=True).stdout
    _check_archive(build.canaries, image)
    check_nothing_left(containerd.address, namespace, containerd.folder)


def test_on_the_embedded_backend(build: Building) -> None:
    root = build.folder / "store"
    backend = {"PYBUILD_BACKEND": "embedded", "PYBUILD_ROOT": str(root)}
    try:
        build(backend, [root])
        image = build.context / "image.tar"
        build(backend, [root], f"-o=type=oci,dest={image}")
        _check_archive(build.canaries, image.read_bytes())
        check_store(root)
    finally:
        remove_store(root)


def _check_archive(canaries: Canaries, image: bytes) -> None:
    assert canaries.in_text(image) == []
    with tarfile.open(fileobj=io.BytesIO(image)) as archive:
        for member in archive:
            content = archive.extractfile(member)
            data = b"" if content is None else content.read()
            plain = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
            assert canaries.in_text(plain) == []
