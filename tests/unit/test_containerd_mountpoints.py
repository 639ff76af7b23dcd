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
    Wanted,
    check_system_mountpoints,
    missing_entries,
    mounted_tree,
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
    return [p.destination for p in resolve_mountpoints(_TREE, [Wanted(t, FOLDER) for t in targets])]


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
    "target",
    [
        "/",
        "/.",
        "/proc",
        "/proc/sys/x",
        "/sys/fs",
        "/fd",
        "/loop/x",
        "/plain/x",
        "/x\0y",
        "/dev",
        "/dev/null",
        "/dev/fd/7",
        "/dev/pts/0",
        "/dev/stdout",
        "/console",
    ],
)
def test_nothing_is_mounted_where_it_could_do_harm(target: str) -> None:
    with pytest.raises(StepFailed):
        _where(target)


# what a hostile image's folder may hold, mounted beside or around another mount
_TRAPS = MemoryTree(
    [
        symlink(b"dev", b"/dev"),
        symlink(b"null", b"/proc/sys/kernel/core_pattern"),
        symlink(b"fd", b"/proc/self/fd/7"),
        symlink(b"etc", b"../../etc"),
        folder(b"d"),
        symlink(b"d/self", b"/proc/self"),
    ]
)


def _among_traps(*targets: str) -> list[str]:
    """Where mounts land of which the first shows `_TRAPS`."""
    wanted = [Wanted(targets[0], FOLDER, _TRAPS), *(Wanted(t, FOLDER) for t in targets[1:])]
    return [point.destination for point in resolve_mountpoints(_TREE, wanted)]


def test_links_inside_a_mount_count_for_a_mount_below_it() -> None:
    assert _among_traps("/m", "/m/etc/x", "/m/d/new") == ["/m", "/etc/x", "/m/d/new"]
    assert _among_traps("/abs", "/etc/etc/x") == ["/etc", "/etc/x"]


@pytest.mark.parametrize(
    "targets",
    [
        ("/m", "/m/dev"),
        ("/m", "/m/dev/null"),
        ("/m", "/m/null"),
        ("/m", "/m/fd"),
        ("/m", "/m/d/self/fd"),
        ("/m/n/o", "/m/n/o/dev"),
        ("/abs/new", "/etc/new/dev"),
        # made first, and seen through the link only then
        ("/abs", "/etc/dev"),
        ("/bin/a/b", "/usr/bin/a/b/dev"),
        ("/a/../../usr", "/bin/../usr/d/self/x"),
    ],
)
def test_no_mount_goes_through_a_link_of_another_to_the_systems_own(targets: tuple[str]) -> None:
    """runc CVE-2025-31133: a false /dev/null becomes a key to /proc/sys."""
    with pytest.raises(StepFailed):
        _among_traps(*targets)


def test_a_mount_that_another_would_divert_is_refused() -> None:
    root = MemoryTree(
        [
            symlink(b"b", b"/usr/d/x"),
            folder(b"c"),
            symlink(b"c/c", b"/usr"),
            folder(b"usr"),
            folder(b"usr/d"),
        ]
    )
    trap = MemoryTree([symlink(b"d", b"/dev")])
    inner, outer = Wanted("/b", FOLDER), Wanted("/c/c", FOLDER, trap)
    assert [p.path for p in resolve_mountpoints(root, [inner])] == [b"usr/d/x"]
    with pytest.raises(StepFailed, match="goes through a link of another mount"):
        resolve_mountpoints(root, [inner, outer])


def test_a_working_directory_inside_a_mount_is_checked_with_its_links() -> None:
    wanted = [Wanted("/m", FOLDER, _TRAPS)]
    tree = mounted_tree(_TREE, wanted, resolve_mountpoints(_TREE, wanted))
    resolve_cwd(tree, "/m/d")
    resolve_cwd(tree, "/m/etc")
    for cwd in ("/m/fd", "/m/d/self/fd/7", "/m/dev/fd", "/m/null"):
        with pytest.raises(StepFailed, match="working directory"):
            resolve_cwd(tree, cwd)


def test_folders_and_files_are_not_mounted_on_each_other() -> None:
    with pytest.raises(StepFailed, match="a file can't be mounted on the dir /etc"):
        resolve_mountpoints(_TREE, [Wanted("/etc", PLAIN_FILE)])
    with pytest.raises(StepFailed, match="a dir can't be mounted on the file /plain"):
        resolve_mountpoints(_TREE, [Wanted("/plain", FOLDER)])


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
