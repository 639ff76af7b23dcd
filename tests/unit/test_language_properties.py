"""Whatever the bytes are, the language layer answers or raises its own errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pybuild.dockerfile.mounts import parse_mount
from pybuild.dockerfile.parse import parse, parse_trigger
from pybuild.dockerfile.words import expand_text, expand_word, expand_words
from pybuild.errors import ContextError, DockerfileError, ExpansionError, SourceRange
from pybuild.files.ignore import IgnoreMatcher, read_patterns

few = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
WHERE = SourceRange("Dockerfile", 1, 1)
ENV = {"a": "x y", "b": "", "c": "*?\\/"}

pieces = st.sampled_from(
    [
        *("FROM a\n", "FROM ", "RUN ", "COPY ", "ADD ", "ENV ", "ARG ", "LABEL ", "ONBUILD "),
        *("HEALTHCHECK ", "CMD ", "VOLUME ", "SHELL ", "EXPOSE ", "--from=", "--mount=type="),
        *("--", "--link ", "<<EOF", "<<-'A B'", "EOF\n", "\nEOF\n", "\\\n", "\\", "\n", "\r\n"),
        *(
            '["a", "b"]',
            "[",
            "]",
            '"',
            "'",
            "${",
            "}",
            "$",
            ":-",
            "/",
            "# escape=`\n",
            "# x\n",
            "`",
        ),
        *(" ", "\t", "=", "a", "\xa0", "\x1c", "\x85", "\u2028", "\x00", "\ufeff", "\udcff"),
    ]
)
dockerfiles = st.lists(pieces, max_size=30).map("".join)
words = st.text(st.sampled_from("abc${}:-+?#%/\\`'\"<* \n\xe9\udcff"), max_size=40)
paths = st.text(st.sampled_from("ab/.*\\[]\xe9\udcff"), max_size=20)
patterns = st.text(st.sampled_from("ab/.*?[]^-\\! \xe9\udcff#"), max_size=20)


def fault_of(call: Callable[[], object]) -> DockerfileError | None:
    """The error that `call` raises, if it is one of the language."""
    try:
        call()
    except DockerfileError as error:
        return error
    return None


def is_good(error: DockerfileError | None) -> bool:
    if error is None:
        return True
    return error.where is not None and bool(error.message) and not error.message.endswith(".")


@few
@given(st.one_of(st.binary(max_size=200), dockerfiles.map(lambda t: t.encode("utf-8", "replace"))))
def test_parse_raises_nothing_but_dockerfile_errors(data: bytes) -> None:
    assert is_good(fault_of(lambda: parse(data)))


@few
@given(dockerfiles)
def test_a_stage_of_anything_raises_nothing_but_dockerfile_errors(text: str) -> None:
    data = b"FROM a\n" + text.encode("utf-8", "surrogateescape")
    assert is_good(fault_of(lambda: parse(data)))


@few
@given(st.one_of(dockerfiles, words))
def test_triggers_raise_nothing_but_dockerfile_errors(text: str) -> None:
    error = fault_of(lambda: parse_trigger(text, WHERE))
    assert error is None or error.where == WHERE


@few
@given(words, st.sampled_from("\\`"))
def test_words_raise_nothing_but_expansion_errors(word: str, escape: str) -> None:
    for expand in (expand_word, expand_words, expand_text):
        error = fault_of(partial(expand, word, ENV, escape))
        assert error is None or isinstance(error, ExpansionError)


@few
@given(words)
def test_parted_words_have_the_characters_of_the_whole_word(word: str) -> None:
    try:
        text = expand_word(word, ENV).text
    except ExpansionError:
        return
    parted = "".join(expand_words(word, ENV))
    assert "".join(parted.split()) == "".join(text.split())


@few
@given(st.text(st.sampled_from('type=bindcache,target/a"$rowsize1,='), max_size=40))
def test_mounts_raise_nothing_but_dockerfile_errors(raw: str) -> None:
    assert is_good(fault_of(lambda: parse_mount(raw, WHERE)))


@few
@given(st.lists(patterns, max_size=5), st.lists(paths, max_size=5))
def test_the_matcher_answers_for_every_path(rules: list[str], names: list[str]) -> None:
    try:
        matcher = IgnoreMatcher(read_patterns("\n".join(rules).encode("utf-8", "surrogateescape")))
    except ContextError:
        return
    for name in names:
        assert matcher.excludes(name) == matcher.excludes(name)
        if matcher.excludes_all_below(name):
            assert matcher.excludes(f"{name.rstrip('/')}/below")
