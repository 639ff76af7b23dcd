from __future__ import annotations

import io

import pytest

from pybuild.errors import PybuildError, StepFailed
from pybuild.files.trees import MemoryTree, NewEntry
from pybuild.files.users import Identity, resolve_owner, resolve_user
from pybuild.oci.layerindex import Entry, Kind

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# not a user: a name like others
web:x:33:34:web:/srv:/bin/sh

web:x:99:99:second:/:/bin/sh
short:x
bad:x:oops:5
1234:x:7:8
huge:x:4294967296:1
minus:x:-5:1
"""
GROUP = b"""root:x:0:
web:x:34:
# audio:x:1:web
audio:x:29:other,web
video:x:44:web
mail:x:8:web2
1234:x:9:
toobig:x:99999999999999999999:web3
"""


def file(path: bytes, content: bytes) -> NewEntry:
    return NewEntry(Entry(path, Kind.FILE, size=len(content)), lambda: io.BytesIO(content))


TREE = MemoryTree([file(b"etc/passwd", PASSWD), file(b"etc/group", GROUP)])
EMPTY = MemoryTree(())


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("", Identity(0, 0, (0,))),
        ("root", Identity(0, 0, (0,))),
        ("web", Identity(33, 34, (34, 29, 44))),
        ("web:", Identity(33, 34, (34, 29, 44))),
        ("web:mail", Identity(33, 8, (8,))),
        ("web:1000", Identity(33, 1000, (1000,))),
        ("33", Identity(33, 34, (34, 29, 44))),
        ("1000", Identity(1000, 0, (0,))),
        ("1000:1001", Identity(1000, 1001, (1001,))),
        ("1234", Identity(1234, 0, (0,))),
        ("0:1234", Identity(0, 1234, (1234,))),
        ("short", Identity(0, 0, (0,))),
        ("bad", Identity(0, 5, (5,))),
        ("2147483647", Identity(2**31 - 1, 0, (0,))),
    ],
)
def test_a_user_is_looked_up_in_the_tree(spec: str, expected: Identity) -> None:
    assert resolve_user(TREE, spec) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nobody", "unable to find user nobody: no matching entries in passwd file"),
        ("0x0", "unable to find user 0x0"),
        ("web:none", "unable to find group none: no matching entries in group file"),
        ("-1", "-1 is no user or group"),
        ("2147483648", "2147483648 is no user or group"),
        ("4294967296", "4294967296 is no user or group"),
        ("9" * 5000, "is no user or group"),
        ("0:-1", "-1 is no user or group"),
        ("huge", "huge is no user or group"),
        ("minus", "minus is no user or group"),
        ("٣", "unable to find user ٣"),
    ],
)
def test_who_is_not_there_is_refused(spec: str, message: str) -> None:
    with pytest.raises(StepFailed, match=message):
        resolve_user(TREE, spec)


def test_root_and_numbers_need_no_files() -> None:
    assert resolve_user(EMPTY, "") == resolve_user(EMPTY, "root") == Identity(0, 0, (0,))
    assert resolve_user(EMPTY, "root:root") == Identity(0, 0, (0,))
    assert resolve_user(EMPTY, "5") == Identity(5, 0, (0,))
    with pytest.raises(StepFailed):
        resolve_user(EMPTY, "web")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("web", (33, 34)),
        ("web:mail", (33, 8)),
        ("1000", (1000, 1000)),
        ("33", (33, 33)),
        ("1000:5", (1000, 5)),
        ("root", (0, 0)),
        ("root:audio", (0, 29)),
        (":audio", (0, 29)),
        ("5:", (5, 5)),
    ],
)
def test_an_owner_is_looked_up_by_buildkits_rule(spec: str, expected: tuple[int, int]) -> None:
    assert resolve_owner(TREE, spec) == expected


def test_an_unknown_owner_is_refused_but_where_root_will_do() -> None:
    with pytest.raises(StepFailed, match="unable to find user x"):
        resolve_owner(TREE, "x")
    with pytest.raises(StepFailed, match="unable to find group x"):
        resolve_owner(TREE, "web:x")
    assert resolve_owner(TREE, "x", unknown_is_root=True) == (0, 0)
    assert resolve_owner(TREE, "web:x", unknown_is_root=True) == (33, 34)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry(b"etc/passwd", Kind.FIFO), "not a regular file"),
        (Entry(b"etc/passwd", Kind.DIRECTORY), "not a regular file"),
        (Entry(b"etc/passwd", Kind.FILE, size=2**30), "larger than"),
        (Entry(b"etc/passwd", Kind.SYMLINK, link=b"passwd"), "too many levels"),
    ],
)
def test_a_passwd_file_that_is_none_is_refused(entry: Entry, message: str) -> None:
    with pytest.raises(PybuildError, match=message):
        resolve_user(MemoryTree([NewEntry(entry)]), "web")


def test_links_to_the_files_stay_in_the_tree() -> None:
    tree = MemoryTree(
        [
            NewEntry(Entry(b"etc/passwd", Kind.SYMLINK, link=b"/../../real/passwd")),
            file(b"real/passwd", b"inside:x:5:6\n"),
        ]
    )
    assert resolve_user(tree, "inside").uid == 5
