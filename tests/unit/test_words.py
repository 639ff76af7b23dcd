from __future__ import annotations

import time

import pytest

from pybuild.dockerfile.words import (
    MAX_GROWTH,
    expand_text,
    expand_word,
    expand_words,
)
from pybuild.errors import ExpansionError

ENV = {
    "x": "value",
    "empty": "",
    "path": "/usr/local/lib/a.tar.gz",
    "two": "one  two",
    "stars": "a*b*c",
    "lines": "ab\ncb",
    "n": "x",
    "\xe4": "umlaut",
}


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("", ""),
        ("plain < text >", "plain < text >"),
        ("$x-$x", "value-value"),
        ("${x}y$xy", "valuey"),
        ("$none", ""),
        ("$\xe4", "umlaut"),
        ("$", "$"),
        ("a$ b", "a$ b"),
        ("$.x", "$.x"),
        (r"\$x", "$x"),
        (r"\\$x", r"\value"),
        ("'$x'", "$x"),
        (r"'\$x'", r"\$x"),
        ('"$x \' \\" \\n \\$"', "value ' \" \\n $"),
        ("\\", ""),
        ("$1$@$*$#$?$$$!$0", ""),
        ("$12x", "x"),
        ("${x:-w}|${x-w}|${x:+w}|${x+w}", "value|value|w|w"),
        ("${empty:-w}|${empty-w}|${empty:+w}|${empty+w}", "w|||w"),
        ("${none:-w}|${none-w}|${none:+w}|${none+w}", "w|w||"),
        ("${none:-${nope:-$x}}", "value"),
        ("${none:-'}'}", "}"),
        (r"${none:-\}}", "}"),
        ('${none:-"a b"}', "a b"),
        ("${x:?}|${empty?no}", "value|"),
        ("${path#*/}|${path##*/}", "usr/local/lib/a.tar.gz|a.tar.gz"),
        ("${path%.*}|${path%%.*}", "/usr/local/lib/a.tar|/usr/local/lib/a"),
        ("${path#/???/}", "local/lib/a.tar.gz"),
        ("${path%zz}", "/usr/local/lib/a.tar.gz"),
        (r"${stars#*\*}|${stars%\**}|${stars##*\*}", "b*c|a*b|c"),
        ("${path/l/L}|${path//l/L}", "/usr/Local/lib/a.tar.gz|/usr/LocaL/Lib/a.tar.gz"),
        (r"${path//\//_}", "_usr_local_lib_a.tar.gz"),
        ("${path//a*l/.}", "/usr/loc.ib/a.tar.gz"),
        ("${x//?/-}", "-----"),
        ("${x///-}", "-v-a-l-u-e-"),
        (r"${x//[al]/$}", "value"),
        ("${none#a}|${none//a/b}", "|"),
        ("${x#${x%ue}}", "ue"),
        ("${lines//*b/_}", "_\n_"),
        ("${lines#*c}|${lines//a*c/_}", "ab\ncb|ab\ncb"),
        ("${stars/\\*/$n}", "axb*c"),
        ("${-}-${@}", "-"),
    ],
)
def test_a_word_expands(word: str, text: str) -> None:
    assert expand_word(word, ENV).text == text


@pytest.mark.parametrize(
    ("word", "text"),
    [("a`b", "ab"), ("`$x", "$x"), (r"c:\$x", r"c:\value"), ('"`"\\"', '"\\'), ("``", "`")],
)
def test_the_escape_may_be_a_backtick(word: str, text: str) -> None:
    assert expand_word(word, ENV, "`").text == text


@pytest.mark.parametrize(
    "word",
    [
        "'open",
        '"open',
        '"open\\',
        "${x",
        "${",
        "${}",
        "${:x}",
        "${x:",
        "${x:}",
        "${{x}}",
        "${x=y}",
        "${x:#y}",
        "${x:%y}",
        "${x^}",
        "${ x}",
        "${x:-",
        "${x:-'}",
        "${x/a}",
        "${x//a}",
        "${x/a/b",
        r"${x#\a}",
        "${none?}",
        "${none:?}",
        "${empty:?}",
        "${x#" + "?" * 5000 + "}",
    ],
)
def test_a_wrong_word_is_an_error(word: str) -> None:
    with pytest.raises(ExpansionError) as caught:
        expand_word(word, ENV)
    assert "\n" not in caught.value.message
    assert not caught.value.message.endswith(".")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("${none:?say $x}", "none: say value"),
        ("${none:?}", "variable none is not set"),
        ("${empty:?}", "variable empty is empty"),
    ],
)
def test_a_required_variable_says_what_is_missing(word: str, message: str) -> None:
    with pytest.raises(ExpansionError) as caught:
        expand_word(word, ENV)
    assert caught.value.message == message


def test_an_expansion_tells_which_variables_it_asked_for() -> None:
    expansion = expand_word("${x:-$y} ${z+$empty} '$q'", ENV)
    assert expansion.matched == {"x", "empty"}
    assert expansion.unmatched == {"y", "z"}


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("a b\t\nc", ["a", "b", "c"]),
        ("$two", ["one", "two"]),
        ('"$two"', ["one  two"]),
        ("a$two", ["aone", "two"]),
        (r"a\ b", ["a b"]),
        ("'' $empty", []),
        ("80${none:-80}", ["8080"]),
        ("${none:-a b}c", ["a", "bc"]),
        ("a\xa0b", ["a", "b"]),
        ("a\x1cb", ["a\x1cb"]),
    ],
)
def test_words_part_at_white_space(word: str, words: list[str]) -> None:
    assert expand_words(word, ENV) == words


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("'$x' \"$x\"\n", "'value' \"value\"\n"),
        (r"it's \$x \\ \n", "it's $x \\ n"),
        ("${none:-'a'}", "'a'"),
        ("no variables, a ' quote", "no variables, a ' quote"),
    ],
)
def test_quotes_in_a_heredoc_are_text(text: str, expanded: str) -> None:
    assert expand_text(text, ENV).text == expanded


@pytest.mark.parametrize(
    "word",
    [
        "${a:-" * 10_000 + "}" * 10_000,
        "${a:-" * 10_000,
        '"${a:-' * 10_000,
        "${a/" * 10_000,
        "${x#" * 10_000 + "}" * 10_000,
    ],
)
def test_deep_nesting_is_an_error(word: str) -> None:
    with pytest.raises(ExpansionError):
        expand_word(word, ENV)


def test_variables_can_not_grow_without_end() -> None:
    env = {"a": "x" * 100_000}
    with pytest.raises(ExpansionError):
        expand_word("$a" * 20, env)
    with pytest.raises(ExpansionError):
        expand_word("${a//x/" + "y" * 60 + "}", env)
    assert len(expand_word("$a" * 10, env).text) <= MAX_GROWTH


@pytest.mark.parametrize("form", ["#", "##", "%", "%%", "/", "//"])
@pytest.mark.parametrize("pattern", ["*a" * 500 + "b", "a*" * 500 + "b", "?*" * 500 + "b", "**"])
def test_no_pattern_is_slow(form: str, pattern: str) -> None:
    tail = "/r}" if form.startswith("/") else "}"
    started = time.process_time()
    assert set(expand_word(f"${{v{form}{pattern}{tail}", {"v": "a" * 5000}).text) <= {"a", "r"}
    assert time.process_time() - started < 1
