"""Every reader takes its seeds, bytes near to them, and what once went wrong."""

from __future__ import annotations

from random import Random

import pytest
from readers import READERS, check
from seeds import found, seeds


@pytest.mark.parametrize("reader", READERS)
def test_seeds_are_read_without_any_error(reader: str) -> None:
    inputs = list(seeds(reader))
    assert inputs
    for data in inputs:
        READERS[reader](data)


@pytest.mark.parametrize("reader", READERS)
def test_changed_seeds_give_an_answer_or_an_error_of_ours(reader: str) -> None:
    random = Random(1)  # noqa: S311 - for no secret
    inputs = list(seeds(reader))
    for _ in range(300):
        data = bytearray(random.choice(inputs))
        for _ in range(random.randint(1, 4)):
            at = random.randrange(len(data) + 1)
            data[at : at + random.choice((0, 1, 8))] = random.randbytes(random.choice((0, 1, 2)))
        check(reader, bytes(data))


@pytest.mark.parametrize(("reader", "data"), found())
def test_what_once_went_wrong(reader: str, data: bytes) -> None:
    check(reader, data)
