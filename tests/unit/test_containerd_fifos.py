"""A process's output through FIFOs."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import pytest

from leftthreads import no_thread_left
from pybuild_containerd.fifos import OutputFifos

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="inherent: no FIFOs here")


def _folder() -> Path:
    return Path(tempfile.mkdtemp())


def _collected() -> tuple[list[tuple[int, bytes]], OutputFifos]:
    pieces: list[tuple[int, bytes]] = []
    return pieces, OutputFifos(_folder(), lambda stream, data: pieces.append((stream, data)))


def _joined(pieces: list[tuple[int, bytes]], stream: int) -> bytes:
    return b"".join(data for number, data in pieces if number == stream)


def test_both_streams_arrive_whole_and_apart() -> None:
    pieces, fifos = _collected()
    large = bytes(range(256)) * 4096
    with fifos:
        with Path(fifos.stdout).open("wb") as out, Path(fifos.stderr).open("wb") as err:
            out.write(large)
            err.write(b"oops")
        fifos.drain()
    assert (_joined(pieces, 1), _joined(pieces, 2)) == (large, b"oops")


def test_nobody_need_ever_write() -> None:
    pieces, fifos = _collected()
    with fifos:
        fifos.drain()
    assert pieces == []


def test_a_writer_may_come_late_and_twice() -> None:
    pieces, fifos = _collected()
    with fifos:
        for _ in range(2):
            with Path(fifos.stdout).open("wb") as out:
                out.write(b"x")
        fifos.drain()
    assert _joined(pieces, 1) == b"xx"


def test_what_the_sink_raises_stops_no_writer_and_is_raised_at_the_end() -> None:
    def sink(stream: int, data: bytes) -> None:
        raise ValueError("full")

    with OutputFifos(_folder(), sink) as fifos:
        with Path(fifos.stdout).open("wb") as out:
            out.write(bytes(1 << 20))
        with pytest.raises(ValueError, match="full"):
            fifos.drain()


def test_a_writer_that_stays_doesnt_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pybuild_containerd.fifos._PATIENCE", 0.05)
    pieces, fifos = _collected()
    with fifos, Path(fifos.stdout).open("wb", buffering=0) as out:
        out.write(b"x")
        fifos.drain()
    assert _joined(pieces, 1) == b"x"


def test_nothing_is_left() -> None:
    with no_thread_left():
        _, fifos = _collected()
        folder = Path(fifos.stdout).parent
        fifos.close()
        fifos.close()
    assert not folder.exists()


@pytest.mark.parametrize("opened", [(), ("stdout",), ("stderr",)])
def test_fifos_that_nobody_else_writes_to_arent_open(opened: tuple[str, ...]) -> None:
    _, fifos = _collected()
    with fifos, contextlib.ExitStack() as writers:
        for name in opened:
            writers.enter_context(Path(getattr(fifos, name)).open("wb"))
        assert not fifos.is_open()


def test_fifos_that_a_shim_has_opened_are_open_and_still_read() -> None:
    pieces, fifos = _collected()
    with fifos:
        with Path(fifos.stdout).open("wb") as out, Path(fifos.stderr).open("wb"):
            assert fifos.is_open()
            out.write(b"after")
        fifos.drain()
    assert pieces == [(1, b"after")]
