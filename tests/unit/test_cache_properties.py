"""Random projects on the memory backend: a step runs again exactly when an input of it changed."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path

from building import busybox_config, busybox_files
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from generating import VARIANTS, changes, projects
from pybuild.backend import Backend
from pybuild.testkit.memory import MemoryBackend
from pybuild.testkit.workbench import file
from rebuilding import Rebuilds, base_files

CASES = 500

many = settings(
    max_examples=CASES,
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


def new_backend() -> MemoryBackend:
    return MemoryBackend()


@many
@given(st.data())
def test_a_step_runs_again_exactly_when_an_input_of_it_changed(data: st.DataObject) -> None:
    project = data.draw(projects(BASES), "project")
    what, changed = data.draw(changes(project, BASES), "changed")
    note(f"{project.dockerfile}\n--- {what} ---\n{changed.dockerfile}")
    backend = new_backend()
    with tempfile.TemporaryDirectory() as folder:
        rebuilds = Rebuilds(backend, BASES, set_base, Path(folder))
        first = rebuilds.build(project)
        assert rebuilds.build(project) == first
        after = rebuilds.build(changed)
        if after is not None:
            assert rebuilds.build_anew(changed, nullcontext(new_backend())) == after
        assert rebuilds.build(project) == first
    assert backend.live_layers == 0
