"""The embedded backend with its store on an overlay, where steps run on copies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding import Stores, on_an_overlay
from pybuild.backend import Backend, BindMount, Process, TmpfsMount
from pybuild.errors import StepFailed
from pybuild.files.trees import MemoryTree
from pybuild.testkit.suite_mounts import MountSuite
from pybuild.testkit.suite_runs import RunSuite
from pybuild.testkit.workbench import PATH, Workbench, content, file
from pybuild_embedded.backend import EmbeddedBackend
from sandboxing import run_tests_as_user


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    with on_an_overlay(tmp_path_factory.mktemp("copies")) as folder:
        yield Stores(folder)


@pytest.fixture
def backend(stores: Stores) -> Iterator[EmbeddedBackend]:
    with stores.opened() as backend:
        yield backend


@pytest.fixture
def bench(backend: EmbeddedBackend) -> Iterator[Workbench]:
    with Workbench(backend, RunSuite.base_reference) as bench:
        yield bench


class TestOnCopies(RunSuite, MountSuite):
    """As whoever runs the tests."""

    @pytest.fixture
    def backend(self, stores: Stores) -> Iterator[Backend]:
        with stores.opened() as backend:
            yield backend


def layer_folders(backend: Backend) -> int:
    """How many file systems there are in the store."""
    store = Path(dict(backend.describe())["store"])
    return len(list((store / "layers").iterdir()))


def test_the_backend_says_that_it_copies_and_why(backend: Backend) -> None:
    kind = dict(backend.describe())["processes run on"]
    assert kind == "copies, which are slow: mount overlay: Invalid argument"


def test_one_warning_a_build_says_what_to_do(bench: Workbench) -> None:
    activity = bench.activity
    first = bench.run(bench.base(), "true", activity=activity)
    bench.run(first.layer, "true", activity=activity)
    [warning] = [each for each in activity.warnings if "store" in each]
    assert "overlayfs can't be used (mount overlay: Invalid argument)" in warning
    assert "(put the store on another file system with --root)" in warning


def test_steps_of_one_stage_share_a_folder(backend: Backend, bench: Workbench) -> None:
    first = bench.run(bench.base(), "echo 1 >/made; ln /made /also")
    put = bench.put(first.layer, file(b"put", b"p"), file(b"also", b"replaced"))
    second = bench.run(put, "cat /made /put /also; rm /put; echo 2 >>/made")
    third = bench.run(second.layer, "ls /put; cat /made")
    assert (second.out, third.out) == ("1\npreplaced", "1\n2\n")
    assert layer_folders(backend) == 1
    assert content(third.layer, b"made") == b"1\n2\n"
    assert third.layer.tree().get(b"put") is None


def test_whoever_comes_second_has_a_folder_of_its_own(bench: Workbench) -> None:
    first = bench.run(bench.base(), "echo 1 >/made; mkdir -m 700 /d")
    left = bench.run(first.layer, "echo left >>/made; rmdir /d")
    right = bench.run(first.layer, "echo right >>/made; stat -c %a /d")
    assert right.out == "700\n"
    assert content(left.layer, b"made") == b"1\nleft\n"
    assert content(right.layer, b"made") == b"1\nright\n"
    assert bench.run(left.layer, "cat /made; ls /d").out == "1\nleft\n"


def test_a_step_that_is_given_up_leaves_nothing(backend: Backend, bench: Workbench) -> None:
    first = bench.run(bench.base(), "echo 1 >/made")
    script = ("/bin/sh", "-c", "echo lost >/made")
    with first.layer.begin(runs=True) as given_up:
        given_up.run(Process(script, env=(("PATH", PATH),), cwd="/"), (), bench.activity)
    assert layer_folders(backend) == 0
    again = bench.run(first.layer, "cat /made")
    assert again.out == "1\n"
    assert again.layer.diff is None


def test_mount_points_are_not_seen_by_the_next_step(bench: Workbench) -> None:
    mounts = (
        TmpfsMount("/new/cache"),
        BindMount("/etc/deep/file", MemoryTree([file(b"f", b"shown")]), b"f"),
        TmpfsMount("/etc/deep/inner"),
    )
    ran = bench.run(bench.base(), "cat /etc/deep/file; ls -d /new/cache /etc/deep/inner", mounts)
    assert (ran.code, ran.out) == (0, "shown/etc/deep/inner\n/new/cache\n")
    assert ran.layer.diff is None
    after = bench.run(ran.layer, "ls -d /new /etc/deep /etc/resolv.conf /proc; stat -c %Y /etc")
    before = bench.run(bench.base(), "ls -d /new /etc/deep /etc/resolv.conf /proc; stat -c %Y /etc")
    assert (after.out, after.err) == (before.out, before.err)


def test_a_step_that_moves_what_is_mounted_on_fails(bench: Workbench) -> None:
    mounts = (TmpfsMount("/here/mounted"),)
    first = bench.run(bench.base(), "mkdir /here")
    with pytest.raises(
        StepFailed, match="moved or removed here/mounted, where something was mounted"
    ):
        bench.run(first.layer, "mv /here /there", mounts)
    assert bench.run(first.layer, "ls /here").code == 0


def test_a_mount_target_that_cannot_be_is_told(bench: Workbench) -> None:
    first = bench.run(bench.base(), "ln -s /loop /loop")
    for target in ("/loop/x", "/bin/sh/x"):
        with pytest.raises(StepFailed, match=f"the mount target {target} can't be resolved"):
            bench.run(first.layer, "true", (TmpfsMount(target),))


@pytest.mark.root
@pytest.mark.parametrize("kind", ["range", "single"])
def test_the_same_holds_for_other_users(tmp_path: Path, kind: str) -> None:
    with on_an_overlay(tmp_path) as folder:
        run_tests_as_user(folder, [__file__], subordinate=kind == "range")
