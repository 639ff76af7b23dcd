"""The command line on the session's containerd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commandline import CommandLine, forget_steps

from pybuild.testkit.containerd import PrivateContainerd, check_nothing_left


@pytest.fixture
def pybuild(base_images: PrivateContainerd, tmp_path: Path) -> Iterator[CommandLine]:
    """``pybuild`` in the namespace "default", where busybox is, without any cached step."""
    forget_steps(base_images.address, "default")
    yield CommandLine(base_images, tmp_path)
    check_nothing_left(base_images.address, "default", base_images.folder)


@pytest.fixture
def elsewhere(
    containerd: PrivateContainerd, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[CommandLine]:
    """``pybuild`` in a namespace of the test's own, without any image."""
    namespace = f"e2e-{abs(hash(request.node.nodeid))}"
    yield CommandLine(containerd, tmp_path, namespace)
    check_nothing_left(containerd.address, namespace, containerd.folder)


@pytest.fixture
def busybox_run(pybuild: CommandLine) -> Callable[..., str]:
    """What a RUN with these options prints."""

    def run(script: str, *options: str) -> str:
        context = pybuild.context(f"FROM busybox\nRUN {script}\n")
        ended = pybuild.build("--progress=plain", "--no-cache", *options, context)
        lines = [line.split(" ", 2) for line in ended.err.splitlines()]
        return "\n".join(
            parts[2] for parts in lines if len(parts) == 3 and parts[1].replace(".", "").isdigit()
        )

    return run
