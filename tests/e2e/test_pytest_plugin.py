"""The pytest plugin, in processes of pytest of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from embedding import Stores, check_store
from pybuild.testkit.containerd import PrivateContainerd, check_nothing_left

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "samples" / "pytest"
Pytest = Callable[..., "subprocess.Popen[str]"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inherent: runs on Linux only")

COUNTING = """
import pytest

TEXT = "FROM busybox\\nRUN cat /proc/sys/kernel/random/uuid > /id\\nRUN echo {} > /number\\n"

@pytest.mark.parametrize("again", range(4))
@pytest.mark.parametrize("number", range(3))
def test_it(pybuild_image, number, again, request):
    image = pybuild_image({"Dockerfile": TEXT.replace("/id", f"/id{number}").format(number)})
    path = request.config.rootpath / "seen"
    with path.open("a") as seen:
        seen.write(f"{number} {image.fs.read_text(f'/id{number}')}")
"""

ELSEWHERE = """
import pybuild
import pytest

@pytest.fixture(scope="session")
def pybuild_builder(pytestconfig):
    backend = pytestconfig.getoption("--pybuild-backend")
    with pybuild.Builder(backend, backend_options={"address": %r}) as builder:
        yield builder
"""


@pytest.fixture
def run(stores: Stores, tmp_path: Path) -> Iterator[Pytest]:
    """Starts pytest, without our rules, for a user whose usual store has busybox."""
    with stores.lent() as root:
        cache = tmp_path / "cache"
        (cache / "pybuild").mkdir(parents=True)
        (cache / "pybuild" / "store").symlink_to(root)

        def start(folder: Path, *words: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", folder, "-p"]
            return subprocess.Popen(
                [*command, "no:cacheprovider", *words, folder],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=folder,
                env={**os.environ, "XDG_CACHE_HOME": str(cache)},
            )

        yield start
        check_store(root)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def in_file(folder: Path, body: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "test_it.py").write_text(body)
    return folder


def seen(folder: Path) -> set[str]:
    lines = (folder / "seen").read_text().splitlines()
    (folder / "seen").unlink()
    return set(lines)


def test_the_sample_has_a_test_suite_that_passes(run: Pytest, tmp_path: Path) -> None:
    folder = shutil.copytree(SAMPLE, tmp_path / "sample")
    code, output = ended(run(folder, "-q", "-W", "error"))
    assert (code, "4 passed" in output) == (0, True), output


def test_the_first_session_of_the_documentation_ends_well(run: Pytest, tmp_path: Path) -> None:
    session = (ROOT / "docs" / "pytest.md").read_text().partition("```sh\n")[2].partition("```")[0]
    lines = session.splitlines()
    assert len(lines) < 20
    assert (lines[0], lines[-1]) == ("pip install pybuild-oci pytest", "pytest -q")
    folder = tmp_path / "session"
    folder.mkdir()
    subprocess.run(["sh", "-ec", "\n".join(lines[1:-1])], check=True, cwd=folder)
    code, output = ended(run(folder, "-q", "-W", "error"))
    assert (code, "1 passed" in output) == (0, True), output


def test_the_example_of_a_failure_in_the_documentation_passes(run: Pytest, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "pytest.md").read_text()
    folder = in_file(tmp_path / "tests", text.partition("```python\n")[2].partition("```")[0])
    code, output = ended(run(folder, "-q"))
    assert (code, "1 passed" in output) == (0, True), output


def check_built_once(run: Pytest, folders: Sequence[Path], *words: str) -> None:
    """Run the tests in `folders` at the same time, with four workers each."""
    running = [run(folder, "-q", "-n", "4", *words) for folder in folders]
    for process in running:
        code, output = ended(process)
        assert (code, "12 passed" in output) == (0, True), output
    first, second = map(seen, folders)
    assert first == second
    assert len(first) == 3


def test_two_runs_of_four_workers_build_each_image_once(run: Pytest, tmp_path: Path) -> None:
    check_built_once(run, [in_file(tmp_path / name, COUNTING) for name in ("one", "two")])


@pytest.mark.root
@pytest.mark.containerd
def test_on_containerd_too(run: Pytest, tmp_path: Path, base_images: PrivateContainerd) -> None:
    folders = [in_file(tmp_path / name, COUNTING) for name in ("one", "two")]
    for folder in folders:
        (folder / "conftest.py").write_text(ELSEWHERE % base_images.address)
    check_built_once(run, folders, "--pybuild-backend", "containerd")
    check_nothing_left(base_images.address, "default", base_images.folder)


def check_rebuilt_once(run: Pytest, folder: Path, *backend: str) -> None:
    """Run the tests in `folder` with and without a rebuild."""
    found = []
    for words in (("-n", "2"), ("-n", "2", "--pybuild-rebuild"), ("--pybuild-rebuild",), ()):
        code, output = ended(run(folder, "-q", *words, *backend))
        assert code == 0, output
        found.append(seen(folder))
    assert all(len(each) == 3 for each in found)
    first, rebuilt, again, kept = found
    assert not first & rebuilt
    assert not rebuilt & again
    assert kept == again


def test_a_rebuild_happens_once_for_all_workers(run: Pytest, tmp_path: Path) -> None:
    check_rebuilt_once(run, in_file(tmp_path / "tests", COUNTING))


@pytest.mark.root
@pytest.mark.containerd
def test_a_rebuild_happens_once_on_containerd_too(
    run: Pytest, tmp_path: Path, base_images: PrivateContainerd
) -> None:
    folder = in_file(tmp_path / "tests", COUNTING)
    (folder / "conftest.py").write_text(ELSEWHERE % base_images.address)
    check_rebuilt_once(run, folder, "--pybuild-backend", "containerd")
    check_nothing_left(base_images.address, "default", base_images.folder)


def test_the_log_is_in_the_report_of_a_test_that_fails(run: Pytest, tmp_path: Path) -> None:
    body = """
FILES = {"Dockerfile": "FROM busybox\\nRUN echo from-the-step\\n"}

def test_passes(pybuild_image):
    pybuild_image({"Dockerfile": "FROM busybox\\nRUN echo of-another-test\\n"})

def test_fails(pybuild_image):
    image = pybuild_image(FILES)
    assert image.run(["false"]).returncode == 0

def test_does_not_build(pybuild_image):
    pybuild_image({"Dockerfile": "FROM busybox\\nRUN echo broken; exit 5\\n"})
"""
    code, output = ended(run(in_file(tmp_path / "tests", body), "-n", "1"))
    assert code == 1
    assert "2 failed, 1 passed" in output, output
    assert output.count("pybuild: build of files in memory") == 2
    assert re.search(r"#\d+ \d+\.\d+ from-the-step", output)
    assert re.search(r"#\d+ \d+\.\d+ broken", output)
    assert "of-another-test" not in output
    assert "exit code: 5" in output


def test_a_test_is_skipped_where_no_backend_works(run: Pytest, tmp_path: Path) -> None:
    body = """
import pytest

@pytest.mark.needs_pybuild
def test_it(pybuild_image):
    raise AssertionError
"""
    folder = in_file(tmp_path / "tests", body)
    code, output = ended(run(folder, "-rs", "--pybuild-backend", "none-such"))
    assert (code, "1 skipped" in output) == (0, True), output
    assert "pybuild can't run here" in output
    code, output = ended(run(folder, "-rs"))
    assert (code, "1 failed" in output) == (1, True), output


def test_pytest_without_images_loads_nothing_of_pybuild(run: Pytest, tmp_path: Path) -> None:
    body = """
import sys

def test_it():
    assert {n for n in sys.modules if n.startswith("pybuild")} == {"pybuild", "pybuild.pytest_plugin"}
"""
    code, output = ended(run(in_file(tmp_path / "tests", body), "-q", "-W", "error"))
    assert code == 0, output
