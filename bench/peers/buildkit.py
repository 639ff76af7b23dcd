"""BuildKit: buildctl, with a buildkitd that is given or one of our own for each of its workers."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from builder import Build
from controlgroups import ControlGroup
from measuring import Command, Daemons, call

from pybuild.testkit.containerd import private_containerd

_SECONDS = 60.0


@dataclass(frozen=True)
class Buildkit:
    """buildctl with the daemon at `address`, whose image store gets what is built."""

    name: str
    address: str
    daemons: Daemons
    keeps_steps: bool = True

    def command(self, build: Build) -> Command:
        sources = (
            *("--frontend=dockerfile.v0", "--local", f"context={build.context}"),
            *("--local", f"dockerfile={build.dockerfile.parent}"),
            *("--opt", f"filename={build.dockerfile.name}"),
        )
        output = ("--progress=plain", "--output", f"type=image,name=docker.io/library/{build.tag}")
        fresh = ("--no-cache",) if build.no_cache else ()
        return self._buildctl("build", *sources, *output, *fresh)

    def forget(self, tag: str) -> None:
        """Nothing: its images are part of its cache, and the next takes the name."""
        del tag

    def empty(self) -> None:
        call(self._buildctl("prune", "--all"))

    def _buildctl(self, *words: str) -> Command:
        return Command(("buildctl", "--addr", self.address, *words))


@contextmanager
def buildkit(folder: Path, group: ControlGroup) -> Iterator[Buildkit]:
    """With a buildkitd that runs steps by runc itself."""
    options = ("--oci-worker=true", "--containerd-worker=false")
    with _buildkitd(folder, options, group) as address:
        yield Buildkit("buildkit", address, (group,))


@contextmanager
def buildkit_on_containerd(folder: Path, group: ControlGroup) -> Iterator[Buildkit]:
    """With a buildkitd that has a containerd of its own run steps."""
    with private_containerd(parent=folder) as containerd:
        group.add(containerd.pid)
        worker = f"--containerd-worker-addr={containerd.address}"
        options = ("--oci-worker=false", "--containerd-worker=true", worker)
        with _buildkitd(folder, options, group) as address:
            yield Buildkit("buildkit-containerd", address, (group,))


def has_buildctl() -> bool:
    return shutil.which("buildctl") is not None


def has_buildkitd() -> bool:
    return has_buildctl() and shutil.which("buildkitd") is not None


@contextmanager
def _buildkitd(folder: Path, options: Sequence[str], group: ControlGroup) -> Iterator[str]:
    address, log = f"unix://{folder}/b.sock", folder / "buildkitd.log"
    (folder / "buildkitd.toml").write_text("")
    command = ["buildkitd", "--config", str(folder / "buildkitd.toml"), "--addr", address]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, "--root", str(folder / "root"), *options],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,  # Ctrl-C is for the suite, which ends it in order
        )
    try:
        group.add(process.pid)
        deadline = time.monotonic() + _SECONDS
        ask = ["buildctl", "--addr", address, "debug", "workers"]
        while subprocess.run(ask, check=False, capture_output=True).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"buildkitd doesn't answer; its log:\n{log.read_text()[-4000:]}")
            time.sleep(0.1)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
