"""The build context that our Dockerfiles share. Made by each session: git keeps no modes."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

from pybuild.oci.compression import Compression, Packing, compressor

_TIME = 1_600_000_000

_FILES = {
    "plain.txt": (0o644, "plain\n"),
    "script.sh": (0o755, "#!/bin/sh\necho script\n"),
    "readonly.txt": (0o444, "readonly\n"),
    ".hidden": (0o600, "hidden\n"),
    "name with space.txt": (0o644, "spaced\n"),
    "not-an-archive.tar.gz": (0o644, "this is text, whatever its name says\n"),
    "ignored.log": (0o644, "never copied\n"),
    "folder/one.txt": (0o644, "one\n"),
    "folder/two.txt": (0o640, "two\n"),
    "folder/sub/deep.txt": (0o644, "deep\n"),
    "folder/sub/deeper/x": (0o644, "x\n"),
    "folder/ignored.log": (0o644, "never copied\n"),
    "folder/sub/kept.log": (0o644, "re-included\n"),
    "setuid.sh": (0o4755, "#!/bin/sh\n"),
    "$dollar.txt": (0o644, "dollar\n"),
    "ünïcode.txt": (0o644, "unicode\n"),
    "glob/a1.txt": (0o644, "a1\n"),
    "glob/a2.txt": (0o644, "a2\n"),
    "glob/b1.md": (0o644, "b1\n"),
    "glob/[odd].txt": (0o644, "odd\n"),
    "links/file": (0o644, "target\n"),
    ".dockerignore": (0o644, "# comments count for nothing\n**/*.log\n!folder/sub/kept.log\n"),
}


def make_context(root: Path) -> None:
    """Lay the shared context out below the existing folder `root`."""
    for name, (mode, text) in _FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
    (root / "links" / "relative").symlink_to("file")
    (root / "links" / "absolute").symlink_to("/etc/passwd")
    (root / "links" / "dangling").symlink_to("missing")
    (root / "links" / "folder").symlink_to("../folder")
    (root / "folder" / "empty").mkdir()
    (root / "folder" / "sub").chmod(0o750)
    for suffix, mode in (("", "w"), (".gz", "w:gz"), (".bz2", "w:bz2"), (".xz", "w:xz")):
        (root / f"archive.tar{suffix}").write_bytes(_archive(mode))
    zstd = compressor(Packing(Compression.ZSTD))
    (root / "archive.tar.zst").write_bytes(zstd.compress(_archive("w")) + zstd.flush())
    (root / "archive.renamed").write_bytes(_archive("w:gz"))
    for folder, folders, files in os.walk(root, topdown=False):
        for name in [*files, *folders]:
            os.utime(Path(folder, name), (_TIME, _TIME), follow_symlinks=False)


def _archive(mode: str) -> bytes:
    buffer = io.BytesIO()
    if mode == "w:gz":
        # without the time
        return gzip.compress(_archive("w"), mtime=0)
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        _add(tar, "dir/", tarfile.DIRTYPE, 0o755)
        _add(tar, "dir/one", tarfile.REGTYPE, 0o644, b"archived one\n")
        _add(tar, "dir/two", tarfile.REGTYPE, 0o4755, b"archived two\n", uid=42, gid=43)
        _add(tar, "dir/link", tarfile.SYMTYPE, 0o777, link="one")
        _add(tar, "dir/hard", tarfile.LNKTYPE, 0o644, link="dir/one")
        _add(tar, "top", tarfile.REGTYPE, 0o600, b"top\n")
    return buffer.getvalue()


def _add(
    tar: tarfile.TarFile,
    name: str,
    kind: bytes,
    mode: int,
    content: bytes = b"",
    *,
    link: str = "",
    uid: int = 0,
    gid: int = 0,
) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.linkname = kind, mode, link
    member.uid, member.gid, member.mtime, member.size = uid, gid, _TIME, len(content)
    tar.addfile(member, io.BytesIO(content))
