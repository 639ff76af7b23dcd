"""The rows that explain a key say exactly what the key says."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pybuild.backend import BaseImage, HostEntry, Network, Sharing, Ulimit
from pybuild.errors import SourceRange
from pybuild.oci.image_config import ImageConfig
from pybuild.oci.platform import Platform
from pybuild.oci.reference import Reference
from pybuild.plan.cachekey import step_key
from pybuild.plan.keyinputs import InputKind, KeyInput, step_inputs
from pybuild.plan.steps import (
    ContextSource,
    CopyStep,
    ImageSource,
    InlineFile,
    PlannedBind,
    PlannedCache,
    PlannedMount,
    PlannedRemote,
    PlannedScript,
    PlannedSecret,
    PlannedSsh,
    PlannedTmpfs,
    RunStep,
    StageSource,
    Step,
    WorkdirStep,
)
from pybuild.remotes.locations import GitLocation, WebLocation

HERE = SourceRange("Dockerfile", 1, 1)
CONFIG = ImageConfig(Platform("linux", "amd64"))
IMAGES = [
    None,
    *(BaseImage(Reference("docker.io", "a", "1"), f"sha256:{n:064}", CONFIG, ()) for n in (1, 2)),
]

# few values each, so that two steps are often nearly the same
texts = st.sampled_from(["", "a", "b", "a b", "null", '["a"]', "a\0b", "\ud800"])
numbers = st.sampled_from([None, 0, 1])
flags = st.booleans()
sources = st.sampled_from(
    [ContextSource(), ContextSource("a"), StageSource(0), StageSource(1)]
    + [ImageSource(image) for image in IMAGES]
)
pairs = st.lists(st.tuples(texts, texts), max_size=3).map(tuple)
words = st.lists(texts, max_size=3).map(tuple)
mounts: st.SearchStrategy[PlannedMount] = st.one_of(
    st.builds(PlannedBind, target=texts, source=sources, path=texts, readonly=flags),
    st.builds(PlannedTmpfs, target=texts, size=numbers),
    st.builds(PlannedScript, target=texts, content=st.sampled_from([b"", b"a", b"\xff"])),
    st.builds(
        PlannedCache,
        target=texts,
        ident=texts,
        sharing=st.sampled_from(Sharing),
        source=st.none() | sources,
        path=texts,
        readonly=flags,
        mode=numbers,
        uid=numbers,
        gid=numbers,
    ),
    st.builds(PlannedSecret, id=texts, target=st.none() | texts, env=st.none() | texts),
    st.builds(PlannedSsh, id=texts, target=texts),
)
places = {"where": st.just(HERE), "title": texts, "key": texts}
runs = st.builds(
    RunStep,
    **places,
    args=words,
    env=pairs,
    cwd=texts,
    user=texts,
    mounts=st.lists(mounts, max_size=2).map(tuple),
    network=st.sampled_from(Network),
    hostname=texts,
    extra_hosts=st.lists(st.builds(HostEntry, texts, texts), max_size=1).map(tuple),
    shm_size=numbers,
    ulimits=st.lists(
        st.builds(Ulimit, texts, st.integers(0, 1), st.integers(0, 1)), max_size=1
    ).map(tuple),
    insecure=flags,
    cgroup_parent=st.none() | texts,
    proxies=pairs,
)
locations = st.one_of(
    st.builds(WebLocation, url=texts, login=texts, checksum=texts),
    st.builds(GitLocation, remote=texts, login=texts, ref=texts, subdir=texts, keep_git_dir=flags),
)
copies = st.builds(
    CopyStep,
    **places,
    source=sources,
    patterns=words,
    files=st.lists(
        st.builds(InlineFile, texts, st.sampled_from([b"", b"a", b"\xff"])), max_size=1
    ).map(tuple),
    destination=texts,
    chown=st.none() | texts,
    chmod=st.none() | texts,
    exclude=words,
    parents=flags,
    link=flags,
    unpack=flags,
    remotes=st.lists(
        st.builds(PlannedRemote, locations, st.integers(0, 1), unpack=flags), max_size=1
    ).map(tuple),
    instruction=st.sampled_from(["COPY", "ADD"]),
)
workdirs = st.builds(WorkdirStep, **places, path=texts, user=texts)
steps: st.SearchStrategy[Step] = st.one_of(runs, copies, workdirs)
# a busy machine is no fault of the code
patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@patiently
@given(steps, steps)
def test_two_steps_have_the_same_rows_exactly_if_they_have_the_same_key(a: Step, b: Step) -> None:
    assert (step_key("p", a) == step_key("p", b)) == (step_inputs(a) == step_inputs(b))


@patiently
@given(runs, st.data())
def test_so_have_two_runs_that_differ_in_one_thing(step: RunStep, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["args", "env", "cwd", "user", "mounts", "shm_size", "title"]))
    other = replace(step, **{name: getattr(data.draw(runs), name)})
    same = step_key("p", step) == step_key("p", other)
    assert same == (step_inputs(step) == step_inputs(other))


@patiently
@given(copies, st.data())
def test_so_have_two_copies_that_differ_in_one_thing(step: CopyStep, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["source", "patterns", "files", "chown", "remotes", "key"]))
    other = replace(step, **{name: getattr(data.draw(copies), name)})
    same = step_key("p", step) == step_key("p", other)
    assert same == (step_inputs(step) == step_inputs(other))


def test_a_row_is_a_variable_a_mount_or_a_field_by_its_name() -> None:
    step = RunStep(
        where=HERE,
        title="RUN x",
        key="",
        args=("x", 'a "b"'),
        env=(("A", "1"),),
        cwd="/w",
        user="",
        mounts=(PlannedTmpfs("/t", 1),),
    )
    rows = step_inputs(step)
    assert rows[0] == KeyInput(InputKind.FIELD, "kind", "run")
    assert KeyInput(InputKind.VARIABLE, "A", "1") in rows
    assert KeyInput(InputKind.MOUNT, "tmpfs /t", '["tmpfs", "/t", 1]') in rows
    assert KeyInput(InputKind.FIELD, "args", '["x", "a \\"b\\""]') in rows
    assert KeyInput(InputKind.FIELD, "cwd", "/w") in rows
    assert "shm" not in {row.name for row in rows}
