"""Hostile build contexts, as folders and as tars. The advisories are those of other builders."""

from __future__ import annotations

import gzip
import io
import os
import resource
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import cycle
from pathlib import Path
from typing import BinaryIO

import pytest

from pybuild.errors import ContextError, CopyFailed, PybuildError
from pybuild.files.context import open_context_directory, open_context_tar, read_file
from pybuild.files.copying import CopyRequest, plan_copy
from pybuild.files.ignore import IgnoreMatcher
from pybuild.files.trees import MemoryTree, NewEntry, Tree, walk
from pybuild.oci.compression import Compression
from pybuild.oci.layerindex import Kind
from pybuild.oci.layerwriter import WrittenLayer, write_layer
from pybuild.oci.tarformat import Limits

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX files")

SECRET = b"host secret"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """``secret`` lies beside the context's folder ``context``."""
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "context").mkdir()
    return tmp_path


def copied(tree: Tree, *patterns: str) -> list[NewEntry]:
    return plan_copy(CopyRequest(patterns, "/out/"), tree, MemoryTree(()))


def written(entries: list[NewEntry]) -> tuple[bytes, WrittenLayer]:
    out = io.BytesIO()
    layer = write_layer(entries, out.write, Compression.NONE)
    return out.getvalue(), layer


@pytest.mark.parametrize("target", ["../secret", "/secret", "{host}/secret", "d/../../secret"])
def test_a_link_out_of_the_context_reaches_no_host_file(host: Path, target: str) -> None:
    context = host / "context"
    (context / "ln").symlink_to(target.format(host=host))
    (context / "d").symlink_to("..")
    with open_context_directory(context) as tree:
        for pattern in ("ln", "d/secret", "d/d/secret"):
            with pytest.raises(CopyFailed, match="not found"):
                copied(tree, pattern)
        assert read_file(tree, "ln") is None
        # d is the context itself, seen from inside
        blob, layer = written(copied(tree, "."))
    assert SECRET not in blob
    assert {e.kind for e in layer.index} == {Kind.DIRECTORY, Kind.SYMLINK}


def test_links_that_go_in_circles_end(host: Path) -> None:
    context = host / "context"
    (context / "a").symlink_to("b")
    (context / "b").symlink_to("a")
    (context / "self").symlink_to("self/self")
    with open_context_directory(context) as tree:
        for name in ("a", "self", "self/x"):
            with pytest.raises(CopyFailed, match="too many levels"):
                copied(tree, name)
            with pytest.raises(ContextError, match="too many levels"):
                read_file(tree, name)


@pytest.mark.parametrize("flipped", ["file", "folder", "parent"])
def test_swapping_files_for_links_during_the_copy_never_yields_host_bytes(
    host: Path, flipped: str
) -> None:
    context = host / "context"
    inner = context / "p" / "d"
    inner.mkdir(parents=True)
    (inner / "secret").write_bytes(b"context own")
    (host / "d").mkdir()
    (host / "d" / "secret").write_bytes(SECRET)
    victim, trap = {
        "file": (inner / "secret", host / "secret"),
        "folder": (inner, host / "d"),
        "parent": (context / "p", host),
    }[flipped]
    stop = threading.Event()
    thread = threading.Thread(target=_flip, args=(victim, trap, stop))
    thread.start()
    outcomes: set[str] = set()
    start = time.monotonic()
    try:
        while (passed := time.monotonic() - start) < 2 or (
            "copied" not in outcomes and passed < 60
        ):
            outcomes.add(_copy_once(context))
    finally:
        stop.set()
        thread.join()
    assert outcomes <= {"copied", "refused"}
    assert "copied" in outcomes


def _flip(victim: Path, trap: Path, stop: threading.Event) -> None:
    aside = victim.with_name("aside")
    for pause in cycle((0, 0, 0, 0.002)):  # now and then long enough for a copy to succeed
        if stop.wait(pause):
            return
        victim.rename(aside)
        victim.symlink_to(trap)
        victim.unlink()
        aside.rename(victim)


def _copy_once(context: Path) -> str:
    try:
        with open_context_directory(context) as tree:
            blob, layer = written(copied(tree, "p/d/secret"))
    except PybuildError:
        return "refused"
    assert SECRET not in blob
    digest = "sha256:" + sha256(b"context own").hexdigest()
    assert [e.digest for e in layer.index if e.kind is Kind.FILE] in ([digest], [])
    return "copied"


def test_a_file_that_grows_while_it_is_read_is_refused(host: Path) -> None:
    log = host / "context" / "log"
    log.write_bytes(bytes(3_000_000))

    def opened_then_grown(entry: NewEntry) -> BinaryIO:
        assert entry.content is not None
        stream = entry.content()
        with log.open("ab") as file:
            file.write(b"more")
        return stream

    with open_context_directory(host / "context") as tree:
        entries = [
            replace(entry, content=partial(opened_then_grown, entry)) if entry.content else entry
            for entry in copied(tree, "log")
        ]
        with pytest.raises(PybuildError, match="log changed"):
            written(entries)


def test_a_file_that_became_a_pipe_does_not_hang_the_build(host: Path) -> None:
    path = host / "context" / "f"
    path.write_bytes(b"x")
    with open_context_directory(host / "context") as tree:
        entries = copied(tree, "f")
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(ContextError, match="f is not a regular file"):
            written(entries)


def test_a_context_of_depth_3000_is_read_and_then_refused_for_its_names(host: Path) -> None:
    here = os.open(host / "context", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        there = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    os.close(here)
    try:
        for ignore in (None, IgnoreMatcher(["*", "!nothing/here"])):
            with open_context_directory(host / "context", ignore) as tree:
                depth = sum(1 for _ in walk(tree, b"")) - 1
                assert depth == (3000 if ignore is None else 0)
        with (
            open_context_directory(host / "context") as tree,
            pytest.raises(CopyFailed, match="longer than Linux allows"),
        ):
            copied(tree, ".")
    finally:
        # shutil.rmtree would run into the recursion limit
        subprocess.run(["rm", "-rf", str(host / "context")], check=True)


def test_a_sparse_file_of_a_tebibyte_costs_nothing_until_it_is_selected(host: Path) -> None:
    huge = host / "context" / "huge"
    huge.touch()
    os.truncate(huge, 2**40)
    (host / "context" / "small").write_bytes(b"small")
    start = time.monotonic()
    with open_context_directory(host / "context") as tree:
        written(copied(tree, "small"))
        assert len(list(walk(tree, b""))) == 3
    assert time.monotonic() - start < 20


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def tar_of(*members: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info in members:
            tar.addfile(info, io.BytesIO(b"P" * info.size))
    return out.getvalue()


LINK, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE
LONG = "/".join(["d" * 250] * 15)


@pytest.mark.parametrize(
    "members",
    [
        pytest.param([member("../secret", size=5)], id="dot dot"),
        pytest.param([member("a/../../secret", size=5)], id="dot dot inside"),
        pytest.param([member("/../../secret", size=5)], id="absolute dot dot"),
        pytest.param([member("l", HARD, "../secret")], id="hard link out"),
        pytest.param([member("l", HARD, "/etc/passwd")], id="hard link to the host"),
        pytest.param([member("l", HARD, "secret")], id="hard link relative to the process"),
        pytest.param([member("n" * 256)], id="long name"),
        pytest.param([member("f", size=1), member("f/x", size=1)], id="file as folder"),
        pytest.param([member("l", LINK, "l"), member("l/x", size=1)], id="circle"),
    ],
)
def test_a_tar_that_leads_out_of_itself_is_refused(
    host: Path, monkeypatch: pytest.MonkeyPatch, members: list[tarfile.TarInfo]
) -> None:
    monkeypatch.chdir(host)
    with pytest.raises(ContextError, match="no usable tar"):
        open_context_tar(io.BytesIO(tar_of(*members)))
    assert (host / "secret").read_bytes() == SECRET
    assert sorted(os.listdir(host)) == ["context", "secret"]  # noqa: PTH208


@pytest.mark.parametrize(
    "members",
    [
        pytest.param([member("d", LINK, ".."), member("d/secret", size=5)], id="link up"),
        pytest.param([member("d", LINK, "{host}"), member("d/secret", size=5)], id="link to host"),
        pytest.param(
            [member("a", LINK, "."), member("a/b", LINK, ".."), member("b/secret", size=5)],
            id="chain",
        ),
        pytest.param(
            [member(LONG), member("x", LINK, LONG + "/../" * 20), member("x/secret", size=5)],
            id="PATH_MAX",
        ),
        pytest.param(
            [member("secret", LINK, "{host}/secret"), member("secret", size=5)], id="over"
        ),
        pytest.param([member("/secret", size=5)], id="absolute"),
    ],
)
def test_a_tar_writes_nothing_whatever_its_links_say(
    host: Path, monkeypatch: pytest.MonkeyPatch, members: list[tarfile.TarInfo]
) -> None:
    monkeypatch.chdir(host)
    for info in members:
        info.linkname = info.linkname.format(host=host)
    try:
        with open_context_tar(io.BytesIO(tar_of(*members))) as tree:
            blob, _ = written(copied(tree, "."))
            assert SECRET not in blob
            assert read_file(tree, "secret") in (None, b"PPPPP")
    except PybuildError:
        pass
    assert (host / "secret").read_bytes() == SECRET
    assert sorted(os.listdir(host)) == ["context", "secret"]  # noqa: PTH208


def test_a_tar_that_grows_beyond_the_limit_is_refused_in_bounded_memory() -> None:
    bomb = gzip.compress(tar_of(member("zeros", size=64 * 1024 * 1024)), 9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ContextError, match="no usable tar"):
        open_context_tar(io.BytesIO(bomb), limits=Limits(total=32 * 1024 * 1024))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
