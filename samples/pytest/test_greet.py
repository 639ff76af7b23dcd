"""Tests of an image. `pip install pybuild-oci pytest`, then `pytest`: there is nothing to set up."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pybuild import Image

HERE = Path(__file__).parent

pytestmark = pytest.mark.needs_pybuild


@pytest.fixture(scope="session")
def image(pybuild_image: Callable[..., Image]) -> Image:
    return pybuild_image(HERE, tags=["greet:test"])


def test_it_greets_as_an_ordinary_user(image: Image) -> None:
    assert image.run(text=True).stdout == "Hello, world! I am guest.\n"


def test_it_wants_to_know_whom(image: Image) -> None:
    done = image.run(["greet"], text=True)
    assert (done.returncode, done.stderr) == (2, "greet: whom?\n")


def test_the_greeting_is_chosen_when_it_is_built(pybuild_image: Callable[..., Image]) -> None:
    image = pybuild_image(HERE, build_args={"GREETING": "Ahoy"})
    assert image.run(["greet", "you"], text=True).stdout.startswith("Ahoy, you!")


def test_the_program_can_be_executed_by_all(image: Image) -> None:
    assert image.fs.stat("/bin/greet").st_mode & 0o777 == 0o755
