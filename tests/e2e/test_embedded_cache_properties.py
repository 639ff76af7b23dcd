"""Random projects on the embedded backend, whose processes are real: see the unit tests'."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

import pybuild
from embedding import Stores, remove_store
from generating import VARIANTS, changes, lending_projects, projects
from projects import Files, Node
from pybuild.backend import Backend, Capability
from pybuild.oci.reference import parse_reference
from pybuild.testkit.baseimages import busybox_entries
from pybuild_embedded.backend import EmbeddedBackend
from rebuilding import Rebuilds, base_files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inherent: runs on Linux only")
few = settings(
    deadline=None,
    database=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def set_base(backend: Backend, variant: int) -> None:
    assert isinstance(backend, EmbeddedBackend)
    backend.image_store().tag(f"base-{variant}", parse_reference("base:latest"))


@pytest.fixture(scope="module")
def prepared(stores: Stores) -> Iterator[Path]:
    """A store with the variants of the base image."""
    with stores.lent() as root, stores.opened(root) as backend:
        if Capability.FILE_OWNERS not in backend.capabilities:
            pytest.skip("inherent: files of other users can't be made here")
        for variant in range(VARIANTS):
            text = f"FROM busybox\nCOPY <<EOF /etc/variant\n{variant}\nEOF\n"
            pybuild.build(None, dockerfile=text.encode(), backend=backend, tags=[f"base-{variant}"])
        yield root


@contextmanager
def new_backend(stores: Stores, prepared: Path) -> Iterator[EmbeddedBackend]:
    """A backend on a copy of the store."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        shutil.copytree(prepared, root)
        try:
            with stores.opened(root) as backend:
                yield backend
        finally:
            remove_store(root)


@pytest.fixture(scope="module")
def bases() -> Mapping[int, Files]:
    files = base_files(busybox_entries())
    return {
        variant: {**files, "etc/variant": Node("file", 0o644, b"%d\n" % variant)}
        for variant in range(VARIANTS)
    }


def test_a_step_runs_again_exactly_when_an_input_of_it_changed(
    stores: Stores, prepared: Path, bases: Mapping[int, Files]
) -> None:
    @settings(few, max_examples=50)
    @given(st.data())
    def hold(data: st.DataObject) -> None:
        project = data.draw(projects(bases), "project")
        what, changed = data.draw(changes(project, bases), "changed")
        note(f"{project.dockerfile}\n--- {what} ---\n{changed.dockerfile}")
        with (
            new_backend(stores, prepared) as backend,
            tempfile.TemporaryDirectory() as folder,
        ):
            rebuilds = Rebuilds(backend, bases, set_base, Path(folder))
            first = rebuilds.build(project)
            assert rebuilds.build(project) == first
            after = rebuilds.build(changed)
            if after is not None:
                assert rebuilds.build_anew(changed, new_backend(stores, prepared)) == after
            assert rebuilds.build(project) == first

    hold()


def test_a_failed_step_is_run_again_and_those_before_it_are_not(
    stores: Stores, prepared: Path, bases: Mapping[int, Files]
) -> None:
    @settings(few, max_examples=10)
    @given(st.data())
    def hold(data: st.DataObject) -> None:
        project = data.draw(lending_projects(bases), "project")
        note(project.dockerfile)
        with (
            new_backend(stores, prepared) as backend,
            tempfile.TemporaryDirectory() as folder,
        ):
            rebuilds = Rebuilds(backend, bases, set_base, Path(folder))
            failed = rebuilds.fail(replace(project, secret="bad"))
            assert failed in rebuilds.lines_run(project)
            clean = rebuilds.build_anew(project, new_backend(stores, prepared))
            assert rebuilds.last.digest == clean

    hold()
