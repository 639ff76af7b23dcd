from __future__ import annotations

import gzip
import io
import random
import shutil
import subprocess
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybuild.errors import CopyFailed, InvalidImage
from pybuild.files.trees import NewEntry
from pybuild.oci.compression import Compression
from pybuild.oci.layerindex import Entry, Kind, LayerIndex
from pybuild.oci.layertar import read_index
from pybuild.oci.layerwriter import WrittenLayer, write_layer
from pybuild.oci.tarformat import Limits, Member, header

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def file(path: bytes, content: bytes = b"", **fields: object) -> NewEntry:
    entry = Entry(path, Kind.FILE, size=len(content), **fields)  # type: ignore[arg-type]
    return NewEntry(entry, lambda: io.BytesIO(content))


def other(path: bytes, kind: Kind, **fields: object) -> NewEntry:
    return NewEntry(Entry(path, kind, **fields))  # type: ignore[arg-type]


def written(
    entries: list[NewEntry], compression: Compression = Compression.NONE
) -> tuple[bytes, WrittenLayer]:
    out = io.BytesIO()
    layer = write_layer(entries, out.write, compression)
    return out.getvalue(), layer


def raw_tar(*members: tuple[Member, bytes] | bytes, end: bytes = bytes(1024)) -> io.BytesIO:
    parts = []
    for member in members:
        if isinstance(member, bytes):
            parts.append(member)
        else:
            head, content = member
            parts += [header(head), content, bytes(-len(content) % 512)]
    return io.BytesIO(b"".join(parts) + end)


EVERY_KIND = [
    other(b"", Kind.DIRECTORY, mode=0o755, mtime=5),
    other(b"bin", Kind.DIRECTORY, mode=0o1777, uid=3, gid=4),
    file(b"bin/tool", b"#!/bin/sh\n", mode=0o4755, xattrs=(("security.capability", CAPABILITY),)),
    other(b"bin/link", Kind.SYMLINK, mode=0o777, link=b"../etc/a b"),
    NewEntry(Entry(b"bin/zhard", Kind.FILE, 0o4755, link=b"bin/tool")),
    other(b"dev", Kind.DIRECTORY, mode=0o755),
    other(b"dev/null", Kind.CHARACTER, mode=0o666, device=(1, 3)),
    other(b"dev/sda", Kind.BLOCK, mode=0o660, device=(8, 0), gid=6),
    other(b"dev/pipe", Kind.FIFO, mode=0o600),
    other(b"dev", Kind.OPAQUE),
    other(b"etc/gone", Kind.WHITEOUT),
    file(b"etc/long/" + b"n" * 180, b"x" * 700, mtime=1700000000),
    file(b"deep/" * 60 + b"end", b"y"),
    file("grün".encode(), b"z"),
    file(b"not-utf8-\xff\xfe", b"raw"),
    file(b"line\nbreak\\", b"odd"),
    file(b"huge-owner", b"", uid=2**31, gid=2**32 - 1),
    file(b"before-1970", b"", mtime=-86400),
    file(b"far-future", b"", mtime=2**33 * 8 + 1),
    other(b"far", Kind.SYMLINK, mode=0o777, link=b"t" * 300),
]


@pytest.mark.parametrize("compression", Compression)
def test_what_was_written_is_read_back_with_the_same_index_and_diff_id(
    compression: Compression,
) -> None:
    blob, layer = written(EVERY_KIND, compression)
    diff_id, index = read_index(io.BytesIO(blob))
    assert diff_id == layer.diff.diff_id
    assert index == layer.index
    assert layer.diff.blob.size == len(blob)
    assert layer.diff.blob.digest == "sha256:" + sha256(blob).hexdigest()
    assert layer.diff.blob.media_type == compression.media_type


def test_the_bytes_do_not_depend_on_the_order_of_the_entries() -> None:
    expected, _ = written(EVERY_KIND, Compression.GZIP)
    for seed in range(5):
        shuffled = random.Random(seed).sample(EVERY_KIND, len(EVERY_KIND))  # noqa: S311
        assert written(shuffled, Compression.GZIP)[0] == expected


def test_headers_hold_no_names_of_owners_and_only_whole_seconds() -> None:
    blob, _ = written(EVERY_KIND)
    with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
        for member in tar:
            assert (member.uname, member.gname) == ("", "")
            assert not {"atime", "ctime"} & set(member.pax_headers)
            assert member.mtime == int(member.mtime)


def test_gzip_headers_hold_no_time_and_no_name() -> None:
    blob, _ = written([file(b"a", b"b")], Compression.GZIP)
    assert blob[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    assert gzip.decompress(blob)


def test_python_reads_the_same_entries() -> None:
    blob, layer = written(EVERY_KIND)
    with tarfile.open(fileobj=io.BytesIO(blob), errors="surrogateescape") as tar:
        members = {m.name.encode("utf-8", "surrogateescape"): m for m in tar}
        assert len(members) == len(EVERY_KIND)
        long = members[b"etc/long/" + b"n" * 180]
        content = tar.extractfile(long)
        assert content is not None
        assert content.read() == b"x" * 700
    assert members[b"huge-owner"].uid == 2**31
    assert members[b"before-1970"].mtime == -86400
    assert members[b"bin/zhard"].linkname == "bin/tool"
    assert members[b"dev/sda"].devmajor == 8
    assert b"not-utf8-\xff\xfe" in members
    names = list(members)
    assert names.index(b"dev/.wh..wh..opq") == names.index(b"dev") + 1
    assert blob[layer.index.offset(b"bin/tool") :].startswith(b"#!/bin/sh\n")


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
def test_gnu_tar_lists_it_without_a_complaint(tmp_path: Path) -> None:
    blob, _ = written(EVERY_KIND, Compression.GZIP)
    (tmp_path / "layer").write_bytes(blob)
    done = subprocess.run(
        ["tar", "tvzf", str(tmp_path / "layer")], capture_output=True, check=True, text=True
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == len(EVERY_KIND)


def test_short_ascii_names_need_no_extended_header() -> None:
    assert len(header(Member(b"p" * 155 + b"/" + b"n" * 100, ord("0")))) == 512
    assert len(header(Member(b"p" * 156 + b"/" + b"n" * 100, ord("0")))) > 512
    assert len(header(Member("ü".encode(), ord("0")))) > 512


@pytest.mark.parametrize("size", [0, 1, 85, 88, 89, 90, 91, 980, 9980, 99970])
def test_extended_headers_know_their_own_length(size: int) -> None:
    link = b"l" * (size + 101)
    blob = raw_tar((Member(b"a", ord("2"), link=link), b""))
    _, index = read_index(blob, Limits(name=200_000))
    assert index.entries[0].link == link


def test_the_first_of_several_hard_links_has_the_content() -> None:
    target = file(b"m", b"content", mode=0o600)
    links = [NewEntry(Entry(path, Kind.FILE, link=b"m")) for path in (b"z", b"a", b"k")]
    _, layer = written([target, *links])
    listed = {e.path: e for e in layer.index}
    assert listed[b"a"].link == b""
    assert {e.link for path, e in listed.items() if path != b"a"} == {b"a"}
    assert {e.mode for e in listed.values()} >= {0o600}
    assert len({layer.index.offset(path) for path in listed}) == 1
    assert {e.digest for e in listed.values()} == {"sha256:" + sha256(b"content").hexdigest()}


def test_a_whiteout_comes_before_what_replaces_it() -> None:
    blob, _ = written([other(b"d/x", Kind.DIRECTORY), other(b"d/x", Kind.WHITEOUT)])
    with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
        assert tar.getnames() == ["d/.wh.x", "d/x"]


def test_two_entries_with_one_path_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="two entries"):
        written([file(b"a"), file(b"a")])


@pytest.mark.parametrize("content", [b"short", b"longer than said"])
def test_a_file_that_is_not_as_long_as_its_entry_says_is_refused(content: bytes) -> None:
    entry = NewEntry(Entry(b"log", Kind.FILE, size=10), lambda: io.BytesIO(content))
    with pytest.raises(CopyFailed, match="log changed while it was read"):
        written([entry])


def test_progress_adds_up_to_the_size_of_the_tar() -> None:
    done: list[int] = []
    size = 3 * 1024 * 1024 + 7
    out = io.BytesIO()
    write_layer([file(b"big", bytes(size))], out.write, Compression.NONE, done.append)
    assert sum(done) == len(out.getvalue()) > size


def test_names_are_read_without_leading_dots_and_slashes() -> None:
    names = [b"./a", b"/b", b"././/c//d", b"e/."]
    _, index = read_index(raw_tar(*((Member(name, ord("5")), b"") for name in names)))
    assert [e.path for e in index] == [b"a", b"b", b"c/d", b"e"]


def test_of_entries_with_one_path_the_last_counts() -> None:
    _, index = read_index(
        raw_tar((Member(b"a", ord("0"), size=1), b"1"), (Member(b"./a", ord("2"), link=b"t"), b""))
    )
    assert [(e.path, e.kind) for e in index] == [(b"a", Kind.SYMLINK)]


def test_gnu_long_names_and_binary_numbers_are_read() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("n" * 250 + "/" + "m" * 50)
        info.uid, info.mtime, info.size = 2**31, -5, 3
        tar.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("l" * 200)
        link.type, link.linkname = tarfile.LNKTYPE, info.name
        tar.addfile(link)
    _, index = read_index(io.BytesIO(out.getvalue()))
    found = index.get(info.name.encode())
    assert found is not None
    assert (found.uid, found.mtime, found.size) == (2**31, -5, 3)
    linked = index.get(b"l" * 200)
    assert linked is not None
    assert (linked.link, linked.digest, linked.uid) == (info.name.encode(), found.digest, 2**31)


def test_global_headers_have_no_effect() -> None:
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x", "uid": "5"}
    ) as tar:
        tar.addfile(tarfile.TarInfo("a"))
    _, index = read_index(io.BytesIO(out.getvalue()))
    assert [(e.path, e.uid) for e in index] == [(b"a", 0)]


def test_fractions_of_seconds_are_rounded_down() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, mtime in (("after", 1.9), ("before", -1.5)):
            info = tarfile.TarInfo(name)
            info.mtime = mtime
            tar.addfile(info)
    _, index = read_index(io.BytesIO(out.getvalue()))
    assert {e.path: e.mtime for e in index} == {b"after": 1, b"before": -2}


def test_a_name_below_a_link_of_the_same_layer_means_what_the_link_points_to() -> None:
    _, index = read_index(
        raw_tar(
            (Member(b"usr/lib/", ord("5")), b""),
            (Member(b"lib", ord("2"), link=b"/usr/lib"), b""),
            (Member(b"lib/x", ord("0"), size=1), b"x"),
            (Member(b"y", ord("1"), link=b"lib/x"), b""),
        )
    )
    assert {e.path for e in index} == {b"usr/lib", b"lib", b"usr/lib/x", b"y"}
    linked = index.get(b"y")
    assert linked is not None
    assert linked.link == b"usr/lib/x"


def test_whiteouts_and_opaque_folders_are_told_apart() -> None:
    names = [b"d/.wh.gone", b"d/.wh..wh..opq", b".wh..wh.plnk", b"d/kept"]
    _, index = read_index(raw_tar(*((Member(name, ord("0")), b"") for name in names)))
    assert [(e.path, e.kind) for e in index] == [
        (b"d", Kind.OPAQUE),
        (b"d/gone", Kind.WHITEOUT),
        (b"d/kept", Kind.FILE),
    ]


def test_only_harmless_extended_attributes_are_kept() -> None:
    given = {
        "security.capability": CAPABILITY,
        "security.selinux": b"x",
        "system.posix_acl_access": b"x",
        "user.mime": b"text",
    }
    member = Member(b"a", ord("5"), xattrs=tuple(given.items()))
    _, index = read_index(raw_tar((member, b"")))
    assert [name for name, _ in index.entries[0].xattrs] == ["security.capability", "user.mime"]


def test_a_tar_without_an_end_mark_is_complete_as_go_has_it() -> None:
    _, index = read_index(raw_tar((Member(b"a", ord("0"), size=3), b"abc"), end=b""))
    assert [e.path for e in index] == [b"a"]


def test_an_empty_stream_is_an_empty_layer() -> None:
    diff_id, index = read_index(io.BytesIO(b""))
    assert (len(index), diff_id) == (0, "sha256:" + sha256().hexdigest())


def test_an_error_of_the_stream_itself_passes_through() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() >= 100:
                raise ConnectionResetError("gone")
            return super().read(min(size or 0, 100))

    blob, _ = written(EVERY_KIND, Compression.GZIP)
    with pytest.raises(ConnectionResetError):
        read_index(Failing(blob))


def test_broken_checksums_are_found() -> None:
    blob = bytearray(raw_tar((Member(b"a", ord("5")), b"")).getvalue())
    blob[0] ^= 1
    with pytest.raises(InvalidImage, match="checksum"):
        read_index(io.BytesIO(bytes(blob)))


_SPELLINGS = [b"%b", b"./%b", b".//%b", b"%b/", b"./%b/."]
_MEMBERS = st.tuples(
    st.sampled_from([b"a", b"a/b", b"a/b/c", b"b", b"b/a", b"c/.wh.d", b"a/.wh..wh..opq", b"../a"]),
    st.sampled_from([ord("5"), ord("0"), ord("2")]),
    st.sampled_from([b"a", b"/b", b"../c", b"c"]),
)


@given(st.lists(_MEMBERS, max_size=12), st.data())
def test_names_mean_the_same_however_they_are_spelled(
    members: list[tuple[bytes, int, bytes]], data: st.DataObject
) -> None:
    def index(*, odd: bool) -> LayerIndex | str:
        stream = []
        for path, kind, link in members:
            name = path
            if odd:
                spelling = data.draw(st.sampled_from(_SPELLINGS))
                name = spelling % path.replace(b"/", data.draw(st.sampled_from([b"/", b"//./"])))
            target = link if kind == ord("2") else b""
            stream.append((Member(name, kind, link=target), b""))
        try:
            return read_index(raw_tar(*stream))[1]
        except InvalidImage as error:
            return str(error)

    plain, odd = index(odd=False), index(odd=True)
    assert isinstance(odd, LayerIndex) == isinstance(plain, LayerIndex)
    if isinstance(plain, LayerIndex):
        assert isinstance(odd, LayerIndex)
        assert odd.entries == plain.entries


@pytest.mark.parametrize(
    "numbers",
    [
        (b"0000644\0", b"0001750\0", b"0001751\0", b"00000000000\0", b"14371573163\0"),
        (b"000644 \0", b"001750 \0", b"001751 \0", b"00000000000 ", b"14371573163 "),
        (b"   644 \0", b"  1750 \0", b"  1751 \0", b"          0 ", b"14371573163 "),
        (b"0644", b"1750", b"1751", b"0", b"14371573163"),
        (b"0100644\0", b"\x80\0\0\0\0\0\x03\xe8", b"0001751\0", b"00000000000\0", b"14371573163"),
    ],
)
def test_numbers_are_read_however_they_are_written(numbers: tuple[bytes, ...]) -> None:
    block = bytearray(header(Member(b"f", ord("0"))))
    widths = (8, 8, 8, 12, 12)
    block[100:148] = b"".join(
        number.ljust(width, b"\0") for number, width in zip(numbers, widths, strict=True)
    )
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    _, index = read_index(io.BytesIO(bytes(block) + bytes(1024)))
    [entry] = index.entries
    assert (entry.mode, entry.uid, entry.gid, entry.size) == (0o644, 1000, 1001, 0)
    assert entry.mtime == 0o14371573163
