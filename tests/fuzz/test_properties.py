"""Every reader, on inputs that nearly make sense to it, gives an answer or an error of ours."""

from __future__ import annotations

from functools import partial

import pytest
from inputs import INPUTS, drive
from readers import READERS, check

from pybuild.errors import PybuildError


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_answers_or_raises_an_error_of_ours(reader: str) -> None:
    drive(reader, partial(check, reader), 150)


@pytest.mark.parametrize("reader", INPUTS)
def test_inputs_are_of_both_kinds(reader: str) -> None:
    """Were all refused, or none, little would be read."""
    outcomes = {"taken": 0, "refused": 0}

    def count(data: bytes) -> None:
        try:
            READERS[reader](data)
        except PybuildError:
            outcomes["refused"] += 1
        else:
            outcomes["taken"] += 1

    drive(reader, count, 150)
    assert outcomes["taken"] >= 5, outcomes
    assert outcomes["refused"] >= 5 or reader == "words", outcomes
