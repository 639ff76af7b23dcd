"""Records of builds: what is kept comes back, what is damaged is as if it weren't there."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from building import memory_backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pybuild
from pybuild.oci.layerindex import Entry, Kind
from pybuild.run.explaining import records
from pybuild.run.explaining.comparing import explain
from pybuild.run.explaining.documents import document_of, read_document
from pybuild.run.explaining.filerows import FileRows, differences, rows_of, unpack
from pybuild.run.explaining.recorded import RecordedBuild
from pybuild.run.explaining.records import Records
from pybuild.run.miss import CauseKind
from pybuild.testkit.memory import MemoryBackend

TEXT = (
    b"FROM busybox AS a\nARG V=1\nCOPY src /src\nRUN echo $V > /out\n"
    b"FROM a\nRUN --mount=type=bind,from=a,target=/m touch /x\n"
)
# a busy machine is no fault of the code
patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
EMPTY = RecordedBuild(datetime.now(UTC), "succeeded", "", "linux/amd64", ())


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


@pytest.fixture
def backend(notes: Path) -> Iterator[MemoryBackend]:
    with memory_backend(notes=notes) as made:
        yield made


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "file").write_text("1")
    return folder


def build(backend: MemoryBackend, context: Path, text: bytes = TEXT, **options: Any) -> list[str]:
    result = pybuild.build(context, dockerfile=text, backend=backend, **options)
    return [str(step.miss) for step in result.steps if step.miss is not None]


def record_of(notes: Path) -> Path:
    (path,) = (path for path in notes.rglob("*") if path.is_file())
    return path


def edit(context: Path) -> None:
    (context / "src" / "file").write_text(os.urandom(8).hex())


# What is kept


def test_a_build_comes_back_as_it_was(backend: MemoryBackend, notes: Path, context: Path) -> None:
    build(backend, context)
    edit(context)
    build(backend, context)
    found = pybuild.explain(context, dockerfile=b"", backend=backend)
    assert (found.outcome, found.target, found.platforms) == ("succeeded", "", "linux/amd64")
    assert [stage.label for stage in found.stages] == ["a", "stage-1"]
    first = found.stages[0]
    assert [(step.title, step.line) for step in first.steps] == [
        ("COPY src /src", 3),
        ("RUN echo $V > /out", 4),
    ]
    assert first.steps[0].miss is not None
    assert first.steps[0].miss.causes[0].name == "src/file"
    rows = first.steps[0].files[""].rows()
    assert rows is not None
    assert set(rows.rows) == {b"/src", b"src/file"}
    (folder,) = (notes / records.FOLDER).iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())


@patiently
@given(st.dictionaries(st.binary(max_size=9).filter(lambda b: b"\0" not in b), st.integers(0, 99)))
def test_rows_of_files_come_back_as_they_were(paths: dict[bytes, int]) -> None:
    entries = [
        Entry(path, tuple(Kind)[n % 6], n, n, 2**32 - 1 - n, link=b"x" * (n % 3), device=(n % 2, 0))
        for path, n in paths.items()
    ]
    rows = rows_of(entries, list(paths))
    found = unpack(rows.packed(), rows.digest)
    assert found == rows
    assert found.digest == rows.digest
    assert unpack(rows.packed(), f"0{rows.digest[1:]}" if rows.digest[0] != "0" else "1") is None
    assert list(differences(rows, found, "")) == []


def test_a_large_context_is_kept_in_less_than_two_megabytes() -> None:
    entries = [
        Entry(
            f"app/module-{n // 100}/file-{n}.py".encode(),
            Kind.FILE,
            digest=f"sha256:{sha256(b'%d' % n).hexdigest()}",
        )
        for n in range(20_000)
    ]
    rows = rows_of(entries, [entry.path for entry in entries])
    assert len(rows.packed()) < 500_000


def test_so_many_builds_of_so_many_projects_are_kept(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MOST_PROJECTS", 3)
    for project in range(5):
        for _ in range(records.MOST_BUILDS + 2):
            Records.of(notes, f"{project}").add(EMPTY)
    folders = list((notes / records.FOLDER).iterdir())
    assert len(folders) == 3
    assert {len(list(folder.iterdir())) for folder in folders} == {records.MOST_BUILDS}
    assert Records.of(notes, "0").newest() == []
    assert Records.of(notes, "4").newest() == [EMPTY] * records.MOST_BUILDS


def test_all_records_together_have_a_bound_too(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Records.of(notes, "first").add(EMPTY)
    size = record_of(notes).stat().st_size
    monkeypatch.setattr(records, "_MOST_IN_ALL", 3 * size)
    for project in ("first", "second", "third"):
        for _ in range(2):
            Records.of(notes, project).add(EMPTY)
    kept = [len(Records.of(notes, name).newest()) for name in ("first", "second", "third")]
    assert kept == [0, 1, 2]


def test_what_a_killed_build_left_half_written_goes_in_its_turn(notes: Path) -> None:
    Records.of(notes, "x").add(EMPTY)
    folder = record_of(notes).parent
    (folder / ".new-left").write_bytes(b"half")
    os.utime(folder / ".new-left", (1, 1))
    assert Records.of(notes, "x").newest() == [EMPTY]
    for _ in range(records.MOST_BUILDS):
        Records.of(notes, "x").add(EMPTY)
    assert not (folder / ".new-left").exists()


def test_files_beyond_the_bound_of_a_record_are_told_without_names(
    backend: MemoryBackend, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_MOST_BYTES", 10)
    build(backend, context)
    edit(context)
    assert build(backend, context)[0] == "files changed"


def test_what_a_step_reads_beyond_all_bounds_is_told_without_names(
    backend: MemoryBackend, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pybuild.run.misses._MOST_FILES", 0)
    build(backend, context)
    edit(context)
    assert build(backend, context)[0] == "files changed"


def test_a_record_whose_head_is_too_large_is_not_kept(
    backend: MemoryBackend, notes: Path, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_MOST_HEAD", 10)
    build(backend, context)
    assert [path for path in notes.rglob("*") if path.is_file()] == []


def test_where_nothing_can_be_written_a_build_goes_on(
    backend: MemoryBackend, notes: Path, context: Path
) -> None:
    notes.write_text("no folder")
    assert build(backend, context)[0] == "never built here"
    edit(context)
    assert build(backend, context)[0] == "never built here"
    assert notes.read_text() == "no folder"


# What is damaged


def test_every_damaged_byte_is_found_and_the_build_goes_on(
    backend: MemoryBackend, notes: Path, context: Path
) -> None:
    build(backend, context)
    path = record_of(notes)
    content = path.read_bytes()
    edit(context)
    for at in range(0, len(content), 37):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with memory_backend(notes=notes) as other:
            told = build(other, context)[0]
        assert told in {"never built here", "files changed", "src/file changed (content)"}
        newer = [each for each in path.parent.iterdir() if each != path]
        for each in newer:
            each.unlink()


@pytest.mark.parametrize("content", [b"", b"\0", b"pybuild build record 1\n", os.urandom(5000)])
def test_a_file_that_is_no_record_is_as_if_it_were_not_there(
    backend: MemoryBackend, notes: Path, context: Path, content: bytes
) -> None:
    build(backend, context)
    path = record_of(notes)
    for size in (0, 10, len(content)):
        path.write_bytes(content[:size])
        assert Records(path.parent).newest() == []
    path.unlink()
    path.mkdir()
    assert Records(path.parent).newest() == []


def test_a_record_that_is_cut_short_or_goes_away_has_no_files(
    backend: MemoryBackend, notes: Path, context: Path
) -> None:
    build(backend, context)
    path = record_of(notes)
    (found,) = Records(path.parent).newest()
    files = found.stages[0].steps[0].files[""]
    assert files.rows() is not None
    content = path.read_bytes()
    path.write_bytes(content[:-300])
    assert files.rows() is None
    path.unlink()
    assert files.rows() is None


def test_a_head_that_unpacks_to_very_much_is_refused(notes: Path) -> None:
    notes.mkdir()
    head = zlib.compress(b" " * 50_000_000, 9)
    fixed = records._FIXED.pack(records._MAGIC, sha256(head).digest(), len(head))
    (notes / "1").write_bytes(fixed + head)
    assert Records(notes).newest() == []


@patiently
@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader_of_rows(content: bytes) -> None:
    digest = sha256(content).hexdigest()[:32]
    assert unpack(content, digest) is None
    found = unpack(zlib.compress(content), digest)
    assert found is None or isinstance(found, FileRows)


def test_rows_that_unpack_to_very_much_are_refused() -> None:
    content = b"\xff\xff\xff\x00" * 20_000_000
    assert unpack(zlib.compress(content, 1), sha256(content).hexdigest()[:32]) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "x", "cached", "arg"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["began", "steps", "miss", "causes", "files"]), inner)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """That of a build with all that a record can have."""
    folder = tmp_path_factory.mktemp("document")
    context = folder / "context"
    (context / "src").mkdir(parents=True)
    edit(context)
    with memory_backend(notes=folder / "notes") as backend:
        build(backend, context)
        edit(context)
        build(backend, context, build_args={"V": "2"})
        found = pybuild.explain(context, dockerfile=b"", backend=backend)
    return document_of(found, {})


@patiently
@given(data=st.data())
def test_no_value_in_a_document_breaks_its_reader(data: st.DataObject, document: bytes) -> None:
    found: Any = json.loads(document)
    at, path = found, []
    while isinstance(at, dict | list) and at and (not path or data.draw(st.booleans())):
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        path.append((at, data.draw(st.sampled_from(keys))))
        at = path[-1][0][path[-1][1]]
    path[-1][0][path[-1][1]] = data.draw(json_values)
    read = read_document(json.dumps(found).encode(), lambda *_: lambda: None)
    if read is not None:
        original = read_document(document, lambda *_: lambda: None)
        assert original is not None
        for stage in original.stages:
            assert explain(stage, [read]).causes


def test_the_document_of_a_build_comes_back_the_same(document: bytes) -> None:
    found = read_document(document, lambda *_: lambda: None)
    assert found is not None
    assert document_of(found, {}) == document
    causes = [c for s in found.stages for step in s.steps if step.miss for c in step.miss.causes]
    assert {cause.kind for cause in causes} >= {CauseKind.FILE_CONTENT, CauseKind.ARG}
