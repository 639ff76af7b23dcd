"""Why steps miss: each cause, told by whole builds on the memory backend."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from building import Recorder, busybox_config, busybox_files, memory_backend, waiting_runner

import pybuild
from pybuild.errors import BuildCancelled, CacheMissed, RunFailed, UsageError
from pybuild.files import statcache
from pybuild.files.trees import MemoryTree, NewEntry
from pybuild.oci.layerindex import Entry, Kind
from pybuild.run import knownkeys
from pybuild.run.activity import CancelToken
from pybuild.run.events import StepFinished, StepMissed, StepStarted
from pybuild.run.miss import CauseKind, Miss
from pybuild.run.progress.plain import miss_text
from pybuild.secrets import Secret
from pybuild.testkit.memory import MemoryBackend, RunOutcome
from pybuild.testkit.workbench import file, symlink

HERE = object()


@dataclass
class Project:
    """A context, and a backend that remembers its builds."""

    folder: Path
    backend: MemoryBackend
    notes: Path
    result: Any = None
    recorder: Recorder = field(default_factory=Recorder)

    def __call__(self, dockerfile: str, context: Any = HERE, **options: Any) -> list[str]:
        """Build; what is told of misses, each with its stage, if that has a name."""
        self.recorder = Recorder()
        self.result = None
        self.result = pybuild.build(
            self.folder if context is HERE else context,
            dockerfile=dockerfile.encode(),
            backend=self.backend,
            reporter=self.recorder,
            **options,
        )
        return self.told

    @property
    def told(self) -> list[str]:
        stages = {started.id: started.stage for started in self.recorder.of(StepStarted)}
        return [
            f"{stages[missed.id]}: {missed.miss}" if stages[missed.id] else str(missed.miss)
            for missed in self.recorder.of(StepMissed)
        ]

    @property
    def misses(self) -> list[Miss | None]:
        """Of each step."""
        return [step.miss for step in self.result.steps]

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self.folder / name).write_text(text)

    @property
    def records(self) -> list[Path]:
        return sorted(path for path in self.notes.glob("builds/**/*") if path.is_file())


@pytest.fixture(params=["every file is looked at", "folders are known by lstat"])
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Project]:
    if "lstat" in request.param:
        monkeypatch.setattr(knownkeys, "FEWEST_FILES", 1)
        monkeypatch.setattr(statcache, "_GRANULARITY", -3600 * 10**9)
    folder, notes = tmp_path / "context", tmp_path / "notes"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "app.py").write_text("1")
    (folder / "other").write_text("other")
    with memory_backend(notes=notes) as backend:
        yield Project(folder, backend, notes)
        assert backend.live_layers == 0


def kinds(miss: Miss | None) -> list[CauseKind]:
    assert miss is not None
    return [cause.kind for cause in miss.causes]


COPY_SRC = "FROM busybox\nCOPY src /app/\nRUN echo made > /made\n"


def test_a_first_build_was_never_built_here_and_tells_it_once_a_stage(project: Project) -> None:
    text = "FROM busybox AS one\nRUN touch /1\nRUN touch /2\nFROM one\nRUN touch /3\n"
    assert project(text) == ["one: never built here", "stage-1: never built here"]
    assert [kinds(miss) for miss in project.misses] == [
        [CauseKind.NEVER_BUILT],
        [CauseKind.STEP_BELOW],
        [CauseKind.NEVER_BUILT],
    ]


def test_a_build_that_misses_nothing_reads_and_writes_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(COPY_SRC)
    before = project.records
    assert len(before) == 1
    monkeypatch.setattr(Path, "iterdir", None)
    assert project(COPY_SRC) == []
    assert project.misses == [None, None]
    assert [step.cached for step in project.result.steps] == [True, True]
    monkeypatch.undo()
    assert project.records == before


def test_the_miss_is_told_before_the_step_runs(project: Project) -> None:
    project(COPY_SRC)
    events = [
        event
        for event in project.recorder.events
        if isinstance(event, StepStarted | StepMissed | StepFinished)
    ]
    at = next(i for i, event in enumerate(events) if isinstance(event, StepMissed))
    assert isinstance(events[at - 1], StepStarted)
    assert isinstance(events[at + 1], StepFinished)
    assert {event.id for event in events[at - 1 : at + 2]} == {events[at].id}


def edit_content(folder: Path) -> None:
    (folder / "src" / "app.py").write_text("2")


def add_file(folder: Path) -> None:
    (folder / "src" / "new.py").write_text("")


def remove_file(folder: Path) -> None:
    (folder / "src" / "app.py").unlink()


def change_mode(folder: Path) -> None:
    (folder / "src" / "app.py").chmod(0o700)


def change_type(folder: Path) -> None:
    remove_file(folder)
    (folder / "src" / "app.py").symlink_to("nowhere")


def edit_two_and_add_one(folder: Path) -> None:
    edit_content(folder)
    add_file(folder)
    change_mode(folder)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (edit_content, "src/app.py changed (content)"),
        (add_file, "src/new.py is new"),
        (remove_file, "src/app.py was removed"),
        (change_mode, "src/app.py changed (mode)"),
        (change_type, "src/app.py changed (type)"),
        (edit_two_and_add_one, "src/app.py changed (content) and 2 more"),
    ],
)
def test_a_changed_file_of_the_context_is_named(
    project: Project, edit: Callable[[Path], None], told: str
) -> None:
    (project.folder / "src" / "app.py").chmod(0o644)
    project(COPY_SRC)
    edit(project.folder)
    assert project(COPY_SRC) == [told]
    first, second = project.misses
    assert first is not None
    assert first.against is not None
    assert kinds(second) == [CauseKind.STEP_BELOW]
    assert project(COPY_SRC) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mode": 0o600}, "/f (mode)"),
        ({"link": b"there"}, "/l (link)"),
        ({"xattrs": (("user.x", b"1"),)}, "/f (attributes)"),
        ({"uid": 7, "gid": 8}, "/f (owner)"),
    ],
)
def test_files_of_a_named_context_are_told_with_its_name(
    project: Project, change: dict[str, Any], told: str
) -> None:
    entries = [file(b"f", b"text"), symlink(b"l", b"here")]
    at = 1 if "link" in change else 0
    text = "FROM scratch\nCOPY --from=docs / /\n"
    project(text, contexts={"docs": MemoryTree(entries)})
    entries[at] = replace(entries[at], entry=replace(entries[at].entry, **change))
    assert project(text, contexts={"docs": MemoryTree(entries)}) == [
        f"files of context docs changed: {told}"
    ]


def test_files_are_named_of_a_step_that_others_had_found(project: Project, tmp_path: Path) -> None:
    stages = "FROM scratch AS files\nCOPY src /app/\nFROM busybox\nCOPY --from=files /app /app\n"
    project(stages)
    (tmp_path / "other").write_text(stages + "RUN echo made > /made\n")
    other = {"backend": project.backend, "dockerfile": tmp_path / "other"}
    pybuild.build(project.folder, **other)
    project.write(**{"src/app.py": "2"})
    recorder = Recorder()
    pybuild.build(project.folder, reporter=recorder, **other)
    told = [str(missed.miss) for missed in recorder.of(StepMissed)]
    assert told[0] == "src/app.py changed (content)"


def test_only_what_a_step_reads_matters(project: Project) -> None:
    project(COPY_SRC)
    project.write(other="changed", unread="new")
    assert project(COPY_SRC) == []


ARGS = "FROM busybox\nARG VERSION=1.2\nENV X=a\nRUN echo $VERSION $X > /made\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (ARGS.replace("1.2", "1.3"), "ARG VERSION 1.2 -> 1.3"),
        (ARGS.replace("X=a", "X=b"), "ENV X a -> b"),
        (ARGS.replace("ENV X=a", "ENV X=a Y=c"), "ENV Y is new (c)"),
        (ARGS.replace("ENV X=a\n", ""), "ENV X was removed (a)"),
        (ARGS.replace("ENV X=a", "ENV X="), 'ENV X a -> ""'),
        (ARGS.replace("ENV X=a", "ENV X=a\nWORKDIR /tmp"), "WORKDIR / -> /tmp"),
        (ARGS.replace("RUN", "USER web\nRUN"), "USER  -> web"),
        (ARGS.replace("made", "other"), "instruction changed"),
        (ARGS.replace("RUN", "RUN true\nRUN"), "instruction is new"),
        (ARGS.replace("ENV", 'SHELL ["/bin/bash", "-c"]\nENV'), "instruction changed (command)"),
        (ARGS.replace("1.2", "2").replace("X=a", "X=b"), "ARG VERSION 1.2 -> 2 and 1 more"),
    ],
)
def test_what_a_run_sees_is_named_when_it_changed(project: Project, text: str, told: str) -> None:
    project(ARGS)
    assert project(text) == [told.replace("USER  ->", 'USER "" ->')]


def test_the_value_of_a_build_arg_is_told(project: Project) -> None:
    project(ARGS)
    assert project(ARGS, build_args={"VERSION": "2.0"}) == ["ARG VERSION 1.2 -> 2.0"]


@pytest.mark.parametrize(
    "text", ["FROM busybox\nARG D=one\nCOPY src /$D\n", "FROM busybox\nARG D=one\nWORKDIR /x/$D\n"]
)
def test_a_variable_that_is_expanded_is_named_too(project: Project, text: str) -> None:
    project(text)
    assert project(text, build_args={"D": "two"}) == ["ARG D one -> two"]


def test_of_long_values_the_part_is_shown_that_differs(project: Project) -> None:
    text = "FROM busybox\nARG LONG\nRUN true\nRUN touch /x\n"
    beginning = "x" * 100
    project(text, build_args={"LONG": f"{beginning}one"})
    (told,) = project(text, build_args={"LONG": f"{beginning}two{'y' * 100}"})
    assert told.startswith("ARG LONG …xxxxxxxxxxone -> …xxxxxxxxxxtwoyyy")
    assert len(told) < 120
    # and where even that is cut off, that they do
    project(text, build_args={"LONG": f"{'x' * 1000}one"})
    assert project(text, build_args={"LONG": f"{'x' * 1000}two"}) == ["ARG LONG changed"]


def test_a_login_in_a_value_is_neither_told_nor_kept(project: Project) -> None:
    text = "FROM busybox\nARG URL\nRUN touch /x\n"
    project(text, build_args={"URL": "https://me:secret1@host/a"})
    told = project(text, build_args={"URL": "https://me:secret2@host/a"})
    assert told == ["ARG URL changed"]
    told = project(text, build_args={"URL": "https://me:secret2@host/b"})
    assert told == ["ARG URL https://***@host/a -> https://***@host/b"]


def test_another_base_under_the_same_name_is_told_by_its_digest(project: Project) -> None:
    text = "FROM busybox\nWORKDIR /tmp\nRUN touch /x\n"
    project(text)
    image = project.backend.add_image("busybox", busybox_config(), [*busybox_files(), file(b"n")])
    assert project(text) == [f"base image busybox:latest now {image.digest[:19]}"]
    project.backend.add_image("busybox", busybox_config(stop_signal="9"), busybox_files())
    assert project(text)[0].startswith("base image busybox:latest now sha256:")


def test_another_base_is_told_by_both_names(project: Project) -> None:
    project.backend.add_image("busybox:2", busybox_config(), [*busybox_files(), file(b"n")])
    project("FROM busybox\nRUN touch /x\n")
    assert project("FROM busybox:2\nRUN touch /x\n") == ["base image busybox:latest -> busybox:2"]
    assert project("FROM busybox AS b\nRUN touch /y\nFROM b\nRUN touch /x\n") == [
        "b: never built here",
        "stage-1: never built here",
    ]
    assert project("FROM busybox AS b\nRUN touch /z\nFROM b\nRUN touch /x\n") == [
        "b: instruction changed",
        "stage-1: stage b below changed",
    ]


def test_an_image_that_files_are_read_from_is_told_by_its_digest(project: Project) -> None:
    text = "FROM scratch\nCOPY --from=tools:1 /t /\n"
    project.backend.add_image("tools:1", busybox_config(), [file(b"t", b"1")])
    project(text)
    image = project.backend.add_image("tools:1", busybox_config(), [file(b"t", b"2")])
    assert project(text) == [f"image tools:1 now {image.digest[:19]} and 1 more"]
    assert kinds(project.misses[0]) == [CauseKind.IMAGE, CauseKind.FILE_CONTENT]


def test_files_of_another_stage_are_told_with_its_name(project: Project) -> None:
    text = (
        "FROM busybox AS build\nCOPY src /src\nRUN cat /src/app.py > /out\n"
        "FROM busybox\nCOPY --from=build /out /bin/app\n"
        "RUN --mount=type=bind,from=build,source=/src,target=/s touch /x\n"
    )
    project(text)
    edit_content(project.folder)
    assert project(text) == [
        "build: src/app.py changed (content)",
        "stage-1: files of stage build changed: /out (content)",
    ]
    last = project.misses[-1]
    assert last is not None
    assert [str(cause) for cause in last.causes] == [
        "an earlier step of the stage was no hit",
        "files of stage build changed: /src/app.py (content)",
    ]


def test_a_stage_that_comes_out_the_same_spreads_no_miss(project: Project) -> None:
    text = "FROM busybox AS build\nCOPY src /src\nRUN echo same > /out\nFROM scratch\nCOPY --from=build /out /\n"
    project(text)
    edit_content(project.folder)
    assert project(text) == ["build: src/app.py changed (content)"]
    assert project.misses[-1] is None


def test_files_of_a_bind_mount_and_of_a_cache_are_named(project: Project) -> None:
    text = (
        "FROM scratch AS seed\nCOPY other /seed/\nFROM busybox\n"
        "RUN --mount=type=bind,target=/src --mount=type=cache,from=seed,source=/seed,target=/c touch /x\n"
    )
    project(text)
    project.write(other="changed")
    assert project(text) == [
        "seed: other changed (content)",
        "stage-1: other changed (content) and 1 more",
    ]
    miss = project.misses[-1]
    assert miss is not None
    assert str(miss.causes[1]) == "files of stage seed changed: /seed/other (content)"


def test_mounts_and_heredocs_are_parts_of_an_instruction(project: Project) -> None:
    project("FROM busybox\nCOPY <<x /f\none\nx\n")
    assert project("FROM busybox\nCOPY <<x /f\ntwo\nx\n") == ["instruction changed (heredoc)"]
    project("FROM busybox\nRUN <<x\ntouch /a\ntouch /1\nx\n")
    assert project("FROM busybox\nRUN <<x\ntouch /a\ntouch /2\nx\n") == [
        "instruction changed (command)"
    ]
    project.backend.runner = lambda *_: RunOutcome(0)  # the simulated shell starts no script
    for number in (1, 2):
        project(f"FROM busybox\nRUN <<x\n#!/bin/sh\ntouch /{number}\nx\n")
    assert project.told == ["instruction changed (mount script /dev/pipes/x)"]


def test_what_the_command_line_says_of_a_run_is_named(project: Project) -> None:
    text = "FROM busybox\nRUN touch /x\n"
    project(text)
    assert project(text, network="none") == ["--network default -> none"]
    assert project(text, shm_size=1 << 20) == ["--shm-size is new (1048576)"]


def test_an_instruction_that_is_gone_is_told(project: Project) -> None:
    project("FROM busybox\nRUN touch /1\nRUN touch /2\nRUN touch /3\n")
    assert project("FROM busybox\nRUN touch /1\nRUN touch /3\n") == [
        "an instruction before it was removed"
    ]
    project("FROM busybox\nRUN touch /4\nCOPY other /\nCOPY src /\n")
    assert project("FROM busybox\nRUN touch /4\nCOPY src /\nCOPY other /\n") == [
        "instruction changed (order of instructions)"
    ]


def test_a_pruned_entry_is_told_as_such(project: Project) -> None:
    project(COPY_SRC)
    with memory_backend(notes=project.notes) as emptied:
        project.backend, old = emptied, project.backend
        assert project(COPY_SRC) == ["entry pruned"]
        project.backend = old


def test_a_failed_step_is_told_of_the_next_time(project: Project) -> None:
    text = "FROM busybox\nRUN touch /a\nRUN exit 3\n"
    for told in ("never built here", "the last run of this step failed"):
        with pytest.raises(RunFailed):
            project(text)
        assert project.told == [told]
    # what is mended is compared with it
    assert project("FROM busybox\nRUN touch /a\nRUN exit 0\n") == ["instruction changed"]


def test_a_cancelled_step_is_told_of_the_next_time(project: Project) -> None:
    started, runner, cancel = threading.Event(), project.backend.runner, CancelToken()
    project.backend.runner = waiting_runner(started)
    canceller = threading.Thread(target=lambda: started.wait(10) and cancel.cancel())
    canceller.start()
    with pytest.raises(BuildCancelled):
        project("FROM busybox\nRUN touch /a\n", cancel=cancel)
    canceller.join()
    project.backend.runner = runner
    assert project("FROM busybox\nRUN touch /a\n") == ["the last run of this step was cancelled"]


def test_steps_that_are_not_sought_say_so_and_without_a_cache_nothing_is_said(
    project: Project,
) -> None:
    text = "FROM busybox AS a\nRUN touch /x\nRUN touch /y\n"
    project(text)
    assert project(text, no_cache_filter=["A"]) == ["a: --no-cache-filter"]
    before = project.records
    assert project(text, no_cache=True) == []
    assert project.misses == [None, None]
    assert project.records == before


def test_a_step_that_changes_nothing_is_no_miss(project: Project) -> None:
    text = "FROM busybox\nWORKDIR /tmp\nRUN touch /x\n"
    assert project(text) == ["never built here"]
    assert [miss is None for miss in project.misses] == [True, False]
    assert project(text) == []
    assert project(text, fail_on_miss=True) == []
    assert project(text.replace("/tmp", "/usr")) == ["WORKDIR /tmp -> /usr"]
    assert project("FROM busybox\nWORKDIR /etc\nCOPY other /x\n") == ["instruction changed"]
    assert project("FROM busybox\nWORKDIR /usr\nCOPY other /x\n") == ["instruction changed"]


def test_of_earlier_builds_the_nearest_counts_and_not_the_last(project: Project) -> None:
    text = "FROM busybox\nARG V=1\nCOPY src /src\nRUN touch /$V\n"
    project(text)
    project(text, build_args={"V": "2"})
    assert project(text) == []
    edit_content(project.folder)
    assert project(text) == ["src/app.py changed (content)"]
    miss = project.misses[-1]
    assert kinds(miss) == [CauseKind.STEP_BELOW]


def test_a_renamed_stage_is_known_by_its_steps(project: Project) -> None:
    text = "FROM busybox AS one\nRUN touch /a\nCOPY src /\n"
    project(text)
    edit_content(project.folder)
    assert project(text.replace("one", "two")) == ["two: src/app.py changed (content)"]


def test_stages_of_several_platforms_tell_for_themselves(project: Project) -> None:
    arm = pybuild.Platform("linux", "arm64")
    project.backend.add_image("busybox", replace(busybox_config(), platform=arm), busybox_files())
    text = (
        "FROM --platform=linux/amd64 busybox AS build\nCOPY src /src\nARG TARGETARCH\n"
        "RUN echo $TARGETARCH > /out\nFROM scratch\nCOPY --from=build /out /\n"
    )
    project(text, platform="linux/amd64,linux/arm64")
    edit_content(project.folder)
    told = project(text, platform="linux/amd64,linux/arm64")
    assert sorted(line.split(" ", 1)[1] for line in told) == [
        "build: an earlier step of the stage was no hit",
        "build: src/app.py changed (content)",
    ]
    assert project(text, platform="linux/amd64,linux/arm64") == []


def test_projects_are_told_apart_by_context_dockerfile_and_platform(project: Project) -> None:
    project(COPY_SRC)
    edit_content(project.folder)
    (project.folder / "Other").write_text(COPY_SRC)
    other = pybuild.build(
        project.folder, dockerfile=project.folder / "Other", backend=project.backend
    )
    assert str(other.steps[0].miss) == "never built here"
    linked = project.folder.parent / "linked"
    linked.symlink_to(project.folder)
    edited = project(COPY_SRC.replace("made", "more"), linked)
    assert edited == ["instruction changed"]


def tar_of(**files: str) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    buffer.seek(0)
    return buffer


def test_a_streamed_context_is_known_by_the_image_s_name(project: Project) -> None:
    text = "FROM scratch\nCOPY a /\n"
    project(text, tar_of(a="1"), tags=["app"])
    assert project(text, tar_of(a="2"), tags=["app"]) == ["a changed (content)"]
    found = pybuild.explain("-", dockerfile=b"", backend=project.backend, tags=["app"])
    assert str(found.stages[0].steps[0].miss) == "a changed (content)"
    assert project(text, tar_of(a="3"), tags=["another"]) == ["never built here"]
    assert project("FROM busybox\nRUN touch /x\n", None) == ["never built here"]
    assert project("FROM busybox\nRUN touch /y\n", None) == ["instruction changed"]


def test_no_value_of_a_secret_is_kept(project: Project) -> None:
    text = "FROM busybox\nRUN --mount=type=secret,id=s,env=S echo $V > /x\n"
    project(text.replace("$V", "1"), secrets={"s": Secret(b"hidden-1")})
    assert project(text.replace("$V", "2"), secrets={"s": Secret(b"hidden-2")}) == [
        "instruction changed"
    ]
    build = pybuild.explain(project.folder, dockerfile=b"", backend=project.backend)
    assert "hidden" not in repr(build)


def test_a_miss_ends_a_build_that_was_to_find_everything(project: Project) -> None:
    project(COPY_SRC)
    assert project(COPY_SRC, fail_on_miss=True) == []
    edit_content(project.folder)
    with pytest.raises(CacheMissed, match=r"src/app\.py changed") as caught:
        project(COPY_SRC, fail_on_miss=True, tags=["app"])
    assert caught.value.exit_code == 1
    assert caught.value.where is not None
    assert caught.value.where.start_line == 2
    assert kinds(caught.value.miss) == [CauseKind.FILE_CONTENT]
    # nothing was made, and the next build knows it
    assert project(COPY_SRC) == ["src/app.py changed (content)"]


def test_stages_may_be_named_in_which_nothing_may_miss(project: Project) -> None:
    text = "FROM busybox AS deps\nCOPY other /o\nFROM deps\nCOPY src /src\n"
    project(text)
    edit_content(project.folder)
    assert project(text, fail_on_miss=["DEPS"]) == ["stage-1: src/app.py changed (content)"]
    add_file(project.folder)
    with pytest.raises(CacheMissed):
        project(text, fail_on_miss=["stage-1"])
    with pytest.raises(CacheMissed):
        project(text, fail_on_miss="stage-1")
    with pytest.raises(UsageError, match='no stage "other"') as caught:
        project(text, fail_on_miss=["deps", "other"])
    assert "deps, stage-1" in str(caught.value)
    with pytest.raises(UsageError, match="no cache"):
        project(text, fail_on_miss=True, no_cache=True)


def test_a_backend_without_a_place_for_notes_tells_what_it_can() -> None:
    with memory_backend() as backend:
        results = [
            pybuild.build(
                None, dockerfile=f"FROM busybox\nRUN touch /{n}\n".encode(), backend=backend
            )
            for n in (1, 2)
        ]
    assert [str(result.steps[0].miss) for result in results] == ["never built here"] * 2


def test_many_changes_are_counted_and_a_hundred_kept(project: Project) -> None:
    for number in range(150):
        (project.folder / "src" / f"{number}").write_text("1")
    project(COPY_SRC)
    for number in range(150):
        (project.folder / "src" / f"{number}").write_text("2")
    assert project(COPY_SRC) == ["src/0 changed (content) and 149 more"]
    miss = project.misses[0]
    assert miss is not None
    assert (len(miss.causes), miss.more) == (100, 50)


def test_two_builds_at_once_both_leave_a_record(project: Project) -> None:
    project(COPY_SRC)
    barrier = threading.Barrier(2)

    def work(number: int) -> None:
        barrier.wait(10)
        pybuild.build(
            project.folder,
            dockerfile=f"{COPY_SRC}RUN touch /{number}\n".encode(),
            backend=project.backend,
        )

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(project.records) == 3
    assert project(f"{COPY_SRC}RUN touch /3\n") == ["instruction changed"]


def test_odd_names_of_files_are_told_in_one_safe_line(project: Project) -> None:
    tree = [NewEntry(Entry(b"a\n\x1b[2J\xff", Kind.SYMLINK, link=b"1"))]
    text = "FROM scratch\nCOPY --from=c / /\n"
    project(text, contexts={"c": MemoryTree(tree)})
    tree[0] = NewEntry(replace(tree[0].entry, link=b"2"))
    (told,) = project(text, contexts={"c": MemoryTree(tree)})
    assert told.endswith("(link)")
    line = miss_text(project.recorder.of(StepMissed)[0])
    assert line.isprintable()
    assert line.startswith("miss: files of context c changed: /a")
