"""Caches that travel: machines with stores of their own, and a registry or a folder between them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from commandline import OnContainerd, OnEmbedded
from test_docker_registry import running_registry

import pybuild
from embedding import Stores, busybox_registry, check_store
from pybuild.backends import open_backend
from pybuild.export.outputs import OciOutput
from pybuild.run.events import Event, StepLog, Warned
from pybuild.run.result import BuildResult
from pybuild.testkit.containerd import PrivateContainerd, check_nothing_left
from pybuild.testkit.layouts import LayoutReader
from pybuild.testkit.registry import Fault, Registry
from pybuild.testkit.validate import validate

pytestmark = [pytest.mark.root]

PROJECT = """\
FROM {base} AS tools
RUN mkdir /tools && echo one > /tools/one && chown 12:34 /tools/one
RUN cat /proc/sys/kernel/random/uuid > /tools/two && ln /tools/two /tools/three
FROM {base} AS library
WORKDIR /library
COPY library .
RUN cat source > built && rm source
FROM tools AS app
COPY --from=library /library /library
RUN --mount=type=bind,from=tools,source=/tools,target=/seen cp /seen/two /seen-two
FROM app
COPY main /main
RUN cat /main /library/built /seen-two > /result
RUN cat /proc/sys/kernel/random/uuid > /last
"""
STEPS = 10
CACHED = ("", ",mode=max")


class Machine:
    """Builds with a store of its own, which is opened for each of them."""

    def __init__(self, backend: str, options: dict[str, object]) -> None:
        self._backend = backend
        self._options = options
        self.warnings: list[str] = []
        self.output = b""

    def build(self, dockerfile: str, context: Path, **options: Any) -> BuildResult:
        self.warnings, self.output = [], b""
        with open_backend(self._backend, self._options) as backend:
            return pybuild.build(
                context, dockerfile=dockerfile.encode(), backend=backend, reporter=self, **options
            )

    def report(self, event: Event) -> None:
        match event:
            case Warned(message=message) if "single user id" not in message:
                self.warnings.append(message)
            case StepLog(data=data):
                self.output += data
            case _:
                pass


@pytest.fixture(params=["embedded", pytest.param("containerd", marks=pytest.mark.containerd)])
def machines(
    request: pytest.FixtureRequest, stores: Stores, tmp_path: Path
) -> Iterator[Callable[[], Machine]]:
    """Makes machines without any image."""
    with ExitStack() as stack:

        def on_embedded() -> Machine:
            root = stack.enter_context(stores.lent(empty=True))
            stack.callback(check_store, root)
            return Machine("embedded", {"root": root})

        def on_containerd() -> Machine:
            daemon: PrivateContainerd = request.getfixturevalue("containerd")
            namespace = f"machine-{os.urandom(6).hex()}"
            stack.callback(check_nothing_left, daemon.address, namespace, daemon.folder)
            options = {"address": daemon.address, "namespace": namespace, "unpack": False}
            return Machine("containerd", {**options, "cache_dir": tmp_path / namespace})

        yield on_embedded if request.param == "embedded" else on_containerd


@pytest.fixture
def hub() -> Iterator[Registry]:
    """A registry on loopback that has busybox."""
    with busybox_registry() as registry:
        yield registry


@pytest.fixture
def project(hub: Registry) -> str:
    return PROJECT.format(base=f"{hub.address}/busybox")


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    (folder / "library").mkdir(parents=True)
    (folder / "library" / "source").write_text("library\n")
    (folder / "main").write_text("main\n")
    return folder


def ran(result: BuildResult) -> list[str]:
    return [step.title for step in result.steps if not step.cached]


def writes(registry: Registry) -> list[str]:
    return [one.path for one in registry.requests if one.method in {"PUT", "POST", "PATCH"}]


def test_the_second_machine_runs_no_step(
    machines: Callable[[], Machine], hub: Registry, project: str, context: Path, tmp_path: Path
) -> None:
    ref = f"{hub.address}/cache"
    first, second = machines(), machines()
    made = first.build(project, context, cache_to=[f"type=registry,ref={ref},mode=max"])
    assert len(ran(made)) == STEPS
    archive = tmp_path / "image.tar"
    again = second.build(
        project, context, cache_from=[ref], outputs=[OciOutput(dest=str(archive))], tags=["app:1"]
    )
    assert ran(again) == []
    assert again.digest == made.digest
    assert second.warnings == []
    reader = LayoutReader(archive)
    validate(reader, reader.images()["docker.io/library/app:1"], base_layers=1)


def test_the_second_machine_runs_what_depends_on_a_change(
    machines: Callable[[], Machine], hub: Registry, project: str, context: Path
) -> None:
    ref = f"{hub.address}/cache"
    first, second, third = machines(), machines(), machines()
    first.build(project, context, cache_to=[f"type=registry,ref={ref},mode=max"])
    (context / "main").write_text("changed\n")
    again = second.build(project, context, cache_from=[ref])
    assert ran(again) == [
        "COPY main /main",
        "RUN cat /main /library/built /seen-two > /result",
        "RUN cat /proc/sys/kernel/random/uuid > /last",
    ]
    (context / "main").write_text("main\n")
    (context / "library" / "source").write_text("changed\n")
    again = third.build(project, context, cache_from=[ref])
    kept = [step.title for step in again.steps if step.cached]
    assert [title.split()[0] for title in kept] == ["RUN", "RUN", "WORKDIR"]
    # a machine has afterwards what it took over
    assert ran(third.build(project, context)) == []


def test_docker_s_registry_holds_caches(
    machines: Callable[[], Machine], project: str, context: Path, tmp_path: Path
) -> None:
    first, second = machines(), machines()
    with running_registry(tmp_path) as registry:
        image, ref = f"{registry.address}/app:1", f"{registry.address}/cache:main"
        made = first.build(
            project,
            context,
            tags=[image],
            outputs=["type=registry"],
            cache_to=[f"type=registry,ref={ref},mode=max", "type=inline"],
        )
        again = second.build(
            project,
            context,
            tags=[image],
            outputs=["type=registry"],
            cache_from=[ref],
            cache_to=["type=inline"],
        )
        assert ran(again) == []
        assert again.digest == made.digest
        third = machines()
        found = third.build(project, context, cache_from=[f"type=registry,ref={image}"])
        # the tools' and the app's steps are in the image, the library's are not
        assert ran(found) == [
            "WORKDIR /library",
            "COPY library .",
            "RUN cat source > built && rm source",
        ]
        assert found.config_digest == made.config_digest
        assert third.warnings == []


@pytest.mark.parametrize("options", CACHED)
def test_a_folder_holds_caches(
    machines: Callable[[], Machine], project: str, context: Path, tmp_path: Path, options: str
) -> None:
    first, second = machines(), machines()
    place = tmp_path / "cache"
    made = first.build(project, context, cache_to=[f"type=local,dest={place}{options}"])
    moved = tmp_path / "moved"
    shutil.move(place, moved)
    again = second.build(project, context, cache_from=[f"type=local,src={moved}"])
    assert len(ran(again)) == (0 if options else 3)
    assert again.digest == made.digest or not options
    before = {path: path.stat().st_mtime_ns for path in (moved / "blobs/sha256").iterdir()}
    second.build(project, context, cache_to=[f"type=local,dest={moved}{options}"])
    after = {path: path.stat().st_mtime_ns for path in (moved / "blobs/sha256").iterdir()}
    assert {path: after[path] for path in before} == before


def test_the_same_cache_is_written_once(
    machines: Callable[[], Machine], hub: Registry, project: str, context: Path
) -> None:
    to = f"type=registry,ref={hub.address}/cache,mode=max"
    first, second = machines(), machines()
    first.build(project, context, cache_to=[to])
    hub.requests.clear()
    first.build(project, context, cache_to=[to])
    assert [one.method for one in hub.requests if "/cache/" in one.path] == ["HEAD"]
    second.build(project, context, cache_from=[f"{hub.address}/cache"], cache_to=[to])
    assert writes(hub) == []


def test_cache_mounts_travel(machines: Callable[[], Machine], hub: Registry, context: Path) -> None:
    dockerfile = (
        f"FROM {hub.address}/busybox\nCOPY main /main\n"
        "RUN --mount=type=cache,id=kept,target=/kept --mount=type=cache,target=/own,uid=7,mode=0700 \\\n"
        " cat /kept/* /own/* 2>/dev/null; stat -c '%u %a' /own; ls -l /kept; \\\n"
        " mkdir -p /kept/sub && echo from the first > /kept/file && ln -sf file /kept/link && \\\n"
        " echo also > /own/file\n"
    )
    ref = f"{hub.address}/cache"
    first, second = machines(), machines()
    first.build(dockerfile, context, cache_to=[f"type=registry,ref={ref},mounts=kept,/own"])
    assert b"from the first" not in first.output
    assert first.warnings == []
    (context / "main").write_text("changed\n")
    result = second.build(dockerfile, context, cache_from=[ref])
    assert len(ran(result)) == 2
    assert second.warnings == []
    for line in (b"from the first\n", b"also\n", b"7 700\n", b"link -> file\n"):
        assert line in second.output


def test_the_command_line_carries_caches(
    on_embedded: OnEmbedded, hub: Registry, context: Path, tmp_path: Path
) -> None:
    """The flags, what progress shows, and a build that has all of it and asks nobody."""
    (context / "Dockerfile").write_text(f"FROM {hub.address}/busybox\nRUN echo x > /x\n")
    ref = f"{hub.address}/cache"
    ended = on_embedded.build(f"--cache-to=type=registry,ref={ref}", context)
    assert "exporting cache to registry" in ended.err
    assert "writing cache image manifest sha256:" in ended.err
    hub.requests.clear()
    ended = on_embedded.build(f"--cache-from={ref}", context)
    assert hub.requests == []
    ended = on_embedded.build("--no-cache-filter=none", f"--cache-from={ref}", context)
    message = on_embedded.fail(2, "--cache-to=type=gha", context)
    assert "GitHub's cache" in message


@pytest.mark.containerd
def test_both_backends_share_a_cache(
    on_containerd: OnContainerd, on_embedded: OnEmbedded, hub: Registry, project: str, context: Path
) -> None:
    (context / "Dockerfile").write_text(project)
    ref = f"{hub.address}/cache"
    made = on_containerd.build(f"--cache-to=type=registry,ref={ref},mode=max", context)
    again = on_embedded.build("--progress=plain", f"--cache-from={ref}", context)
    assert again.digest == made.digest
    assert again.err.count("CACHED") >= STEPS


def test_layers_that_nothing_needs_stay_where_they_are(
    stores: Stores, hub: Registry, context: Path
) -> None:
    dockerfile = f"FROM {hub.address}/busybox\nCOPY main /main\nRUN echo a > /a\nRUN echo b > /b\n"
    ref = f"{hub.address}/cache"
    image = f"{hub.address}/app:1"
    with stores.lent(empty=True) as one, stores.lent(empty=True) as two:
        made = Machine("embedded", {"root": one}).build(dockerfile, context, cache_to=[ref])
        hub.requests.clear()
        second = Machine("embedded", {"root": two})
        pushed = {"tags": [image], "outputs": ["type=registry"]}
        again = second.build(dockerfile, context, cache_from=[ref], **pushed)
        assert (ran(again), again.digest) == ([], made.digest)
        manifest = json.loads(hub.read_manifest("cache:latest")[1])
        assert len(manifest["layers"]) == 3
        for layer in manifest["layers"]:
            assert hub.requested("GET", layer["digest"]) == []
        assert manifest["layers"][0]["digest"] in hub.blobs("app")
        # nothing of it is kept that isn't here, so a lost cache harms no later build
        assert len(ran(second.build(dockerfile, context))) == 3
        check_store(two)


@pytest.mark.parametrize("fault", ["lost", "changed"])
@pytest.mark.parametrize("needed_by", ["a step", "an output"])
def test_a_lost_layer_is_found_out_in_time(
    machines: Callable[[], Machine],
    hub: Registry,
    context: Path,
    tmp_path: Path,
    *,
    needed_by: str,
    fault: str,
) -> None:
    """It was taken over unseen; that it is lost shows when a step needs it, or an output does."""
    dockerfile = f"FROM {hub.address}/busybox\nCOPY main /main\nRUN echo a > /a\n"
    outputs = [OciOutput(dest=str(tmp_path / "image.tar"))]
    if needed_by == "a step":
        dockerfile += "FROM scratch\nCOPY --from=0 /a /main /copied/\n"
        outputs = []
    ref = f"{hub.address}/cache"
    first, second = machines(), machines()
    made = first.build(dockerfile, context, cache_to=[f"type=registry,ref={ref},mode=max"])
    lost = json.loads(hub.read_manifest("cache:latest")[1])["layers"][1]
    if fault == "lost":
        wrong = Fault(lost["digest"], times=None, status=404)
    else:
        wrong = Fault(lost["digest"], times=None, content=bytes(lost["size"]))
    hub.add_fault(wrong)
    result = second.build(dockerfile, context, cache_from=[ref], outputs=outputs)
    assert "RUN echo a > /a" in ran(result)
    assert "COPY main /main" not in ran(result)
    assert [step.diff_id for step in result.steps][:1] == [made.steps[0].diff_id]
    assert len(second.warnings) == 1, second.warnings
    # what was found wrong is in no later build's way
    assert ran(second.build(dockerfile, context)) == []
