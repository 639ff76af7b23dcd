from __future__ import annotations

from typing import Any

from pybuild.diagnostics import describe_error
from pybuild.errors import AuthenticationRequired, DockerfileSyntaxError, RunFailed, SourceRange

FILE = b"""FROM busybox
RUN a \\
  && b \\
  && c
\tCOPY --form=build /out /out
"""


def place(*numbers: int) -> SourceRange:
    return SourceRange("Dockerfile", *numbers)


def describe(error: Any, data: bytes = FILE, **options: Any) -> str:
    return describe_error(error, {"Dockerfile": data}, **options)


def test_an_error_shows_its_line_with_carets() -> None:
    data = b"\n" * 6 + b"COPY --form=build /out /out\n"
    error = DockerfileSyntaxError(
        "unknown flag --form; did you mean --from?", where=place(7, 7, 6, 12)
    )
    assert describe(error, data) == (
        "error: unknown flag --form; did you mean --from?\n"
        "  --> Dockerfile:7:6\n"
        " 7 | COPY --form=build /out /out\n"
        "   |      ^^^^^^"
    )


def test_several_lines_are_all_shown() -> None:
    text = describe(DockerfileSyntaxError("no", where=place(2, 4)))
    assert text.splitlines()[1:] == [
        "  --> Dockerfile:2",
        " 2 | RUN a \\",
        " 3 |   && b \\",
        " 4 |   && c",
    ]


def test_a_range_over_lines_marks_the_rest_of_its_first() -> None:
    text = describe(DockerfileSyntaxError("no", where=place(2, 4, 5, 4)))
    assert text.splitlines()[2:4] == [" 2 | RUN a \\", "   |     ^^^"]


def test_tabs_keep_the_caret_aligned() -> None:
    text = describe(DockerfileSyntaxError("no", where=place(5, 5, 7, 13)))
    assert text.splitlines()[2:] == [
        " 5 |     COPY --form=build /out /out",
        "   |          ^^^^^^",
    ]


def test_wide_characters_keep_the_caret_aligned() -> None:
    text = describe(DockerfileSyntaxError("no", where=place(1, 1, 4, 6)), "日本 $x".encode())
    assert text.splitlines()[2:] == [" 1 | 日本 $x", "   |      ^^"]


def test_control_characters_are_escaped_and_counted_as_shown() -> None:
    error = DockerfileSyntaxError("bad \x1b[2J word", where=place(1, 1, 6, 7))
    assert describe(error, b"RUN \x1bX").splitlines() == [
        "error: bad \\x1b[2J word",
        "  --> Dockerfile:1:6",
        " 1 | RUN \\x1bX",
        "   |         ^",
    ]


def test_places_outside_the_text_show_no_line() -> None:
    for where in (place(99, 99), place(0, 0), SourceRange("onbuild", 1, 1)):
        assert len(describe(DockerfileSyntaxError("no", where=where)).splitlines()) == 2


def test_a_long_instruction_is_abridged() -> None:
    data = b"RUN x \\\n" * 100
    text = describe(DockerfileSyntaxError("no", where=place(1, 100)), data)
    assert len(text.splitlines()) == 11
    assert text.splitlines()[-1] == "   | ... 92 more lines"


def test_a_failed_run_shows_its_last_output_and_the_hint_comes_last() -> None:
    error = RunFailed(
        "exit code: 1", process_exit_code=1, output=("one", "t\x07wo"), where=place(1, 1), hint="x"
    )
    assert describe(error).splitlines()[3:] == [
        "last output:",
        "  | one",
        "  | t\\x07wo",
        "hint: x",
    ]
    assert "one" not in describe(error, with_output=False)


def test_a_missing_login_says_how_to_log_in() -> None:
    assert "docker login" in describe(AuthenticationRequired("denied"))


def test_a_byte_order_mark_moves_no_column() -> None:
    text = describe(DockerfileSyntaxError("no", where=place(1, 1, 1, 5)), b"\xef\xbb\xbfFORM x\r\n")
    assert text.splitlines()[2:] == [" 1 | FORM x", "   | ^^^^"]
