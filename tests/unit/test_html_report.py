from __future__ import annotations

import stat
from collections.abc import Callable
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from building import build, memory_backend
from hypothesis import given
from hypothesis import strategies as st

import pybuild
from pybuild.errors import BuildCancelled, PybuildError, RunFailed, UsageError
from pybuild.htmlreport.report import HtmlReport
from pybuild.htmlreport.treemap import Rectangle, squarified
from pybuild.oci.descriptor import OCI_LAYER_GZIP, Descriptor, LayerDiff
from pybuild.oci.platform import Platform
from pybuild.run.events import ImageMade, StepFinished, StepLog, StepStarted, Warned
from pybuild.testkit.memory import MemoryBackend

EVIL = "</script><img src=x onerror=alert(1)>'\"&"
VOID = {"meta", "br", "img", "link", "input", "hr"}
STAGES = """\
FROM busybox AS base
WORKDIR /src
FROM base as deps
COPY a /src/a
FROM base AS build
COPY --from=deps /src/a /src/b
COPY big small /src/
FROM busybox
COPY --from=build /src /app
"""
FILES = {"a": "a", "big": "b" * 5000, "small": "s"}


class Page(HTMLParser):
    """The elements of a page, which are checked to be closed in their order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def of_class(self, name: str) -> list[dict[str, str]]:
        return [
            attributes
            for _, attributes in self.elements
            if name in attributes.get("class", "").split()
        ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "build.html"


def reported(path: Path, backend: MemoryBackend, text: str, **options: Any) -> Page:
    context = options.pop("context", FILES)
    with HtmlReport(path) as report:
        build(backend, text, context, reporter=report, **options)
    return Page(path)


def test_a_page_needs_nothing_else(path: Path) -> None:
    page = reported(path, memory_backend(), STAGES, tags=["app:1"])
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object", "base", "form"})
    links = [attributes.get("href", "#") for _, attributes in page.elements]
    assert all(link.startswith("#") for link in links)
    assert not any("src" in attributes for _, attributes in page.elements)
    policies = [a["content"] for _, a in page.elements if "http-equiv" in a]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert "prefers-color-scheme: dark" in page.text
    assert "docker.io/library/app:1" in page.text


def test_every_link_leads_somewhere(path: Path) -> None:
    page = reported(path, memory_backend(), STAGES)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"][1:] for tag, attributes in page.elements if tag == "a"}
    assert targets <= set(ids)
    assert {f"L{number}" for number in range(1, 10)} <= set(ids)


def test_warnings_lead_to_their_lines(path: Path) -> None:
    page = reported(path, memory_backend(), STAGES)
    marked = [line["id"] for line in page.of_class("line") if "warning" in line["class"]]
    assert marked == ["L3"]
    assert "FromAsCasing" in page.text
    assert ("a", {"href": "#L3"}) in page.elements


def test_stages_are_drawn_with_what_they_start_from_and_copy(path: Path) -> None:
    page = reported(path, memory_backend(), STAGES)
    names = [line.strip() for line in page.texts]
    for name in ("base", "deps", "build", "stage-3", "busybox:latest", "build context"):
        assert name in names
    # base from busybox, deps and build from base, the last from busybox
    assert len(page.of_class("from")) == 4
    # deps and build from the context, build from deps, the last from build
    assert len(page.of_class("copy")) == 4
    assert len(page.of_class("target")) == 1


def test_a_graph_that_is_too_large_is_told_and_not_drawn(path: Path) -> None:
    stages = "".join(f"FROM scratch AS s{n}\nCOPY a /{n}\n" for n in range(200))
    copies = "".join(f"COPY --from=s{n} / /\n" for n in range(200))
    page = reported(path, memory_backend(), f"{stages}FROM scratch\n{copies}")
    assert "202 nodes: too many for a drawing." in page.text
    assert not page.of_class("graph")


def test_the_timeline_tells_what_was_cached_and_why_the_rest_was_not(path: Path) -> None:
    backend = memory_backend()
    build(backend, STAGES, FILES)
    page = reported(path, backend, STAGES)
    assert len([row for row in page.of_class("bar") if "cached" in row["class"]]) == 5
    assert "Steps5, 5 cached" in page.text
    page = reported(path, backend, STAGES, context={**FILES, "big": "other"})
    assert "never built here" in page.text
    assert len([row for row in page.of_class("bar") if "cached" in row["class"]]) == 3


def test_layers_are_shown_with_their_largest_files(path: Path) -> None:
    page = reported(path, memory_backend(), STAGES)
    titles = [attributes["title"] for attributes in page.of_class("file")]
    assert "/app/big, 5.00kB" in titles
    assert "COPY --from=build /src /app" in page.text
    assert "of the base image" in page.text


def test_a_layer_that_is_not_known_is_told(path: Path) -> None:
    layer = LayerDiff("sha256:" + "1" * 64, Descriptor(OCI_LAYER_GZIP, "sha256:" + "2" * 64, 7))
    with HtmlReport(path) as report:
        report.report(ImageMade(Platform("linux", "amd64"), (layer,), lambda: (None,)))
    page = Page(path)
    assert "What is in 1 layer isn't known here" in page.text
    assert not page.of_class("file")


def test_a_damaged_layer_costs_its_picture_and_not_the_build(path: Path) -> None:
    layer = LayerDiff("sha256:" + "1" * 64, Descriptor(OCI_LAYER_GZIP, "sha256:" + "2" * 64, 7))

    def damaged() -> Any:
        raise PybuildError("the stored index of a layer is damaged")

    with HtmlReport(path) as report:
        report.report(ImageMade(Platform("linux", "amd64"), (layer,), damaged))
    assert "isn't known here" in Page(path).text


def test_a_build_that_failed_has_its_page_too(path: Path) -> None:
    text = "FROM busybox\nCOPY a /\nRUN echo before the end; exit 3\nRUN echo never\n"
    with pytest.raises(RunFailed):
        reported(path, memory_backend(), text)
    page = Page(path)
    assert "exit code: 3" in page.text
    assert "before the end" in page.text
    assert [line["id"] for line in page.of_class("line") if "error" in line["class"]] == ["L3"]
    assert page.of_class("bar")[-1]["class"] == "bar failed"
    assert "The build made no image." in page.text


def test_a_dockerfile_that_is_wrong_is_shown(path: Path) -> None:
    with pytest.raises(pybuild.DockerfileError):
        reported(path, memory_backend(), "FROM busybox\nNONSENSE here\n")
    page = Page(path)
    assert "The build failed before it had a plan." in page.text
    assert [line["id"] for line in page.of_class("line") if "error" in line["class"]] == ["L2"]


def test_text_of_strangers_stays_text(path: Path) -> None:
    backend = memory_backend()
    name = EVIL.replace("/", "")
    text = (
        f'FROM busybox AS base\nLABEL x="{EVIL.replace(chr(34), "")}"\n'
        f"COPY . /d/\nRUN echo '{EVIL.replace(chr(39), '')}'; exit 1\n"
    )
    with pytest.raises(RunFailed):
        reported(path, backend, text, context={name: "x" * 100})
    failed = Page(path)
    built = reported(
        path, backend, f"FROM busybox\nCOPY . /d/\n# {EVIL}\n", context={name: "x" * 99}
    )
    for page in (failed, built):
        assert not any(tag in {"img", "script"} for tag, _ in page.elements)
        assert not any(key.startswith("on") for _, given in page.elements for key in given)
        assert "onerror=alert(1)" in page.text
    assert any(name in attributes["title"] for attributes in built.of_class("file"))


@given(st.text(), st.binary())
def test_any_text_keeps_the_page_whole(
    tmp_path_factory: pytest.TempPathFactory, text: str, output: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.html"
    with HtmlReport(path) as report:
        report.report(StepStarted(1, text, text, text))
        report.report(StepLog(1, 1, output, 0.0))
        report.report(Warned(0, text, hint=text))
        report.report(StepFinished(1, 0.1, error=PybuildError(text, hint=text)))
    page = Page(path)
    assert len(page.of_class("bar")) == 1


@pytest.mark.parametrize("ending", ["", "NONSENSE\n"])
def test_logins_in_urls_are_not_shown(path: Path, ending: str) -> None:
    text = f"FROM scratch\n# https://me:canary@example.test/x\nCOPY a /\n{ending}"
    with suppress(pybuild.DockerfileError):
        reported(path, memory_backend(), text)
    assert "canary" not in path.read_text()
    assert "https://xxxxx:xxxxx@example.test/x" in Page(path).text


def test_all_events_are_passed_on(path: Path) -> None:
    class Counter:
        count = 0

        def report(self, event: pybuild.Event) -> None:
            del event
            self.count += 1

    alone, beside = Counter(), Counter()
    build(memory_backend(), STAGES, FILES, reporter=alone)
    with HtmlReport(path, beside) as report:
        build(memory_backend(), STAGES, FILES, reporter=report)
    assert beside.count == alone.count > 10


def test_a_page_is_replaced_at_once_and_readable_as_other_files(path: Path) -> None:
    path.write_text("an earlier one")
    with HtmlReport(path):
        assert path.read_text() == "an earlier one"
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [child.name for child in path.parent.iterdir()] == ["build.html"]


@pytest.mark.parametrize("where", [lambda folder: folder, lambda folder: folder / "none" / "x"])
def test_a_place_where_no_file_can_be_is_refused_before_the_build(
    tmp_path: Path, where: Callable[[Path], Path]
) -> None:
    with pytest.raises(UsageError, match="can't write the report"), HtmlReport(where(tmp_path)):
        pytest.fail("the build began")


def test_what_the_build_raised_goes_before_a_report_that_cannot_be_written(
    tmp_path: Path, path: Path
) -> None:
    warned: list[Any] = []

    class Kept:
        def report(self, event: pybuild.Event) -> None:
            warned.append(event)

    def fail() -> None:
        path.mkdir()
        raise BuildCancelled("the build was cancelled")

    with pytest.raises(BuildCancelled), HtmlReport(path, Kept()):
        fail()
    assert "can't write the report" in warned[0].message
    other = tmp_path / "other.html"
    with pytest.raises(UsageError, match="can't write the report"), HtmlReport(other):
        other.mkdir()
    assert sorted(child.name for child in tmp_path.iterdir()) == ["build.html", "other.html"]


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=80))
def test_a_treemap_shares_its_room_by_size(sizes: list[int]) -> None:
    sizes.sort(reverse=True)
    room = Rectangle(0, 0, 1000, 440)
    placed = squarified(sizes, room)
    assert len(placed) == len(sizes)
    whole = room.width * room.height
    for size, at in zip(sizes, placed, strict=True):
        assert at.width * at.height == pytest.approx(size / sum(sizes) * whole, rel=1e-3, abs=1e-3)
        assert at.left >= -0.01
        assert at.top >= -0.01
        assert at.left + at.width <= room.width + 0.01
        assert at.top + at.height <= room.height + 0.01
    for number, one in enumerate(placed):
        for other in placed[number + 1 :]:
            across = min(one.left + one.width, other.left + other.width) - max(one.left, other.left)
            down = min(one.top + one.height, other.top + other.height) - max(one.top, other.top)
            assert across < 0.01 or down < 0.01
