"""What tests of threats share: builds on real backends, the command, a look at the host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pybuild
from pybuild.backend import Backend
from pybuild.files.trees import NewEntry, Tree
from pybuild.oci.layerindex import Entry
from pybuild.run.events import Event, StepLog
from pybuild.testkit.baseimages import busybox_entries
from pybuild.testkit.workbench import PATH, Workbench
from pybuild_containerd.backend import ContainerdBackend
from pybuild_embedded.backend import EmbeddedBackend

NAMESPACE = "threats"
_MIB = 1024 * 1024
_WATCHED = ("/etc", "/dev", "/root", "/usr/local")


class _Log:
    def __init__(self) -> None:
        self.data = b""

    def report(self, event: Event) -> None:
        if isinstance(event, StepLog):
            self.data += event.data


class Builds:
    """Builds on a backend where "busybox" is the base.

    `options` are what the command needs for the same backend, `state` is where that keeps all.
    """

    def __init__(self, backend: Backend, options: Sequence[str], state: Path) -> None:
        self.backend = backend
        self.options = tuple(options)
        self.state = state
        self.log = ""
        self._bench = Workbench(backend, "busybox")

    def build(self, dockerfile: str, context: Path | None = None, **options: Any) -> Any:
        """Build it as "built", every step of it; `log` has what the processes wrote."""
        log = _Log()
        try:
            return pybuild.build(
                context,
                dockerfile=dockerfile.encode(),
                tags=["built"],
                backend=self.backend,
                reporter=log,
                no_cache=True,
                **options,
            )
        finally:
            self.log = log.data.decode("utf-8", "replace")

    def image(self, name: str, *entries: NewEntry, **config: Any) -> None:
        """A base image of busybox and `entries`; `config` are fields of ImageConfig."""
        with Workbench(self.backend, "") as bench:
            below = bench.put(bench.scratch(), *busybox_entries())
            top = bench.put(below, *entries) if entries else below
            bench.create(top, name, **{"env": (("PATH", PATH),), **config})

    def tree(self, name: str = "built") -> Tree:
        base = self._bench.image(name)
        return self._bench.hold(self.backend.checkout(base, self._bench.activity)).tree()

    def layers(self, name: str = "built") -> list[list[Entry]]:
        """The entries of each layer, bottom first."""
        base = self._bench.image(name)
        match self.backend:
            case ContainerdBackend():
                files = self.backend._files
            case EmbeddedBackend():
                files = self.backend._space.files
            case other:
                raise NotImplementedError(other)
        return [list(files.index(layer)) for layer in base.layers]

    def close(self) -> None:
        self._bench.__exit__()


def host_state(outside: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for top in (*_WATCHED, str(outside)):
        for folder, folders, files in os.walk(top):
            if folder.startswith(("/dev/", "/root/")):
                folders.clear()
                continue
            for name in (*folders, *files):
                path = Path(folder, name)
                try:
                    status = path.lstat()
                except OSError:
                    continue
                kept: tuple[object, ...] = (status.st_mode, status.st_uid, status.st_rdev)
                if top not in {"/dev", "/root"}:
                    kept += (status.st_ino, status.st_size, status.st_mtime_ns)
                found[str(path)] = kept
    found["/"] = tuple(sorted(os.listdir("/")))  # noqa: PTH208
    secret = outside / "secret"
    found["secret"] = (secret.read_bytes(),)
    found["core pattern"] = (Path("/proc/sys/kernel/core_pattern").read_bytes(),)
    return found


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended."""

    code: int
    out: str
    err: str
    seconds: float
    peak: float
    """The most memory that it had, in MiB."""


def run_command(
    *arguments: str,
    context: Path | str = "-",
    stdin: bytes = b"",
    env: dict[str, str] | None = None,
    timeout: float = 120,
) -> Ended:
    """Run ``pybuild`` as its users do, and measure it."""
    words = [sys.executable, "-m", "pybuild", *arguments, str(context)]
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
    ):
        given.write(stdin)
        given.seek(0)
        began = time.monotonic()
        process = subprocess.Popen(
            words, stdin=given, stdout=output, stderr=errors, env={**os.environ, **(env or {})}
        )
        peak = _wait(process, began + timeout)
        seconds = time.monotonic() - began
        texts = [_content(file) for file in (output, errors)]
    return Ended(process.returncode, *texts, seconds, peak)


def _wait(process: subprocess.Popen[bytes], deadline: float) -> float:
    """Wait for its end; the most memory that it had. rusage would count the parent's too."""
    status = Path(f"/proc/{process.pid}/status")
    peak = 0
    while process.poll() is None:
        found = re.search(r"VmHWM:\s*(\d+)", status.read_text())
        peak = max(peak, int(found[1])) if found else peak
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise AssertionError("pybuild didn't end in time")
        time.sleep(0.005)
    return peak / 1024


def _content(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode("utf-8", "replace"))


def assert_clear(
    ended: Ended, *, seconds: float = 60, peak: float = 300, codes: Sequence[int]
) -> None:
    """A diagnostic, and neither a traceback nor too much of anything."""
    assert ended.code in codes, ended.err[-2000:]
    assert "Traceback" not in ended.err
    assert ended.seconds < seconds
    assert ended.peak < peak
    assert len(ended.err) < _MIB
