"""Random projects on the memory backend: a step runs again exactly when an input of it changed."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from building import busybox_config, busybox_files
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from generating import VARIANTS, changes, lending_projects, projects
from pybuild.backend import Activity, Backend, Mount, Process
from pybuild.errors import BuildCancelled
from pybuild.files.trees import Tree
from pybuild.run.activity import CancelToken
from pybuild.testkit.memory import MemoryBackend
from pybuild.testkit.toyshell import RunOutcome, run
from pybuild.testkit.workbench import file
from rebuilding import Rebuilds, base_files, build

many = settings(
    deadline=None,
    database=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
_IMAGES = {
    variant: [*busybox_files(), file(b"etc/variant", b"%d\n" % variant)]
    for variant in range(VARIANTS)
}
BASES = {variant: base_files(entries) for variant, entries in _IMAGES.items()}


def set_base(backend: Backend, variant: int) -> None:
    assert isinstance(backend, MemoryBackend)
    backend.add_image("base", busybox_config(), _IMAGES[variant])


@settings(many, max_examples=500)
@given(st.data())
def test_a_step_runs_again_exactly_when_an_input_of_it_changed(data: st.DataObject) -> None:
    project = data.draw(projects(BASES), "project")
    what, changed = data.draw(changes(project, BASES), "changed")
    note(f"{project.dockerfile}\n--- {what} ---\n{changed.dockerfile}")
    backend = MemoryBackend()
    with tempfile.TemporaryDirectory() as folder:
        rebuilds = Rebuilds(backend, BASES, set_base, Path(folder))
        first = rebuilds.build(project)
        assert rebuilds.build(project) == first
        after = rebuilds.build(changed)
        if after is not None:
            assert rebuilds.build_anew(changed, nullcontext(MemoryBackend())) == after
        assert rebuilds.build(project) == first
    assert backend.live_layers == 0


@settings(many, max_examples=100)
@given(st.data())
def test_a_failed_step_is_run_again_and_those_before_it_are_not(data: st.DataObject) -> None:
    project = data.draw(lending_projects(BASES), "project")
    note(project.dockerfile)
    with tempfile.TemporaryDirectory() as folder:
        rebuilds = Rebuilds(MemoryBackend(), BASES, set_base, Path(folder))
        failed = rebuilds.fail(replace(project, secret="bad"))
        assert rebuilds.fail(replace(project, secret="bad")) in project.lines.values()
        assert failed in rebuilds.lines_run(project)
        clean = rebuilds.build_anew(project, nullcontext(MemoryBackend()))
        assert rebuilds.last.digest == clean


@settings(many, max_examples=100)
@given(st.data())
def test_a_cancelled_step_is_run_again(data: st.DataObject) -> None:
    project = data.draw(lending_projects(BASES), "project")
    runner = CancellingRunner(data.draw(st.integers(1, 4), "processes before"))
    note(project.dockerfile)
    with tempfile.TemporaryDirectory() as folder:
        rebuilds = Rebuilds(MemoryBackend(runner=runner), BASES, set_base, Path(folder))
        rebuilds.write(project)
        try:
            build(rebuilds.backend, project, Path(folder), cancel=runner.token)
        except BuildCancelled:
            assert runner.cancelled is not None
        rebuilds.doubt()
        runner.started.clear()
        rebuilds.build(project)
        clean = rebuilds.build_anew(project, nullcontext(MemoryBackend()))
        assert rebuilds.last.digest == clean
        assert runner.cancelled is None or runner.cancelled in runner.started


class CancellingRunner:
    """Runs processes of the simulated shell, and cancels the build in the last one of some."""

    def __init__(self, processes: int) -> None:
        self.token = CancelToken()
        self.started: list[Process] = []
        self.cancelled: Process | None = None
        self._left = processes
        self._lock = threading.Lock()

    def __call__(
        self, process: Process, tree: Tree, mounts: Sequence[Mount], activity: Activity
    ) -> RunOutcome:
        with self._lock:
            self.started.append(process)
            self._left -= 1
            if self._left == 0:
                self.cancelled = process
                self.token.cancel()
        return run(process, tree, mounts, activity)
