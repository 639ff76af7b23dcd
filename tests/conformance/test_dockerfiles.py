"""Our own Dockerfiles on both backends: each does what it says, and their manifests are equal."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from build_cases import BACKENDS, image_tree, options_of
from dockerfile_cases import DockerfileCase, check_failure, check_image, read_cases

from pybuild import Backend, BuildResult, PullPolicy, PybuildError, build
from serving import Answer, Repository, WebServer
from sharedcontext import make_context

pytestmark = pytest.mark.root

_CREATED = 1_700_000_000
_ENVIRON = {"SECRET": "s3cret"}
_CASES = read_cases()


@dataclass
class Builds:
    """What came of each Dockerfile on each backend; each is built once."""

    context: Path
    offered: dict[str, str]
    outcomes: dict[tuple[Path, str], BuildResult | PybuildError] = field(default_factory=dict)

    def outcome(self, case: DockerfileCase, backend: Backend) -> BuildResult | PybuildError:
        key = (case.path, backend.name)
        if key not in self.outcomes:
            try:
                self.outcomes[key] = self._build(case, backend)
            except PybuildError as error:
                self.outcomes[key] = error
        return self.outcomes[key]

    def _build(self, case: DockerfileCase, backend: Backend) -> BuildResult:
        flags = [flag.format_map(self.offered) for flag in case.flags]
        return build(
            self.context,
            dockerfile=case.path,
            tags=[case.name.lower()],
            backend=backend,
            pull=PullPolicy.NEVER,
            created=_CREATED,
            **options_of(flags, _ENVIRON),
        )


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    with WebServer(tmp_path_factory.mktemp("served")) as server:
        server.answers["/file.txt"] = Answer(
            b"from the web\n", headers={"Last-Modified": "Sun, 13 Sep 2020 12:26:40 GMT"}
        )
        yield server


@pytest.fixture(scope="session")
def repository(served: WebServer) -> str:
    """The URL of a repository with one commit."""
    assert served.root is not None
    made = Repository(served.root / "repository.git")
    made.commit({"greeting": "from git\n", "sub/in": "below\n"})
    made.publish()
    return f"{served.url}/repository.git"


@pytest.fixture(scope="session")
def agent() -> Iterator[str]:
    """The socket of what answers as little as an agent may."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        path = f"{folder}/agent"
        listening.bind(path)
        listening.listen()
        yield path


@pytest.fixture(scope="session")
def builds(
    tmp_path_factory: pytest.TempPathFactory, plain_layout: Path, served: WebServer, agent: str
) -> Builds:
    context = tmp_path_factory.mktemp("context")
    make_context(context)
    served.answers["/archive.tar"] = Answer((context / "archive.tar").read_bytes())
    offered = {"context": str(context), "layout": f"oci-layout://{plain_layout}"}
    return Builds(context, offered | {"web": served.url, "agent": agent})


@pytest.fixture
def needed(case: DockerfileCase, builds: Builds, request: pytest.FixtureRequest) -> None:
    """What not every case needs, since not every machine has it."""
    if _needs_git(case):
        builds.offered["git"] = request.getfixturevalue("repository")


def _needs_git(case: DockerfileCase) -> bool:
    return "{git}" in " ".join(case.flags)


def _parameters(cases: list[DockerfileCase]) -> list[Any]:
    return [
        pytest.param(case, id=case.name, marks=[pytest.mark.git] if _needs_git(case) else [])
        for case in cases
    ]


def _config(backend: Backend, result: BuildResult) -> dict[str, Any]:
    with backend.open_blob(result.config_digest) as blob:
        config: dict[str, Any] = json.load(blob)
    return config


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("case", _parameters(_CASES))
def test_a_dockerfile_does_what_it_says(
    case: DockerfileCase,
    backend_name: str,
    builds: Builds,
    needed: None,
    request: pytest.FixtureRequest,
) -> None:
    backend: Backend = request.getfixturevalue(f"{backend_name}_cases")
    outcome = builds.outcome(case, backend)
    if isinstance(outcome, PybuildError):
        check_failure(case, outcome)
        return
    assert case.failure is None, "the build should fail"
    config = _config(backend, outcome)
    with image_tree(backend, outcome.names[0]) as tree:
        for expected in case.expected:
            check_image(expected, tree, config)


@pytest.mark.containerd
@pytest.mark.parametrize("case", _parameters(_CASES))
def test_both_backends_make_the_same_of_a_dockerfile(
    case: DockerfileCase,
    builds: Builds,
    needed: None,
    embedded_cases: Backend,
    containerd_cases: Backend,
) -> None:
    ours, theirs = (builds.outcome(case, each) for each in (embedded_cases, containerd_cases))
    if isinstance(ours, PybuildError) or isinstance(theirs, PybuildError):
        assert type(ours) is type(theirs)
    else:
        # first what tells more: the layers and the history
        assert _config(embedded_cases, ours) == _config(containerd_cases, theirs)
        assert ours.digest == theirs.digest


def test_each_dockerfile_says_what_it_proves_and_expects() -> None:
    assert [case.name for case in _CASES if len(case.proof) < 15 or not case.expected] == []
    assert len(_CASES) >= 150
