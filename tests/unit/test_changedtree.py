"""Trees of which the newest layer isn't read: the same answers, and as few waits as can be."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pybuild.files.changedtree import ChangedTree
from pybuild.files.layertree import LayerTree
from pybuild.files.trees import MemoryTree, NewEntry, Tree, walk
from pybuild.files.upperdir import upper_entries
from pybuild.oci.compression import Compression
from pybuild.oci.layerindex import Entry, Kind, LayerIndex
from pybuild.oci.layerwriter import write_layer

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="whiteouts are made by root"
)

PATHS = ["a", "a/a", "a/b", "a/a/a", "b", "b/a", "b/a/a", "b/b", "c"]


class Waited(Exception):
    pass


def refuse() -> Tree:
    raise Waited


def index(entries: list[NewEntry]) -> LayerIndex:
    return write_layer(entries, io.BytesIO().write, Compression.NONE).index


def layered(*indexes: LayerIndex) -> LayerTree:
    return LayerTree(indexes, lambda *_: io.BytesIO())


def file(path: str, content: bytes = b"below") -> NewEntry:
    entry = Entry(path.encode(), Kind.FILE, size=len(content), mtime=1000)
    return NewEntry(entry, lambda: io.BytesIO(content))


def folder(path: str, mode: int = 0o755) -> NewEntry:
    return NewEntry(Entry(path.encode(), Kind.DIRECTORY, mode))


BASE = MemoryTree([folder("etc"), file("etc/passwd"), folder("srv", 0o700), file("top")])


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    (tmp_path / "upper").mkdir()
    return tmp_path / "upper"


def themselves(uid: int, gid: int) -> tuple[int, int]:
    return uid, gid


def changed(upper: Path, make: Callable[[], Tree] = refuse, below: Tree = BASE) -> ChangedTree:
    return ChangedTree(make, lambda: below, upper, owner=themselves)


@pytest.mark.parametrize("shift", [0, 100_000])
def test_owners_are_those_in_the_layers(upper: Path, shift: int) -> None:
    (upper / "etc").mkdir(mode=0o755)
    status = (upper / "etc").stat()
    owner = {"uid": status.st_uid + shift, "gid": status.st_gid + shift}
    etc = NewEntry(Entry(b"etc", Kind.DIRECTORY, 0o755, **owner))
    below = MemoryTree([etc, file("etc/passwd")])

    def tree(owner: Callable[[int, int], tuple[int, int] | None] | None) -> ChangedTree:
        return ChangedTree(lambda: MemoryTree([]), lambda: below, upper, owner=owner)

    shifted = tree(lambda uid, gid: (uid + shift, gid + shift))
    assert shifted.get(b"etc/passwd") == below.get(b"etc/passwd")
    assert tree(None).get(b"etc/passwd") == below.get(b"etc/passwd")
    # another owner, or one that is nobody in the layers: the step has changed it
    assert tree(lambda uid, gid: (uid + shift, gid + shift + 1)).get(b"etc/passwd") is None
    assert tree(lambda _uid, _gid: None).get(b"etc/passwd") is None


def test_what_a_step_didnt_touch_is_known_at_once(upper: Path) -> None:
    (upper / "etc").mkdir(mode=0o755)
    (upper / "etc/other").write_text("new\n")
    (upper / "new/deep").mkdir(parents=True)
    tree = changed(upper)
    for path in (b"etc", b"etc/passwd", b"top", b"srv", b"none", b"etc/none/below"):
        assert tree.get(path) == BASE.get(path)
    with tree.open(b"etc/passwd") as stream:
        assert stream.read() == b"below"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ("echo x >$U/top", "top"),
        ("echo x >$U/new", "new"),
        ("mknod $U/top c 0 0", "top"),
        ("mknod $U/etc c 0 0", "etc/passwd"),
        ("ln -s srv $U/etc", "etc/passwd"),
        ("mkdir $U/etc; mknod $U/etc/passwd c 0 0", "etc/passwd"),
        ("mkdir -m 700 $U/etc", "etc"),
        ("mkdir $U/etc; chown 5 $U/etc", "etc"),
        ("mkdir $U/top", "top"),
        ("mkdir $U/top", "top/below"),
        ("mkdir $U/new", "new"),
        ("mkdir $U/new", "new/below"),
    ],
)
def test_what_it_may_have_changed_is_waited_for(upper: Path, change: str, path: str) -> None:
    assert os.system(f"umask 022; U={upper}; {change}") == 0  # noqa: S605 - our own words
    tree = changed(upper)
    with pytest.raises(Waited):
        tree.get(path.encode())


@pytest.mark.parametrize("name", ["opaque", "redirect"])
def test_a_folder_that_hides_what_was_there_is_waited_for(upper: Path, name: str) -> None:
    (upper / "etc").mkdir(mode=0o755)
    os.setxattr(upper / "etc", f"trusted.overlay.{name}", b"y")
    with pytest.raises(Waited):
        changed(upper).get(b"etc/passwd")


def test_a_folder_is_listed_only_when_all_is_known(upper: Path) -> None:
    with pytest.raises(Waited):
        changed(upper).children(b"srv")


def test_once_it_is_known_the_folder_isnt_looked_at(upper: Path) -> None:
    (upper / "top").write_text("new\n")
    after = MemoryTree([file("top", b"after")])
    tree = changed(upper, lambda: after)
    assert tree.get(b"top") == after.get(b"top")
    shutil.rmtree(upper)
    assert tree.get(b"etc/passwd") is None


def test_a_folder_that_went_is_waited_for(upper: Path) -> None:
    upper.rmdir()
    with pytest.raises(Waited):
        changed(upper).get(b"top")


BELOW = st.dictionaries(st.sampled_from(PATHS), st.sampled_from(["file", 0o755, 0o700]))
ABOVE = st.dictionaries(
    st.sampled_from(PATHS), st.sampled_from(["file", 0o755, 0o700, "whiteout", "opaque", "link"])
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(below=BELOW, above=ABOVE)
def test_answers_are_those_of_the_layer(
    below: dict[str, str | int], above: dict[str, str | int]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        upper = Path(name)
        lowest = index(_entries(below))
        base = layered(lowest)
        for path in sorted(above):
            _make(upper / path, above[path])
        truth = layered(lowest, index(list(upper_entries(upper, base))))
        tree = ChangedTree(lambda: truth, lambda: base, upper, owner=themselves)
        for asked in (b"", *(path.encode() for path in PATHS), b"a/a/a/a", b"none"):
            fresh = ChangedTree(lambda: truth, lambda: base, upper, owner=themselves)
            assert fresh.get(asked) == truth.get(asked), asked
            assert tree.get(asked) == truth.get(asked), asked
        assert list(walk(tree, b"")) == list(walk(truth, b""))


def _entries(below: dict[str, str | int]) -> list[NewEntry]:
    made = []
    for path in sorted(below):
        parents = [path[:at] for at, char in enumerate(path) if char == "/"]
        if all(below.get(parent, 0o755) != "file" for parent in parents):
            kind = below[path]
            made.append(folder(path, kind) if isinstance(kind, int) else file(path))
    return made


def _make(path: Path, kind: str | int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:  # below something else
        return
    match kind:
        case int():
            path.mkdir(exist_ok=True)
            path.chmod(kind)
        case "opaque":
            path.mkdir(exist_ok=True)
            os.setxattr(path, "trusted.overlay.opaque", b"y")
        case "whiteout":
            os.mknod(path, stat.S_IFCHR)
        case "link":
            path.symlink_to("b")
        case _:
            path.write_bytes(b"above")
