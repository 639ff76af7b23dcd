"""A pytest plugin: images that tests need, each built once, and its log where a test fails.

pytest loads this wherever pybuild is installed; what builds is loaded by the first test that
wants an image. See docs/pytest.md.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pybuild.builder import Builder
    from pybuild.imagefactory import ImageFactory

LOGS = pytest.StashKey[list[tuple[str, str]]]()
"""The builds of the test that runs now: a title and the log."""

_REFUSAL = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pybuild", "images that tests need")
    group.addoption(
        "--pybuild-backend",
        metavar="NAME",
        default=None,
        help="where images are built and run: embedded (the default), containerd, …",
    )
    group.addoption(
        "--pybuild-rebuild",
        action="store_true",
        help="build each image anew, once in this run, whatever is cached",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "needs_pybuild: skip the test where pybuild can't build and run images"
    )
    config.stash[LOGS] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    item.config.stash[LOGS].clear()
    return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_pybuild"):
        refusal = _refusal(item.config)
        if refusal:
            pytest.skip(f"pybuild can't run here: {refusal}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    logs = item.config.stash[LOGS]
    if report.failed:
        report.sections += logs
    return report


@pytest.fixture(scope="session")
def pybuild_builder(pytestconfig: pytest.Config) -> Iterator[Builder]:
    """The :class:`pybuild.Builder` of this process; to be replaced by those who need another."""
    from pybuild.builder import Builder  # noqa: PLC0415 - once a test wants an image

    with Builder(pytestconfig.getoption("--pybuild-backend")) as builder:
        yield builder


@pytest.fixture(scope="session")
def pybuild_image(
    pybuild_builder: Builder,
    pytestconfig: pytest.Config,
    tmp_path_factory: pytest.TempPathFactory,
) -> ImageFactory:
    """Call it as :meth:`pybuild.Builder.build`: it gives the :class:`pybuild.Image`.

    Equal inputs are built once by all workers of pytest-xdist and all runs at the same time.
    """
    from pybuild.imagefactory import ImageFactory  # noqa: PLC0415 - as above

    rebuilt = None
    if pytestconfig.getoption("--pybuild-rebuild"):
        rebuilt = _shared_folder(pytestconfig, tmp_path_factory)
    return ImageFactory(pybuild_builder, pytestconfig.stash[LOGS], rebuilt)


def _shared_folder(config: pytest.Config, factory: pytest.TempPathFactory) -> Path:
    """A folder of this run, which all workers of pytest-xdist have."""
    own = factory.getbasetemp()
    folder = (own.parent if hasattr(config, "workerinput") else own) / "pybuild-rebuilt"
    folder.mkdir(exist_ok=True)
    return folder


def _refusal(config: pytest.Config) -> str:
    """Why images can't be built and run here; empty if they can."""
    if _REFUSAL not in config.stash:
        from pybuild.backend import Capability  # noqa: PLC0415 - once a test asks
        from pybuild.backends import DEFAULT_BACKEND, open_backend  # noqa: PLC0415 - as above
        from pybuild.errors import BackendError  # noqa: PLC0415 - as above

        config.stash[_REFUSAL] = ""
        try:
            name = config.getoption("--pybuild-backend") or DEFAULT_BACKEND
            with open_backend(name, {}) as backend:
                backend.require(frozenset({Capability.RUN}))
        except BackendError as error:
            config.stash[_REFUSAL] = str(error)
    return config.stash[_REFUSAL]
