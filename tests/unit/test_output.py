from __future__ import annotations

import pytest

from pybuild.run.output import MAX_LINE, LineBuffer, OutputTail, cut, width, without_escapes


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"o", b"ne\nt", b"wo"], ["one", "two"]),
        ([b"dos\r\nunix\n"], ["dos", "unix"]),
        ([b"split\r", b"\nhere\n"], ["split", "here"]),
        ([b"10%\r20%\r100%\n"], ["100%"]),
        ([b"10%\r", b"done\n"], ["done"]),
        ([b"\n\n"], ["", ""]),
        ([b"caf\xc3", b"\xa9\n"], ["café"]),
        ([b"bad \xff\xfe\n"], ["bad \ufffd\ufffd"]),
        ([b"cut \xc3\n"], ["cut \ufffd"]),
        ([b"\x1b[31mred\x1b[0m\n"], ["red"]),
        ([b"\x1b]0;title\x07text\n"], ["text"]),
        ([b"bell\x07 back\x08space\x1bc\n"], ["bell backspacec"]),
        ([b"tab\there\n"], ["tab\there"]),
        (["\u202eevil\u2066\n".encode()], ["evil"]),
        ([b""], []),
    ],
)
def test_pieces_become_clean_lines(pieces: list[bytes], lines: list[str]) -> None:
    buffer = LineBuffer()
    found = [line for piece in pieces for line in buffer.feed(piece)]
    assert found + buffer.feed(b"", final=True) == lines


def test_a_line_without_end_is_broken_so_that_memory_stays_bounded() -> None:
    buffer = LineBuffer()
    lines = buffer.feed(b"x" * (MAX_LINE * 3 + 5))
    assert [len(line) for line in lines] == [MAX_LINE] * 3
    assert buffer.pending == "x" * 5


def test_the_line_begun_is_known_before_it_ends() -> None:
    buffer = LineBuffer()
    buffer.feed(b"done\nworking \x1b[1mhard")
    assert buffer.pending == "working hard"


def test_the_tail_keeps_the_last_twenty_lines() -> None:
    tail = OutputTail()
    for number in range(100):
        tail.feed(f"line {number}\n".encode())
    assert tail.lines() == tuple(f"line {number}" for number in range(80, 100))


def test_the_tail_of_endless_output_takes_bounded_memory() -> None:
    tail = OutputTail()
    for _ in range(1000):
        tail.feed(b"x" * 10_000)
    assert tail._size < 200_000


@pytest.mark.parametrize(
    ("text", "columns"), [("abc", 3), ("日本", 4), ("e\u0301", 1), ("", 0), ("a\u200db", 2)]
)
def test_width_counts_the_columns_of_a_terminal(text: str, columns: int) -> None:
    assert width(text) == columns


def test_cutting_keeps_within_the_columns() -> None:
    assert cut("short", 10) == "short"
    assert cut("much too long", 6) == "much …"
    assert width(cut("日本語日本語", 6)) <= 6


def test_plain_text_stays_as_it_is() -> None:
    assert without_escapes("as it is\tÄ 👩\u200d💻") == "as it is\tÄ 👩\u200d💻"
