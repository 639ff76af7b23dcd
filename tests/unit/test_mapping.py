"""Ids outside of a sandbox and inside."""

from __future__ import annotations

import pytest

from pybuild.sandbox.mapping import IdRange, Kind, Mapping

OWN = Mapping(Kind.INIT)
SAME = Mapping(Kind.IDENTITY, (IdRange(0, 0, 2**32 - 1),), (IdRange(0, 0, 2**32 - 1),))
USERS = Mapping(
    Kind.RANGE,
    (IdRange(0, 1000, 1), IdRange(1, 100_000, 65_536)),
    (IdRange(0, 1001, 1), IdRange(1, 200_000, 65_536)),
)


@pytest.mark.parametrize(
    ("mapping", "outside", "inside"),
    [
        (OWN, (0, 0), (0, 0)),
        (OWN, (5, 70_000), (5, 70_000)),
        (SAME, (5, 70_000), (5, 70_000)),
        (USERS, (1000, 1001), (0, 0)),
        (USERS, (100_000, 200_000), (1, 1)),
        (USERS, (165_535, 200_041), (65_536, 42)),
        (USERS, (165_536, 200_041), None),
        (USERS, (1000, 1000), None),
        (USERS, (0, 0), None),
    ],
)
def test_who_somebody_is_inside(
    mapping: Mapping, outside: tuple[int, int], inside: tuple[int, int] | None
) -> None:
    assert mapping.inside(*outside) == inside
