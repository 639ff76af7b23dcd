"""What becomes of a build whose containerd dies, hangs, restarts or collects garbage meanwhile."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import pybuild
from pybuild.imagestore import PruneRequest
from pybuild.testkit.baseimages import busybox_layout
from pybuild.testkit.containerd import PrivateContainerd, check_nothing_left, private_containerd
from pybuild.testkit.layouts import import_into_containerd
from pybuild_containerd import backend as backend_module
from pybuild_containerd import rpcs
from pybuild_containerd.backend import open_backend
from pybuild_containerd.client import Client
from pybuild_containerd.leases import Session

pytestmark = [pytest.mark.root, pytest.mark.containerd]

NAMESPACE = "faults"
DOCKERFILE = """\
FROM busybox AS large
RUN dd if=/dev/urandom of=/large bs=1M count=8 2>/dev/null
FROM busybox
COPY --from=large /large /copied
RUN echo running; sleep 2; echo x > /made
COPY <<E /last
last
E
"""
PHASES = {
    "before all": r"#1 ",
    "the metadata": r"load metadata",
    "the first RUN": r"\[large 2/2\] RUN",
    "the copy": r"COPY --from=large",
    "a RUN": r"\d running",
    "after the RUN": r"COPY <<E",
    "the export": r"exporting to image",
}


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateContainerd]:
    with private_containerd() as daemon, tempfile.TemporaryDirectory() as temporary:
        layout = busybox_layout(Path(temporary) / "layout")
        import_into_containerd(layout, daemon.address, NAMESPACE)
        yield daemon


class Building:
    """The command at work on `DOCKERFILE`."""

    def __init__(self, daemon: PrivateContainerd, folder: Path, name: str = "built") -> None:
        words = [sys.executable, "-m", "pybuild", "--progress=plain", "--pull=never", "-t", name]
        words.append("--no-cache")
        words += [f"--containerd-address={daemon.address}"]
        words += [f"--containerd-namespace={NAMESPACE}", "-"]
        self._lines: list[str] = []
        self._more = threading.Condition()
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XDG_CACHE_HOME": str(folder)},
        )
        assert self._process.stdin is not None
        # every build has other layers, else it would find them
        self._process.stdin.write(DOCKERFILE + f"LABEL a={time.monotonic_ns()}\n")
        self._process.stdin.close()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, pattern: str) -> None:
        """Until it has written a line with `pattern`."""
        wanted = re.compile(pattern)
        with self._more:
            assert self._more.wait_for(lambda: any(map(wanted.search, self._lines)), 60)

    def end(self, timeout: float = 60) -> tuple[int, str]:
        """Its exit code, and what it wrote."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        finally:
            self._reader.join()
            assert self._process.stderr is not None
            self._process.stderr.close()
        return code, "\n".join(self._lines)

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._more:
                self._lines.append(line.rstrip("\n"))
                self._more.notify_all()
        with self._more:
            self._more.notify_all()


def assert_the_next_build_is_clean(daemon: PrivateContainerd, folder: Path) -> None:
    code, text = Building(daemon, folder, "after").end()
    assert code == 0, text
    check_nothing_left(daemon.address, NAMESPACE, daemon.folder)


@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_daemon_is_a_clear_error_and_the_next_build_cleans_up(
    daemon: PrivateContainerd, tmp_path: Path, phase: str
) -> None:
    building = Building(daemon, tmp_path)
    building.wait_for(PHASES[phase])
    daemon.kill()
    began = time.monotonic()
    try:
        code, text = building.end()
    finally:
        daemon.start()
    assert code == 4, text
    assert re.search("^error: .*containerd", text, re.MULTILINE), text
    assert "Traceback" not in text
    assert time.monotonic() - began < 20
    assert_the_next_build_is_clean(daemon, tmp_path)


@pytest.mark.parametrize("phase", ["the copy", "a RUN", "the export"])
def test_a_restarted_daemon_breaks_the_build_cleanly_or_not_at_all(
    daemon: PrivateContainerd, tmp_path: Path, phase: str
) -> None:
    building = Building(daemon, tmp_path)
    building.wait_for(PHASES[phase])
    daemon.kill()
    daemon.start()
    code, text = building.end()
    assert code in (0, 4), text
    assert "Traceback" not in text
    assert_the_next_build_is_clean(daemon, tmp_path)


@pytest.mark.parametrize("phase", ["the metadata", "the copy", "a RUN", "the export"])
def test_a_daemon_that_stands_still_for_a_while_is_waited_for(
    daemon: PrivateContainerd, tmp_path: Path, phase: str
) -> None:
    building = Building(daemon, tmp_path)
    building.wait_for(PHASES[phase])
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        time.sleep(3)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    code, text = building.end()
    assert code == 0, text
    check_nothing_left(daemon.address, NAMESPACE, daemon.folder)


def test_a_build_that_waits_for_a_daemon_standing_still_can_be_cancelled(
    daemon: PrivateContainerd, tmp_path: Path
) -> None:
    building = Building(daemon, tmp_path)
    building.wait_for(PHASES["a RUN"])
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        building._process.send_signal(signal.SIGINT)
        time.sleep(1)
        building._process.send_signal(signal.SIGINT)
        code, text = building.end(10)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert code == 130, text
    assert_the_next_build_is_clean(daemon, tmp_path)


def test_a_killed_build_leaves_nothing_after_the_next(
    daemon: PrivateContainerd, tmp_path: Path
) -> None:
    for phase in PHASES.values():
        building = Building(daemon, tmp_path)
        building.wait_for(phase)
        building._process.kill()
        building.end()
    assert_the_next_build_is_clean(daemon, tmp_path)


@contextmanager
def collecting(daemon: PrivateContainerd) -> Iterator[list[int]]:
    """Have containerd collect garbage over and over; gives how often it did."""
    stop, rounds = threading.Event(), [0]

    def loop() -> None:
        with Client(daemon.address, NAMESPACE) as client:
            while not stop.wait(0.05):
                client.call(rpcs.LEASE_CREATE, id=f"dummy-{rounds[0]}", labels={})
                client.call(rpcs.LEASE_DELETE, id=f"dummy-{rounds[0]}", sync=True)
                rounds[0] += 1

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield rounds
    finally:
        stop.set()
        thread.join()


def test_garbage_collection_breaks_no_build(daemon: PrivateContainerd, tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def build(number: int) -> None:
        try:
            for turn in range(2):
                same = f"FROM busybox\nRUN echo {turn} > /same\nCOPY <<E /same2\n{turn}\nE\n"
                own = f"RUN echo {number} > /own; sleep 0.5\nRUN cat /own /same /same2\n"
                options = {"address": daemon.address, "namespace": NAMESPACE}
                pybuild.build(
                    None,
                    dockerfile=(same + own).encode(),
                    tags=[f"gc{number}"],
                    pull="never",
                    backend="containerd",
                    backend_options={**options, "cache_dir": tmp_path / str(number)},
                )
        except BaseException as error:  # noqa: BLE001 - asserted on below
            failures.append(error)

    threads = [threading.Thread(target=build, args=(number,)) for number in range(4)]
    with collecting(daemon) as rounds:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert rounds[0] > 10
    images = subprocess.run(
        ["ctr", "-a", daemon.address, "-n", NAMESPACE, "images", "check"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    built = [line for line in images.splitlines() if "library/gc" in line]
    assert len(built) == 4
    assert all("complete" in line and line.rstrip().endswith("true") for line in built)
    check_nothing_left(daemon.address, NAMESPACE, daemon.folder)


def test_pruning_breaks_none_of_eight_builds(daemon: PrivateContainerd, tmp_path: Path) -> None:
    options = {"address": daemon.address, "namespace": NAMESPACE}
    failures: list[BaseException] = []
    cached: list[bool] = []
    over = threading.Event()

    def build(number: int) -> None:
        try:
            for turn in range(4):
                # half of the builds do the same, so that some find what is being removed
                text = f"FROM busybox\nRUN echo {number // 2} > /a\nCOPY <<E /b\nb\nE\n"
                text += f"RUN cat /a /b > /c\nRUN echo {turn // 2} > /d\nRUN cat /c /d\n"
                result = pybuild.build(
                    None,
                    dockerfile=text.encode(),
                    tags=[f"pruned{number}"],
                    pull="never",
                    backend="containerd",
                    backend_options={**options, "cache_dir": tmp_path / str(number)},
                )
                cached.extend(step.cached for step in result.steps)
        except BaseException as error:  # noqa: BLE001 - asserted on below
            failures.append(error)

    def prune() -> None:
        with open_backend(options) as backend:
            store = backend.image_store()
            assert store is not None
            while not over.wait(0.2):
                store.prune(PruneRequest())

    threads = [threading.Thread(target=build, args=(number,)) for number in range(8)]
    pruner = threading.Thread(target=prune)
    with collecting(daemon) as rounds:
        pruner.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        over.set()
        pruner.join()
    assert failures == []
    assert rounds[0] > 10
    assert any(cached)
    assert not all(cached)
    check_nothing_left(daemon.address, NAMESPACE, daemon.folder)


@pytest.mark.parametrize("end", [PrivateContainerd.kill, PrivateContainerd.stop])
def test_cached_steps_are_found_after_the_daemon_ended(
    daemon: PrivateContainerd, tmp_path: Path, end: Callable[[PrivateContainerd], None]
) -> None:
    options = {"address": daemon.address, "namespace": NAMESPACE, "cache_dir": tmp_path}
    text = b"FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /id\nCOPY <<E /e\ne\nE\n"
    text += f"LABEL by={end.__name__}\nRUN true {end.__name__}\n".encode()
    results = []
    for _ in range(2):
        results.append(
            pybuild.build(
                None,
                dockerfile=text,
                tags=["found"],
                pull="never",
                backend="containerd",
                backend_options=options,
            )
        )
        end(daemon)
        daemon.start()
    assert all(step.cached for step in results[1].steps)
    assert results[1].digest == results[0].digest


def test_a_lease_shorter_than_a_step_is_renewed(
    daemon: PrivateContainerd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short: Callable[..., Any] = partial(Session, lifetime=4.0)
    monkeypatch.setattr(backend_module, "Session", short)
    options = {"address": daemon.address, "namespace": NAMESPACE, "cache_dir": tmp_path}
    text = (
        b"FROM busybox\nCOPY <<E /first\n1\nE\nRUN sleep 9; cat /first > /second\nRUN cat /second\n"
    )
    with collecting(daemon), open_backend(options) as backend:
        result = pybuild.build(
            None, dockerfile=text, tags=["leased"], pull="never", backend=backend
        )
    assert result.names == ("docker.io/library/leased:latest",)
    check_nothing_left(daemon.address, NAMESPACE, daemon.folder)
