"""Where mounts go, and which stubs they need."""

from __future__ import annotations

from pathlib import Path

import pytest

from pybuild.errors import StepFailed
from pybuild.files.trees import MemoryTree, NewEntry
from pybuild.oci.layerindex import Kind
from pybuild.testkit.workbench import file, folder, symlink
from pybuild_containerd.mountpoints import (
    ANYONES_FOLDER,
    FOLDER,
    PLAIN_FILE,
    SYSTEM_MOUNTPOINTS,
    Mountpoint,
    check_system_mountpoints,
    missing_entries,
    resolve_cwd,
    resolve_mountpoints,
    untouched_stubs,
)

_TREE = MemoryTree(
    [
        folder(b"etc"),
        file(b"etc/hosts", b""),
        folder(b"usr"),
        folder(b"usr/bin"),
        symlink(b"bin", b"usr/bin"),
        symlink(b"out", b"../../../../etc"),
        symlink(b"abs", b"/etc"),
        symlink(b"loop", b"loop"),
        symlink(b"fd", b"/proc/self/fd/7"),
        symlink(b"console", b"/dev/fd/3"),
        symlink(b"resolv", b"/run/systemd/resolv.conf"),
        file(b"plain", b"x"),
    ]
)


def _where(*targets: str) -> list[str]:
    return [p.destination for p in resolve_mountpoints(_TREE, [(t, FOLDER) for t in targets])]


@pytest.mark.parametrize(
    ("target", "destination"),
    [
        ("/mnt/new", "/mnt/new"),
        ("/bin/x", "/usr/bin/x"),
        ("/out/x", "/etc/x"),
        ("/abs/x", "/etc/x"),
        ("//etc/./a/../b/", "/etc/b"),
        ("/../../x", "/x"),
        ("/resolv", "/run/systemd/resolv.conf"),
    ],
)
def test_a_target_is_resolved_inside_the_root(target: str, destination: str) -> None:
    assert _where(target) == [destination]


def test_links_of_the_root_dont_count_below_another_mount() -> None:
    assert _where("/usr/lib/bin", "/usr", "/usr/bin/x") == ["/usr/lib/bin", "/usr", "/usr/bin/x"]
    assert _where("/abs", "/abs/bin") == ["/etc", "/etc/bin"]


@pytest.mark.parametrize(
    "target", ["/", "/.", "/proc", "/proc/sys/x", "/sys/fs", "/fd", "/loop/x", "/plain/x", "/x\0y"]
)
def test_nothing_is_mounted_where_it_could_do_harm(target: str) -> None:
    with pytest.raises(StepFailed):
        _where(target)


def test_folders_and_files_are_not_mounted_on_each_other() -> None:
    with pytest.raises(StepFailed, match="a file can't be mounted on the dir /etc"):
        resolve_mountpoints(_TREE, [("/etc", PLAIN_FILE)])
    with pytest.raises(StepFailed, match="a dir can't be mounted on the file /plain"):
        resolve_mountpoints(_TREE, [("/plain", FOLDER)])


@pytest.mark.parametrize("name", [b"proc", b"dev", b"sys"])
def test_an_image_whose_proc_is_a_link_runs_nothing(name: bytes) -> None:
    with pytest.raises(StepFailed, match=f"/{name.decode()} of the image"):
        check_system_mountpoints(MemoryTree([symlink(name, b"etc")]))


@pytest.mark.parametrize("cwd", ["/", "/srv/new", "/bin", "/dev/shm/x", "/processes"])
def test_an_ordinary_working_directory_is_fine(cwd: str) -> None:
    resolve_cwd(_TREE, cwd)


@pytest.mark.parametrize(
    "cwd", ["/proc", "/proc/self/fd/8", "/fd", "/fd/..", "/console", "/dev/fd/3", "/plain", "/loop"]
)
def test_a_working_directory_never_leads_through_open_files(cwd: str) -> None:
    with pytest.raises(StepFailed, match="working directory"):
        resolve_cwd(_TREE, cwd)


def test_what_is_missing_is_listed_parents_first() -> None:
    points = [
        *SYSTEM_MOUNTPOINTS,
        Mountpoint(b"etc/hosts", PLAIN_FILE),
        Mountpoint(b"a/b/c", PLAIN_FILE),
        Mountpoint(b"t", ANYONES_FOLDER),
        Mountpoint(b"dev/shm/x", FOLDER),
        Mountpoint(b"t/inside", FOLDER),
    ]
    missing = missing_entries(MemoryTree([file(b"etc/hosts", b""), folder(b"dev")]), points)
    assert [(e.path, e.kind, e.mode) for e in missing] == [
        (b"a", Kind.DIRECTORY, 0o755),
        (b"a/b", Kind.DIRECTORY, 0o755),
        (b"a/b/c", Kind.FILE, 0o644),
        (b"proc", Kind.DIRECTORY, 0o755),
        (b"sys", Kind.DIRECTORY, 0o755),
        (b"t", Kind.DIRECTORY, 0o1777),
    ]


def _stubs(root: Path, *missing: NewEntry) -> frozenset[bytes]:
    return untouched_stubs(root, [new.entry for new in missing])


def test_an_empty_stub_is_found_with_the_parents_made_for_it(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/f").touch()
    assert _stubs(tmp_path, folder(b"a"), folder(b"a/b"), file(b"a/f"), file(b"gone")) == {
        b"a",
        b"a/b",
        b"a/f",
    }


def test_what_a_process_used_is_no_stub(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/x").touch()
    (tmp_path / "f").write_text("x")
    assert _stubs(tmp_path, folder(b"a"), folder(b"a/b"), file(b"f")) == {b"a/b"}


def test_no_link_is_followed_out_of_the_layer(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "b").mkdir(parents=True)
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").symlink_to(outside)
    (root / "l").symlink_to(outside / "b")
    assert _stubs(root, folder(b"a"), folder(b"a/b"), folder(b"l")) == frozenset()
