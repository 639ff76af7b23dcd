"""The digests of files whose content isn't known yet."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from hashlib import sha256
from typing import Any, BinaryIO, Self, cast

import pytest

from pybuild.errors import BuildCancelled, ContextError
from pybuild.files.trees import NewEntry
from pybuild.oci.layerindex import Entry, Kind
from pybuild.run.digests import with_digests
from pybuild.testkit.workbench import RecordingActivity

LARGE = 1 << 20


def new(name: bytes, content: bytes, opened: Callable[[], BinaryIO] | None = None) -> NewEntry:
    entry = Entry(name, Kind.FILE, size=len(content))
    return NewEntry(entry, opened or (lambda: io.BytesIO(content)))


def digest(content: bytes) -> str:
    return f"sha256:{sha256(content).hexdigest()}"


def test_large_files_are_read_at_the_same_time_and_stay_in_their_order() -> None:
    meeting = threading.Barrier(2, timeout=30)
    contents = [b"a" * LARGE, b"small", b"b" * LARGE]

    def opened(content: bytes) -> Callable[[], BinaryIO]:
        def wait() -> BinaryIO:
            meeting.wait()  # passes once both are being read
            return io.BytesIO(content)

        return wait

    entries = [
        new(b"0", contents[0], opened(contents[0])),
        new(b"1", contents[1]),
        new(b"2", contents[2], opened(contents[2])),
    ]
    found = with_digests(entries)
    assert [entry.path for entry in found] == [b"0", b"1", b"2"]
    assert [entry.digest for entry in found] == list(map(digest, contents))


def test_known_digests_folders_and_links_are_left_alone() -> None:
    known = Entry(b"known", Kind.FILE, size=LARGE, digest=digest(b"other"))
    folder = Entry(b"folder", Kind.DIRECTORY)
    link = Entry(b"link", Kind.SYMLINK, link=b"known")
    assert with_digests([NewEntry(each) for each in (known, folder, link)]) == [known, folder, link]


def test_a_file_that_cant_be_read_fails_with_its_own_error() -> None:
    def refuse() -> BinaryIO:
        raise ContextError("it is gone")

    entries = [new(b"0", b"a" * LARGE), new(b"1", b"b" * LARGE, refuse), new(b"2", b"c" * LARGE)]
    with pytest.raises(ContextError, match="it is gone"):
        with_digests(entries)


def test_a_cancel_ends_the_reading_of_all() -> None:
    class Endless:
        def read(self, size: int) -> bytes:
            return bytes(size)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *exc: object) -> None:
            pass

    activity = RecordingActivity()
    entries = [new(b"%d" % at, b"x" * LARGE, lambda: cast("Any", Endless())) for at in range(4)]
    timer = threading.Timer(0.2, activity.cancel)
    timer.start()
    with pytest.raises(BuildCancelled):
        with_digests(entries, activity)
    timer.join()
