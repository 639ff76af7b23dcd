"""The command line on the session's containerd, and on stores of the embedded backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commandline import CommandLine, OnContainerd, OnEmbedded, forget_steps

from embedding import Stores
from pybuild.testkit.containerd import PrivateContainerd


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return Stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def backend() -> str:
    """What the command line is on; a module may say otherwise, or both."""
    return "containerd"


@pytest.fixture
def on_containerd(base_images: PrivateContainerd, tmp_path: Path) -> Iterator[OnContainerd]:
    """``pybuild`` in the namespace "default", where busybox is, without any cached step."""
    forget_steps(base_images.address, "default")
    command = OnContainerd(base_images, tmp_path)
    yield command
    command.check_nothing_left()


@pytest.fixture
def on_embedded(stores: Stores, tmp_path: Path) -> Iterator[OnEmbedded]:
    """``pybuild`` on a store that has busybox."""
    with stores.lent() as root:
        command = OnEmbedded(root, tmp_path)
        yield command
        command.check_nothing_left()


@pytest.fixture
def pybuild(request: pytest.FixtureRequest, backend: str) -> CommandLine:
    """``pybuild`` where busybox is."""
    command: CommandLine = request.getfixturevalue(f"on_{backend}")
    return command


@pytest.fixture
def elsewhere(
    request: pytest.FixtureRequest, backend: str, stores: Stores, tmp_path: Path
) -> Iterator[CommandLine]:
    """``pybuild`` in a namespace or a store of the test's own, without any image."""
    if backend == "embedded":
        with stores.lent(empty=True) as root:
            command: CommandLine = OnEmbedded(root, tmp_path)
            yield command
            command.check_nothing_left()
        return
    daemon = request.getfixturevalue("containerd")
    command = OnContainerd(daemon, tmp_path, f"e2e-{abs(hash(request.node.nodeid))}")
    yield command
    command.check_nothing_left()


@pytest.fixture
def busybox_run(pybuild: CommandLine) -> Callable[..., str]:
    """What a RUN with these options prints."""

    def run(script: str, *options: str) -> str:
        context = pybuild.context(f"FROM busybox\nRUN {script}\n")
        ended = pybuild.build("--no-cache", "--progress=plain", *options, context)
        lines = [line.split(" ", 2) for line in ended.err.splitlines()]
        return "\n".join(
            parts[2] for parts in lines if len(parts) == 3 and parts[1].replace(".", "").isdigit()
        )

    return run
