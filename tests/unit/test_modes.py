from __future__ import annotations

import pytest

from pybuild.errors import CopyFailed
from pybuild.files.modes import parse_mode


@pytest.mark.parametrize(
    ("text", "mode", "folder", "expected"),
    [
        ("755", 0o644, False, 0o755),
        ("0", 0o644, False, 0),
        ("07777", 0o644, False, 0o7777),
        ("u+x", 0o644, False, 0o744),
        ("+x", 0o644, False, 0o755),
        ("a-w", 0o666, False, 0o444),
        ("go=", 0o777, False, 0o700),
        ("u=rwX,go=rX", 0o600, False, 0o644),
        ("u=rwX,go=rX", 0o700, False, 0o755),
        ("u=rwX,go=rX", 0o600, True, 0o755),
        ("a+X", 0o644, False, 0o644),
        ("a-X", 0o755, False, 0o644),
        ("u+s", 0o755, False, 0o4755),
        ("g+s,u+s", 0o755, False, 0o6755),
        ("o+s", 0o755, False, 0o755),
        ("+t", 0o777, True, 0o1777),
        ("a+t", 0o777, True, 0o1777),
        ("u=rw", 0o4755, False, 0o655),
        ("=r", 0o6755, False, 0o444),
        ("g=u", 0o740, False, 0o770),
        ("o=g", 0o2750, False, 0o2755),
        ("go+u", 0o600, False, 0o666),
        ("o-u", 0o666, False, 0o660),
        ("u+x-w", 0o644, False, 0o544),
        ("ug+rw,o-rwx", 0o007, False, 0o660),
        ("u+", 0o644, False, 0o644),
    ],
)
def test_a_mode_is_applied_as_chmod_would(
    text: str, mode: int, folder: bool, expected: int
) -> None:
    assert oct(parse_mode(text).apply(mode, folder=folder)) == oct(expected)


@pytest.mark.parametrize("text", ["64a", "10000", "8", "0o755", "7 5", "99999999999999"])
def test_numbers_must_be_octal_and_at_most_07777(text: str) -> None:
    with pytest.raises(CopyFailed, match="should be octal string and between 0 and 07777"):
        parse_mode(text)


@pytest.mark.parametrize("text", ["u", "u+q", "u+x,", ",u+x", "-1", "rwx", "u+x g+x", "u+x\n"])
def test_what_chmod_does_not_know_is_refused(text: str) -> None:
    with pytest.raises(CopyFailed, match="invalid chmod parameter"):
        parse_mode(text)
