"""The build checks against BuildKit's recorded cases, in builds and by `pybuild.check`.

Not compared: ``url``, for pybuild names no pages of others, and the words of errors, but for
those of a violated check.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import pybuild
from pybuild.oci.image_config import ImageConfig
from pybuild.oci.platform import Platform
from pybuild.run.events import Event, LintReported
from pybuild.testkit.memory import MemoryBackend

FILE = (
    Path(__file__).resolve().parents[2].parent / "shared/conformance" / "buildkit_lint_cases.json"
)
AMD64 = Platform("linux", "amd64")
IMAGES = ("busybox", "busybox:stable", "busybox:stable-musl", "alpine")
VIOLATED = "lint violation"


def cases() -> list[Any]:
    if FILE.exists():
        loaded = json.loads(FILE.read_text())["cases"]
        return [
            pytest.param(case, id=f"{case['id']}-{case['at'].rpartition(':')[2]}")
            for case in loaded
        ]
    if os.environ.get("CI"):
        raise FileNotFoundError(FILE)
    return [pytest.param(None, marks=pytest.mark.skip(reason=f"there is no {FILE}"))]


class Recorder:
    def __init__(self) -> None:
        self.warnings: tuple[pybuild.LintWarning, ...] = ()

    def report(self, event: Event) -> None:
        if isinstance(event, LintReported):
            self.warnings = event.warnings


@pytest.fixture
def backend() -> Iterator[MemoryBackend]:
    with MemoryBackend(platforms=[AMD64]) as backend:
        for name in IMAGES:
            backend.add_image(name, ImageConfig(AMD64, env=(("PATH", "/bin"),)), [])
        yield backend


def context_of(case: dict[str, Any], folder: Path) -> Path:
    (folder / "Dockerfile").write_text(case["dockerfile"])
    if case["dockerignore"] is not None:
        (folder / ".dockerignore").write_text(case["dockerignore"])
    return folder


def build_args_of(case: dict[str, Any]) -> dict[str, str]:
    return {name.removeprefix("build-arg:"): value for name, value in case["attrs"].items()}


def found(warnings: Sequence[pybuild.LintWarning]) -> list[tuple[int, str, str, str]]:
    return sorted((w.where.start_line, w.message, w.rule, w.description) for w in warnings)


def recorded(warnings: Sequence[dict[str, Any]]) -> list[tuple[int, str, str, str]]:
    return sorted((w["line"], w["detail"], w["rule"], w["description"]) for w in warnings)


def check_error(case: dict[str, Any], error: pybuild.PybuildError | None) -> None:
    """The recorded error, or none."""
    if case["build_error"] is None:
        assert error is None
        return
    assert isinstance(error, pybuild.DockerfileError)
    assert error.where is not None
    assert error.where.start_line == case["error_line"]
    violated = case["build_error"].startswith(VIOLATED)
    assert violated == error.message.startswith(VIOLATED)
    if violated:
        assert error.message == case["build_error"]
    elif "did you mean " in case["build_error"]:
        name = case["build_error"].rpartition("did you mean ")[2].rstrip("?)")
        assert error.hint == f"did you mean {name}?"


@pytest.mark.parametrize("case", cases())
def test_a_build_warns_as_recorded(
    case: dict[str, Any], backend: MemoryBackend, tmp_path: Path
) -> None:
    recorder = Recorder()
    error: pybuild.PybuildError | None = None
    try:
        pybuild.build(
            context_of(case, tmp_path),
            backend=backend,
            build_args=build_args_of(case),
            reporter=recorder,
        )
    except pybuild.PybuildError as caught:
        error = caught
    assert found(recorder.warnings) == recorded(case["warnings"])
    if case["stream_error_regex"] is None:
        check_error(case, error)
    else:
        assert isinstance(error, pybuild.CopyFailed)
        assert error.where is not None
        # the recorded line is that of FROM in one case
        assert "COPY Dockerfile" in case["dockerfile"].splitlines()[error.where.start_line - 1]


@pytest.mark.parametrize("case", cases())
def test_a_check_finds_what_is_recorded(
    case: dict[str, Any], backend: MemoryBackend, tmp_path: Path
) -> None:
    result = pybuild.check(
        context_of(case, tmp_path), backend=backend, build_args=build_args_of(case)
    )
    check_error(case, result.error)
    if case["unmarshal_warnings"] is None:
        assert found(result.warnings) == recorded(case["warnings"])
    else:  # without descriptions, and one of the lines is wrong
        texts = sorted((w["rule"], w["detail"]) for w in case["unmarshal_warnings"])
        assert sorted((w.rule, w.message) for w in result.warnings) == texts
