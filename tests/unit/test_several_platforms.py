from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from building import (
    LINUX,
    NoActivity,
    Recorder,
    build,
    busybox_config,
    busybox_files,
    memory_backend,
)

import pybuild
from pybuild.backend import Capability, PullPolicy
from pybuild.errors import BackendFailed, RunFailed, UnsupportedByBackend, UsageError
from pybuild.oci.descriptor import OCI_INDEX, OCI_MANIFEST
from pybuild.oci.platform import Platform
from pybuild.oci.reference import parse_reference
from pybuild.run.events import StepStarted, Warned
from pybuild.testkit.memory import MemoryBackend
from pybuild.testkit.toyshell import RunOutcome
from pybuild.testkit.toyshell import run as toyshell_run
from pybuild.testkit.validate import validate_index
from pybuild.testkit.workbench import content

ARM = Platform("linux", "arm64")
BOTH = "linux/amd64,linux/arm64"
CROSS = """\
FROM --platform=$BUILDPLATFORM busybox AS tools
RUN echo tools >> /tools
FROM --platform=$BUILDPLATFORM tools AS build
ARG TARGETARCH
RUN echo for $TARGETARCH > /out
FROM busybox
COPY --from=build /out /tools /
"""


@pytest.fixture
def backend() -> Iterator[MemoryBackend]:
    with memory_backend() as made:
        made.add_image("busybox", replace(busybox_config(), platform=ARM), busybox_files())
        yield made
        assert made.live_layers == 0


def document(backend: MemoryBackend, result: pybuild.BuildResult) -> Any:
    with closing(backend.open_blob(result.digest)) as stream:
        return json.loads(stream.read())


def file_of(backend: MemoryBackend, platform: Platform, path: bytes, name: str = "app") -> bytes:
    found = backend.resolve(parse_reference(name), platform, PullPolicy.NEVER, NoActivity())
    with backend.checkout(found, NoActivity()) as layer:
        return content(layer, path)


def titles(recorder: Recorder) -> list[str]:
    return [f"{e.stage}: {e.title}" for e in recorder.of(StepStarted) if e.stage]


def test_several_platforms_become_one_index(backend: MemoryBackend) -> None:
    result = build(backend, CROSS, platform=BOTH, tags=["app", "other:2"])
    assert result.is_index
    assert result.names == ("docker.io/library/app:latest", "docker.io/library/other:2")
    assert list(result.images) == [LINUX, ARM]
    assert (result.platform, result.config_digest) == (LINUX, result.images[LINUX].config_digest)
    assert document(backend, result) == {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [
            {
                "mediaType": OCI_MANIFEST,
                "digest": result.images[platform].digest,
                "size": len(backend.open_blob(result.images[platform].digest).read()),
                "platform": {"architecture": platform.architecture, "os": "linux"},
            }
            for platform in (LINUX, ARM)
        ],
    }
    configs = validate_index(backend, result.descriptor, base_layers=1)
    assert [config["architecture"] for config in configs] == ["amd64", "arm64"]
    for name in ("app", "other:2"):
        assert file_of(backend, LINUX, b"out", name) == b"for amd64\n"
        assert file_of(backend, ARM, b"out", name) == b"for arm64\n"


def test_a_stage_that_is_the_same_for_all_runs_once(backend: MemoryBackend) -> None:
    recorder = Recorder()
    result = build(backend, CROSS, platform=BOTH, reporter=recorder, no_cache=True)
    runs = [title for title in titles(recorder) if "RUN" in title]
    assert sorted(runs) == [
        "linux/amd64 build: RUN echo for $TARGETARCH > /out",
        "linux/amd64 tools: RUN echo tools >> /tools",
        "linux/amd64->linux/arm64 build: RUN echo for $TARGETARCH > /out",
    ]
    assert len(result.steps) == len(runs) + 2


def counting_runner(backend: MemoryBackend) -> list[str]:
    """Make `backend` note the script of each process that it runs."""
    ran: list[str] = []

    def run(process: Any, *arguments: Any) -> RunOutcome:
        ran.append(process.args[-1])
        return toyshell_run(process, *arguments)

    backend.runner = run
    backend.capabilities -= {Capability.STEP_CACHE}
    return ran


def test_the_steps_before_stages_part_are_done_once(backend: MemoryBackend) -> None:
    ran = counting_runner(backend)
    text = """\
FROM --platform=$BUILDPLATFORM busybox AS build
RUN echo a > /a
RUN echo b > /b
ARG TARGETARCH
RUN echo for $TARGETARCH > /out
FROM busybox
COPY --from=build /a /b /out /
"""
    result = build(backend, text, platform=BOTH, tags=["app"])
    assert sorted(ran) == [
        "echo a > /a",
        "echo b > /b",
        "echo for $TARGETARCH > /out",
        "echo for $TARGETARCH > /out",
    ]
    runs = [
        (step.title.split(" >")[0], step.cached) for step in result.steps if step.title[0] == "R"
    ]
    assert sorted(runs) == [
        ("RUN echo a", False),
        ("RUN echo a", True),
        ("RUN echo b", False),
        ("RUN echo b", True),
        ("RUN echo for $TARGETARCH", False),
        ("RUN echo for $TARGETARCH", False),
    ]
    for platform in (LINUX, ARM):
        assert file_of(backend, platform, b"b") == b"b\n"
        assert file_of(backend, platform, b"out") == f"for {platform.architecture}\n".encode()
    validate_index(backend, result.descriptor, base_layers=1)


def test_a_stage_waits_for_a_step_that_another_is_doing(backend: MemoryBackend) -> None:
    both_came = threading.Event()
    ran = counting_runner(backend)
    run = backend.runner

    class Watching(Recorder):
        def report(self, event: Any) -> None:
            super().report(event)
            if sum(title.endswith("RUN echo a > /a") for title in titles(self)) == 2:
                both_came.set()

    def wait_and_run(*arguments: Any) -> RunOutcome:
        assert both_came.wait(20)
        return run(*arguments)

    backend.runner = wait_and_run
    text = """\
FROM busybox AS one
RUN echo a > /a
FROM busybox AS two
RUN echo a > /a
FROM busybox
COPY --from=one /a /a
COPY --from=two /a /b
"""
    build(backend, text, tags=["app"], reporter=Watching(), max_workers=2)
    assert ran == ["echo a > /a"]
    assert file_of(backend, LINUX, b"b") == b"a\n"


def test_steps_that_read_different_stages_are_not_the_same(backend: MemoryBackend) -> None:
    text = """\
FROM busybox AS x
RUN echo x > /f
FROM busybox AS y
RUN echo y > /f
FROM busybox AS one
COPY --from=x /f /f
RUN cat /f > /g
FROM busybox AS two
COPY --from=y /f /f
RUN cat /f > /g
COPY --from=one /g /h
"""
    build(backend, text, tags=["app"])
    assert file_of(backend, LINUX, b"g") == b"y\n"
    assert file_of(backend, LINUX, b"h") == b"x\n"


@pytest.mark.parametrize("failing", ["false", "test $TARGETARCH = arm64"])
def test_nothing_is_held_of_common_steps_when_one_fails(
    backend: MemoryBackend, failing: str
) -> None:
    counting_runner(backend)
    text = f"""\
FROM --platform=$BUILDPLATFORM busybox
RUN echo a > /a
RUN {"echo b > /b" if "TARGET" in failing else failing}
ARG TARGETARCH
RUN {failing}
"""
    with pytest.raises(RunFailed):
        build(backend, text, platform=BOTH, max_workers=1)


def test_the_platforms_share_what_they_look_up(backend: MemoryBackend) -> None:
    asked = []

    class Asked(MemoryBackend):
        def resolve(self, reference: Any, platform: Any, pull_policy: Any, activity: Any) -> Any:
            asked.append(str(platform))
            return backend.resolve(reference, platform, pull_policy, activity)

    with Asked(platforms=[LINUX]) as counting:
        pybuild.plan_build(None, dockerfile=CROSS.encode(), backend=counting, platform=BOTH)
    assert sorted(asked) == ["linux/amd64", "linux/arm64"]


def test_platforms_are_built_at_the_same_time(backend: MemoryBackend) -> None:
    meeting = threading.Barrier(2, timeout=10)

    def run(*arguments: Any) -> RunOutcome:
        meeting.wait()
        return toyshell_run(*arguments)

    backend.runner = run
    build(backend, "FROM busybox\nRUN touch /met\n", platform=BOTH, max_workers=2)


def test_each_platform_is_built_once_and_in_the_order_asked_for(backend: MemoryBackend) -> None:
    for asked in (
        "linux/arm64,linux/amd64,linux/aarch64",
        ["arm64", "amd64,linux/arm64/v8"],
        [ARM, "linux/amd64"],
    ):
        result = build(backend, "FROM busybox\n", platform=asked)
        assert list(result.images) == [ARM, LINUX]
    alone = build(backend, "FROM busybox\n", platform="linux/arm64,linux/arm64")
    assert not alone.is_index
    assert list(alone.images) == [ARM]


def test_the_same_platforms_give_the_same_index(backend: MemoryBackend) -> None:
    made = [build(backend, CROSS, platform=BOTH, created=0, no_cache=True) for _ in range(2)]
    assert made[0].descriptor == made[1].descriptor
    turned = build(backend, CROSS, platform="linux/arm64,linux/amd64", created=0)
    assert turned.images == made[0].images
    assert turned.digest != made[0].digest


def test_a_build_arg_makes_an_index_of_one_platform(backend: MemoryBackend) -> None:
    arguments = {"BUILDKIT_MULTI_PLATFORM": "1"}
    result = build(backend, "FROM busybox\n", build_args=arguments, tags=["app"])
    assert result.is_index
    assert len(document(backend, result)["manifests"]) == 1
    arguments = {"BUILDKIT_MULTI_PLATFORM": "false"}
    assert not build(backend, "FROM busybox\n", build_args=arguments).is_index
    with pytest.raises(UsageError, match="BUILDKIT_MULTI_PLATFORM"):
        build(backend, "FROM busybox\n", build_args={"BUILDKIT_MULTI_PLATFORM": "maybe"})


def test_annotations_are_of_the_manifests_or_of_the_index(backend: MemoryBackend) -> None:
    notes: dict[str, Any] = {"annotations": {"m": "1"}, "index_annotations": {"i": "2"}}
    result = build(backend, "FROM busybox\n", platform=BOTH, **notes)
    assert document(backend, result)["annotations"] == {"i": "2"}
    for image in result.images.values():
        with closing(backend.open_blob(image.digest)) as stream:
            assert json.loads(stream.read())["annotations"] == {"m": "1"}
    with pytest.raises(UsageError, match="no index"):
        build(backend, "FROM busybox\n", **notes)


def test_an_arg_in_from_chooses_another_stage_for_each_platform(backend: MemoryBackend) -> None:
    text = """\
FROM busybox AS base-amd64
RUN echo big > /kind
FROM busybox AS base-arm64
RUN echo small > /kind
FROM base-$TARGETARCH
"""
    recorder = Recorder()
    build(backend, text, platform=BOTH, tags=["app"], reporter=recorder)
    assert file_of(backend, LINUX, b"kind") == b"big\n"
    assert file_of(backend, ARM, b"kind") == b"small\n"
    assert len([title for title in titles(recorder) if "RUN" in title]) == 2


def test_a_target_that_is_the_same_for_all_is_built_once(backend: MemoryBackend) -> None:
    text = "FROM --platform=linux/arm64 busybox\nRUN echo same > /same\n"
    planned = pybuild.plan_build(None, dockerfile=text.encode(), backend=backend, platform=BOTH)
    assert [target.platform for target in planned.plan.targets] == [LINUX, ARM]
    result = build(backend, text, platform=BOTH, tags=["app"])
    assert len(result.steps) == 1
    assert file_of(backend, ARM, b"same") == b"same\n"


def test_nothing_is_left_of_a_build_that_fails_for_one_platform(backend: MemoryBackend) -> None:
    text = "FROM busybox\nARG TARGETARCH\nRUN test $TARGETARCH = amd64\n"
    with pytest.raises(RunFailed) as caught:
        build(backend, text, platform=BOTH, tags=["app"])
    assert caught.value.where is not None
    with pytest.raises(pybuild.ImageNotFound):
        file_of(backend, LINUX, b"etc/passwd")


def test_an_index_that_cannot_be_made_fails_the_build(backend: MemoryBackend) -> None:
    def fail(*_: Any) -> Any:
        raise BackendFailed("the disk is full")

    backend.create_index = fail  # type: ignore[method-assign]
    with pytest.raises(BackendFailed, match="full"):
        build(backend, CROSS, platform=BOTH, tags=["app"])


def test_a_run_that_cannot_be_emulated_is_refused_before_anything_runs(
    backend: MemoryBackend,
) -> None:
    recorder = Recorder()
    backend.executes = lambda platform: platform == LINUX  # type: ignore[method-assign]
    with pytest.raises(UnsupportedByBackend, match="linux/arm64") as caught:
        build(backend, CROSS + "RUN true\n", platform=BOTH, reporter=recorder)
    assert caught.value.where is not None
    assert caught.value.where.start_line == 8
    assert "qemu-user-static" in (caught.value.hint or "")
    assert titles(recorder) == []
    # nothing is to be emulated where every RUN is for the build platform
    build(backend, CROSS, platform=BOTH)


def test_an_emulated_run_is_warned_of_only_if_nobody_can_tell(backend: MemoryBackend) -> None:
    for answer, warnings in ((None, 1), (True, 0)):
        backend.executes = lambda _, answer=answer: answer  # type: ignore[method-assign,misc]
        recorder = Recorder()
        build(backend, "FROM busybox\nRUN true\n", platform="linux/arm64", reporter=recorder)
        assert len(recorder.of(Warned)) == warnings


def test_what_the_machine_cannot_execute_is_explained(backend: MemoryBackend) -> None:
    def run(*arguments: Any) -> RunOutcome:
        arguments[-1].log(2, b"exec /bin/sh: exec format error\n")
        return RunOutcome(1)

    backend.runner = run
    with pytest.raises(RunFailed) as caught:
        build(backend, "FROM busybox\nRUN true\n", platform="linux/arm64")
    assert "emulator" in (caught.value.hint or "")


def test_the_build_arg_of_the_host_name_is_every_runs(backend: MemoryBackend) -> None:
    arguments = {"BUILDKIT_SANDBOX_HOSTNAME": "worker-1.example"}
    build(backend, "FROM busybox\nRUN hostname > /h\n", build_args=arguments, tags=["app"])
    assert file_of(backend, LINUX, b"h") == b"worker-1.example\n"
    for wrong in ("a b", "x\ny", "-x", "a" * 65):
        with pytest.raises(UsageError, match="HOSTNAME"):
            build(
                backend,
                "FROM busybox\nRUN hostname\n",
                build_args={"BUILDKIT_SANDBOX_HOSTNAME": wrong},
            )


def test_stages_that_declare_it_see_the_time_of_the_image(backend: MemoryBackend) -> None:
    text = """\
FROM busybox
RUN echo "[$SOURCE_DATE_EPOCH]" > /before
ARG SOURCE_DATE_EPOCH
RUN echo "[$SOURCE_DATE_EPOCH]" > /after
"""
    for options in ({"created": 1000}, {"build_args": {"SOURCE_DATE_EPOCH": "1000"}}):
        build(backend, text, tags=["app"], **options)
        assert file_of(backend, LINUX, b"before") == b"[]\n"
        assert file_of(backend, LINUX, b"after") == b"[1000]\n"


def test_an_unreadable_platform_among_several_is_refused(tmp_path: Path) -> None:
    with memory_backend() as backend, pytest.raises(UsageError, match="platform"):
        build(backend, "FROM busybox\n", tmp_path, platform="linux/amd64,what/is/this/now")
