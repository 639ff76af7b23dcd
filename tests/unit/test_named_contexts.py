"""Named contexts in whole builds on the memory backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from building import LINUX, Recorder, build, config_of, files_of, memory_backend

from pybuild.backend import BindMount
from pybuild.errors import ContextError, ImageNotFound, InvalidImage, UsageError
from pybuild.files.trees import MemoryTree
from pybuild.oci.image_config import HistoryEntry, ImageConfig
from pybuild.oci.layerwriter import write_layer
from pybuild.run.events import StepStarted
from pybuild.testkit.layouts import LayoutWriter
from pybuild.testkit.memory import MemoryBackend
from pybuild.testkit.toyshell import RunOutcome
from pybuild.testkit.workbench import file


@pytest.fixture
def backend() -> Iterator[MemoryBackend]:
    with memory_backend() as made:
        yield made
        assert made.live_layers == 0


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text("named")
    (folder / "secret.txt").write_text("left out")
    (folder / ".dockerignore").write_text("secret.txt\n")
    return folder


def test_files_of_a_folder_are_copied_less_what_its_own_dockerignore_excludes(
    backend: MemoryBackend, docs: Path
) -> None:
    text = "FROM scratch\nCOPY --from=docs / /\n"
    build(backend, text, tags=["app"], contexts={"docs": docs})
    assert files_of(backend) == {"a.txt": b"named", ".dockerignore": b"secret.txt\n"}
    build(backend, text, tags=["again"], contexts={"docs": str(docs)})
    assert files_of(backend, "again") == files_of(backend)


def test_a_tree_is_a_context(backend: MemoryBackend) -> None:
    tree = MemoryTree([file(b"x", b"from a tree")])
    text = "FROM src AS one\nFROM busybox\nCOPY --from=one /x /y\n"
    build(backend, text, tags=["app"], contexts={"src": tree})
    assert files_of(backend)["y"] == b"from a tree"


def test_the_main_context_and_a_named_one_do_not_mix(
    backend: MemoryBackend, docs: Path, tmp_path: Path
) -> None:
    main = tmp_path / "main"
    main.mkdir()
    (main / "a.txt").write_text("main")
    text = "FROM scratch\nCOPY a.txt /one\nCOPY --from=docs a.txt /two\n"
    build(backend, text, main, tags=["app"], contexts={"docs": docs})
    assert files_of(backend) == {"one": b"main", "two": b"named"}


def test_an_image_on_a_folder_has_it_as_its_one_layer(backend: MemoryBackend, docs: Path) -> None:
    result = build(backend, "FROM docs\nENV A=b\n", tags=["app"], contexts={"docs": docs})
    config = config_of(backend, result)
    assert files_of(backend)["a.txt"] == b"named"
    assert [line.created_by for line in config.history] == [
        "COPY --from=docs / / # buildkit",
        "ENV A=b",
    ]
    assert len(config.diff_ids) == 1


def test_a_run_sees_a_context_as_a_mount(docs: Path) -> None:
    seen: list[bytes] = []

    def runner(process: object, tree: object, mounts: object, activity: object) -> RunOutcome:
        assert isinstance(mounts, Sequence)
        (mount,) = mounts
        assert isinstance(mount, BindMount)
        with mount.tree.open(b"a.txt") as stream:
            seen.append(stream.read())
        return RunOutcome(0)

    with memory_backend(runner=runner) as backend:
        text = "FROM busybox\nRUN --mount=from=docs,target=/d cat /d/a.txt\n"
        build(backend, text, contexts={"docs": docs})
    assert seen == [b"named"]


def test_another_image_stands_in_for_the_base(backend: MemoryBackend) -> None:
    backend.add_image("other:1", ImageConfig(LINUX), [file(b"which", b"other")])
    contexts = {"docker.io/library/missing:latest": "docker-image://other:1"}
    result = build(backend, "FROM missing\nENV X=1\n", tags=["app"], contexts=contexts)
    assert files_of(backend) == {"which": b"other"}
    assert ("X", "1") in config_of(backend, result).env


def layout(folder: Path) -> Path:
    parts: list[bytes] = []
    layer = write_layer([file(b"where", b"in a layout")], parts.append).diff
    writer = LayoutWriter(folder)
    writer.add_blob(b"".join(parts), layer.blob.media_type)
    config = ImageConfig(
        LINUX,
        env=(("LAID", "out"),),
        history=(HistoryEntry("layer"),),
        diff_ids=(layer.diff_id,),
        onbuild=("ENV TRIGGERED=1",),
    )
    writer.add_image(["localhost/laid/out:1"], config, [layer])
    return writer.finish()


def test_an_image_in_a_layout_stands_in_for_the_base(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    contexts = {"base": f"oci-layout://{layout(tmp_path / 'layout')}:1"}
    text = "FROM base\nCOPY --from=base /where /there\n"
    result = build(backend, text, tags=["app"], contexts=contexts)
    assert files_of(backend) == {"where": b"in a layout", "there": b"in a layout"}
    config = config_of(backend, result)
    assert dict(config.env).items() >= {"LAID": "out", "TRIGGERED": "1"}.items()
    assert config.history[0].created_by == "layer"


def test_a_layout_that_is_broken_or_not_there_is_told_with_the_line(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    with pytest.raises(ImageNotFound, match="doesn't exist") as missing:
        build(backend, "FROM a\n", contexts={"a": "oci-layout://nowhere"})
    assert missing.value.where is not None
    with pytest.raises(InvalidImage):
        build(backend, "FROM a\n", contexts={"a": f"oci-layout://{tmp_path}"})


def test_a_context_that_no_step_reads_is_not_opened(backend: MemoryBackend) -> None:
    recorder = Recorder()
    text = "FROM docs AS unused\nFROM busybox\n"
    build(backend, text, contexts={"docs": "/nowhere"}, reporter=recorder)
    assert not any("context" in event.title for event in recorder.of(StepStarted))
    with pytest.raises(ContextError, match="no folder"):
        build(backend, "FROM docs\n", contexts={"docs": "/nowhere"})


@pytest.mark.parametrize(
    "contexts",
    [
        {"": "."},
        {"::linux/amd64": "."},
        {"a": ""},
        {"a": "docker-image://A"},
        {"a::no/such/x/y": "."},
    ],
)
def test_contexts_that_mean_nothing_are_refused(
    backend: MemoryBackend, contexts: dict[str, str]
) -> None:
    with pytest.raises(UsageError):
        build(backend, "FROM a\n", contexts=contexts)


def test_the_key_of_a_step_depends_on_the_files_of_a_context(
    backend: MemoryBackend, docs: Path
) -> None:
    text = "FROM busybox\nCOPY --from=docs a.txt /\n"
    assert [x.cached for x in build(backend, text, contexts={"docs": docs}).steps] == [False]
    assert [x.cached for x in build(backend, text, contexts={"docs": docs}).steps] == [True]
    (docs / "a.txt").write_text("other")
    assert [x.cached for x in build(backend, text, contexts={"docs": docs}).steps] == [False]
