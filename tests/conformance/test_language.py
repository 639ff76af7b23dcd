"""The parser, the lexer and the ignore matcher against other builders' recorded results."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from pybuild.dockerfile.arguments import (
    json_array,
    split_blanks,
    split_flags,
    split_keyword,
    split_quoted,
)
from pybuild.dockerfile.lines import heredocs_of, parse_heredoc, split_file
from pybuild.dockerfile.parse import parse
from pybuild.dockerfile.words import expand_word, expand_words
from pybuild.errors import ContextError, DockerfileError, ExpansionError
from pybuild.files.ignore import IgnoreMatcher, read_patterns

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "conformance"


def cases(name: str) -> list[Any]:
    """The cases of a file, or one that skips where there is no such file."""
    path = FOLDER / f"{name}.json"
    if path.exists():
        loaded = json.loads(path.read_text())["cases"]
        return [pytest.param(case, id=f"{name}-{i}") for i, case in enumerate(loaded)]
    if os.environ.get("CI"):
        raise FileNotFoundError(path)
    return [pytest.param(None, marks=pytest.mark.skip(reason=f"no data in {FOLDER}"))]


def quoted(text: str) -> str:
    """`text` as Go's strconv.Quote writes it."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b"}
    escapes |= {"\f": "\\f", "\v": "\\v", "\a": "\\a"}
    out = "".join(escapes.get(c, c if c.isprintable() else f"\\x{ord(c):02x}") for c in text)
    return f'"{out}"'


def pair_words(rest: str, escape: str) -> list[str]:
    """Name, value and separator for each pair of an ENV or LABEL line."""
    words = [word.text for word in split_quoted(rest, escape)]
    if words and "=" not in words[0]:
        name, value = re.split(r"[\t\v\f\r ]+", rest, maxsplit=1)
        return [name, value, ""]
    return [part for word in words for part in (*word.split("=", 1), "=")]


def tree(text: str, escape: str) -> str:
    """An instruction as an S-expression, flags and words apart."""
    keyword, start = split_keyword(text)
    value = text[start:]
    flags, start = split_flags(value, escape)
    rest = value[start:].strip()
    array = json_array(rest)
    name = keyword.lower()
    prefix = name + (f" [{' '.join(quoted(f.text) for f in flags)}]" if flags else "")
    match name:
        case "onbuild":
            return f"({prefix} {tree(rest, escape)})"
        case "env" | "label":
            words = pair_words(rest, escape)
        case "arg":
            words = [word.text for word in split_quoted(rest, escape)]
        case "healthcheck":
            kind, start = split_keyword(rest)
            command = json_array(rest[start:])
            words = [kind, *(command if command is not None else (rest[start:],))]
            words = [word for word in words if word]
        case "add" | "copy" | "volume" | "expose" | "from" if array is None:
            words = [word.text for word in split_blanks(rest)]
        case _:
            words = list(array) if array is not None else [rest] if rest else []
    return f"({' '.join([prefix, *map(quoted, words)])})"


@pytest.mark.parametrize("case", cases("parser_positive"))
def test_a_dockerfile_is_read_as_the_reference_parser_reads_it(case: Any) -> None:
    split = split_file(case["dockerfile"].encode(), case["name"])
    trees = [tree(line.text, split.directives.escape) for line in split.lines]
    assert "\n".join(trees).strip() == case["result"].strip()


@pytest.mark.parametrize("case", cases("parser_negative"))
def test_what_the_reference_parser_refuses_is_refused(case: Any) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse(case["dockerfile"].encode(), case["name"])
    assert caught.value.where is not None


@pytest.mark.parametrize("case", cases("parser_lines"))
def test_instructions_keep_their_lines(case: Any) -> None:
    lines = split_file(case["dockerfile"].encode(), "Dockerfile").lines
    assert [[line.where.start_line, line.where.end_line] for line in lines] == case["children"]
    assert lines[0].where.start_line == case["ast_start"]
    assert lines[-1].where.end_line == case["ast_end"]


@pytest.mark.parametrize("case", cases("parser_words"))
def test_words_of_pairs_keep_their_quotes(case: Any) -> None:
    assert [word.text for word in split_quoted(case["input"], "\\")] == case["expect"]


@pytest.mark.parametrize("case", cases("json_arrays"))
def test_json_arrays_hold_strings_only(case: Any) -> None:
    if case.get("error"):
        with pytest.raises(DockerfileError):
            json_array(case["input"])
    else:
        assert json_array(case["input"]) == tuple(case["expect"])


@pytest.mark.parametrize("case", cases("heredoc_extract"))
def test_heredocs_are_taken_out(case: Any) -> None:
    lines = split_file(case["dockerfile"].encode(), "Dockerfile").lines
    # the list begins behind FROM
    for line, expected in zip(lines[1:], case["expect"], strict=False):
        found = [
            {key: getattr(doc, key) for key in ("name", "content", "expand", "chomp", "fd")}
            for doc in line.heredocs
        ]
        assert found == (expected or []), line.text


@pytest.mark.parametrize("case", cases("heredoc_words"))
def test_a_word_is_a_heredoc_or_not(case: Any) -> None:
    if case["kind"] == "invalid":
        with pytest.raises(ExpansionError):
            parse_heredoc(case["word"])
    else:
        assert (parse_heredoc(case["word"]) is not None) == (case["kind"] == "valid")


@pytest.mark.parametrize("case", cases("heredoc_lines"))
def test_heredocs_of_a_line_are_found(case: Any) -> None:
    # recorded with a name, but the parser it was recorded from finds no heredoc there
    names = [] if case["line"] == "RUN <<- EOF" else case["names"]
    assert [heredoc.name for heredoc in heredocs_of(case["line"])] == names


def variables(case: Any) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in case["env"])


@pytest.mark.parametrize("case", cases("shell_envvar"))
def test_variables_expand_as_recorded(case: Any) -> None:
    if case["expect"] is None:
        with pytest.raises(ExpansionError):
            expand_word(case["word"], variables(case))
    else:
        assert expand_word(case["word"], variables(case)).text == case["expect"]


@pytest.mark.parametrize("case", cases("shell_words"))
def test_expanded_words_part_as_recorded(case: Any) -> None:
    if case["expect"] is None:
        with pytest.raises(ExpansionError):
            expand_words(case["word"], variables(case))
    else:
        assert expand_words(case["word"], variables(case)) == case["expect"]


@pytest.mark.parametrize("case", cases("shell_modifiers"))
def test_modifiers_work_as_recorded(case: Any) -> None:
    if case["expect"] is None:
        with pytest.raises(ExpansionError):
            expand_word(case["word"], variables(case))
    else:
        expansion = expand_word(case["word"], variables(case))
        assert expansion.text == case["expect"]
        assert expansion.matched == set(case["matched"])
        assert expansion.unmatched == set(case["unmatched"])


@pytest.mark.parametrize("case", cases("dockerignore_match") + cases("dockerignore_gomatch"))
def test_ignore_patterns_match_as_recorded(case: Any) -> None:
    if case.get("error"):
        with pytest.raises(ContextError):
            IgnoreMatcher(case["patterns"])
    else:
        assert IgnoreMatcher(case["patterns"]).excludes(case["path"]) == case["match"]


@pytest.mark.parametrize("case", cases("dockerignore_file"))
def test_an_ignore_file_is_read_as_recorded(case: Any) -> None:
    assert read_patterns(case["content"].encode()) == case["expect"]
