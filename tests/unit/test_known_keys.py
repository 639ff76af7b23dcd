"""Steps whose key is known by what lstat says of a folder: nothing is missed, nothing is read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from building import build, memory_backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from editing import edit, same_size_and_time, wait_for_the_clock
from pybuild.files import statcache
from pybuild.run import knownkeys, onestep
from pybuild.testkit.memory import MemoryBackend

AGED = -3600 * 10**9
COPY = "FROM scratch\nCOPY src /app/\n"


@dataclass
class Project:
    """A context, and a backend that remembers its builds."""

    folder: Path
    notes: Path
    backend: MemoryBackend
    prepared: list[object] = field(default_factory=list)
    """The steps that were looked at closely."""

    def build(self, dockerfile: str = COPY, **options: Any) -> int:
        """How many steps were looked at closely, of an image that is as it has to be."""
        self.prepared.clear()
        result = build(self.backend, dockerfile, self.folder, created=0, **options)
        looked = len(self.prepared)
        with memory_backend() as fresh:
            right = build(fresh, dockerfile, self.folder, created=0, **options)
        assert result.digest == right.digest
        return looked

    def keys(self) -> list[Path]:
        return sorted((self.notes / knownkeys.FOLDER).glob("*"))


@pytest.fixture
def aged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough time has passed since the files were made."""
    monkeypatch.setattr(statcache, "_GRANULARITY", AGED)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.setattr(knownkeys, "FEWEST_FILES", 1)
    folder = tmp_path / "context"
    (folder / "src" / "inner").mkdir(parents=True)
    (folder / "src" / "one").write_bytes(b"first")
    (folder / "src" / "inner" / "two").write_bytes(b"second")
    (folder / "src" / "link").symlink_to("one")
    (folder / "other").write_bytes(b"other")
    with memory_backend(notes=tmp_path / "notes") as backend:
        project = Project(folder, tmp_path / "notes", backend)
        really = onestep.prepare

        def prepare(*words: Any) -> Any:
            project.prepared.append(words[0])
            return really(*words)

        monkeypatch.setattr(onestep, "prepare", prepare)
        yield project
        assert backend.live_layers == 0


@pytest.mark.usefixtures("aged")
@pytest.mark.parametrize(
    "dockerfile",
    [
        COPY,
        "FROM scratch\nCOPY . /\n",
        "FROM scratch\nADD src/./inner/ other /app/\n",
        "FROM scratch\nCOPY --chown=1:2 --chmod=755 --link src /app\n",
        "FROM busybox\nRUN --mount=type=bind,source=src,target=/src echo 1 > /made\n",
        "FROM busybox\nRUN --mount=type=bind,target=/c --mount=type=cache,target=/d echo > /made\n",
    ],
)
def test_a_folder_that_is_as_it_was_is_not_looked_at_closely(
    project: Project, dockerfile: str
) -> None:
    assert project.build(dockerfile) == 1
    assert len(project.keys()) == 1
    assert project.build(dockerfile) == 0


@pytest.mark.usefixtures("aged")
def test_contexts_with_names_are_known_as_well(project: Project) -> None:
    dockerfile = "FROM scratch\nCOPY --from=docs . /docs/\n"
    contexts = {"docs": project.folder / "src"}
    assert project.build(dockerfile, contexts=contexts) == 1
    assert project.build(dockerfile, contexts=contexts) == 0
    assert project.build(dockerfile, contexts={"docs": project.folder}) == 1


@pytest.mark.usefixtures("aged")
@pytest.mark.parametrize(
    "dockerfile",
    [
        "FROM scratch\nCOPY other /\n",
        "FROM scratch\nCOPY s*c /app/\n",
        "FROM scratch\nCOPY --exclude=one src /app/\n",
        "FROM scratch\nCOPY --parents src/inner /app/\n",
        "FROM scratch\nCOPY linked /app/\n",
        "FROM scratch\nCOPY linked/inner /app/\n",
        "FROM scratch AS a\nCOPY other /x/\nFROM scratch\nCOPY --from=a /x /app/\n",
        "FROM busybox\nRUN --mount=type=bind,target=/c --mount=type=bind,from=busybox,target=/d :\n",
    ],
)
def test_what_else_decides_is_looked_at_each_time(project: Project, dockerfile: str) -> None:
    (project.folder / "linked").symlink_to("src")
    looked = project.build(dockerfile)
    assert project.build(dockerfile) == looked > 0
    assert project.keys() == []


def test_what_was_just_changed_is_not_believed(project: Project) -> None:
    assert [project.build() for _ in range(2)] == [1, 1]
    assert project.keys() == []


def test_few_files_are_not_worth_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statcache, "_GRANULARITY", AGED)
    monkeypatch.setattr(knownkeys, "FEWEST_FILES", 100)
    assert [project.build() for _ in range(2)] == [1, 1]
    for number in range(100):
        (project.folder / "src" / f"{number}").touch()
    assert [project.build() for _ in range(2)] == [1, 0]


def rewrite(folder: Path) -> None:
    same_size_and_time(folder / "one")


def exchange(folder: Path) -> None:
    one, two = folder / "one", folder / "inner" / "two"
    one.replace(folder / "x")
    two.replace(one)
    (folder / "x").replace(two)


def aim_elsewhere(folder: Path) -> None:
    (folder / "link").unlink()
    (folder / "link").symlink_to("two")


def become_a_link(folder: Path) -> None:
    (folder / "inner").replace(folder / "elsewhere")
    (folder / "inner").symlink_to("elsewhere")


def swap_the_whole_folder(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("copy"), symlinks=True)
    (folder.with_name("copy") / "inner" / "two").write_bytes(b"SECOND")
    folder.replace(folder.with_name("old"))
    folder.with_name("copy").replace(folder)


CHANGES = [
    rewrite,
    exchange,
    aim_elsewhere,
    become_a_link,
    swap_the_whole_folder,
    lambda folder: (folder / "one").chmod(0o600),
    lambda folder: (folder / "inner").chmod(0o700),
    lambda folder: (folder / "one").rename(folder / "eno"),
    lambda folder: (folder / "inner" / "two").unlink(),
    lambda folder: (folder / "inner" / "new").mkdir(),
    lambda folder: os.link(folder / "one", folder / "inner" / "one"),
    lambda folder: os.mkfifo(folder / "pipe"),
]


@pytest.mark.usefixtures("aged")
@pytest.mark.parametrize("change", CHANGES)
def test_no_change_is_missed(project: Project, change: Callable[[Path], object]) -> None:
    project.build()
    wait_for_the_clock(project.folder)
    change(project.folder / "src")
    assert project.build() == 1
    assert project.build() == 0


@pytest.mark.usefixtures("aged")
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["write", "move", "drop"]))))
def test_builds_see_what_is_there_whatever_was_done(
    project: Project, edits: list[tuple[str, str]]
) -> None:
    folder = project.folder / "src"
    for count, (name, how) in enumerate(edits):
        edit(folder / name, how, count, folder / "inner" / name)
        assert project.build() == 1
    project.build()
    assert project.build() == 0


@pytest.mark.usefixtures("aged")
def test_a_file_changed_between_look_and_reading_is_seen_by_the_next_build(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = knownkeys.KnownKey.of

    def of(*words: Any) -> Any:
        known = really(*words)
        wait_for_the_clock(project.folder)
        rewrite(project.folder / "src")  # what the reader can't notice
        return known

    with monkeypatch.context() as patched:
        patched.setattr(knownkeys.KnownKey, "of", of)
        build(project.backend, COPY, project.folder, created=0)
    wait_for_the_clock(project.folder)
    rewrite(project.folder / "src")
    assert project.build() == 1


@pytest.mark.usefixtures("aged")
def test_what_is_excluded_counts_by_the_patterns_alone(project: Project) -> None:
    ignore = project.folder / ".dockerignore"
    dockerfile = "FROM scratch\nCOPY src /app/\n"
    ignore.write_text("src/inner\n")
    assert [project.build(dockerfile) for _ in range(2)] == [1, 0]
    (project.folder / "src" / "inner" / "new").write_bytes(b"new")
    assert project.build(dockerfile) == 0
    ignore.write_text("src/inner\n!src/inner/new\n")
    assert [project.build(dockerfile) for _ in range(2)] == [1, 0]
    (project.folder / "src" / "inner" / "new").write_bytes(b"newer")
    assert project.build(dockerfile) == 1
    ignore.unlink()
    assert project.build(dockerfile) == 1


@pytest.mark.usefixtures("aged")
def test_the_step_below_counts(project: Project) -> None:
    dockerfile = "FROM busybox\nRUN echo {} > /below\nCOPY src /app/\n"
    assert project.build(dockerfile.format(1)) == 2
    assert project.build(dockerfile.format(1)) == 1
    assert project.build(dockerfile.format(2)) == 2


@pytest.mark.usefixtures("aged")
def test_what_the_backend_has_forgotten_is_made_again(project: Project) -> None:
    project.build()
    with memory_backend(notes=project.notes) as other:
        project.backend, kept = other, project.backend
        assert project.build() == 1
        assert project.build() == 0
        project.backend = kept


@pytest.mark.usefixtures("aged")
def test_a_step_that_is_to_be_made_anew_is(project: Project) -> None:
    dockerfile = "FROM scratch AS app\nCOPY src /app/\n"
    project.build(dockerfile)
    assert project.build(dockerfile, no_cache=True) == 1
    assert project.build(dockerfile, no_cache_filter=["app"]) == 1
    assert project.build(dockerfile) == 0


@pytest.mark.usefixtures("aged")
@pytest.mark.parametrize("damage", [b"", b"x" * 63, b"\xff" * 64, b"0" * 64])
def test_what_is_damaged_counts_as_nothing(project: Project, damage: bytes) -> None:
    project.build()
    project.keys()[0].write_bytes(damage)
    assert project.build() == 1
    assert project.build() == 0


@pytest.mark.usefixtures("aged")
def test_a_build_goes_on_where_nothing_can_be_kept(project: Project) -> None:
    project.notes.write_bytes(b"in the way")
    assert [project.build() for _ in range(2)] == [1, 1]


@pytest.mark.usefixtures("aged")
def test_keys_do_not_pile_up(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knownkeys, "MOST_KEYS", 4)
    for number in range(12):
        (project.folder / "src" / "one").write_bytes(b"%d" % number)
        project.build()
        assert len(project.keys()) <= 4
    assert project.build() == 0
