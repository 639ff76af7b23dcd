from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile

import pytest

from pybuild.errors import InvalidImage
from pybuild.files.archives import is_archive_content, open_archive
from pybuild.files.spool import Spool
from pybuild.oci.tarformat import Limits


def packed() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo(".wh.kept")
        info.size, info.uid = 3, 7
        tar.addfile(info, io.BytesIO(b"abc"))
    return out.getvalue()


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_an_archive_is_read_without_meaning_of_whiteouts(compress: object) -> None:
    assert callable(compress)
    blob = compress(packed())
    assert is_archive_content(io.BytesIO(blob))
    with Spool() as spool:
        tree = open_archive(io.BytesIO(blob), spool)
        entry = tree.get(b".wh.kept")
        assert entry is not None
        assert entry.uid == 7
        assert tree.open(b".wh.kept").read() == b"abc"


@pytest.mark.parametrize(
    "blob", [b"", b"text", bytes(2048), gzip.compress(b"x", mtime=0), b"BZh", b"\x1f\x8b\x08"]
)
def test_what_is_no_archive_is_told_apart(blob: bytes) -> None:
    assert not is_archive_content(io.BytesIO(blob))


def test_limits_hold_for_archives_too() -> None:
    blob = gzip.compress(packed())
    with Spool() as spool, pytest.raises(InvalidImage, match="larger than"):
        open_archive(io.BytesIO(blob), spool, Limits(total=1000))


def test_a_spools_slices_do_not_disturb_each_other() -> None:
    with Spool() as spool:
        spool.write(b"0123456789")
        first, second = spool.open(2, 5), spool.open(4, 100)
        assert first.read(2) == b"23"
        assert second.read() == b"456789"
        assert first.read() == b"456"
        assert first.read() == b""
