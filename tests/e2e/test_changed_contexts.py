"""A COPY whose context changed a little takes over what its layer had, and comes to the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

import pybuild
from embedding import Stores
from pybuild.files import safepath, statcache
from pybuild_embedded.backend import EmbeddedBackend

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inherent: runs on Linux only")
FILES = 2500
DOCKERFILE = b"FROM busybox\nCOPY . /src\n"


@pytest.fixture
def context(tmp_path: Path) -> Path:
    chance = Random(1)  # noqa: S311 - the same files each time
    folder = tmp_path / "context"
    for number in range(FILES):
        path = folder / f"{number // 100:02}" / f"{number:04}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randint(1, 8192)))
    (folder / "large").write_bytes(chance.randbytes(6 << 20))
    return folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The files of contexts that were read."""
    # for files that were just made
    monkeypatch.setattr(statcache, "_GRANULARITY", -3600 * 10**9)
    found: list[bytes] = []
    plain = safepath.Root.open_content

    def noting(self: safepath.Root, path: bytes, expected: os.stat_result) -> object:
        found.append(path)
        return plain(self, path, expected)

    monkeypatch.setattr(safepath.Root, "open_content", noting)
    return found


def build(context: Path, backend: EmbeddedBackend) -> str:
    """The digest of the image, which is as old as its files."""
    return pybuild.build(context, dockerfile=DOCKERFILE, backend=backend, created=0).digest


def built_anew(context: Path, stores: Stores) -> str:
    with stores.lent() as root, stores.opened(root) as backend:
        return build(context, backend)


def largest_blob(root: Path) -> Path:
    return max((root / "blobs").rglob("*"), key=lambda path: path.stat().st_size)


EDITS: dict[str, Callable[[Path], object]] = {
    "changed": lambda path: path.write_bytes(b"changed"),
    "removed": lambda path: path.unlink(),
    "renamed": lambda path: path.rename(path.with_name("new")),
    "added": lambda path: path.with_name("new").write_bytes(b"new"),
    "mode": lambda path: path.chmod(0o755),
    "a folder": lambda path: path.with_name("new").mkdir(),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("reopened", [False, True])
def test_one_edit(
    context: Path, stores: Stores, read: list[bytes], edit: str, *, reopened: bool
) -> None:
    with stores.lent() as root:
        with stores.opened(root) as backend:
            before = build(context, backend)
            EDITS[edit](context / "07" / "0750")
            read.clear()
            if not reopened:
                after = build(context, backend)
        if reopened:
            with stores.opened(root) as backend:
                after = build(context, backend)
        assert 0 < len(read) < FILES / 2
        assert b"large" not in read
    assert after == built_anew(context, stores)
    assert after != before


def test_another_destination_has_nothing_in_common(
    context: Path, stores: Stores, read: list[bytes]
) -> None:
    with stores.lent() as root, stores.opened(root) as backend:
        build(context, backend)
        read.clear()
        text = DOCKERFILE.replace(b"/src", b"/other")
        other = pybuild.build(context, dockerfile=text, backend=backend, created=0)
        assert len(read) == FILES + 1
        with stores.lent() as fresh, stores.opened(fresh) as empty:
            again = pybuild.build(context, dockerfile=text, backend=empty, created=0)
        assert other.digest == again.digest


@pytest.mark.parametrize("damage", ["a bit", "cut", "gone"])
def test_a_damaged_layer_is_made_anew(
    context: Path, stores: Stores, read: list[bytes], damage: str
) -> None:
    with stores.lent() as root, stores.opened(root) as backend:
        build(context, backend)
        blob = largest_blob(root)
        content = bytearray(blob.read_bytes())
        content[len(content) // 2] ^= 1
        match damage:
            case "a bit":
                blob.write_bytes(content)
            case "cut":
                os.truncate(blob, len(content) // 2)
            case _:
                blob.unlink()
        (context / "07" / "0750").write_bytes(b"changed")
        read.clear()
        after = build(context, backend)
        assert len(set(read)) == FILES + 1
        # what was damaged isn't looked at again
        (context / "08" / "0850").write_bytes(b"changed")
        read.clear()
        last = build(context, backend)
        assert len(read) < FILES / 2
        assert last != after
        assert last == built_anew(context, stores)
        # nor is anything left of the first attempt
        assert not [path for path in (root / "ingest").rglob("*") if path.is_file()]
