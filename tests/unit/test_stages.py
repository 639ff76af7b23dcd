import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from pybuild.backend import BaseImage
from pybuild.dockerfile.instructions import Copy, Directives, Dockerfile, From
from pybuild.dockerfile.parse import parse
from pybuild.errors import (
    DockerfileError,
    ImageNotFound,
    SourceRange,
    StageCycle,
    StageNotFound,
    UnsupportedByBackend,
    UsageError,
)
from pybuild.oci.image_config import ImageConfig
from pybuild.oci.platform import Platform
from pybuild.oci.reference import Reference
from pybuild.plan import Plan, PlanRequest, make_plan
from pybuild.plan.contexts import (
    FilesContext,
    ImageContext,
    LayoutContext,
    NamedContext,
    StageContext,
    parse_context,
)
from pybuild.plan.resolve import ImageName
from pybuild.plan.stages import find_cycle, reachable
from pybuild.plan.steps import ContextSource, CopyStep, ImageSource, RunStep, StageSource

AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64")
HERE = SourceRange("Dockerfile", 1, 1)
SRC = FilesContext("src")
DIGEST = "sha256:" + "7" * 64


class Images:
    """A registry of one image with any name; `onbuild` gives triggers by repository."""

    def __init__(self, onbuild: dict[str, tuple[str, ...]] | None = None) -> None:
        self.asked: list[tuple[str, str]] = []
        self.places: list[int] = []
        self._onbuild = onbuild or {}

    def __call__(self, name: ImageName, platform: Platform, where: SourceRange) -> BaseImage:
        self.asked.append((str(name), str(platform)))
        reference = name if isinstance(name, Reference) else Reference("localhost", "layout")
        self.places.append(where.start_line)
        if "missing" in reference.repository:
            raise ImageNotFound(f"{reference} not found")
        config = ImageConfig(
            platform, onbuild=self._onbuild.get(reference.repository.split("/")[-1], ())
        )
        return BaseImage(reference, "sha256:" + "5" * 64, config, ())

    @property
    def names(self) -> list[str]:
        return [name.removeprefix("docker.io/library/") for name, _ in self.asked]


def plan(
    text: str,
    target: str | None = None,
    images: Images | None = None,
    contexts: dict[str, NamedContext] | None = None,
    **arguments: str,
) -> Plan:
    request = PlanRequest(AMD64, AMD64, target, arguments, contexts=contexts or {})
    return make_plan(parse(text.encode()), request, images or Images())


def sources(found: Plan) -> list[object]:
    return [s.source for stage in found.stages for s in stage.steps if isinstance(s, CopyStep)]


THREE = "FROM a AS one\nFROM b AS two\nFROM c\nCOPY --from=one /x /x\n"


def test_only_the_stages_that_the_target_needs_are_planned() -> None:
    images = Images()
    found = plan(THREE, images=images)
    assert [stage.index for stage in found.stages] == [0, 2]
    assert images.names == ["a:latest", "c:latest"]
    assert found.target.index == 2
    assert found.target.label == "stage-2"


@pytest.mark.parametrize("target", ["two", "TWO", "1"])
def test_a_target_is_named_in_any_case_or_by_index(target: str) -> None:
    assert [stage.index for stage in plan(THREE, target).stages] == [1]


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("tow", "did you mean two?"),
        ("7", "the stages are one, two"),
        ("-1", "the stages are one, two"),
    ],
)
def test_an_unknown_target_is_refused_with_the_nearest_name_or_all(target: str, hint: str) -> None:
    with pytest.raises(StageNotFound) as caught:
        plan(THREE, target)
    assert caught.value.hint == hint


@pytest.mark.parametrize("name", ["one", "ONE", "0"])
def test_copy_finds_a_stage_by_name_in_any_case_and_by_index(name: str) -> None:
    found = plan(f"FROM scratch AS one\nFROM scratch\nCOPY --from={name} /x /x\n")
    assert sources(found) == [StageSource(0)]


def test_copy_from_a_name_that_is_no_stage_is_an_image() -> None:
    images = Images()
    found = plan("FROM scratch\nCOPY --from=busybox:1 /x /x\n", images=images)
    assert images.names == ["busybox:1"]
    assert images.places == [2]
    assert isinstance(sources(found)[0], ImageSource)


def test_copy_from_scratch_resolves_nothing() -> None:
    images = Images()
    assert sources(plan("FROM scratch\nCOPY --from=scratch / /\n", images=images)) == [
        ImageSource(None)
    ]
    assert images.asked == []


def test_from_finds_the_nearest_stage_above_and_copy_the_last_one() -> None:
    text = "FROM a AS x\nFROM x AS y\nFROM b AS x\nFROM y\nCOPY --from=x / /\n"
    found = plan(text)
    assert [stage.index for stage in found.stages] == [0, 1, 2, 3]
    assert found.stages[1].parent == StageSource(0)
    assert sources(found) == [StageSource(2)]


def test_a_stage_may_have_the_name_of_its_own_image() -> None:
    images = Images()
    plan("FROM busybox AS busybox\n", images=images)
    assert images.names == ["busybox:latest"]


def test_a_number_after_from_is_an_image() -> None:
    images = Images()
    plan("FROM a\nFROM 0\n", images=images)
    assert images.names == ["0:latest"]


def test_a_mount_finds_stages_by_name_but_not_by_index() -> None:
    images = Images()
    text = "FROM a AS one\nFROM a\nRUN --mount=target=/m,from={} true\n"
    plan(text.format("One"), images=images)
    plan(text.format("0"), images=images)
    assert images.names == ["a:latest", "a:latest", "0:latest"]


def test_an_image_is_resolved_once_for_each_platform() -> None:
    images = Images()
    text = (
        "FROM a AS one\nFROM --platform=linux/arm64 a AS two\nFROM a:latest\n"
        "COPY --from=one / /\nCOPY --from=two / /\nCOPY --from=a / /\n"
    )
    plan(text, images=images)
    assert images.asked == [
        ("docker.io/library/a:latest", "linux/amd64"),
        ("docker.io/library/a:latest", "linux/arm64"),
    ]


def test_a_platform_may_have_variables_and_holds_for_stages_on_the_stage() -> None:
    text = (
        "FROM --platform=$BUILDPLATFORM a AS one\nFROM --platform=linux/s390x one AS two\n"
        "FROM scratch\nCOPY --from=two / /\n"
    )
    request = PlanRequest(AMD64, ARM64)
    found = make_plan(parse(text.encode()), request, Images())
    assert [str(stage.platform) for stage in found.stages] == [
        "linux/arm64",
        "linux/arm64",
        "linux/amd64",
    ]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("FROM $nothing\n", 1, "should not be blank"),
        ("FROM --platform=$nothing a\n", 1, "empty platform value"),
        ("FROM --platform=a/b/c/d/e a\n", 1, "platform"),
        ("FROM a\nCOPY --from=3 / /\n", 2, "invalid stage index 3"),
        ("FROM a\nCOPY --from=99999999999999999999 / /\n", 2, "invalid stage index"),
        ('FROM a\nCOPY --from=\\"a / /\n', 2, "double quote"),
        ("FROM a\nCOPY --from=a/UPPER / /\n", 2, "invalid image name"),
        ("FROM UPPER\n", 1, "invalid image name"),
    ],
)
def test_a_wrong_reference_is_refused_at_its_line(text: str, line: int, message: str) -> None:
    with pytest.raises(DockerfileError, match=message) as caught:
        plan(text)
    assert caught.value.where is not None
    assert caught.value.where.start_line == line


@pytest.mark.parametrize(
    "text",
    [
        "FROM scratch AS a\nCOPY --from=a / /\n",
        "FROM scratch AS a\nCOPY --from=0 / /\n",
        "FROM scratch AS a\nRUN --mount=from=a true\n",
        "FROM scratch AS a\nCOPY --from=b / /\nFROM scratch AS b\nCOPY --from=a / /\n",
        "FROM scratch AS a\nCOPY --from=b / /\nFROM a AS b\n",
        "FROM scratch AS a\nCOPY --from=b / /\nFROM a AS c\nFROM c AS b\n",
    ],
)
def test_stages_that_need_each_other_are_refused(text: str) -> None:
    with pytest.raises(StageCycle, match="circular dependency") as caught:
        plan(text)
    assert caught.value.where is not None


def test_a_circle_among_stages_that_are_not_needed_is_refused_too() -> None:
    with pytest.raises(StageCycle):
        plan("FROM scratch AS a\nCOPY --from=a / /\nFROM scratch\n")


def test_a_stage_below_cannot_be_copied_from() -> None:
    text = "FROM scratch AS a\nCOPY --from=b / /\nFROM scratch AS b\n"
    with pytest.raises(StageCycle, match="needs to be defined before") as caught:
        plan(text, "a")
    assert caught.value.where is not None
    assert caught.value.where.start_line == 2
    plan(text)  # stage a isn't needed


def test_a_missing_image_is_reported_at_the_line_that_names_it() -> None:
    with pytest.raises(ImageNotFound) as caught:
        plan("FROM a\nCOPY --from=missing / /\n")
    assert caught.value.where is not None
    assert caught.value.where.start_line == 2


def test_a_named_context_is_a_source_and_stands_in_for_a_stage_of_its_name() -> None:
    text = "FROM missing AS src\nFROM scratch\nCOPY --from=src / /\nCOPY --from=0 / /\n"
    found = plan(text, contexts={"src": SRC})
    assert sources(found) == [ContextSource("src"), ContextSource("src")]
    assert len(found.stages) == 1


@pytest.mark.parametrize("name", ["src", "src:latest", "docker.io/library/src"])
def test_a_context_is_found_by_any_form_of_its_name(name: str) -> None:
    found = plan(f"FROM scratch\nCOPY --from={name} / /\n", contexts={"src": SRC})
    assert sources(found) == [ContextSource("src")]


@pytest.mark.parametrize("name", ["scratch", "context"])
def test_scratch_and_context_are_never_replaced(name: str) -> None:
    images = Images()
    plan(f"FROM scratch\nCOPY --from={name} / /\n", images=images, contexts={name: SRC})
    assert images.names == ([] if name == "scratch" else ["context:latest"])


@pytest.mark.parametrize("text", ["FROM src\n", "FROM missing AS src\nRUN never\n"])
def test_a_stage_may_start_on_the_files_of_a_context(text: str) -> None:
    (stage,) = plan(text, contexts={"src": SRC}).stages
    assert stage.parent == ImageSource(None)
    assert [type(step) for step in stage.steps] == [CopyStep]
    assert sources(plan(text, contexts={"src": SRC})) == [ContextSource("src")]


def test_a_context_gives_another_image_for_a_base_and_for_a_source() -> None:
    images = Images()
    contexts: dict[str, NamedContext] = {"a": ImageContext("b:2"), "c:1": ImageContext("scratch")}
    text = "FROM docker.io/library/a:latest AS one\nFROM c:1\nCOPY --from=a /x /x\nCOPY --from=one / /\n"
    found = plan(text, images=images, contexts=contexts)
    assert images.names == ["b:2"]
    assert found.target.parent == ImageSource(None)


def test_a_stage_replaced_by_an_image_runs_nothing_of_its_own_nor_of_the_image() -> None:
    images = Images({"b": ("RUN trigger",)})
    text = "FROM missing AS one\nRUN own\nFROM one\nCOPY --from=one / /\n"
    found = plan(text, images=images, contexts={"one": ImageContext("b")})
    assert images.names == ["b:latest"]
    assert [len(stage.steps) for stage in found.stages] == [0, 1]


def test_a_context_for_a_platform_goes_before_one_for_all() -> None:
    contexts: dict[str, NamedContext] = {
        "a": ImageContext("any"),
        "a::linux/arm64/v8": ImageContext("arm"),
    }
    images = Images()
    text = "FROM --platform=linux/arm64 a AS one\nFROM a\nCOPY --from=one / /\n"
    plan(text, images=images, contexts=contexts)
    assert sorted(images.names) == ["any:latest", "arm:latest"]


def test_a_layout_is_asked_for_by_its_place_once() -> None:
    layout = LayoutContext("dir", "1")
    images = Images()
    plan("FROM a\nCOPY --from=a /x /x\n", images=images, contexts={"a": layout})
    assert images.asked == [("oci-layout://dir:1", "linux/amd64")]


def test_a_context_may_be_another_stage() -> None:
    text = "FROM a AS one\nFROM base AS two\nRUN x\nFROM scratch\nCOPY --from=base / /\nCOPY --from=two / /\n"
    images = Images()
    found = plan(text, images=images, contexts={"base": StageContext("One")})
    assert images.names == ["a:latest"]
    assert found.stages[1].parent == StageSource(0)
    assert sources(found) == [StageSource(0), StageSource(1)]


@pytest.mark.parametrize("stage", ["later", "base", "nowhere"])
def test_a_context_that_is_a_stage_must_stand_above(stage: str) -> None:
    with pytest.raises(StageNotFound, match="isn't defined above") as caught:
        plan("FROM base AS x\nFROM x AS later\n", contexts={"base": StageContext(stage)})
    assert caught.value.where is not None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("../dir", FilesContext("../dir")),
        ("https://host.example/x.tar.gz", FilesContext("https://host.example/x.tar.gz")),
        ("docker-image://a/b:1", ImageContext("a/b:1")),
        ("docker-image://scratch", ImageContext("scratch")),
        ("oci-layout://dir", LayoutContext("dir")),
        ("oci-layout:///a/b.tar:1.2", LayoutContext("/a/b.tar", "1.2")),
        ("oci-layout://C:/dir:x", LayoutContext("C:/dir", "x")),
        (f"oci-layout://d@{DIGEST}", LayoutContext("d", None, DIGEST)),
        (f"oci-layout://d@e:t@{DIGEST}", LayoutContext("d@e", "t", DIGEST)),
        ("target:one", StageContext("one")),
    ],
)
def test_the_value_of_a_context_says_its_kind(value: str, expected: NamedContext) -> None:
    assert parse_context(value) == expected
    if isinstance(expected, LayoutContext):
        assert str(expected) == value


@pytest.mark.parametrize("value", ["", "docker-image://", "docker-image://A B", "oci-layout://"])
def test_a_value_that_says_nothing_is_refused(value: str) -> None:
    with pytest.raises(UsageError):
        parse_context(value)


def test_triggers_run_first_with_the_place_of_from() -> None:
    images = Images({"base": ("ENV A=b", "RUN make $A")})
    found = plan("FROM scratch AS x\nFROM base\nRUN two\n", images=images)
    first, second = found.target.steps
    assert isinstance(first, RunStep)
    assert first.args[-1] == "make $A"
    assert ("A", "b") in first.env
    assert first.title == "ONBUILD RUN make $A"
    assert first.where.start_line == 2
    assert second.where.start_line == 3
    assert found.target.config.onbuild == ()


def test_a_trigger_may_need_another_stage_and_image() -> None:
    images = Images({"base": ("COPY --from=extra /x /x", "COPY --from=other /y /y")})
    found = plan("FROM scratch AS extra\nFROM base\n", images=images)
    assert [stage.index for stage in found.stages] == [0, 1]
    assert images.names == ["base:latest", "other:latest"]
    assert images.places == [2, 2]


def test_a_trigger_may_need_a_stage_whose_image_has_triggers() -> None:
    images = Images({"base": ("COPY --from=extra /x /x",), "deep": ("COPY --from=deeper / /",)})
    text = "FROM last AS deeper\nFROM deep AS extra\nFROM base\n"
    found = plan(text, images=images)
    assert [stage.index for stage in found.stages] == [0, 1, 2]
    assert images.names == ["base:latest", "deep:latest", "last:latest"]


def test_the_triggers_of_a_stage_run_in_the_stage_on_it_and_no_further() -> None:
    found = plan("FROM scratch AS a\nONBUILD USER me\nFROM a AS b\nFROM b AS c\nCOPY x /\n")
    assert [stage.config.user for stage in found.stages] == ["", "me", "me"]
    assert [stage.config.onbuild for stage in found.stages] == [("USER me",), (), ()]
    assert [len(stage.history) for stage in found.stages] == [0, 1, 1]


def test_images_that_are_only_copied_from_trigger_nothing() -> None:
    images = Images({"base": ("USER me",)})
    assert plan("FROM a\nCOPY --from=base / /\n", images=images).target.config.user == ""


@pytest.mark.parametrize(
    "trigger",
    [
        "ONBUILD RUN x",
        "FROM scratch",
        "MAINTAINER me",
        "RUN a\nRUN b",
        "",
        "NONSENSE",
        "RUN --mont=x y",
        "COPY --from=self / /",
        "COPY --from=9 / /",
        "RUN <<EOF",
    ],
)
def test_a_hostile_trigger_is_refused_at_the_from(trigger: str) -> None:
    with pytest.raises((DockerfileError, UnsupportedByBackend)) as caught:
        plan("FROM scratch\nFROM base AS self\n", images=Images({"base": (trigger,)}))
    assert caught.value.where is not None
    assert caught.value.where.start_line == 2


def test_too_many_triggers_are_refused() -> None:
    with pytest.raises(DockerfileError, match="ONBUILD triggers"):
        plan("FROM base\n", images=Images({"base": ("USER me",) * 1001}))


def test_independent_images_are_resolved_at_the_same_time() -> None:
    barrier = threading.Barrier(3, timeout=10)

    def resolve(reference: Reference, platform: Platform, where: SourceRange) -> BaseImage:
        barrier.wait()
        return Images()(reference, platform, where)

    text = "FROM a AS x\nFROM b\nCOPY --from=x / /\nCOPY --from=c / /\n"
    with ThreadPoolExecutor(3) as executor:
        found = make_plan(
            parse(text.encode()), PlanRequest(AMD64, AMD64), resolve, executor=executor
        )
    assert len(found.stages) == 2


def test_with_an_executor_the_first_line_is_blamed_and_nothing_is_left_running() -> None:
    text = "FROM missing1 AS x\nFROM missing2\nCOPY --from=x / /\n"
    with ThreadPoolExecutor(2) as executor, pytest.raises(ImageNotFound) as caught:
        make_plan(parse(text.encode()), PlanRequest(AMD64, AMD64), Images(), executor=executor)
    assert caught.value.where is not None
    assert caught.value.where.start_line == 1


def many_stages(count: int, *, copies: bool) -> Dockerfile:
    instructions: list[From | Copy] = []
    for i in range(count):
        image = "scratch" if copies or i == 0 else f"s{i - 1}"
        instructions.append(From(where=HERE, text="FROM", image=image, stage=f"s{i}"))
        if copies and i:
            instructions.append(
                Copy(
                    where=HERE,
                    text="COPY",
                    sources=("/",),
                    destination="/",
                    from_=f"s{i - 1}",
                )
            )
    return Dockerfile("Dockerfile", Directives(), (), tuple(instructions))


@pytest.mark.parametrize("copies", [True, False])
def test_a_long_chain_of_stages_is_planned(copies: bool) -> None:
    start = time.monotonic()
    found = make_plan(many_stages(20_000, copies=copies), PlanRequest(AMD64, AMD64), Images())
    assert len(found.stages) == 20_000
    assert time.monotonic() - start < 60


def test_a_circle_of_many_stages_is_found() -> None:
    edges = {i: [i + 1] for i in range(20_000)} | {20_000: [10_000]}
    circle = find_cycle(edges)
    assert circle is not None
    assert circle == list(range(10_000, 20_001))
    assert find_cycle({i: [i + 1] for i in range(20_000)}) is None
    assert len(reachable([0], edges)) == 20_001


def test_a_shared_stage_is_no_circle() -> None:
    assert find_cycle({0: [], 1: [0], 2: [0], 3: [1, 2, 2, 1]}) is None


def test_a_file_without_from_is_refused() -> None:
    empty = Dockerfile("Dockerfile", Directives(), (), ())
    with pytest.raises(DockerfileError, match="no stages") as caught:
        make_plan(empty, PlanRequest(AMD64, AMD64), Images())
    assert caught.value.where is not None
    headless = replace(
        many_stages(2, copies=True),
        instructions=(Copy(where=HERE, text="COPY", sources=("a",), destination="/"),),
    )
    with pytest.raises(DockerfileError, match="no build stage"):
        make_plan(headless, PlanRequest(AMD64, AMD64), Images())


def test_an_image_that_is_missing_and_nearly_a_stage_gets_a_hint() -> None:
    dockerfile = parse(b"FROM scratch AS build\nFROM scratch\nCOPY --from=buld /a /a\n")
    platform = Platform("linux", "amd64")

    def nothing_is_there(*_: object) -> BaseImage:
        raise ImageNotFound("there is no such image")

    with pytest.raises(ImageNotFound) as caught:
        make_plan(dockerfile, PlanRequest(platform, platform), nothing_is_there)
    assert caught.value.hint == 'there is no stage "buld"; did you mean build?'
