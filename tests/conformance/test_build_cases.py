"""The build cases of BuildKit, moby and buildah, on both backends.

A case that pybuild decides otherwise on purpose, or that one backend can't do, stands in
ACCEPTED with its reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from build_cases import CONFORMANCE, copy_fixture, lay_out, load, options_of

from pybuild import Backend, BuildResult, PybuildError, UsageError
from pybuild.flagvalues import parse_ulimit
from pybuild.running import run_image

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not CONFORMANCE.exists(), reason=f"{CONFORMANCE} is absent"),
]

_NO_REASON = ("flag --cgroup-parent",)  # what the records left out and is here
ACCEPTED = json.loads(Path(__file__).with_name("accepted_differences.json").read_text())

Build = Callable[..., BuildResult]
ReadConfig = Callable[[BuildResult], dict[str, Any]]
ReadFile = Callable[[BuildResult, str], bytes | None]


@pytest.fixture(autouse=True)
def unless_accepted(request: pytest.FixtureRequest, cases_backend: Backend) -> None:
    """Skip a case that is decided otherwise, or that nobody recorded in full."""
    case = request.node.callspec.params.get("case")
    if case is None:
        return
    builder = request.node.originalname.removeprefix("test_").removesuffix("_case")
    reasons = ACCEPTED[builder] | ACCEPTED[cases_backend.name]
    reason = reasons.get(case["name"]) or case.get("skip")
    if reason and reason not in _NO_REASON:
        pytest.skip(f"accepted: {reason}")


def _named(cases: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(case, id=case["name"].replace(" ", "-")) for case in cases]


def _parts(given: str | list[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else given or []


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _check_outcome(name: str, expected: bool | None, error: PybuildError | None) -> bool:
    """Whether the build went as the case says; True if it should be looked into further."""
    if expected is not None and (error is None) != expected:
        pytest.fail(f"{name}: expected {'success' if expected else 'failure'}, got {error!r}")
    return error is None


def _attempt(build: Build, *arguments: Any, **options: Any) -> BuildResult | PybuildError:
    try:
        return build(*arguments, **options)
    except PybuildError as error:
        return error


@pytest.mark.parametrize("case", _named(load("buildkit_cases.json")))
def test_buildkit_case(
    case: dict[str, Any], tmp_path: Path, build_on_cases: Build, read_image_file: ReadFile
) -> None:
    lay_out(case["contexts"]["context"], tmp_path)
    attributes = case["attrs"]
    options: dict[str, Any] = {"dockerfile": case["dockerfile"].encode()}
    for key, value in attributes.items():
        match key.split(":"):
            case ["build-arg", name]:
                options.setdefault("build_args", {})[name] = value
            case ["target"]:
                options["target"] = value
            case ["shm-size"]:
                options["shm_size"] = int(value)
            case ["context", name]:
                folder = tmp_path.with_name(f"{tmp_path.name}-{name}")
                folder.mkdir()
                lay_out(case["contexts"][value.removeprefix("local:")], folder)
                options.setdefault("contexts", {})[name] = folder
            case ["ulimit"]:
                options["ulimits"] = [parse_ulimit(value)]
            case _:
                raise AssertionError(f"unknown attribute {key}")
    exported = tmp_path.with_name(f"{tmp_path.name}-layout")
    as_layout = "feature:OCIExporter" in case["needs"]
    if as_layout:
        options["outputs"] = [f"type=oci,tar=false,dest={exported}"]
    outcome = _attempt(build_on_cases, tmp_path, **options)
    if isinstance(outcome, PybuildError):
        _check_outcome(case["name"], case["expect"]["ok"], outcome)
        return
    _check_outcome(case["name"], case["expect"]["ok"], None)
    for path, expected in (case["files"] or {}).items():
        content = _read(exported / path) if as_layout else read_image_file(outcome, path)
        assert (content is not None) == expected["exists"], path
        text = (content or b"").decode()
        if "equals" in expected:
            assert text == expected["equals"], path
        for part in _parts(expected.get("contains")):
            assert part in text, path
        for part in _parts(expected.get("not_contains")):
            assert part not in text, path


@pytest.mark.parametrize("case", _named(load("moby_cases.json")))
def test_moby_case(
    case: dict[str, Any],
    tmp_path: Path,
    cases_backend: Backend,
    build_on_cases: Build,
    read_config: ReadConfig,
) -> None:
    name = case["name"]
    lay_out(case["context"] or [], tmp_path)
    context = None if case.get("via_stdin") else tmp_path
    try:
        options = options_of(case["flags"])
    except UsageError:
        assert case["expect"]["ok"] is False
        return
    outcome = _attempt(build_on_cases, context, dockerfile=case["dockerfile"].encode(), **options)
    if isinstance(outcome, PybuildError):
        _check_outcome(name, case["expect"]["ok"], outcome)
        return
    _check_outcome(name, case["expect"]["ok"], None)
    for run in case["runs"]:
        if run["args"][0] == "run":
            ran = run_image(outcome.names[0], backend=cases_backend)
            assert ran.stdout.decode().strip() == run["stdout_trimmed"]
    config = read_config(outcome)["config"]
    for field, expected in case["inspect"].items():
        if "json" in expected and field.startswith("Config."):
            assert config.get(field.removeprefix("Config.")) == json.loads(expected["json"]), field


@pytest.mark.parametrize("case", _named(load("buildah_cases.json")))
def test_buildah_case(case: dict[str, Any], tmp_path: Path, build_on_cases: Build) -> None:
    name = case["name"]
    if case["context"]:
        copy_fixture(case["context"], tmp_path)
    lay_out(case["context_ops"], tmp_path)
    (tmp_path / case["dockerfile_name"]).write_bytes(case["dockerfile"].encode())
    outcome = _attempt(
        build_on_cases,
        tmp_path,
        dockerfile=tmp_path / case["dockerfile_name"],
        build_args=case["build_args"],
    )
    if isinstance(outcome, PybuildError):
        _check_outcome(name, case["expect"]["ok"], outcome)
        line = case["expect"]["fail_line"]
        if line and outcome.where:
            # a heredoc or continuation may put the place a line further
            assert outcome.where.start_line <= line <= outcome.where.end_line or re.search(
                r"\\\s*\n", case["dockerfile"]
            )
        return
    _check_outcome(name, case["expect"]["ok"], None)
