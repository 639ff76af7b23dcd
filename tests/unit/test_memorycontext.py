"""Build contexts and Dockerfiles that a caller has in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from building import files_of, memory_backend

import pybuild
from pybuild.dockerfile.instructions import Copy, Env, From, Run
from pybuild.errors import ContextError, DockerfileSyntaxError, UsageError
from pybuild.files.memorycontext import MTIME, MemoryContext
from pybuild.testkit.memory import MemoryBackend


@pytest.fixture
def backend() -> Iterator[MemoryBackend]:
    with memory_backend() as made:
        yield made
        assert made.live_layers == 0


def built(backend: MemoryBackend, files: Any, **options: Any) -> dict[str, bytes]:
    pybuild.build(files, backend=backend, tags=["app"], **options)
    return files_of(backend)


def test_files_in_memory_are_a_context(backend: MemoryBackend) -> None:
    found = built(
        backend,
        {
            "Dockerfile": "FROM scratch\nCOPY . /\n",
            "app.py": b"print()",
            "src/deep/ü.txt": "ü",
            ".dockerignore": "*.log\nDockerfile\n.dockerignore\n",
            "a.log": "x",
        },
    )
    assert found == {"app.py": b"print()", "src/deep/ü.txt": "ü".encode()}


def test_a_dockerfile_in_memory_may_have_another_name(backend: MemoryBackend) -> None:
    files = {"sub/D": "FROM scratch\nCOPY x /only\n", "x": "1"}
    assert built(backend, files, dockerfile="sub/D") == {"only": b"1"}
    with pytest.raises(ContextError, match="no nowhere in the files"):
        pybuild.build(files, dockerfile="nowhere", backend=backend)


def test_any_mapping_will_do(backend: MemoryBackend) -> None:
    from types import MappingProxyType  # noqa: PLC0415

    files = MappingProxyType({"Dockerfile": b"FROM scratch\nCOPY <<x /f\nhi\nx\n"})
    assert built(backend, files) == {"f": b"hi\n"}


def test_a_file_may_have_a_mode() -> None:
    tree = MemoryContext({"bin/run": pybuild.File("#!", 0o755), "plain": "x"})
    entries = [tree.get(path) for path in (b"bin", b"bin/run", b"plain")]
    assert [(e.mode, e.mtime, e.uid) for e in entries if e] == [
        (0o755, MTIME, 0),
        (0o755, MTIME, 0),
        (0o644, MTIME, 0),
    ]


def test_equal_files_make_equal_images(backend: MemoryBackend) -> None:
    files = {"Dockerfile": "FROM scratch\nCOPY . /\n", "a/b": "1"}
    digests = {
        pybuild.build(dict(order), backend=backend, created=0, no_cache=True).digest
        for order in (files.items(), reversed(files.items()))
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "..", "../x", "a/../b", "a//b", "a/", "./a", ".", "a\0b", "\ud800"],
)
def test_names_that_lead_astray_are_refused(backend: MemoryBackend, name: str) -> None:
    with pytest.raises(ContextError, match="can't be"):
        pybuild.build({"Dockerfile": "FROM scratch\n", name: b""}, backend=backend)


def test_a_name_can_not_be_a_file_and_a_folder() -> None:
    with pytest.raises(ContextError, match="a as file and folder"):
        MemoryContext({"a": b"", "a/b/c": b""})


@pytest.mark.parametrize(
    "value", [1, None, ["x"], pybuild.File(b"", 0o10000), pybuild.File(b"", -1)]
)
def test_what_is_no_file_is_refused(value: Any) -> None:
    with pytest.raises(UsageError):
        MemoryContext({"a": value})


def test_files_in_memory_are_a_named_context(backend: MemoryBackend) -> None:
    files = {"Dockerfile": "FROM scratch\nCOPY --from=other a /\n"}
    contexts = {"other": {"a": "1", "b": "2", ".dockerignore": "b"}}
    assert built(backend, files, contexts=contexts) == {"a": b"1"}


TEXT = """\
# syntax=docker/dockerfile:1
ARG TAG=1
FROM busybox:$TAG AS Build
RUN make
ENV A=1
FROM scratch
COPY --from=build /out /
"""


def test_a_dockerfile_is_parsed_into_stages_of_typed_instructions() -> None:
    parsed = pybuild.Dockerfile.parse(TEXT)
    assert [arg.args[0].name for arg in parsed.global_args] == ["TAG"]
    first, last = parsed.stages
    assert (first.name, first.head.image, last.name) == ("build", "busybox:$TAG", None)
    match [*first.instructions, *last.instructions]:
        case [Run(command=command), Env(pairs=[pair]), Copy(from_=origin, where=where)]:
            assert (command.args, pair.value, origin) == (("make",), "1", "build")
            assert str(where).startswith("Dockerfile:7")
        case other:
            pytest.fail(f"{other}")
    assert isinstance(parsed.instructions[0], From)


def test_a_parsed_dockerfile_is_built_under_its_name(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    path = tmp_path / "other.Dockerfile"
    path.write_text("FROM busybox\nRUN exit 1\n")
    parsed = pybuild.Dockerfile.parse(path)
    for context in (None, tmp_path, {"a": b""}):
        with pytest.raises(pybuild.RunFailed) as caught:
            pybuild.build(context, dockerfile=parsed, backend=backend)
        assert str(caught.value.where).startswith(f"{path}:2")
        assert caught.value.source == "RUN exit 1"


def test_text_and_bytes_are_the_same_dockerfile() -> None:
    assert pybuild.Dockerfile.parse(TEXT) == pybuild.Dockerfile.parse(TEXT.encode())


def test_what_is_no_dockerfile_says_where(tmp_path: Path) -> None:
    with pytest.raises(DockerfileSyntaxError, match="mine:1"):
        pybuild.Dockerfile.parse("COPY a b\n", "mine")
    with pytest.raises(ContextError, match="can't read"):
        pybuild.Dockerfile.parse(tmp_path / "nowhere")
    with pytest.raises(ContextError, match="larger"):
        pybuild.Dockerfile.parse(Path("/dev/zero"))
