"""Builds that are stopped, by a signal or for good, and what is left of them: nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commandline import PROGRAM, CommandLine, OnContainerd, OnEmbedded
from test_docker_registry import layer
from test_pulls import add_busybox

from embedding import orphans
from promptness import AT_ONCE
from pybuild.oci.descriptor import digest_of
from pybuild.testkit.registry import Fault, Registry

_KEPT = 1000
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(params=["containerd", "embedded"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class Running:
    """A build under way; `said` is its standard error so far, without the middle of very much."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._first: list[str] = []
        self._last = deque[str](maxlen=_KEPT)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        # as fast as it comes: a build ends no sooner than what it said is taken
        for line in self.process.stderr:
            if len(self._first) < _KEPT:
                self._first.append(line)
            else:
                self._last.append(line)

    @property
    def said(self) -> str:
        return "".join((*self._first, *self._last.copy()))

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)

    def wait_for_line(self, text: str) -> None:
        """Wait until the process in the container says `text`."""
        self.wait_for(lambda: f" {text}\n" in self.said)

    def stop(self, number: int) -> float:
        """Send a signal; give the seconds until the end."""
        begun = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(30)
        return time.monotonic() - begun

    def join(self) -> None:
        self._reader.join()


@contextmanager
def running(command: CommandLine, *arguments: str | Path) -> Iterator[Running]:
    with command.start("--progress=plain", *arguments) as process:
        build = Running(process)
        try:
            yield build
        finally:
            if process.poll() is None:
                process.kill()
            build.join()


def processes_with(mark: str) -> list[str]:
    """Processes of this machine, those in containers too, whose command line has `mark`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in line and "containerd-shim" not in line and "pybuild" not in line:
            found.append(f"{folder.name} {line}")
    return found


def wait_until_caught(process: subprocess.Popen[str], number: int) -> None:
    """Wait until the process has a handler for the signal."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        caught = int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16)  # type: ignore[index]
        if caught >> (number - 1) & 1:
            return
        time.sleep(0.02)


def check_stopped(command: CommandLine, build: Running, seconds: float) -> None:
    assert build.process.returncode == 130, build.said
    assert seconds < AT_ONCE
    build.join()
    assert "Traceback" not in build.said
    assert len([line for line in build.said.splitlines() if line.startswith("error: ")]) == 1
    command.check_nothing_left()


def unusual() -> int:
    """A number of seconds to sleep that marks the processes of one test."""
    return 100_000 + int.from_bytes(os.urandom(2))


# During RUN


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: signal.Signals(number).name)
def test_a_run_with_children_is_gone_at_once(pybuild: CommandLine, number: int) -> None:
    mark = f"sleep {unusual()}"
    dockerfile = f"FROM busybox\nRUN {mark} & (setsid {mark} &); echo started; {mark}\n"
    with running(pybuild, pybuild.context(dockerfile)) as build:
        build.wait_for_line("started")
        build.wait_for(lambda: len(processes_with(mark)) >= 3)
        seconds = build.stop(number)
    check_stopped(pybuild, build, seconds)
    assert processes_with(mark) == []
    assert "CANCELED" in build.said


def test_a_process_that_ignores_signals_is_gone_too(pybuild: CommandLine) -> None:
    mark = f"sleep {unusual()}"
    dockerfile = (
        f"FROM busybox\nRUN trap '' TERM INT HUP; echo started; while true; do {mark}; done\n"
    )
    with running(pybuild, pybuild.context(dockerfile)) as build:
        build.wait_for_line("started")
        seconds = build.stop(signal.SIGINT)
    check_stopped(pybuild, build, seconds)
    assert processes_with(mark) == []


def test_all_stages_at_once_are_stopped(pybuild: CommandLine) -> None:
    mark = f"sleep {unusual()}"
    stages = "".join(f"FROM busybox AS s{n}\nRUN echo up{n}; {mark}\n" for n in range(3))
    copies = "".join(f"COPY --from=s{n} /x /\n" for n in range(3))
    with running(pybuild, pybuild.context(f"{stages}FROM scratch\n{copies}")) as build:
        build.wait_for(lambda: len(processes_with(mark)) >= 2)
        seconds = build.stop(signal.SIGINT)
    check_stopped(pybuild, build, seconds)
    assert processes_with(mark) == []


def test_a_flood_of_output_doesnt_hold_it_up(pybuild: CommandLine) -> None:
    with running(pybuild, pybuild.context("FROM busybox\nRUN yes floods\n")) as build:
        build.wait_for_line("floods")
        seconds = build.stop(signal.SIGINT)
    check_stopped(pybuild, build, seconds)


def test_a_second_interrupt_ends_it_without_ado(pybuild: CommandLine) -> None:
    with running(pybuild, pybuild.context("FROM busybox\nRUN echo started; sleep 1000\n")) as build:
        build.wait_for_line("started")
        build.process.send_signal(signal.SIGINT)
        assert build.stop(signal.SIGINT) < AT_ONCE
        assert build.process.returncode == 130
    # what it had no time for is done by the next build
    pybuild.build("-q", pybuild.context("FROM scratch\nLABEL a=b\n"))


# Elsewhere


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: signal.Signals(number).name)
def test_a_copy_of_a_large_file(pybuild: CommandLine, number: int) -> None:
    context = pybuild.context("FROM busybox\nCOPY large /\n")
    with (context / "large").open("wb") as large:
        chunk = os.urandom(1 << 20)
        for _ in range(1024):
            large.write(chunk)
    try:
        with running(pybuild, context) as build:
            build.wait_for(lambda: "COPY large" in build.said)
            time.sleep(0.5)
            seconds = build.stop(number)
    finally:
        (context / "large").unlink()
    check_stopped(pybuild, build, seconds)


def test_the_commit_of_a_large_file(pybuild: CommandLine) -> None:
    dockerfile = "FROM busybox\nRUN dd if=/dev/urandom of=/large bs=1M count=600; echo finished\n"
    with running(pybuild, pybuild.context(dockerfile)) as build:
        build.wait_for_line("finished")
        time.sleep(0.1)
        seconds = build.stop(signal.SIGINT)
    check_stopped(pybuild, build, seconds)


@pytest.mark.parametrize("fault", ["slow blob", "silent manifest", "silent blob"])
def test_a_slow_pull(elsewhere: CommandLine, registry: Registry, fault: str) -> None:
    big = layer("big", 2_000_000)
    add_busybox(registry, "app:1", big)
    path = f"blobs/{digest_of(big[0])}"
    match fault:
        case "slow blob":
            registry.add_fault(Fault(path, times=None, pace=(1000, 0.05)))
        case "silent blob":
            registry.add_fault(Fault(path, times=None, delay=20))
        case _:
            path = "manifests/1"
            registry.add_fault(Fault(path, times=None, delay=20))
            registry.add_fault(Fault(path, "HEAD", times=None, delay=20))
    context = elsewhere.context(f"FROM {registry.address}/app:1\nRUN true\n")
    with running(elsewhere, context) as build:
        build.wait_for(lambda: registry.requested("GET", path) or registry.requested("HEAD", path))
        time.sleep(0.3)
        seconds = build.stop(signal.SIGINT)
    check_stopped(elsewhere, build, seconds)
    if isinstance(elsewhere, OnContainerd):  # a store may know an image before it has its layers
        assert elsewhere.images() == set()


def test_a_context_that_never_comes(pybuild: CommandLine) -> None:
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [*PROGRAM, "-"],
            stdin=reading,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=pybuild.environment,
        )
        wait_until_caught(process, signal.SIGTERM)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        os.close(reading)
        os.close(writing)
    assert time.monotonic() - begun < AT_ONCE
    assert process.returncode == 130
    assert "Traceback" not in said


# Killed


def test_what_a_killed_build_left_is_swept_and_a_live_one_left_alone(
    on_containerd: OnContainerd,
) -> None:
    dead, alive = f"sleep {unusual()}", f"sleep {unusual()}"
    gate = on_containerd.context("FROM busybox\nRUN true\n")
    live_dockerfile = f"FROM busybox\nRUN echo started; {alive} & sleep 6; echo survived > /file\n"
    # the tasks of a killed build go on
    with running(
        on_containerd, "--runner=task", "-t", "live", on_containerd.context(live_dockerfile)
    ) as live:
        live.wait_for_line("started")
        context = on_containerd.context(f"FROM busybox\nCOPY . /c\nRUN echo started; {dead}\n")
        with running(on_containerd, "--runner=task", context) as killed:
            killed.wait_for_line("started")
            killed.stop(signal.SIGKILL)
        assert processes_with(dead)
        assert len(on_containerd.ctr("tasks", "ls", "-q").split()) == 2
        on_containerd.build("-q", gate)
        assert processes_with(dead) == []
        assert processes_with(alive)
        assert len(on_containerd.ctr("tasks", "ls", "-q").split()) == 1
        assert len(on_containerd.ctr("leases", "ls", "-q").split()) == 1
        live.process.wait(60)
        assert live.process.returncode == 0, live.said
    assert on_containerd.run("live:latest", "cat", "/file") == "survived\n"
    on_containerd.check_nothing_left()


def test_a_killed_build_takes_its_processes_along_and_a_live_one_goes_on(
    on_embedded: OnEmbedded,
) -> None:
    dead, alive = f"sleep {unusual()}", f"sleep {unusual()}"
    live_dockerfile = f"FROM busybox\nRUN echo started; {alive} & sleep 6; echo survived > /file\n"
    with running(on_embedded, "-t", "live", on_embedded.context(live_dockerfile)) as live:
        live.wait_for_line("started")
        dockerfile = f"FROM busybox\nCOPY . /c\nRUN echo started; setsid {dead} & {dead}\n"
        with running(on_embedded, on_embedded.context(dockerfile)) as killed:
            killed.wait_for_line("started")
            killed.wait_for(lambda: len(processes_with(dead)) >= 2)
            killed.stop(signal.SIGKILL)
        assert orphans() == []
        assert processes_with(dead) == []
        on_embedded.build("-q", on_embedded.context("FROM busybox\nRUN true\n"))
        assert len(list((on_embedded.root / "sessions").iterdir())) == 1
        assert processes_with(alive)
        live.process.wait(60)
        assert live.process.returncode == 0, live.said
    assert on_embedded.run("live:latest", "cat", "/file") == "survived\n"


def test_a_kill_in_the_middle_of_anything_is_swept(
    pybuild: CommandLine,
) -> None:
    context = pybuild.context(
        "FROM busybox\nCOPY . /c\nRUN dd if=/dev/urandom of=/x bs=1M count=20\nCOPY . /d\n"
    )
    (context / "file").write_bytes(os.urandom(5_000_000))
    for delay in (0.3, 0.6, 0.8, 1.0, 1.2, 1.5):
        process = pybuild.start("-q", context)
        time.sleep(delay)
        process.kill()
        process.communicate()
    pybuild.build("-q", context)
    pybuild.check_nothing_left()
