"""Fixtures for all tests, and two rules: nothing skips silently in CI, nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import platformdirs
import pytest

from pybuild.testkit.baseimages import (
    BUSYBOX,
    BUSYBOX_USRMERGE,
    busybox_layout,
    debian_layout,
)
from pybuild.testkit.containerd import PrivateContainerd, check_nothing_left, private_containerd
from pybuild.testkit.layouts import import_into_containerd
from pybuild.testkit.registry import Registry

MEANT_SKIPS = ("inherent:", "accepted:")
"""How the reason of a skip begins that is right on every machine."""

_PROGRAMS = {
    "containerd": ("containerd", "ctr", "runc"),
    "buildah": ("buildah",),
    "debootstrap": ("debootstrap",),
    "git": ("git",),
    "shells": ("bash", "zsh", "fish"),
}
_HERE = pytest.StashKey[Path]()
_CACHE = "cache"
"""What a user has as ``~/.cache``."""
_KEPT = platformdirs.user_cache_path("pybuild-tests", appauthor=False)


def _in_ci() -> bool:
    return bool(os.environ.get("CI"))


def _has_workers(config: pytest.Config) -> bool:
    return bool(getattr(config.option, "numprocesses", None))


def pytest_configure(config: pytest.Config) -> None:
    """Give this process a temporary folder of its own, so that leftovers are found."""
    config.addinivalue_line("markers", "buildah: needs buildah")
    config.addinivalue_line("markers", "git: needs git")
    config.addinivalue_line("markers", "simulation: runs on the memory backend")
    config.addinivalue_line("markers", "debootstrap: needs debootstrap and a Debian mirror")
    if _has_workers(config) and not hasattr(config, "workerinput"):
        return  # its workers do
    for name in ("SIGHUP", "SIGINT", "SIGTERM"):  # under nohup, a build would rightly ignore them
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    usual = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="pbt-"))
    folder.chmod(0o711)  # tests as another user pass through
    config.stash[_HERE] = folder
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", usual)  # where tmp_path stays
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / _CACHE)


def pytest_report_header() -> list[str]:
    """Which containerd the tests run: the first in PATH."""
    program = shutil.which("containerd")
    if program is None:
        return []
    told = subprocess.run([program, "--version"], check=False, capture_output=True, text=True)
    return [f"containerd: {program}, {told.stdout.strip()}"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine lacks, by marker."""
    if item.get_closest_marker("root") and getattr(os, "geteuid", lambda: 1)() != 0:
        pytest.skip("needs root")
    for marker, programs in _PROGRAMS.items():
        missing = [name for name in programs if shutil.which(name) is None]
        if item.get_closest_marker(marker) and missing:
            pytest.skip(f"needs {' and '.join(missing)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not hasattr(report, "wasxfail"):
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report)
    return report


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI, make a failure of a skip that isn't meant."""
    if not (_in_ci() and report.skipped and isinstance(report.longrepr, tuple)):
        return
    reason = str(report.longrepr[2]).removeprefix("Skipped: ")
    if not reason.startswith(MEANT_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"skipped, which isn't allowed in CI: {reason}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session if it left a file, a mount, a process or a thread."""
    folder = session.config.stash.get(_HERE, None)
    if folder is None:
        return
    shutil.rmtree(folder / _CACHE, ignore_errors=True)
    left = [f"mount {point}" for point in _mounts_below(folder)]
    left += [f"process {process}" for process in _processes_of(folder)]
    left += [f"file {path}" for path in folder.iterdir()]
    left += [
        f"thread {thread.name}"
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and not thread.daemon
    ]
    if left:
        print("\nleft behind by the tests:", *left, sep="\n  ")  # noqa: T201  (no other way at the end)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the temporary folder, unless something is still mounted there."""
    folder = config.stash.get(_HERE, None)
    if folder is not None and not _mounts_below(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _mounts_below(folder: Path) -> list[str]:
    table = Path("/proc/self/mountinfo")
    if not table.exists():
        return []
    points = (line.split(" ")[4] for line in table.read_text().splitlines())
    return [point for point in points if point.startswith(f"{folder}/")]


def _processes_of(folder: Path) -> list[str]:
    """Processes that inherited our TMPDIR: whatever the tests started and what that started."""
    mark = f"TMPDIR={folder}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.name == str(os.getpid()):
                continue
            if mark in (process / "environ").read_bytes().split(b"\0"):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if command:  # a zombie has none
                    found.append(f"{process.name} {command}")
        except OSError:
            continue
    return found


@pytest.fixture(scope="session")
def containerd() -> Iterator[PrivateContainerd]:
    """A containerd of the session's own. Whatever uses it must leave no trace but images."""
    try:
        manager = private_containerd()
        daemon = manager.__enter__()
    except RuntimeError as error:
        pytest.skip(str(error))
    try:
        yield daemon
        for namespace in _ctr(daemon, "namespaces", "ls", "-q").split():
            check_nothing_left(daemon.address, namespace, daemon.folder)
    finally:
        manager.__exit__(None, None, None)


def _ctr(daemon: PrivateContainerd, *arguments: str) -> str:
    command = ["ctr", "--address", daemon.address, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def base_images(containerd: PrivateContainerd) -> PrivateContainerd:
    """The session's containerd with busybox, plain and with /usr merged, in "default"."""
    with tempfile.TemporaryDirectory() as temporary:
        for name, usrmerge in ((BUSYBOX, False), (BUSYBOX_USRMERGE, True)):
            folder = Path(temporary) / name.rpartition(":")[2]
            layout = busybox_layout(folder, name, usrmerge=usrmerge)
            import_into_containerd(layout, containerd.address)
    return containerd


@pytest.fixture(scope="session")
def debian() -> Path:
    """An OCI layout with Debian under its names of `baseimages`."""
    return debian_layout(cache_folder())


@pytest.fixture(scope="session")
def debian_image(base_images: PrivateContainerd, debian: Path) -> PrivateContainerd:
    """The session's containerd with that Debian, in "default"."""
    import_into_containerd(debian, base_images.address)
    return base_images


def cache_folder() -> Path:
    """Where what is slow to make is kept between sessions."""
    return _KEPT


@pytest.fixture(scope="session")
def addresses() -> set[str]:
    """Where registries of tests have been."""
    return set()


@pytest.fixture
def registry(addresses: set[str]) -> Iterator[Registry]:
    """A registry on loopback, empty.

    Its port had none before: backends that outlive a test keep images by their names.
    """
    with ExitStack() as opened:
        registry = opened.enter_context(Registry())
        while registry.address in addresses:
            registry = opened.enter_context(Registry())
        addresses.add(registry.address)
        yield registry
