from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from dataclasses import replace

import pytest
from backports import zstd

from pybuild.errors import CopyFailed
from pybuild.files.copying import CopyRequest, plan_copy
from pybuild.files.trees import MemoryTree, NewEntry, Tree
from pybuild.oci.compression import Compression
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.layerwriter import write_layer

CREATED = 1234567


def tree(*paths: str, **files: str) -> MemoryTree:
    """``dir/`` is a folder, ``a -> b`` a link, ``a = text`` and all else a file."""
    entries = []
    for text in paths:
        name, arrow, target = text.partition(" -> ")
        if arrow:
            link = Entry(name.encode(), Kind.SYMLINK, mode=0o777, link=target.encode())
            entries.append(NewEntry(link))
        elif name.endswith("/"):
            folder = Entry(name[:-1].encode(), Kind.DIRECTORY, mode=0o750, uid=7, gid=8, mtime=9)
            entries.append(NewEntry(folder))
        else:
            name, _, content = name.partition(" = ")
            entries.append(file(name.encode(), content.encode()))
    return MemoryTree(entries)


def file(path: bytes, content: bytes = b"", **fields: object) -> NewEntry:
    entry = Entry(path, Kind.FILE, size=len(content), mtime=5, **fields)  # type: ignore[arg-type]
    return NewEntry(entry, lambda: io.BytesIO(content))


def copied(
    source: Tree, patterns: str, destination: str, base: Tree | None = None, **options: object
) -> list[NewEntry]:
    request = CopyRequest(
        tuple(patterns.split()),
        destination,
        created=CREATED,
        **options,  # type: ignore[arg-type]
    )
    return plan_copy(request, source, base or MemoryTree(()))


def names(entries: list[NewEntry]) -> str:
    marks = {Kind.DIRECTORY: "/", Kind.SYMLINK: "@", Kind.OPAQUE: "!"}
    return " ".join(
        e.entry.path.decode() + marks.get(e.entry.kind, "")
        for e in sorted(entries, key=lambda e: e.entry.path)
    )


def found(entries: list[NewEntry], path: str) -> Entry:
    return next(e.entry for e in entries if e.entry.path == path.encode())


SOURCE = tree("a.txt = A", "b.txt = B", "d/", "d/x.txt = X", "d/e/", "d/e/y = Y", "d/l -> ../a.txt")
BASE = tree(
    "usr/bin/", "bin -> usr/bin", "abs -> /usr/new", "etc/", "etc/conf = c", "flink -> etc/conf"
)


@pytest.mark.parametrize(
    ("patterns", "destination", "expected"),
    [
        ("a.txt", "/out", "out"),
        ("a.txt", "/out/", "out/ out/a.txt"),
        ("/a.txt", "/out/.", "out/ out/a.txt"),
        ("a.txt", "/", "a.txt"),
        ("a.txt", "/etc", "etc/a.txt"),
        ("a.txt", "/n/m/out", "n/ n/m/ n/m/out"),
        ("a.txt b.txt", "/out/", "out/ out/a.txt out/b.txt"),
        ("d", "/out", "out/ out/e/ out/e/y out/l@ out/x.txt"),
        ("d/", "/etc/", "etc/e/ etc/e/y etc/l@ etc/x.txt"),
        ("d/.", "/etc", "etc/e/ etc/e/y etc/l@ etc/x.txt"),
        ("d/e/../e", "/etc", "etc/y"),
        ("../../d/e", "/etc", "etc/y"),
        (".", "/", "a.txt b.txt d/ d/e/ d/e/y d/l@ d/x.txt"),
        ("*.txt", "/out/", "out/ out/a.txt out/b.txt"),
        ("*/*.txt", "/out/", "out/ out/x.txt"),
        ("**", "/out/", "out/ out/a.txt out/b.txt out/e/ out/e/y out/l@ out/x.txt"),
        ("none*", "/out/", ""),
        ("none* a.txt", "/out/", "out/ out/a.txt"),
        ("[ab].txt", "/out/", "out/ out/a.txt out/b.txt"),
        ("d/l", "/out/", "out/ out/l"),
        ("a.txt", "/bin/", "usr/bin/a.txt"),
        ("a.txt", "/bin/tool", "usr/bin/tool"),
        ("d", "/bin", "usr/bin/e/ usr/bin/e/y usr/bin/l@ usr/bin/x.txt"),
        ("a.txt", "/abs/", "usr/new/ usr/new/a.txt"),
        ("a.txt", "/flink", "etc/conf"),
        ("a.txt", "/etc/../../bin/x", "usr/bin/x"),
    ],
)
def test_sources_land_where_buildkit_puts_them(
    patterns: str, destination: str, expected: str
) -> None:
    assert names(copied(SOURCE, patterns, destination, BASE)) == expected


@pytest.mark.parametrize(
    ("patterns", "destination", "message"),
    [
        ("none", "/out/", '"/none": not found'),
        ("d/none", "/out/", '"/d/none": not found'),
        ("none/*", "/out/", '"/none": not found'),
        ("a.txt b.txt", "/out", "must be a directory and end with a /"),
        ("a.txt", "/etc/conf/", "cannot copy to non-directory: /etc/conf"),
        ("a.txt", "/etc/conf/x", "etc/conf is not a directory"),
        ("d", "/etc/conf", "cannot copy to non-directory: /etc/conf"),
        ("a.txt/x", "/out", "a.txt is not a directory"),
        ("[", "/out/", "syntax error in the pattern"),
        ("a.txt", "/" + "n" * 256, "longer than Linux allows"),
        ("a.txt", "/.wh.x", ".wh. marks a removed file"),
    ],
)
def test_what_can_not_be_copied_is_refused_by_name(
    patterns: str, destination: str, message: str
) -> None:
    with pytest.raises(CopyFailed, match=message.replace("[", "\\[")):
        copied(SOURCE, patterns, destination, BASE)


@pytest.mark.parametrize(
    ("source", "base", "message"),
    [
        (tree("in/etc = file"), BASE, "cannot replace to directory /etc with file"),
        (tree("in/etc -> x"), BASE, "cannot replace to directory /etc with file"),
        (tree("in/bin/x"), BASE, "cannot copy to non-directory: /bin"),
        (tree("in/etc/conf/x"), BASE, "cannot copy to non-directory: /etc/conf"),
    ],
)
def test_a_folder_is_not_replaced_by_a_file_nor_a_link_by_a_folder(
    source: Tree, base: Tree, message: str
) -> None:
    with pytest.raises(CopyFailed, match=message):
        copied(source, "in", "/", base)


def test_files_and_links_replace_each_other() -> None:
    source = tree("in/bin = file", "in/flink -> elsewhere", "in/etc/conf -> x")
    assert names(copied(source, "in", "/", BASE)) == "bin etc/ etc/conf@ flink@"


def test_made_folders_are_roots_and_dated_by_the_request() -> None:
    entries = copied(SOURCE, "a.txt", "/n/m/out")
    for path in ("n", "n/m"):
        entry = found(entries, path)
        assert (entry.mode, entry.uid, entry.gid, entry.mtime) == (0o755, 0, 0, CREATED)


def test_a_new_destination_folder_has_the_sources_time_but_not_its_mode() -> None:
    entry = found(copied(SOURCE, "d", "/out"), "out")
    assert (entry.mode, entry.uid, entry.mtime) == (0o755, 0, 9)


def test_folders_inside_take_on_the_sources_attributes_even_if_they_exist() -> None:
    base = MemoryTree([NewEntry(Entry(b"out/e", Kind.DIRECTORY, mode=0o700, uid=1))])
    entries = copied(SOURCE, "d", "/out", base)
    assert names(entries) == "out/e/ out/e/y out/l@ out/x.txt"
    assert (found(entries, "out/e").mode, found(entries, "out/e").uid) == (0o750, 7)


@pytest.mark.parametrize("mtime", [9, 10])
def test_a_folder_that_is_equal_but_for_its_time_makes_no_entry(mtime: int) -> None:
    entry = Entry(b"e", Kind.DIRECTORY, mode=0o750, uid=7, gid=8, mtime=mtime)
    base = MemoryTree([NewEntry(entry)])
    assert names(copied(SOURCE, "d", "/", base)) == "e/y l@ x.txt".replace("e/y", "e/y")


def test_owners_are_kept_unless_chown_says_otherwise() -> None:
    source = MemoryTree([file(b"d/f", uid=3, gid=4)])
    assert found(copied(source, "d", "/"), "f").uid == 3
    entries = copied(source, "d", "/n/out/", chown=(11, 12))
    assert {(e.entry.uid, e.entry.gid) for e in entries} == {(11, 12)}


def test_chmod_goes_for_everything_but_links_and_octal_for_made_parents_too() -> None:
    entries = copied(SOURCE, "d", "/n/out", chmod="700")
    modes = {e.entry.path.decode(): oct(e.entry.mode) for e in entries}
    assert modes.pop("n/out/l") == "0o777"
    assert set(modes.values()) == {"0o700"}
    entries = copied(SOURCE, "d", "/n/out", chmod="a+w,u+X")
    assert oct(found(entries, "n").mode) == "0o755"
    assert oct(found(entries, "n/out/e").mode) == "0o772"
    assert oct(found(entries, "n/out/x.txt").mode) == "0o666"


@pytest.mark.parametrize(
    ("patterns", "exclude", "expected"),
    [
        ("d", ("*.txt",), "out/ out/e/ out/e/y out/l@"),
        ("d", ("**/y", "l"), "out/ out/e/ out/x.txt"),
        ("d", ("e",), "out/ out/l@ out/x.txt"),
        ("d", ("*", "!e/y"), "out/ out/e/ out/e/y"),
        ("d", ("*",), "out/"),
        ("*.txt", ("b*",), "out/ out/a.txt"),
        ("b.txt", ("b*",), "out/ out/b.txt"),
        ("d*", ("*",), "out/"),
    ],
)
def test_excluded_files_stay_behind(patterns: str, exclude: tuple[str, ...], expected: str) -> None:
    assert names(copied(SOURCE, patterns, "/out/", exclude=exclude)) == expected


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("d/e/y", "out/ out/d/ out/d/e/ out/d/e/y"),
        ("./d/e/y", "out/ out/d/ out/d/e/ out/d/e/y"),
        ("d/./e/y", "out/ out/e/ out/e/y"),
        ("d/e/.", "out/ out/d/ out/d/e/ out/d/e/y"),
        ("d/e", "out/ out/d/ out/d/e/ out/d/e/y"),
        ("**/*.txt", "out/ out/a.txt out/b.txt out/d/ out/d/x.txt"),
        ("d/./**/y", "out/ out/e/ out/e/y"),
        ("*/e", "out/ out/d/ out/d/e/ out/d/e/y"),
        ("d*/./x*", "out/ out/x.txt"),
        ("./", "out/ out/a.txt out/b.txt out/d/ out/d/e/ out/d/e/y out/d/l@ out/d/x.txt"),
        ("./d/./", "out/ out/e/ out/e/y out/l@ out/x.txt"),
        ("none*", "out/"),
        ("a.txt d/e/y", "out/ out/a.txt out/d/ out/d/e/ out/d/e/y"),
    ],
)
def test_parents_are_kept_from_the_pivot_on(patterns: str, expected: str) -> None:
    assert names(copied(SOURCE, patterns, "/out/", parents=True)) == expected


@pytest.mark.parametrize("pattern", ["none", "d/none", "d/./none", "none/./x", "./d/e/z"])
def test_with_parents_a_plain_name_must_exist(pattern: str) -> None:
    with pytest.raises(CopyFailed, match=r"none|z.*: not found"):
        copied(SOURCE, pattern, "/out/", parents=True)


def test_parents_have_the_sources_attributes() -> None:
    entry = found(copied(SOURCE, "d/e/y", "/out/", parents=True), "out/d")
    assert (entry.mode, entry.uid, entry.mtime) == (0o750, 7, 9)


def test_a_linked_copy_knows_nothing_of_the_destination() -> None:
    assert names(copied(SOURCE, "a.txt", "/bin/", BASE, link=True)) == "bin/ bin/a.txt"
    with_mode = copied(SOURCE, "a.txt", "/bin/", BASE, link=True, chmod="644")
    assert names(with_mode) == "usr/bin/a.txt"


def test_hard_links_are_kept_within_one_source() -> None:
    linked = NewEntry(Entry(b"d/two", Kind.FILE, link=b"d/one"))
    source = MemoryTree([file(b"d/one", b"same"), linked])
    entries = copied(source, "d", "/out")
    assert found(entries, "out/two").link == b"out/one"
    single = copied(source, "d/two", "/out")
    assert found(single, "out").link == b""
    out = io.BytesIO()
    index = write_layer(entries, out.write, Compression.NONE).index
    assert index.offset(b"out/one") == index.offset(b"out/two") > 0


def test_a_later_source_wins() -> None:
    source = tree("a/f = 1", "b/f = 22")
    entries = copied(source, "a/f b/f", "/out/")
    assert found(entries, "out/f").size == 2


def test_sockets_stay_behind_and_pipes_and_devices_come_along() -> None:
    kinds = {b"s": Kind.SOCKET, b"p": Kind.FIFO, b"c": Kind.CHARACTER}
    source = MemoryTree(NewEntry(Entry(name, kind)) for name, kind in kinds.items())
    assert names(copied(source, ".", "/")) == "c p"


def test_names_behind_a_backslash_are_taken_literally() -> None:
    source = tree("a*b = star", "axb = x", "c\\d = back")
    assert names(copied(source, "a\\*b", "/out/")) == "out/ out/a*b"
    assert names(copied(source, "c\\\\d", "/out/")) == "out/ out/c\\d"


def test_a_deep_source_is_no_trouble() -> None:
    source = MemoryTree([file(b"/".join([b"d"] * 2000))])
    assert len(copied(source, ".", "/")) == 2000


def archive(*members: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


PACKED = archive(
    member("./", tarfile.DIRTYPE, mode=0o700),
    member("top/in/file", size=3, uid=5, gid=6, mode=0o640, mtime=77),
    member("hard", tarfile.LNKTYPE, linkname="top/in/file"),
    member("link", tarfile.SYMTYPE, linkname="/etc"),
    member("bin/tool", size=1),
)


@pytest.mark.parametrize(
    "compress",
    [bytes, gzip.compress, bz2.compress, lzma.compress, zstd.compress],
    ids=["tar", "gzip", "bzip2", "xz", "zstd"],
)
def test_add_unpacks_archives_whatever_compressed_them(compress: object) -> None:
    assert callable(compress)
    source = MemoryTree([file(b"a.bin", compress(PACKED))])
    entries = copied(source, "a.bin", "/out", BASE, unpack=True)
    expected = "out/ out/bin/ out/bin/tool out/hard out/link@ out/top/ out/top/in/ out/top/in/file"
    assert names(entries) == expected
    unpacked = found(entries, "out/top/in/file")
    assert (unpacked.uid, unpacked.gid, unpacked.mode, unpacked.mtime) == (5, 6, 0o640, 77)
    out = io.BytesIO()
    index = write_layer(entries, out.write, Compression.NONE).index
    assert out.getvalue()[index.offset(b"out/hard") :][:3] == b"xxx"


def test_an_archive_lands_behind_the_links_of_the_destination() -> None:
    source = MemoryTree([file(b"a.tar", PACKED)])
    entries = copied(source, "a.tar", "/", BASE, unpack=True, chown=(1, 2))
    assert names(entries) == "hard link@ top/ top/in/ top/in/file usr/bin/tool"
    assert {(e.entry.uid, e.entry.gid) for e in entries} == {(1, 2)}


def test_an_archive_replaces_what_is_no_folder_on_both_sides() -> None:
    packed = archive(member("bin", tarfile.DIRTYPE), member("etc"), member("bin/x"))
    entries = copied(MemoryTree([file(b"a", packed)]), "a", "/", BASE, unpack=True)
    assert names(entries) == "bin/ bin/x etc"


def test_a_folder_that_was_something_else_in_between_hides_the_old_one() -> None:
    first, second = archive(member("etc")), archive(member("etc", tarfile.DIRTYPE))
    source = MemoryTree([file(b"1", first), file(b"2", second)])
    entries = copied(source, "1 2", "/", BASE, unpack=True)
    assert [e.entry.kind for e in entries] == [Kind.OPAQUE, Kind.DIRECTORY]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        gzip.compress(b"text", mtime=0),
        gzip.compress(PACKED, mtime=0)[:40],
        bytes(10240),
    ],
)
def test_what_is_no_archive_is_added_as_it_is(content: bytes) -> None:
    source = MemoryTree([file(b"a.tar.gz", content)])
    entries = copied(source, "a.tar.gz", "/", unpack=True)
    assert found(entries, "a.tar.gz").size == len(content)


def test_copy_does_not_unpack() -> None:
    source = MemoryTree([file(b"a.tar", PACKED)])
    assert names(copied(source, "a.tar", "/")) == "a.tar"


def test_a_broken_archive_is_an_error() -> None:
    source = MemoryTree([file(b"a.tar", PACKED[:1500])])
    with pytest.raises(CopyFailed, match=r"can't unpack /a\.tar"):
        copied(source, "a.tar", "/", unpack=True)


def test_digests_known_in_the_source_are_kept() -> None:
    digest = "sha256:" + "1" * 64
    new = file(b"a")
    source = MemoryTree([replace(new, entry=replace(new.entry, digest=digest))])
    assert found(copied(source, "a", "/b"), "b").digest == digest
