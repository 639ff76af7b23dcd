"""The backend suite's part on the mounts of a RUN."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pybuild.backend import BindMount, Capability, ROLayer, TmpfsMount, User
from pybuild.files.trees import MemoryTree
from pybuild.testkit.suite_base import SuiteBase, needs
from pybuild.testkit.workbench import Ran, Workbench, content, file, folder, symlink

_ENTRIES = (
    folder(b"src"),
    file(b"src/a", b"in a\n"),
    folder(b"src/sub"),
    file(b"src/sub/b", b"in b\n", 0o755, uid=12, gid=13),
    symlink(b"src/link", b"a"),
)
_FILES = MemoryTree(_ENTRIES)


class MountSuite(SuiteBase):
    """Mounts show what they should and leave nothing."""

    @pytest.fixture
    def binds(self, running: None, bench: Workbench) -> None:  # noqa: ARG002  (running is its effect)
        needs(bench.backend, Capability.BIND_MOUNT)

    @pytest.fixture
    def tmpfs(self, running: None, bench: Workbench) -> None:  # noqa: ARG002  (as above)
        needs(bench.backend, Capability.TMPFS_MOUNT)

    @pytest.fixture(params=["tree", "layer"])
    def source(
        self,
        request: pytest.FixtureRequest,
        binds: None,  # noqa: ARG002  (as above)
        bench: Workbench,
    ) -> BindMount:
        """A read-only mount of the same files, once from a context, once from a layer."""
        mount = BindMount("/mnt/in", _FILES, b"src")
        if request.param == "tree":
            return mount
        layer = _layer(bench)
        return replace(mount, tree=layer.tree(), layer=layer)

    def test_a_bind_mount_shows_its_files(self, bench: Workbench, source: BindMount) -> None:
        ran = bench.run(bench.base(), "cat /mnt/in/a /mnt/in/sub/b /mnt/in/link", [source])
        assert (ran.code, ran.out) == (0, "in a\nin b\nin a\n")
        _no_trace(ran)

    def test_a_read_only_mount_refuses_writes(self, bench: Workbench, source: BindMount) -> None:
        for script in ("echo x > /mnt/in/a", "touch /mnt/in/new", "rm /mnt/in/sub/b"):
            assert bench.run(bench.base(), script, [source]).code != 0
        assert bench.run(bench.base(), "cat /mnt/in/a", [source]).out == "in a\n"

    def test_writes_into_a_writable_mount_are_discarded(
        self, bench: Workbench, source: BindMount
    ) -> None:
        writable = replace(source, readonly=False)
        script = "echo new > /mnt/in/a && rm /mnt/in/sub/b && echo x > /mnt/in/c && cat /mnt/in/a"
        ran = bench.run(bench.base(), script, [writable])
        assert (ran.code, ran.out) == (0, "new\n")
        _no_trace(ran)
        again = bench.run(bench.base(), "ls /mnt/in; cat /mnt/in/a", [writable])
        assert again.out.split() == ["a", "link", "sub", "in", "a"]

    def test_a_mount_hides_what_is_below_it(self, bench: Workbench, source: BindMount) -> None:
        below = bench.put(bench.base(), folder(b"mnt"), folder(b"mnt/in"), file(b"mnt/in/x", b""))
        ran = bench.run(below, "ls /mnt/in", [source])
        assert ran.out.split() == ["a", "link", "sub"]
        assert list(ran.layer.tree().children(b"mnt/in")) == [b"x"]

    def test_a_part_of_a_tree_can_be_mounted(self, bench: Workbench, source: BindMount) -> None:
        ran = bench.run(bench.base(), "ls /mnt/in", [replace(source, path=b"src/sub")])
        assert ran.out == "b\n"

    def test_a_single_file_can_be_mounted(self, bench: Workbench, source: BindMount) -> None:
        one = replace(source, path=b"src/a", target="/mnt/file")
        ran = bench.run(bench.base(), "cat /mnt/file", [one])
        assert (ran.code, ran.out) == (0, "in a\n")
        _no_trace(ran)
        assert bench.run(bench.base(), "echo x > /mnt/file", [one]).code != 0

    def test_a_mount_point_is_made_and_leaves_no_trace(
        self, bench: Workbench, source: BindMount
    ) -> None:
        deep = replace(source, target="/nowhere/yet/deep")
        ran = bench.run(bench.base(), "cat /nowhere/yet/deep/a && echo x > /made", [deep])
        assert (ran.code, ran.out) == (0, "in a\n")
        assert ran.layer.tree().get(b"nowhere") is None
        assert content(ran.layer, b"made") == b"x\n"

    def test_a_file_made_beside_a_mount_point_stays(
        self, bench: Workbench, source: BindMount
    ) -> None:
        deep = replace(source, target="/place/in")
        below = bench.put(bench.base(), folder(b"place"))
        ran = bench.run(below, "echo x > /place/beside", [deep])
        assert list(ran.layer.tree().children(b"place")) == [b"beside"]

    @pytest.mark.usefixtures("binds", "kernel")
    def test_owners_and_modes_show_in_a_mount(self, bench: Workbench) -> None:
        needs(bench.backend, Capability.FILE_OWNERS)
        layer = _layer(bench)
        mount = BindMount("/mnt/in", layer.tree(), b"src", layer=layer)
        ran = bench.run(bench.base(), "stat -c '%u %g %a' /mnt/in/sub/b", [mount])
        assert ran.out == "12 13 755\n"

    @pytest.mark.usefixtures("binds")
    def test_two_mounts_one_inside_the_other(self, bench: Workbench) -> None:
        outer = BindMount("/mnt/out", _FILES, b"src")
        inner = BindMount("/mnt/out/sub", MemoryTree([file(b"z", b"")]))
        assert bench.run(bench.base(), "ls /mnt/out/sub", [outer, inner]).out == "z\n"

    @pytest.mark.usefixtures("binds", "kernel")
    def test_a_script_in_a_mount_can_be_run(self, bench: Workbench) -> None:
        script = MemoryTree([file(b"s", b"#!/bin/sh\necho ran as $0\n", 0o755)])
        mount = BindMount("/dev/pipes/s", script, b"s")
        assert bench.run(bench.base(), ("/dev/pipes/s",), [mount]).out == "ran as /dev/pipes/s\n"

    @pytest.mark.usefixtures("tmpfs")
    def test_a_tmpfs_is_empty_writable_and_forgotten(self, bench: Workbench) -> None:
        below = bench.put(bench.base(), folder(b"t"), file(b"t/hidden", b""))
        ran = bench.run(below, "ls /t; echo x > /t/f && cat /t/f", [TmpfsMount("/t")])
        assert (ran.code, ran.out) == (0, "x\n")
        _no_trace(ran)

    @pytest.mark.usefixtures("tmpfs", "kernel")
    def test_a_tmpfs_has_the_given_size(self, bench: Workbench) -> None:
        ran = bench.run(bench.base(), "df -k /t | tail -n 1", [TmpfsMount("/t", 2 << 20)])
        assert "2048" in ran.out.split()

    @pytest.mark.usefixtures("tmpfs", "kernel")
    def test_a_tmpfs_takes_the_mode_of_its_mount_point(self, bench: Workbench) -> None:
        below = bench.put(bench.base(), folder(b"t", 0o1777))
        ran = bench.run(below, "touch /t/x", [TmpfsMount("/t")], user=User(77, 77))
        assert ran.code == 0


def _layer(bench: Workbench) -> ROLayer:
    """The files of the mounts, as a layer of their own."""
    return bench.put(bench.scratch(), *_ENTRIES)


def _no_trace(ran: Ran) -> None:
    assert ran.layer.diff is None, "the mount left something in the layer"
