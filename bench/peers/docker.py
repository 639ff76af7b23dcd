"""A dockerd of one's own: its classic builder, and the BuildKit that is in it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from builder import Build
from controlgroups import ControlGroup, parent_of_steps
from measuring import Command, Daemons, call, environment

from pybuild.testkit.containerd import private_containerd

_SECONDS = 60.0


@dataclass(frozen=True)
class Docker:
    """The client `program`, and in `environ` which daemon and which of its builders."""

    name: str
    program: str
    environ: Mapping[str, str]
    daemons: Daemons
    keeps_steps: bool = True

    def command(self, build: Build) -> Command:
        fresh = ("--no-cache",) if build.no_cache else ()
        files = ("-t", build.tag, "-f", str(build.dockerfile), str(build.context))
        return self._docker("build", "-q", "--network=host", *fresh, *files)

    def forget(self, tag: str) -> None:
        call(self._docker("rmi", tag))

    def empty(self) -> None:
        """For both builders, as they have one store."""
        call(self._docker("system", "prune", "--all", "--force"))
        call(self._docker("builder", "prune", "--all", "--force"))

    def _docker(self, *words: str) -> Command:
        return Command((self.program, *words), self.environ)


@contextmanager
def docker_builders(folder: Path, group: ControlGroup) -> Iterator[list[Docker]]:
    """The classic builder, and BuildKit if there is a client that speaks to it."""
    with parent_of_steps("docker") as parent, private_containerd(parent=folder) as containerd:
        group.add(containerd.pid)
        places = {"containerd": containerd.address, "cgroup-parent": parent}
        with _dockerd(folder, places, group) as socket:
            environ = environment(DOCKER_HOST=f"unix://{socket}", DOCKER_BUILDKIT="0")
            found = [Docker("docker-classic", "docker", environ, (group,))]
            environ = environ | {"DOCKER_BUILDKIT": "1"}
            for program in _clients():
                if _builds_with_buildkit(program, folder, environ):
                    found.append(Docker("docker-buildkit", program, environ, (group,)))
                    break
            yield found


def has_dockerd() -> bool:
    return all(shutil.which(name) for name in ("dockerd", "docker"))


@contextmanager
def _dockerd(folder: Path, places: Mapping[str, str | Path], group: ControlGroup) -> Iterator[Path]:
    """Its socket. It touches neither the machine's Docker nor its network."""
    socket, log = folder / "d.sock", folder / "dockerd.log"
    (folder / "dockerd.json").write_text("{}")
    places = {
        **places,
        "config-file": folder / "dockerd.json",
        "data-root": folder / "data",
        "exec-root": folder / "exec",
        "pidfile": folder / "dockerd.pid",
        "host": f"unix://{socket}",
    }
    options = [f"--{name}={value}" for name, value in places.items()]
    options += ["--bridge=none", "--iptables=false", "--ip-forward=false"]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            ["dockerd", *options],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,  # Ctrl-C is for the suite, which ends it in order
        )
    try:
        group.add(process.pid)
        _wait(process, socket, log)
        yield socket
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    deadline = time.monotonic() + _SECONDS
    ask = ["docker", "--host", f"unix://{socket}", "version"]
    while subprocess.run(ask, check=False, capture_output=True).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"dockerd doesn't answer; its log:\n{log.read_text()[-4000:]}")
        time.sleep(0.1)


def _clients() -> list[str]:
    folders = os.environ.get("PATH", "").split(os.pathsep)
    found = (Path(folder) / "docker" for folder in folders)
    return [str(path) for path in found if os.access(path, os.X_OK)]


def _builds_with_buildkit(program: str, folder: Path, environ: Mapping[str, str]) -> bool:
    """Newer clients need a plugin for it, which may be missing."""
    empty = folder / "probe"
    empty.mkdir(exist_ok=True)
    (empty / "Dockerfile").write_text("FROM scratch\nENV a=b\n")
    command = [program, "build", "-q", str(empty)]
    return subprocess.run(command, env=environ, check=False, capture_output=True).returncode == 0
