"""The command ``pybuild`` as a process of its own, on a real containerd or a store of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedding import check_store
from pybuild.running import run_image
from pybuild.testkit.containerd import PrivateContainerd, check_nothing_left
from pybuild_containerd.client import Client
from pybuild_containerd.content import ContentStore
from pybuild_containerd.stepcache import StepCache

PROGRAM = (sys.executable, "-m", "pybuild")
_PATIENCE = 300.0


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that ended: its exit code, standard output and error."""

    code: int
    out: str
    err: str

    @property
    def digest(self) -> str:
        """The digest, which comes last in what a build prints."""
        return self.out.split()[-1]


class CommandLine(ABC):
    """``pybuild`` on a backend, with an environment of its own in `folder`."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.program: tuple[str, ...] = PROGRAM
        self.home = folder / "home"
        self.home.mkdir(exist_ok=True)
        self.environment: dict[str, str] = {
            "PATH": os.environ["PATH"],
            "TMPDIR": os.environ["TMPDIR"],
            "HOME": str(self.home),
            **environment,
        }

    @abstractmethod
    def check_nothing_left(self) -> None:
        """Raise AssertionError if builds left anything but images and their layers."""

    @abstractmethod
    def run(self, image: str, *command: str) -> str:
        """What a process in the image prints. For ctr, `command` begins with the entrypoint."""

    @abstractmethod
    def images(self) -> set[str]:
        """The full names of all images."""

    @abstractmethod
    def blobs(self) -> set[str]:
        """The digests of all blobs."""

    @abstractmethod
    def blob(self, digest: str) -> bytes: ...

    def __call__(
        self,
        *arguments: str | Path,
        stdin: bytes | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = _PATIENCE,
    ) -> Ended:
        """Run it to its end, whatever that is."""
        ended = subprocess.run(
            [*self.program, *map(str, arguments)],
            check=False,
            capture_output=True,
            cwd=cwd or self.folder,
            env=self.environment | dict(env or {}),
            timeout=timeout,
            **({"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}),  # type: ignore[arg-type]
        )
        return Ended(ended.returncode, ended.stdout.decode(), ended.stderr.decode())

    def build(self, *arguments: str | Path, **options: Any) -> Ended:
        """Run a build that has to succeed."""
        ended = self(*arguments, **options)
        assert ended.code == 0, ended.err
        return ended

    def fail(self, code: int, *arguments: str | Path, **options: Any) -> str:
        """Run a build that has to fail with `code`; give what it says, checked to be decent."""
        ended = self(*arguments, **options)
        assert ended.code == code, ended.out + ended.err
        assert ended.out == ""
        check_decent(ended.err)
        self.check_nothing_left()
        return ended.err

    def start(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        stdout: Any = subprocess.PIPE,
        stderr: Any = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        """Start it; the caller waits for it."""
        return subprocess.Popen(
            [*self.program, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
            cwd=self.folder,
            env=self.environment | dict(env or {}),
        )

    def manifest(self, digest: str) -> Any:
        return json.loads(self.blob(digest))

    def config(self, digest: str) -> Any:
        """The config of the image with the manifest `digest`."""
        return json.loads(self.blob(self.manifest(digest)["config"]["digest"]))

    def diff_ids(self, digest: str) -> list[str]:
        found: list[str] = self.config(digest)["rootfs"]["diff_ids"]
        return found

    def context(self, dockerfile: str | bytes, /, **files: str | bytes) -> Path:
        """A new build context; dots in names of files are written as double underscores."""
        folder = self.folder / f"context-{os.urandom(4).hex()}"
        folder.mkdir()
        named = {name.replace("__", "."): content for name, content in files.items()}
        for name, content in {"Dockerfile": dockerfile, **named}.items():
            raw = content.encode() if isinstance(content, str) else content
            (folder / name).write_bytes(raw)
        return folder


class OnContainerd(CommandLine):
    """``pybuild`` on a private containerd."""

    def __init__(self, daemon: PrivateContainerd, folder: Path, namespace: str = "default") -> None:
        super().__init__(
            folder,
            PYBUILD_BACKEND="containerd",
            CONTAINERD_ADDRESS=daemon.address,
            CONTAINERD_NAMESPACE=namespace,
        )
        self.daemon = daemon
        self.namespace = namespace

    def check_nothing_left(self) -> None:
        check_nothing_left(self.daemon.address, self.namespace, self.daemon.folder)

    def ctr(self, *arguments: str) -> str:
        command = ["ctr", "--address", self.daemon.address, "--namespace", self.namespace]
        ended = subprocess.run([*command, *arguments], check=False, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def run(self, image: str, *command: str) -> str:
        return self.ctr("run", "--rm", full_name(image), f"run-{os.urandom(4).hex()}", *command)

    def images(self) -> set[str]:
        return set(self.ctr("images", "ls", "-q").split())

    def collect_garbage(self) -> None:
        self.daemon.collect_garbage(self.namespace)

    def blobs(self) -> set[str]:
        self.collect_garbage()
        return set(self.ctr("content", "ls", "-q").split())

    def blob(self, digest: str) -> bytes:
        return self.ctr("content", "get", digest).encode()


class OnEmbedded(CommandLine):
    """``pybuild`` on the embedded backend with the store `root`."""

    def __init__(self, root: Path, folder: Path) -> None:
        super().__init__(folder, PYBUILD_BACKEND="embedded", PYBUILD_ROOT=str(root))
        self.root = root

    def check_nothing_left(self) -> None:
        check_store(self.root)

    def run(self, image: str, *command: str) -> str:
        options = {"root": self.root}
        done = run_image(image, command, backend="embedded", backend_options=options)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    def images(self) -> set[str]:
        listed = json.loads(self.build("images", "--format=json").out)
        return {name for image in listed for name in image["names"]}

    def blobs(self) -> set[str]:
        return {f"sha256:{path.name}" for path in (self.root / "blobs/sha256").glob("*/*")}

    def blob(self, digest: str) -> bytes:
        name = digest.partition(":")[2]
        return (self.root / "blobs/sha256" / name[:2] / name).read_bytes()


def forget_steps(address: str, namespace: str) -> None:
    """Empty the step cache, so that a test sees its own steps run."""
    with Client(address, namespace) as client:
        steps = StepCache(client, ContentStore(client), "overlayfs")
        for record in steps.records():
            steps.forget(record)


def full_name(image: str) -> str:
    """`hello:1` as containerd knows it."""
    return image if "/" in image else f"docker.io/library/{image}"


def check_decent(text: str) -> None:
    """One error, in words, without a traceback."""
    assert "Traceback" not in text, text
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, text
    assert not errors[0].endswith("."), text
