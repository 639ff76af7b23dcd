from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from building import NoActivity, image_of, memory_backend

from pybuild.backend import (
    BindMount,
    CacheMount,
    HostEntry,
    Network,
    ROLayer,
    SecretMount,
    Sharing,
    SshMount,
    TmpfsMount,
    Ulimit,
    User,
)
from pybuild.errors import RunFailed, SourceRange, StepFailed
from pybuild.files.trees import MemoryTree
from pybuild.oci.layerindex import Entry, Kind
from pybuild.plan.steps import (
    ContextSource,
    CopyStep,
    ImageSource,
    InlineFile,
    PlannedBind,
    PlannedCache,
    PlannedScript,
    PlannedSecret,
    PlannedSsh,
    PlannedTmpfs,
    RunStep,
    StageSource,
    Step,
    WorkdirStep,
)
from pybuild.run.activity import CancelToken, Events
from pybuild.run.execute import (
    Prepared,
    PreparedFiles,
    PreparedRun,
    SourceFiles,
    describe_source,
    perform,
    prepare,
)
from pybuild.run.lending import Lent
from pybuild.secrets import Secret
from pybuild.testkit.memory import MemoryBackend
from pybuild.testkit.toyshell import RunOutcome
from pybuild.testkit.workbench import file, folder, symlink

WHERE = SourceRange("Dockerfile", 2, 2)
CREATED = 1_000_000
CONTEXT = MemoryTree(
    [
        file(b"a.txt", b"alpha", mtime=5),
        folder(b"sub"),
        file(b"sub/b.txt", b"beta"),
        symlink(b"link", b"sub"),
        symlink(b"out", b"../../etc/passwd"),
    ]
)


@pytest.fixture
def backend() -> Iterator[MemoryBackend]:
    with memory_backend() as made:
        yield made


@pytest.fixture
def layer(backend: MemoryBackend) -> Iterator[ROLayer]:
    with backend.checkout(image_of(backend, "busybox"), NoActivity()) as made:
        yield made


def prepared(step: Step, layer: ROLayer, lent: Lent | None = None) -> Prepared:
    def open_source(source: Any) -> Any:
        return (
            SourceFiles(CONTEXT)
            if isinstance(source, ContextSource)
            else SourceFiles(layer.tree(), layer)
        )

    return prepare(step, layer, open_source, CREATED, lent or Lent())


def run_step(**members: Any) -> RunStep:
    known = {"args": ("x",), "env": (), "cwd": "/", "user": ""}
    return RunStep(where=WHERE, title="RUN x", key="k", **{**known, **members})


def copy_step(**members: Any) -> CopyStep:
    known = {"source": ContextSource(), "patterns": (), "files": (), "destination": "/"}
    return CopyStep(where=WHERE, title="COPY", key="k", **{**known, **members})


def workdir(path: str, user: str = "") -> WorkdirStep:
    return WorkdirStep(where=WHERE, title="WORKDIR", key="k", path=path, user=user)


def entries(step: Step, layer: ROLayer) -> list[Entry]:
    made = prepared(step, layer)
    assert isinstance(made, PreparedFiles)
    return [new.entry for new in made.entries]


# WORKDIR


def test_a_workdir_makes_all_missing_folders_for_its_user(layer: ROLayer) -> None:
    made = entries(workdir("/srv/app", "web"), layer)
    assert made == [
        Entry(path, Kind.DIRECTORY, mode=0o755, uid=101, gid=102, mtime=CREATED)
        for path in (b"srv", b"srv/app")
    ]


@pytest.mark.parametrize(
    ("user", "owner"),
    [
        ("", (0, 0)),
        ("web", (101, 102)),
        ("web:extra", (101, 103)),
        ("7", (7, 7)),
        ("7:8", (7, 8)),
        ("nobody-here", (0, 0)),
    ],
)
def test_a_workdir_belongs_to_whom_buildkit_gives_it(layer: ROLayer, user: Any, owner: Any) -> None:
    (made,) = entries(workdir("/new", user), layer)
    assert (made.uid, made.gid) == owner


def test_a_workdir_that_exists_changes_nothing(layer: ROLayer) -> None:
    assert entries(workdir("/tmp", "web"), layer) == []
    assert entries(workdir("/", "web"), layer) == []


def test_a_workdir_is_made_where_symlinks_lead(layer: ROLayer) -> None:
    assert [entry.path for entry in entries(workdir("/bin/new"), layer)] == [b"usr/bin/new"]


@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/passwd/below"])
def test_a_workdir_on_a_file_is_refused(layer: ROLayer, path: Any) -> None:
    with pytest.raises(StepFailed):
        entries(workdir(path), layer)


# RUN


def test_a_run_gets_numbers_for_its_user_and_all_that_was_planned(layer: ROLayer) -> None:
    made = prepared(
        run_step(
            args=("/bin/sh", "-c", "x"),
            env=(("A", "1"),),
            cwd="/tmp",
            user="web",
            network=Network.NONE,
            hostname="h",
            extra_hosts=(HostEntry("a", "1.2.3.4"),),
            shm_size=5,
            ulimits=(Ulimit("core", 0, 0),),
        ),
        layer,
    )
    assert isinstance(made, PreparedRun)
    process = made.process()
    assert process.user == User(101, 102, (102, 103))
    assert (process.args, process.env, process.cwd) == (
        ("/bin/sh", "-c", "x"),
        (("A", "1"),),
        "/tmp",
    )
    assert (process.network, process.hostname, process.shm_size) == (Network.NONE, "h", 5)
    assert process.extra_hosts == (HostEntry("a", "1.2.3.4"),)
    assert process.ulimits == (Ulimit("core", 0, 0),)


def test_an_unknown_user_is_refused(layer: ROLayer) -> None:
    made = prepared(run_step(user="stranger"), layer)
    assert isinstance(made, PreparedRun)
    with pytest.raises(StepFailed, match="stranger"):
        made.process()


def test_mounts_have_resolved_sources(layer: ROLayer) -> None:
    made = prepared(
        run_step(
            mounts=(
                PlannedBind("/a", ContextSource(), "link/b.txt", True),
                PlannedBind("/all", ContextSource(), "/", False),
                PlannedBind("/stage", StageSource(0), "/bin", True),
                PlannedTmpfs("/t", 10),
                PlannedScript("/script", b"#!/x\n"),
            )
        ),
        layer,
    )
    assert isinstance(made, PreparedRun)
    one, everything, stage, tmpfs, script = made.mounts
    assert one == BindMount("/a", CONTEXT, b"sub/b.txt", True, None)
    assert everything == BindMount("/all", CONTEXT, b"", False, None)
    assert isinstance(stage, BindMount)
    assert (stage.path, stage.layer) == (b"usr/bin", layer)
    assert tmpfs == TmpfsMount("/t", 10)
    assert isinstance(script, BindMount)
    entry = script.tree.get(script.path)
    assert entry is not None
    assert entry.mode == 0o755
    with script.tree.open(script.path) as stream:
        assert stream.read() == b"#!/x\n"


def test_caches_that_begin_or_belong_otherwise_have_other_ids(layer: ROLayer) -> None:
    plain = PlannedCache("/c", "i", Sharing.SHARED, None, "", False, None, None, None)
    mounts = (
        plain,
        replace(plain, target="/d", sharing=Sharing.LOCKED, readonly=True),
        replace(plain, path="a/b"),
        replace(plain, uid=0),
        replace(plain, mode=0o700),
        replace(plain, source=StageSource(1)),
        replace(plain, source=ContextSource()),
        replace(plain, source=ContextSource(), path="sub"),
        replace(plain, source=ContextSource(), path="link"),
    )
    made = prepared(run_step(mounts=mounts), layer)
    assert isinstance(made, PreparedRun)
    caches = [mount for mount in made.mounts if isinstance(mount, CacheMount)]
    idents = [mount.ident for mount in caches]
    assert idents[:3] == ["i", "i", "i"]
    assert len(set(idents)) == 6
    assert idents[-1] == idents[-2]
    assert [mount.inside for mount in caches[:3]] == [b"", b"", b"a/b"]
    assert caches[7] == CacheMount("/c", idents[7], tree=CONTEXT, path=b"sub")
    assert (caches[3].mode, caches[4].mode) == (0o755, 0o700)


def test_a_cache_begins_with_a_folder_only(layer: ROLayer) -> None:
    cache = PlannedCache(
        "/c", "i", Sharing.SHARED, ContextSource(), "a.txt", False, None, None, None
    )
    with pytest.raises(StepFailed, match="is no folder"):
        prepared(run_step(mounts=(cache,)), layer)


def test_what_is_lent_is_shown_and_what_is_not_is_left_out(layer: ROLayer) -> None:
    both = PlannedSecret("s", "/s", "TOKEN", False, 0o440, 1, 2)
    agent = PlannedSsh("default", "/agent", False, 0o600, 0, 0)
    step = run_step(env=(("TOKEN", "shown"), ("A", "1")), mounts=(both, agent))
    without = prepared(step, layer)
    assert isinstance(without, PreparedRun)
    assert (without.mounts, without.process().secret_env) == ((), ())
    assert without.process().env == step.env
    lent = Lent({"s": Secret(b"canary\n")}, {"default": Path("/run/agent")})
    made = prepared(step, layer, lent)
    assert isinstance(made, PreparedRun)
    assert made.mounts == (
        SecretMount("/s", b"canary\n", 0o440, 1, 2),
        SshMount("/agent", Path("/run/agent")),
    )
    assert made.process().secret_env == (("TOKEN", "canary\n"),)
    assert made.process().env == (("A", "1"),)
    assert "canary" not in f"{made!r} {lent!r}"


def test_a_secret_with_a_nul_is_no_variable(layer: ROLayer) -> None:
    step = run_step(mounts=(PlannedSecret("s", None, "S", False, 0o400, 0, 0),))
    with pytest.raises(StepFailed, match="NUL"):
        prepared(step, layer, Lent({"s": Secret(b"a\0b")}))


def test_certificates_are_shown_with_the_images_own(backend: MemoryBackend) -> None:
    bundle = b"etc/ssl/certs/ca-certificates.crt"
    folders = [folder(b"etc"), folder(b"etc/ssl"), folder(b"etc/ssl/certs")]
    backend.add_image("certified", None, [*folders, file(bundle, b"own")])
    backend.add_image("hostile", None, [*folders, symlink(bundle, b"../../../../etc/shadow")])
    for name, content in (("certified", b"own\nlent\n"), ("hostile", b"lent\n")):
        with backend.checkout(image_of(backend, name), NoActivity()) as layer:
            step = run_step(env=(("PIP_CERT", "/mine"),))
            made = prepared(step, layer, Lent(ca=b"lent\n"))
            assert isinstance(made, PreparedRun)
            mount, of_apt = made.mounts
            assert isinstance(mount, SecretMount)
            assert isinstance(of_apt, SecretMount)
            assert (mount.content, mount.mode) == (content, 0o444)
            env = dict(made.process().env)
            assert (env["SSL_CERT_FILE"], env["PIP_CERT"]) == (mount.target, "/mine")
            assert env["APT_CONFIG"] == of_apt.target
            assert mount.target.encode() in of_apt.content


@pytest.mark.parametrize("path", ["nowhere", "sub/nowhere", "out", "../../etc/passwd"])
def test_a_mount_of_what_is_not_there_is_refused_and_never_leaves_the_source(
    layer: ROLayer, path: Any
) -> None:
    with pytest.raises(StepFailed, match="not found in the build context"):
        prepared(run_step(mounts=(PlannedBind("/a", ContextSource(), path, True),)), layer)


def test_a_run_that_fails_is_not_committed_and_tells_its_command(
    backend: MemoryBackend, layer: ROLayer
) -> None:
    backend.runner = lambda process, tree, mounts, activity: (
        activity.log(1, b"out\n") or RunOutcome(4)
    )
    before = backend.live_layers
    step = prepared(run_step(args=("/bin/sh", "-c", 'echo "a"')), layer)
    with pytest.raises(RunFailed) as caught, Events(None).unit("RUN", CancelToken()) as activity:
        perform(step, layer, "key", activity)
    assert caught.value.message == (
        'process "/bin/sh -c echo \\"a\\"" did not complete successfully: exit code: 4'
    )
    assert caught.value.output == ("out",)
    assert backend.live_layers == before
    assert backend.lookup("key") is None


def test_a_step_that_changes_nothing_begins_no_layer(layer: ROLayer) -> None:
    with Events(None).unit("WORKDIR", CancelToken()) as activity:
        assert perform(PreparedFiles(()), layer, None, activity) is None


def test_a_commit_is_found_by_its_key(backend: MemoryBackend, layer: ROLayer) -> None:
    with Events(None).unit("WORKDIR", CancelToken()) as activity:
        made = perform(prepared(workdir("/new"), layer), layer, "key", activity)
    assert made is not None
    found = backend.lookup("key")
    assert found is not None
    assert found.diffs == made.diffs
    made.release()
    found.release()


# COPY


def test_a_copy_lands_where_symlinks_of_the_image_lead(layer: ROLayer) -> None:
    made = entries(copy_step(patterns=("a.txt",), destination="/bin/"), layer)
    assert [(entry.path, entry.uid, entry.mtime) for entry in made] == [(b"usr/bin/a.txt", 0, 5)]


def test_a_copy_takes_owner_and_mode_by_the_image_s_names(layer: ROLayer) -> None:
    (made,) = entries(
        copy_step(patterns=("a.txt",), destination="/tmp/", chown="web:extra", chmod="600"), layer
    )
    assert (made.uid, made.gid, made.mode) == (101, 103, 0o600)


def test_heredocs_are_files_of_their_names_even_with_glob_characters(layer: ROLayer) -> None:
    made = entries(
        copy_step(
            patterns=("a.txt",),
            files=(InlineFile("b*", b"1"), InlineFile("a.txt", b"later wins")),
            destination="/tmp/",
        ),
        layer,
    )
    assert {entry.path: (entry.size, entry.mode) for entry in made} == {
        b"tmp/a.txt": (10, 0o644),
        b"tmp/b*": (1, 0o644),
    }


def test_a_copy_of_a_missing_file_names_it(layer: ROLayer) -> None:
    with pytest.raises(StepFailed, match="nowhere"):
        entries(copy_step(patterns=("nowhere",)), layer)


def test_sources_have_names_for_messages(layer: ROLayer) -> None:
    with memory_backend() as backend:
        image = image_of(backend, "busybox")
    assert [
        describe_source(source)
        for source in (
            ContextSource(),
            ContextSource("docs"),
            StageSource(1),
            ImageSource(None),
            ImageSource(image),
        )
    ] == [
        "the build context",
        'the named context "docs"',
        "the stage",
        "scratch",
        "the image docker.io/library/busybox",
    ]


def test_scratch_has_no_users_but_numbers_work() -> None:
    with MemoryBackend() as backend, backend.checkout(None, NoActivity()) as scratch:
        (made,) = entries(copy_step(patterns=("a.txt",), chown="5:6"), scratch)
        assert (made.uid, made.gid) == (5, 6)
