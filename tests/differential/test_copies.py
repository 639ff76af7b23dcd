"""The same Dockerfiles built where overlayfs can be had and where it can't: the same image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding import Stores, on_an_overlay
from pybuild import build
from sharedcontext import make_context

pytestmark = pytest.mark.root

_CASES = sorted((Path(__file__).parent / "cases").glob("*.Dockerfile"))


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A store on a usual file system, and one on an overlay."""
    usual = Stores(tmp_path_factory.mktemp("usual")).new()
    with on_an_overlay(tmp_path_factory.mktemp("overlay")) as folder:
        yield usual, Stores(folder).new()


@pytest.mark.parametrize("dockerfile", _CASES, ids=lambda path: path.stem)
def test_an_image_is_the_same_on_overlays_and_on_copies(
    dockerfile: Path, roots: tuple[Path, Path], tmp_path: Path
) -> None:
    make_context(tmp_path)
    usual, copied = (
        build(
            tmp_path,
            dockerfile=dockerfile,
            backend="embedded",
            backend_options={"root": root},
            created=1_700_000_000,
        )
        for root in roots
    )
    assert copied.digest == usual.digest
