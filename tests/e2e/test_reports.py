"""Pages about builds, and the difference of images, from the command line on real backends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import CommandLine, OnContainerd, OnEmbedded

TEXT = (
    "FROM busybox AS build\nCOPY src /src\nRUN head -c 300000 /dev/zero > /made\n"
    "FROM busybox\nCOPY --from=build /made /src /app/\n"
)


@pytest.fixture(params=["embedded", "containerd"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_a_page_tells_of_steps_and_layers(pybuild: CommandLine, tmp_path: Path) -> None:
    context = pybuild.context(TEXT, src="text")
    page = tmp_path / "build.html"
    first = pybuild.build("--report", page, "-t", "localhost/report:1", context)
    text = page.read_text()
    assert first.digest in text
    assert "RUN head -c 300000 /dev/zero" in text
    assert "/app/made, 300.00kB" in text
    pybuild.build("--report", page, context)
    assert page.read_text().count('class="bar cached"') == 3


def test_a_build_that_fails_has_its_page(on_embedded: OnEmbedded, tmp_path: Path) -> None:
    context = on_embedded.context("FROM busybox\nRUN echo why it failed; exit 9\n")
    page = tmp_path / "build.html"
    on_embedded.fail(1, "--report", page, context)
    assert "why it failed" in page.read_text()
    on_embedded.fail(2, "--report", tmp_path / "none" / "x.html", context)


def test_the_difference_of_two_images_is_told(on_embedded: OnEmbedded) -> None:
    one = on_embedded.context("FROM busybox\nENV A=1\nCOPY a gone /d/\n", a="1", gone="x")
    other = on_embedded.context("FROM busybox\nENV A=2\nCOPY a new /d/\n", a="12", new="")
    (one / "a").chmod(0o644)
    (other / "a").chmod(0o700)
    on_embedded.build("-t", "one", one)
    on_embedded.build("-t", "other", other)

    same = on_embedded("diff", "one", "one")
    assert (same.code, same.err) == (0, "")
    assert same.out.endswith("nothing differs\n")

    found = on_embedded("diff", "one", "other")
    assert (found.code, found.err) == (1, "")
    assert found.out.splitlines()[2:] == [
        "settings:",
        "  ~ Env.A: 1 -> 2",
        "files: 1 added, 1 removed, 1 changed, +0B",
        "  ~ /d/a (size 1B -> 2B, content, mode 0644 -> 0700)",
        "  - /d/gone (1B)",
        "  + /d/new (0B)",
    ]
    told = json.loads(on_embedded("diff", "--format=json", "one", "other").out)
    assert [(each["path"], each["differs"]) for each in told["files"]] == [
        ("/d/a", ["size", "content", "mode"]),
        ("/d/gone", []),
        ("/d/new", []),
    ]
    on_embedded.fail(3, "diff", "one", "nothing-of-this-name")


def test_images_of_a_daemon_are_left_to_its_tools(on_containerd: OnContainerd) -> None:
    told = on_containerd.fail(4, "diff", "busybox", "busybox")
    assert "its own tools: ctr, nerdctl" in told
