from __future__ import annotations

import time

import pytest

from pybuild.dockerfile.lines import (
    MAX_LINE,
    MAX_SIZE,
    LogicalLine,
    heredocs_of,
    parse_heredoc,
    split_file,
    split_trigger,
)
from pybuild.errors import DockerfileSyntaxError, ExpansionError, SourceRange


def lines_of(text: str | bytes) -> list[LogicalLine]:
    data = text if isinstance(text, bytes) else text.encode()
    return list(split_file(data, "Dockerfile").lines)


def values(text: str | bytes) -> list[tuple[str, str]]:
    return [(line.instruction, line.value) for line in lines_of(text)]


def fault(text: str | bytes) -> DockerfileSyntaxError:
    with pytest.raises(DockerfileSyntaxError) as caught:
        lines_of(text)
    return caught.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FROM a\nRUN x", [("FROM", "a"), ("RUN", "x")]),
        ("\ufeffFROM a", [("FROM", "a")]),
        ("from a\r\nrun x \\\r\n y\r\n", [("FROM", "a"), ("RUN", "x  y")]),
        ("RUN a \\\n# comment\n  # another\n b", [("RUN", "a  b")]),
        ("RUN a \\\n\n \t\n b", [("RUN", "a  b")]),
        ("RUN a\\\nb", [("RUN", "ab")]),
        ("RUN a \\  \t\nb", [("RUN", "a b")]),
        ("RUN a \\", [("RUN", "a")]),
        ("RUN a \\\n", [("RUN", "a")]),
        ("RUN a\\\\\nRUN b", [("RUN", "a\\\\"), ("RUN", "b")]),
        ("RUN \\\n\\\nx", [("RUN", "x")]),
        ("\\\nRUN x", [("RUN", "x")]),
        ("RUN", [("RUN", "")]),
        ("RUN x ;", [("RUN", "x ;")]),
        ("\tRUN\t \tx", [("RUN", "x")]),
        ("# escape=`\nRUN a `\n b\\\nRUN c", [("RUN", "a  b\\"), ("RUN", "c")]),
        ("RUN a\x0bb\x1cc\x85d", [("RUN", "a\x0bb\x1cc\x85d")]),
        ("RUN \x1cx\x1c", [("RUN", "\x1cx\x1c")]),
        ("RUN x # no comment", [("RUN", "x # no comment")]),
        (b"RUN \xff\xe9 \xc3\xa9", [("RUN", "\udcff\udce9 \xe9")]),
    ],
)
def test_physical_lines_become_instructions(
    text: str | bytes, expected: list[tuple[str, str]]
) -> None:
    assert values(text) == expected


def test_an_instruction_knows_its_lines_and_its_comments() -> None:
    first, second = lines_of("# old\n#\n# new\n\n#  more\nFROM a\nRUN x \\\n  # in\n y\n")
    assert (first.where.start_line, first.where.end_line) == (6, 6)
    assert first.comments == ("new", "more")
    assert (second.where.start_line, second.where.end_line) == (7, 9)
    assert second.comments == ()
    assert second.text == "RUN x  y"


def test_a_place_in_the_value_is_a_place_in_the_file() -> None:
    (line,) = lines_of("  RUN one \\\n   two \\\nthree\n")
    start = line.value.index("two")
    assert line.at(start, start + 3) == SourceRange("Dockerfile", 2, 2, 4, 7)
    assert line.at(0, 3) == SourceRange("Dockerfile", 1, 1, 7, 10)
    end = line.value.index("three") + 5
    assert line.at(start, end) == SourceRange("Dockerfile", 2, 3, 4, 6)
    assert line.at(-line.value_start, -1) == SourceRange("Dockerfile", 1, 1, 3, 6)


def test_an_empty_line_in_a_continuation_is_noted() -> None:
    split = split_file(b"FROM a\nRUN x \\\n\n y\nRUN z", "Dockerfile")
    assert [where.start_line for where in split.gaps] == [4]


@pytest.mark.parametrize(
    ("text", "escape", "syntax", "check"),
    [
        ("FROM a", "\\", None, None),
        ("# escape=`\nFROM a", "`", None, None),
        ("#escape = \\ \nFROM a", "\\", None, None),
        ("# SYNTAX=docker/dockerfile:1 x\n# Escape=`\nFROM a", "`", "docker/dockerfile:1 x", None),
        ("# check=skip=all\n# escape=`\nFROM a", "`", None, "skip=all"),
        ("\n# escape=`\nFROM a", "\\", None, None),
        ("# hello\n# escape=`\nFROM a", "\\", None, None),
        ("# unknown=1\n# escape=`\nFROM a", "\\", None, None),
        ("#!/usr/bin/x\n# syntax=foo\n# escape=`\nFROM a", "\\", "foo", None),
        ("\ufeff# escape=`\nFROM a", "`", None, None),
    ],
)
def test_directives_stand_at_the_top(
    text: str, escape: str, syntax: str | None, check: str | None
) -> None:
    directives = split_file(text.encode(), "Dockerfile").directives
    assert (directives.escape, directives.syntax, directives.check) == (escape, syntax, check)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("# escape=`\n# Escape=`\nFROM a", 2),
        ("# escape=x\nFROM a", 1),
        ("# syntax=a\n# check=skip=all\n# syntax=a\nFROM a", 3),
    ],
)
def test_a_wrong_directive_is_refused(text: str, line: int) -> None:
    assert fault(text).where == SourceRange("Dockerfile", line, line)


@pytest.mark.parametrize("text", ["", "\n\n", "# only\n# comments\n", " \t\r\n"])
def test_a_file_without_instructions_is_refused(text: str) -> None:
    error = fault(text)
    assert "no instructions" in error.message
    assert error.where is not None


def test_a_physical_line_has_at_most_65535_bytes() -> None:
    longest = b"RUN " + b"x" * (MAX_LINE - 4)
    assert len(lines_of(longest + b"\nRUN y")) == 2
    assert fault(b"FROM a\n" + longest + b"x").where == SourceRange("Dockerfile", 2, 2)
    assert "bytes" in fault(b"RUN " + b"x" * (10 << 20)).message


def test_a_file_of_more_than_16_mebibytes_is_refused() -> None:
    assert str(MAX_SIZE) in fault(b"RUN x\n" * (MAX_SIZE // 6 + 1)).message


def test_a_heredoc_ends_at_its_name() -> None:
    run, user = lines_of("RUN <<EOF\nfrom x\n EOF\nEOF \n\nEOF\r\nUSER x")
    assert run.value == "<<EOF"
    assert run.heredocs[0].content == "from x\n EOF\nEOF \n\n"
    assert run.where == SourceRange("Dockerfile", 1, 6)
    assert user.where.start_line == 7


def test_several_heredocs_follow_each_other() -> None:
    (copy,) = lines_of("COPY <<a <<-'b' /x\n1\na\n\t2\n\tb\n")
    a, b = copy.heredocs
    assert (a.name, a.content, a.expand, a.chomp) == ("a", "1\n", True, False)
    assert (b.name, b.content, b.expand, b.chomp) == ("b", "\t2\n", False, True)


@pytest.mark.parametrize(
    "text",
    [
        'RUN ["<<EOF"]\nUSER x',
        'COPY ["<<EOF", "/x"]\nUSER x',
        'RUN echo "<<EOF"\nUSER x',
        "RUN echo '<<EOF'\nUSER x",
        "RUN echo $((1<<2))\nUSER x",
        "RUN cat <<<EOF\nUSER x",
        "USER <<EOF\nUSER x",
        "ONBUILD USER <<EOF\nUSER x",
        'ONBUILD RUN --network=none ["<<EOF"]\nUSER x',
        "RUN echo 'open <<EOF\nUSER x",
    ],
)
def test_not_everything_opens_a_heredoc(text: str) -> None:
    first, second = lines_of(text)
    assert first.heredocs == ()
    assert second.value == "x"


@pytest.mark.parametrize("head", ["RUN", "onbuild run", "ONBUILD --x RUN --y", "ADD", "COPY"])
def test_heredocs_belong_to_run_copy_add_and_their_triggers(head: str) -> None:
    (line,) = lines_of(f"{head} <<A /x\nbody\nA\n")
    assert [heredoc.content for heredoc in line.heredocs] == ["body\n"]


def test_an_open_heredoc_is_shown_where_it_begins() -> None:
    error = fault("FROM a\nRUN cat \\\n  <<'EOF' | sh\nhello\n")
    assert error.where == SourceRange("Dockerfile", 3, 3, 3, 10)
    assert "EOF" in error.message
    assert error.hint is not None


@pytest.mark.parametrize(
    ("word", "name", "expand", "chomp", "fd"),
    [
        ("<<EOF", "EOF", True, False, 0),
        ("3<<-EOF", "EOF", True, True, 3),
        ("<<'EOF'", "EOF", False, False, 0),
        ('<<E"O"F', "EOF", False, False, 0),
        ("<< EOF", "EOF", True, False, 0),
        ("<<$EOF", "$EOF", True, False, 0),
        ("<<${E}", "${E}", True, False, 0),
    ],
)
def test_a_heredoc_has_a_name(word: str, name: str, expand: bool, chomp: bool, fd: int) -> None:
    heredoc = parse_heredoc(word)
    assert heredoc is not None
    assert (heredoc.name, heredoc.expand, heredoc.chomp, heredoc.fd) == (name, expand, chomp, fd)


@pytest.mark.parametrize("word", ["", "<<", "<<-", "a<<b", "<<a b", "<<<a", "<a"])
def test_other_words_are_no_heredocs(word: str) -> None:
    assert parse_heredoc(word) is None


def test_a_heredoc_with_an_open_quote_is_an_error() -> None:
    with pytest.raises(ExpansionError):
        parse_heredoc("<<'EOF")


def test_open_quotes_hide_heredocs_as_they_do_from_buildkit() -> None:
    assert heredocs_of("RUN cat <<EOF ' <<EOF") == []


def test_many_heredocs_are_read_in_linear_time() -> None:
    count = 3000
    names = " ".join(f"\\\n<<e{i}" for i in range(count))
    bodies = "".join(f"x\ne{i}\n" for i in range(count))
    (line,) = lines_of(f"COPY {names} /x\n{bodies}")
    assert len(line.heredocs) == count


@pytest.mark.parametrize(
    "text",
    [
        "# syntax=x" + " " * 65_000 + "y\nFROM a",
        "# syntax" + " " * 65_000 + "y\nFROM a",
        "RUN <<" + " " * 65_000 + "<",
        "RUN x" + " " * 65_000 + "\\ y",
        "RUN <<a " + "<" * 65_000 + "\na",
        "ENV a=" + "'\"" * 32_000,
        "COPY --x=" + "'\"" * 32_000,
    ],
)
def test_no_line_is_slow(text: str) -> None:
    started = time.process_time()
    lines_of(text)
    assert time.process_time() - started < 1


def test_a_trigger_stands_where_the_base_image_is_named() -> None:
    where = SourceRange("Dockerfile", 7, 7)
    (line,) = split_trigger("RUN x <<E\n#y\nE", where, "\\")
    assert line.heredocs[0].content == "#y\n"
    assert line.where == line.at(0, 1) == where
    with pytest.raises(DockerfileSyntaxError) as caught:
        split_trigger("RUN <<E\n", where, "\\")
    assert caught.value.where == where
