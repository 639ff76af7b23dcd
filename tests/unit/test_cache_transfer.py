from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from building import Recorder, build, busybox_config, busybox_files, files_of, memory_backend

import pybuild
from pybuild.backend import Capability
from pybuild.cachetransfer.document import CACHE_ANNOTATION
from pybuild.errors import BuildCancelled, ExportFailed, InvalidImage, UnsupportedByBackend
from pybuild.oci.descriptor import digest_of
from pybuild.oci.registry import RegistryClient
from pybuild.oci.session import Retry
from pybuild.run.activity import CancelToken
from pybuild.run.events import StepProgress, StepStarted, Warned
from pybuild.testkit.memory import MemoryBackend
from pybuild.testkit.registry import Fault, Registry

STAGES = """\
FROM busybox AS tools
RUN echo tools > /tools
RUN echo more > /more
FROM busybox AS app
COPY a /a
RUN echo b > /b
COPY --from=tools /tools /more /usr/
RUN --mount=type=bind,from=tools,source=/more,target=/m echo c > /c
FROM app
COPY d /d
RUN echo e > /e
"""
FILES = {"a": "in a", "d": "in d"}


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def machines() -> Iterator[Any]:
    """Makes backends, each a machine of its own; all are looked at in the end."""
    made: list[MemoryBackend] = []

    def machine(**options: Any) -> MemoryBackend:
        made.append(memory_backend(**options))
        return made[-1]

    yield machine
    for backend in made:
        assert backend.live_layers == 0


def ran(result: pybuild.BuildResult) -> list[str]:
    return [step.title for step in result.steps if not step.cached]


def written(registry: Registry) -> int:
    """How many requests have written something."""
    return sum(len(registry.requested(method, "/")) for method in ("PUT", "POST", "PATCH"))


def warnings(recorder: Recorder) -> list[str]:
    return [event.message for event in recorder.of(Warned)]


@pytest.mark.parametrize("kind", ["registry", "local"])
def test_another_machine_runs_no_step(
    machines: Any, context: Path, registry: Registry, tmp_path: Path, kind: str
) -> None:
    to, source = (
        (f"type=registry,ref={registry.address}/cache,mode=max", f"{registry.address}/cache")
        if kind == "registry"
        else (
            f"type=local,dest={tmp_path / 'cache'},mode=max",
            f"type=local,src={tmp_path / 'cache'}",
        )
    )
    first = build(machines(), STAGES, context, cache_to=[to])
    assert len(ran(first)) == 8
    again = machines()
    second = build(again, STAGES, context, cache_from=[source])
    assert ran(second) == []
    assert second.digest == first.digest
    # what was taken over is the machine's own now
    assert ran(build(again, STAGES, context)) == []


def test_only_what_depends_on_a_change_runs(
    machines: Any, context: Path, registry: Registry
) -> None:
    ref = f"{registry.address}/cache"
    build(machines(), STAGES, context, cache_to=[f"type=registry,ref={ref},mode=max"])
    (context / "d").write_text("changed")
    second = build(machines(), STAGES, context, cache_from=[ref])
    assert ran(second) == ["COPY d /d", "RUN echo e > /e"]


def test_the_least_mode_has_the_steps_of_the_image_alone(
    machines: Any, context: Path, registry: Registry
) -> None:
    ref = f"{registry.address}/cache"
    build(machines(), STAGES, context, cache_to=[ref])
    second = build(machines(), STAGES, context, cache_from=[ref])
    assert ran(second) == ["RUN echo tools > /tools", "RUN echo more > /more"]


def test_an_image_has_the_cache_of_its_layers_in_it(
    machines: Any, context: Path, registry: Registry
) -> None:
    image = f"{registry.address}/app:1"
    output = "type=registry"
    first = build(
        machines(), STAGES, context, tags=[image], outputs=[output], cache_to=["type=inline"]
    )
    manifest = json.loads(registry.read_manifest("app:1")[1])
    assert set(json.loads(manifest["annotations"][CACHE_ANNOTATION])) == {
        *("version", "layers", "steps", "mounts")
    }
    second = build(
        machines(),
        STAGES,
        context,
        tags=[image],
        outputs=[output],
        cache_to=["type=inline"],
        cache_from=[f"type=registry,ref={image}"],
    )
    assert ran(second) == ["RUN echo tools > /tools", "RUN echo more > /more"]
    assert second.digest == first.digest
    assert (
        second.config_digest == build(machines(), STAGES, context, cache_from=[image]).config_digest
    )


def test_an_inline_cache_has_no_clock_where_the_image_has_none(
    machines: Any, context: Path
) -> None:
    digests = {
        build(machines(), STAGES, context, created=1, cache_to=["type=inline"]).digest
        for _ in range(2)
    }
    assert len(digests) == 1


def test_an_index_has_a_cache_for_each_platform(
    machines: Any, context: Path, registry: Registry
) -> None:
    image = f"{registry.address}/app:1"
    both = {"platform": "linux/amd64,linux/386", "outputs": ["type=registry"], "tags": [image]}
    dockerfile = "FROM scratch\nARG TARGETARCH\nCOPY a /$TARGETARCH\n"
    build(machines(), dockerfile, context, cache_to=["type=inline"], **both)
    recorder = Recorder()
    second = build(machines(), dockerfile, context, cache_from=[image], reporter=recorder, **both)
    assert ran(second) == []
    assert warnings(recorder) == []


def test_writing_the_same_cache_again_uploads_nothing(
    machines: Any, context: Path, registry: Registry
) -> None:
    to = f"type=registry,ref={registry.address}/cache,mode=max"
    backend = machines()
    build(backend, STAGES, context, cache_to=[to])
    before, blobs = written(registry), dict(registry.blobs("cache"))
    build(backend, STAGES, context, cache_to=[to])
    build(machines(), STAGES, context, cache_to=[to], cache_from=[f"{registry.address}/cache"])
    assert written(registry) == before
    assert registry.blobs("cache") == blobs


def test_blobs_that_the_registry_has_are_mounted(
    machines: Any, context: Path, registry: Registry
) -> None:
    image = f"{registry.address}/app:1"
    first = machines()
    build(
        *(first, STAGES, context),
        tags=[image],
        outputs=["type=registry"],
        cache_to=[f"type=registry,ref={registry.address}/cache"],
    )
    # the image's own layers came from there; the document is new
    assert len(registry.requested("PUT", "/cache/blobs/uploads")) == 1
    other = f"{registry.address}/other:1"
    build(
        *(machines(), STAGES, context),
        tags=[other],
        outputs=["type=registry"],
        cache_from=[f"{registry.address}/cache"],
    )
    layers = [*registry.requested("PUT", "/other/blobs/uploads")]
    assert len(layers) == 2  # the base image's layer, and the config


def test_base_images_never_come_from_a_cache(
    machines: Any, context: Path, registry: Registry
) -> None:
    backend = machines()
    build(backend, STAGES, context, cache_to=[f"{registry.address}/cache"])
    base = backend.add_image("busybox", busybox_config(), busybox_files()).layers[0]
    assert base.blob.digest not in registry.blobs("cache")


def test_a_build_that_has_all_steps_asks_no_cache(
    machines: Any, context: Path, registry: Registry
) -> None:
    backend = machines()
    dockerfile = STAGES + "WORKDIR /usr\n"  # which is there, so that there is nothing to do
    build(backend, dockerfile, context)
    result = build(backend, dockerfile, context, cache_from=[f"{registry.address}/cache"])
    assert ran(result) == ["WORKDIR /usr"]
    assert registry.requests == []


def test_a_cache_is_read_once(machines: Any, context: Path, registry: Registry) -> None:
    ref = f"{registry.address}/cache"
    build(machines(), STAGES, context, cache_to=[f"type=registry,ref={ref},mode=max"])
    registry.requests.clear()
    recorder = Recorder()
    build(machines(), STAGES, context, cache_from=[ref, ref], reporter=recorder)
    assert len(registry.requested("GET", "/manifests/")) == 1
    fetched = [one.path for one in registry.requested("GET", "/blobs/")]
    assert len(fetched) == len(set(fetched)) == 9
    titles = [event.title for event in recorder.of(StepStarted)]
    assert titles.count(f"importing cache manifest from {ref}:latest") == 1


def test_a_cache_that_is_nowhere_is_a_warning(
    machines: Any, context: Path, registry: Registry, tmp_path: Path
) -> None:
    recorder = Recorder()
    sources = [
        f"{registry.address}/nowhere",
        "127.0.0.1:1/unreachable",
        f"type=local,src={tmp_path / 'nowhere'}",
    ]
    with RegistryClient(retry=Retry(attempts=1)) as client:
        result = build(
            *(machines(), STAGES, context),
            cache_from=sources,
            reporter=recorder,
            registry=client,
        )
    assert len(ran(result)) == 8
    found = warnings(recorder)
    assert len(found) == 3
    assert found[0].startswith(f"the build cache {registry.address}/nowhere:latest isn't used: ")


def test_the_next_cache_is_asked_where_one_is_of_no_use(
    machines: Any, context: Path, registry: Registry
) -> None:
    ref = f"{registry.address}/cache"
    build(machines(), STAGES, context, cache_to=[f"type=registry,ref={ref},mode=max"])
    result = build(machines(), STAGES, context, cache_from=[f"{registry.address}/no", ref])
    assert ran(result) == []


def test_a_blob_that_is_lost_is_one_warning_and_the_steps_run(
    machines: Any, context: Path, registry: Registry
) -> None:
    ref = f"{registry.address}/cache"
    first = build(machines(), STAGES, context, cache_to=[f"type=registry,ref={ref},mode=max"])
    layers = json.loads(registry.read_manifest("cache:latest")[1])["layers"]
    registry.add_fault(Fault(layers[2]["digest"], times=None, status=404))
    recorder = Recorder()
    second = build(machines(), STAGES, context, cache_from=[ref], reporter=recorder, max_workers=1)
    assert len(warnings(recorder)) == 1
    assert 0 < len(ran(second)) < 8
    assert [step.diff_id for step in second.steps] == [step.diff_id for step in first.steps]


def test_results_without_owners_are_not_for_machines_that_keep_them(
    machines: Any, context: Path, registry: Registry
) -> None:
    ref = f"{registry.address}/cache"
    without = frozenset(Capability) - {Capability.FILE_OWNERS}
    build(
        machines(capabilities=without),
        STAGES,
        context,
        cache_to=[f"type=registry,ref={ref},mode=max"],
    )
    assert len(ran(build(machines(), STAGES, context, cache_from=[ref]))) == 8
    other = machines(capabilities=without)
    assert ran(build(other, STAGES, context, cache_from=[ref])) == []


def test_without_the_cache_steps_run_and_are_written_all_the_same(
    machines: Any, context: Path, registry: Registry
) -> None:
    ref = f"{registry.address}/cache"
    to = f"type=registry,ref={ref},mode=max"
    backend = machines()
    build(backend, STAGES, context)
    result = build(backend, STAGES, context, no_cache=True, cache_from=[ref], cache_to=[to])
    assert len(ran(result)) == 8
    assert ran(build(machines(), STAGES, context, cache_from=[ref])) == []


def test_a_cache_that_cant_be_written_is_an_error_or_a_warning(
    machines: Any, context: Path, registry: Registry
) -> None:
    registry.read_only.add("cache")
    to = f"type=registry,ref={registry.address}/cache"
    with pytest.raises(ExportFailed) as caught:
        build(machines(), STAGES, context, cache_to=[to])
    assert caught.value.exit_code == 5
    assert "cache" in caught.value.message
    recorder = Recorder()
    build(machines(), STAGES, context, cache_to=[f"{to},ignore-error=true"], reporter=recorder)
    assert len(warnings(recorder)) == 1


def test_a_folder_that_cant_be_one_is_refused_before_anything_runs(
    machines: Any, context: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    recorder = Recorder()
    to = f"type=local,dest={tmp_path / 'file'}"
    with pytest.raises(ExportFailed):
        build(machines(), STAGES, context, cache_to=[to], reporter=recorder)
    assert not any("RUN" in event.title for event in recorder.of(StepStarted))


def test_a_backend_that_keeps_no_steps_writes_no_cache(machines: Any, context: Path) -> None:
    backend = machines(capabilities=frozenset(Capability) - {Capability.STEP_CACHE})
    with pytest.raises(UnsupportedByBackend, match="keeps no steps"):
        build(backend, STAGES, context, cache_to=["type=inline"])


def test_progress_tells_what_is_written(machines: Any, context: Path, registry: Registry) -> None:
    recorder = Recorder()
    build(machines(), STAGES, context, cache_to=[f"{registry.address}/cache"], reporter=recorder)
    titles = [event.title for event in recorder.of(StepStarted)]
    assert titles[-1] == "exporting cache to registry"
    items = [event.item for event in recorder.of(StepProgress)]
    assert "preparing build cache for export" in items
    digest = digest_of(registry.read_manifest("cache:latest")[1])
    assert f"writing cache image manifest {digest}" in items


MOUNTED = """\
FROM busybox
COPY a /a
RUN --mount=type=cache,id=kept,target=/kept echo x >> /kept/log && cat /kept/log > /seen
"""


def test_cache_mounts_travel_with_it(machines: Any, context: Path, registry: Registry) -> None:
    ref = f"{registry.address}/cache"
    to = f"type=registry,ref={ref},mounts=kept"
    first = machines()
    build(first, MOUNTED, context, cache_to=[to])
    (context / "a").write_text("changed")
    second = machines()
    build(second, MOUNTED, context, tags=["app"], cache_from=[ref])
    assert files_of(second)["seen"] == b"x\nx\n"


def test_a_cache_mount_that_nothing_used_is_passed_on(
    machines: Any, context: Path, registry: Registry
) -> None:
    ref = f"{registry.address}/cache"
    build(machines(), MOUNTED, context, cache_to=[f"type=registry,ref={ref},mounts=kept"])
    other = f"type=registry,ref={registry.address}/other,mounts=kept"
    recorder = Recorder()
    build(machines(), MOUNTED, context, cache_from=[ref], cache_to=[other], reporter=recorder)
    assert warnings(recorder) == []
    assert registry.read_manifest("other:latest") == registry.read_manifest("cache:latest")


def test_a_cache_mount_that_isnt_there_is_a_warning(
    machines: Any, context: Path, registry: Registry
) -> None:
    recorder = Recorder()
    to = f"type=registry,ref={registry.address}/cache,mounts=kept,nothing"
    build(machines(), MOUNTED, context, cache_to=[to], reporter=recorder)
    (found,) = warnings(recorder)
    assert 'no RUN of this build has a cache mount "nothing"' in found


def test_a_damaged_cache_mount_begins_empty(
    machines: Any, context: Path, registry: Registry
) -> None:
    ref = f"{registry.address}/cache"
    build(machines(), MOUNTED, context, cache_to=[f"type=registry,ref={ref},mounts=kept"])
    layers = json.loads(registry.read_manifest("cache:latest")[1])["layers"]
    registry.add_fault(Fault(layers[-1]["digest"], times=None, status=404))
    (context / "a").write_text("changed")
    recorder = Recorder()
    second = machines()
    build(second, MOUNTED, context, tags=["app"], cache_from=[ref], reporter=recorder)
    assert files_of(second)["seen"] == b"x\n"
    (found,) = warnings(recorder)
    assert found.startswith("the cache mount at /kept begins empty: ")


@pytest.mark.parametrize("phase", ["reading", "fetching", "writing"])
def test_a_cancelled_build_ends_at_once(
    machines: Any, context: Path, registry: Registry, phase: str
) -> None:
    ref = f"{registry.address}/cache"
    to = f"type=registry,ref={ref},mode=max"
    if phase != "writing":
        build(machines(), STAGES, context, cache_to=[to])
    slow = {
        "reading": Fault("/cache/manifests/", delay=20),
        "fetching": Fault("/cache/blobs/", skip=1, times=None, delay=20),
        "writing": Fault("/cache/blobs/uploads/", method="POST", times=None, delay=20),
    }
    registry.add_fault(slow[phase])
    cancel = CancelToken()
    timer = threading.Timer(0.7, cancel.cancel)
    timer.start()
    began = time.monotonic()
    options = {"cache_to": [to]} if phase == "writing" else {"cache_from": [ref]}
    with pytest.raises(BuildCancelled):
        build(machines(), STAGES, context, cancel=cancel, **options)
    assert time.monotonic() - began < 3
    timer.join()


def test_what_is_wrong_with_a_base_image_is_not_blamed_on_the_cache(
    machines: Any, context: Path, registry: Registry
) -> None:
    ref = f"{registry.address}/cache"
    build(machines(), STAGES, context, cache_to=[f"type=registry,ref={ref},mode=max"])
    backend = machines()
    calls = []

    def broken(*_: Any, **__: Any) -> Any:
        calls.append(1)
        raise InvalidImage("the base image is broken")

    backend.checkout = broken
    recorder = Recorder()
    with pytest.raises(InvalidImage, match="the base image is broken"):
        build(backend, STAGES, context, cache_from=[ref], reporter=recorder, max_workers=1)
    assert (len(calls), warnings(recorder)) == (1, [])
