"""Many builds over one backend, and the images that they leave, on the memory backend."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from building import LINUX, NoActivity, Recorder, memory_backend, waiting_runner

import pybuild
from pybuild.errors import (
    BuildCancelled,
    CopyFailed,
    ExportFailed,
    ImageNotFound,
    PlatformMismatch,
    RunFailed,
    UsageError,
)
from pybuild.oci.platform import Platform
from pybuild.oci.reference import parse_reference
from pybuild.oci.registry import RegistryClient
from pybuild.run.failedsteps import MOST_KEPT, FailedSteps
from pybuild.testkit.layouts import LayoutReader
from pybuild.testkit.memory import MemoryBackend
from pybuild.testkit.registry import Registry
from pybuild.testkit.workbench import file

ARM = Platform("linux", "arm64")
APP = {
    "Dockerfile": 'FROM busybox\nCOPY a /a\nRUN echo made > /made\nCMD ["cat", "/a"]\n',
    "a": "A\n",
}
FAILS = {"Dockerfile": "FROM busybox\nRUN true\nRUN echo why > /why; echo told; exit 3\n"}


@pytest.fixture
def backend() -> Iterator[MemoryBackend]:
    with memory_backend() as made:
        yield made
        assert made.live_layers == 0


@pytest.fixture
def builder(backend: MemoryBackend) -> Iterator[pybuild.Builder]:
    with pybuild.Builder(backend) as made:
        yield made


def failure(builder: pybuild.Builder, files: Any = FAILS, **options: Any) -> Any:
    with pytest.raises(pybuild.StepFailed) as caught:
        builder.build(files, **options)
    return caught.value


def test_a_builder_takes_what_build_takes() -> None:
    own = {"backend", "backend_options", "registry", "failed_steps", "failed_runs"}
    of_build = inspect.signature(pybuild.build).parameters
    assert set(pybuild.BuildOptions.__annotations__) == set(of_build) - own - {"context"}
    assert all(of_build[name].kind is inspect.Parameter.KEYWORD_ONLY for name in own)


def test_a_build_gives_what_build_gives(builder: pybuild.Builder, backend: MemoryBackend) -> None:
    recorder = Recorder()
    result = builder.build(APP, tags=["app:1"], reporter=recorder)
    assert result.names == ("docker.io/library/app:1",)
    assert recorder.events[-1].result is result
    assert pybuild.build(APP, backend=backend).digest == result.digest


def test_an_image_tells_what_it_is(builder: pybuild.Builder) -> None:
    result = builder.build(APP, tags=["app:1", "app:2"])
    image = builder.image(result)
    assert (image.digest, image.config_digest) == (result.digest, result.config_digest)
    assert image.names == ("docker.io/library/app:1", "docker.io/library/app:2")
    assert (image.platform, image.config.cmd) == (LINUX, ("cat", "/a"))
    assert tuple(layer.diff_id for layer in image.layers) == image.config.diff_ids
    assert image.fs.read_text("/made") == "made\n"
    assert result.digest in repr(image)


def test_an_image_is_found_by_result_name_and_digest(builder: pybuild.Builder) -> None:
    unnamed = builder.build(APP)
    assert builder.image(unnamed).names == ()
    builder.build(APP, tags=["app"])
    for text in ("app", "docker.io/library/app:latest", unnamed.digest):
        assert builder.image(text).digest == unnamed.digest
    for text in ("nowhere", "sha256:" + "0" * 64):
        with pytest.raises(ImageNotFound):
            builder.image(text)


def test_an_image_is_fetched_only_if_that_is_wanted(
    builder: pybuild.Builder, backend: MemoryBackend
) -> None:
    backend.add_image("far", None, [file(b"f", b"1")], local=False)
    with pytest.raises(UsageError):
        builder.image("far", pull="sometimes")
    assert builder.image("far", pull="missing").fs.read_text("f") == "1"


def test_an_image_of_several_platforms_is_chosen(builder: pybuild.Builder) -> None:
    result = builder.build(
        {"Dockerfile": "FROM scratch\nCOPY <<x /x\n1\nx\n"}, platform="linux/arm64,linux/amd64"
    )
    assert builder.image(result).platform == ARM
    assert builder.image(result, platform="linux/amd64").platform == LINUX
    with pytest.raises(PlatformMismatch, match="no image for linux/386"):
        builder.image(result, platform="linux/386")


def test_an_image_that_went_elsewhere_is_not_in_the_store(
    builder: pybuild.Builder, tmp_path: Path
) -> None:
    result = builder.build(APP, outputs=[f"type=oci,dest={tmp_path / 'x.tar'}"])
    with pytest.raises(ImageNotFound, match="type=image"):
        builder.image(result)


# Running


def test_a_process_runs_in_an_image(builder: pybuild.Builder) -> None:
    image = builder.image(builder.build(APP))
    own = image.run()
    assert (own.args, own.returncode, own.stdout) == (["cat", "/a"], 0, b"A\n")
    done = image.run(
        ["sh", "-c", "echo $X; pwd; echo e >&2; exit 4"], env={"X": "x"}, cwd="/tmp", text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (4, "x\n/tmp\n", "e\n")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        image.run(["sh", "-c", "echo out; exit 4"], check=True)
    assert (caught.value.returncode, caught.value.stdout) == (4, b"out\n")


def test_files_are_shown_to_a_process(backend: MemoryBackend, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def look(process: Any, tree: Any, mounts: Any, activity: Any) -> Any:
        from pybuild.testkit.toyshell import RunOutcome  # noqa: PLC0415

        for mount in mounts:
            with mount.tree.open(b"f") as stream:
                seen[mount.target] = (stream.read(), mount.readonly)
        seen["network"] = process.network
        return RunOutcome(0)

    (tmp_path / "f").write_text("folder")
    backend.runner = look
    with pybuild.Builder(backend) as builder:
        image = builder.image("busybox")
        image.run(
            ["x"],
            mounts={"/a": tmp_path, "/b": str(tmp_path), "/c": {"f": "memory"}},
            network="none",
        )
        with pytest.raises(pybuild.ContextError):
            image.run(["x"], mounts={"/a": tmp_path / "nowhere"})
    assert seen == {
        "/a": (b"folder", True),
        "/b": (b"folder", True),
        "/c": (b"memory", True),
        "network": pybuild.Network.NONE,
    }


@pytest.mark.parametrize(
    "options",
    [{"args": "echo x"}, {"args": ["x"], "network": "mars"}, {"args": ["x"], "mounts": {"a": {}}}],
)
def test_a_wrong_run_is_a_usage_error(builder: pybuild.Builder, options: Any) -> None:
    with pytest.raises(UsageError):
        builder.image("busybox").run(**options)


# Sending on


def test_an_image_is_saved_as_it_is(builder: pybuild.Builder, tmp_path: Path) -> None:
    image = builder.image(builder.build(APP, tags=["app:1"], annotations={"a": "b"}))
    image.save(tmp_path / "oci.tar")
    image.save(tmp_path / "docker.tar", "docker")
    for name in ("oci.tar", "docker.tar"):
        (saved,) = LayoutReader(tmp_path / name).images().items()
        assert saved[0] == "docker.io/library/app:1"
        assert saved[1].manifest.digest == image.digest
    with pytest.raises(UsageError):
        image.save(tmp_path / "x", "zip")  # type: ignore[arg-type]
    with pytest.raises(ExportFailed):
        image.save(tmp_path / "nowhere" / "x.tar")


def test_an_image_is_pushed_under_any_name(backend: MemoryBackend) -> None:
    with Registry() as registry, RegistryClient() as client:
        for own in (None, client):
            with pybuild.Builder(backend, registry=own) as builder:
                image = builder.image(builder.build(APP))
                name = f"{registry.address}/app:{'own' if own else 'new'}"
                image.push(name)
                assert client.resolve(parse_reference(name)).digest == image.digest


def test_an_image_goes_to_another_backend(builder: pybuild.Builder, monkeypatch: Any) -> None:
    from pybuild.export.outputs import BackendLoadOutput  # noqa: PLC0415

    image = builder.image(builder.build(APP, tags=["app:1"], annotations={"a": "b"}))
    with memory_backend() as other:
        monkeypatch.setattr("pybuild.export.exporting.open_backend", lambda *_: other)
        image.load_into(BackendLoadOutput(backend="memory"))
        assert pybuild.Builder(other).image("app:1").digest == image.digest


# Failures


def test_an_error_tells_all_of_the_step(builder: pybuild.Builder, tmp_path: Path) -> None:
    error = failure(builder, logs=tmp_path / "logs")
    assert isinstance(error, RunFailed)
    assert error.process_exit_code == 3
    assert error.step == error.source == "RUN echo why > /why; echo told; exit 3"
    assert error.output == ("told",)
    assert error.fs.read_text("/why") == "why\n"
    assert error.fs.exists("/usr/bin/sh")
    assert error.log is not None
    assert error.log.read_text() == "told\n"
    assert list((tmp_path / "logs").iterdir()) == [error.log]


def test_a_copy_that_fails_shows_what_it_was_done_on(builder: pybuild.Builder) -> None:
    error = failure(builder, {"Dockerfile": "FROM busybox\nRUN echo x > /x\nCOPY nowhere /\n"})
    assert isinstance(error, CopyFailed)
    assert error.fs.read_text("/x") == "x\n"
    assert (error.log, error.step) == (None, "COPY nowhere /")


def test_files_of_failures_are_kept_until_the_builder_is_closed(backend: MemoryBackend) -> None:
    with pybuild.Builder(backend) as builder:
        errors = [failure(builder) for _ in range(MOST_KEPT + 1)]
        assert errors[1].fs.listdir("/tmp") == []
        with pytest.raises(UsageError, match="aren't kept any more"):
            errors[0].fs.listdir()
    assert backend.live_layers == 0
    with pytest.raises(UsageError, match="until it is closed"):
        errors[-1].fs.listdir()


def test_a_build_of_its_own_keeps_no_files_and_says_how(backend: MemoryBackend) -> None:
    with pytest.raises(RunFailed) as caught:
        pybuild.build(FAILS, backend=backend)
    with pytest.raises(UsageError, match=r"pybuild\.Builder"):
        _ = caught.value.fs
    with pytest.raises(UsageError, match="opened for one build"):
        pybuild.build(FAILS, backend="memory", failed_steps=FailedSteps())


def test_logs_are_of_steps_that_do_not_end_well(builder: pybuild.Builder, tmp_path: Path) -> None:
    logs = tmp_path / "a" / "logs"
    builder.build({"Dockerfile": "FROM busybox\nRUN echo fine\n"}, logs=logs)
    assert not logs.exists() or list(logs.iterdir()) == []
    first, second = failure(builder, logs=str(logs)), failure(builder, logs=logs)
    assert first.log != second.log
    assert first.log.parent == logs


def test_a_log_that_can_not_be_written_is_a_warning(
    builder: pybuild.Builder, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    recorder = Recorder()
    error = failure(builder, logs=tmp_path / "file" / "logs", reporter=recorder)
    assert (error.log, error.output) == (None, ("told",))
    assert [w.message for w in recorder.of(pybuild.Warned) if "can't log" in w.message]


# Threads, cancelling and closing


def test_builds_are_submitted_and_waited_for(backend: MemoryBackend) -> None:
    with pybuild.Builder(backend, max_builds=2) as builder:
        futures = [builder.submit(APP, tags=[f"app:{n}"]) for n in range(8)]
        assert {f.result().names[0][-1] for f in futures} == set("01234567")
        failing = builder.submit(FAILS)
        error = failing.exception()
        assert isinstance(error, RunFailed)
        assert error.fs.exists("/why")


def test_leaving_the_block_waits_for_what_was_submitted(backend: MemoryBackend) -> None:
    with pybuild.Builder(backend, max_builds=1) as builder:
        futures = [builder.submit(APP) for _ in range(4)]
    assert all(future.done() and future.exception() is None for future in futures)


def test_a_running_build_and_one_that_waits_are_cancelled(backend: MemoryBackend) -> None:
    started = threading.Event()
    backend.runner = waiting_runner(started)
    with pybuild.Builder(backend, max_builds=1) as builder:
        running, waiting = builder.submit(APP), builder.submit(APP)
        assert started.wait(20)
        assert waiting.cancel()
        assert waiting.cancelled()
        assert running.cancel()
        assert isinstance(running.exception(20), BuildCancelled)
        assert not running.cancel()
        with pytest.raises(CancelledError):
            waiting.result()


def test_a_token_cancels_a_submitted_build_and_is_left_alone(backend: MemoryBackend) -> None:
    started, token, other = threading.Event(), pybuild.CancelToken(), pybuild.CancelToken()
    backend.runner = waiting_runner(started)
    with pybuild.Builder(backend) as builder:
        future = builder.submit(APP, cancel=token)
        assert started.wait(20)
        token.cancel()
        assert isinstance(future.exception(20), BuildCancelled)
        started.clear()
        future = builder.submit(APP, cancel=other)
        assert started.wait(20)
        builder.close(cancel=True)
    assert isinstance(future.exception(0), BuildCancelled)
    assert not other.cancelled


def test_an_exception_in_the_block_cancels_what_runs(backend: MemoryBackend) -> None:
    started = threading.Event()
    backend.runner = waiting_runner(started)
    futures = []

    def fail() -> None:
        with pybuild.Builder(backend, max_builds=1) as builder:
            futures.extend(builder.submit(APP) for _ in range(3))
            assert started.wait(20)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(isinstance(future.exception(0), BuildCancelled) for future in futures)


def test_a_closed_builder_and_its_images_say_so(backend: MemoryBackend) -> None:
    with pybuild.Builder(backend) as builder:
        image = builder.image("busybox")
    builder.close()
    for use in (
        lambda: builder.build(APP),
        lambda: builder.submit(APP),
        lambda: builder.image("busybox"),
        image.fs.listdir,
        lambda: image.run(["true"]),
        lambda: image.save("x.tar"),
    ):
        with pytest.raises(UsageError, match="the builder is closed"):
            use()
    assert image.config.cmd == ("sh",)
    pybuild.build(APP, backend=backend)  # which it was lent


def test_a_builder_closes_the_backend_that_it_opened() -> None:
    with pybuild.Builder("memory") as builder:
        builder.build({"Dockerfile": "FROM scratch\nCOPY <<x /x\n1\nx\n"})
        opened = builder.backend
    assert isinstance(opened, MemoryBackend)
    with pytest.raises(RuntimeError, match="closed"):
        opened.checkout(None, NoActivity())


@pytest.mark.parametrize("options", [{"max_builds": 0}, {"backend": "nothing-of-this-name"}])
def test_a_builder_that_can_not_be_is_refused(options: Any) -> None:
    with pytest.raises(pybuild.PybuildError):
        pybuild.Builder(**options)


def test_a_builder_works_beside_an_event_loop(backend: MemoryBackend) -> None:
    started = threading.Event()

    async def use(builder: pybuild.Builder) -> str:
        results = await asyncio.gather(
            *(asyncio.to_thread(builder.build, APP) for _ in range(3)),
            asyncio.wrap_future(builder.submit(APP)),
        )
        backend.runner = waiting_runner(started)
        waiting = asyncio.wrap_future(builder.submit(APP, no_cache=True))
        await asyncio.to_thread(started.wait, 20)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        token = pybuild.CancelToken()
        started.clear()
        thread = asyncio.create_task(
            asyncio.to_thread(builder.build, APP, no_cache=True, cancel=token)
        )
        await asyncio.to_thread(started.wait, 20)
        token.cancel()
        with pytest.raises(BuildCancelled):
            await thread
        return {result.digest for result in results}.pop()

    with pybuild.Builder(backend) as builder:
        assert asyncio.run(use(builder)).startswith("sha256:")


def test_nothing_is_printed(builder: pybuild.Builder, capfd: pytest.CaptureFixture[str]) -> None:
    builder.build(APP)
    failure(builder)
    assert capfd.readouterr() == ("", "")
