from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from building import (
    LINUX,
    Recorder,
    build,
    busybox_config,
    busybox_files,
    config_of,
    files_of,
    image_of,
    memory_backend,
    waiting_runner,
)

import pybuild
from pybuild.backend import Capability, Image, Network, PullPolicy
from pybuild.errors import (
    BackendFailed,
    BuildCancelled,
    ContextError,
    DockerfileSyntaxError,
    ImageNotFound,
    RunFailed,
    StageNotFound,
    UnsupportedByBackend,
    UsageError,
)
from pybuild.oci.descriptor import OCI_MANIFEST, Descriptor
from pybuild.oci.image_config import HistoryEntry
from pybuild.oci.platform import Platform
from pybuild.run.activity import CancelToken
from pybuild.run.events import BuildFinished, StepFinished, StepLog, StepStarted, Warned
from pybuild.testkit.memory import MemoryBackend
from pybuild.testkit.toyshell import RunOutcome
from pybuild.testkit.validate import validate
from pybuild.testkit.workbench import file


@pytest.fixture
def backend() -> Iterator[MemoryBackend]:
    with memory_backend() as made:
        yield made
        assert made.live_layers == 0


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "a.txt").write_text("alpha")
    (folder / "b.txt").write_text("beta")
    return folder


def titles(recorder: Recorder) -> list[str]:
    return [
        " ".join(part for part in (e.stage, e.position.strip(), e.title) if part)
        for e in recorder.of(StepStarted)
    ]


def test_a_build_gives_digests_names_platform_and_steps(
    backend: MemoryBackend, context: Path
) -> None:
    result = build(
        backend,
        "FROM busybox\nCOPY a.txt /data/\nRUN echo made > /made\nENV X=1\n",
        context,
        tags=["app", "registry.example/app:2"],
    )
    assert result.names == ("docker.io/library/app:latest", "registry.example/app:2")
    assert result.platform == LINUX
    assert [(step.title.split()[0], step.cached) for step in result.steps] == [
        ("COPY", False),
        ("RUN", False),
    ]
    assert all(step.diff_id for step in result.steps)
    assert image_of(backend).digest == result.digest
    files = files_of(backend)
    assert files["data/a.txt"] == b"alpha"
    assert files["made"] == b"made\n"
    assert ("X", "1") in config_of(backend, result).env


def test_the_image_is_valid_down_to_every_hash(backend: MemoryBackend, context: Path) -> None:
    result = build(backend, "FROM busybox\nCOPY . /c\nRUN touch /x\n", context, tags=["app"])
    with backend.open_blob(result.digest) as stream:
        size = len(stream.read())
    image = Image(Descriptor(OCI_MANIFEST, result.digest, size), result.config_digest)
    validate(backend, image, base_layers=1)


def test_the_units_of_a_build_are_told_in_order(backend: MemoryBackend, context: Path) -> None:
    recorder = Recorder()
    build(
        backend,
        "FROM busybox AS one\nCOPY a.txt /\nFROM one\nRUN true\n",
        context,
        tags=["app"],
        reporter=recorder,
    )
    digest = image_of(backend, "busybox").digest
    assert titles(recorder) == [
        "[internal] load build definition from Dockerfile",
        "[internal] load metadata for docker.io/library/busybox:latest",
        "[internal] load build context",
        f"one 1/2 FROM docker.io/library/busybox:latest@{digest}",
        "one 2/2 COPY a.txt /",
        "stage-1 1/1 RUN true",
        "exporting to image",
    ]
    assert [e.id for e in recorder.of(StepStarted)] == list(range(1, 8))
    assert {e.id for e in recorder.of(StepFinished)} == set(range(1, 8))
    assert isinstance(recorder.events[-1], BuildFinished)


def test_a_single_stage_is_not_named_in_progress(backend: MemoryBackend) -> None:
    recorder = Recorder()
    build(backend, "FROM busybox\nRUN true\n", reporter=recorder)
    assert "2/2 RUN true" in titles(recorder)


def test_the_history_says_which_steps_made_layers(backend: MemoryBackend) -> None:
    result = build(
        backend,
        "FROM busybox\nENV A=1\nRUN touch /x\nWORKDIR /tmp\nCMD x\n",
        created=1_000_000_000,
    )
    config = config_of(backend, result)
    assert [entry.empty_layer for entry in config.history] == [False, True, False, True, True]
    assert len(config.diff_ids) == 2
    own = config.history[1:]
    assert {entry.created for entry in own} == {"2001-09-09T01:46:40Z"}
    assert config.created == "2001-09-09T01:46:40Z"


def test_a_fixed_time_makes_the_same_digest_every_time(context: Path) -> None:
    digests = set()
    for number in range(2):
        with memory_backend() as backend:
            result = build(
                backend,
                "FROM busybox\nCOPY <<x /d/e/x\ntext\nx\nWORKDIR /new\nCOPY a.txt b.txt /f/\n",
                context,
                build_args={"SOURCE_DATE_EPOCH": "1700000000"} if number else None,
                created=None if number else datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
            )
            digests.add(result.digest)
    assert len(digests) == 1


def test_a_stage_on_a_stage_continues_its_history(backend: MemoryBackend) -> None:
    result = build(backend, "FROM busybox AS a\nRUN touch /a\nFROM a\nRUN touch /b\n")
    lines = [entry.created_by for entry in config_of(backend, result).history]
    assert len(lines) == 3
    assert "touch /a" in lines[1]
    assert "touch /b" in lines[2]
    assert [step.stage for step in result.steps] == ["a", "stage-1"]


def test_a_history_that_lacks_lines_is_mended() -> None:
    with MemoryBackend(platforms=[LINUX]) as backend:
        odd = busybox_config(
            history=(HistoryEntry(created_by="ENV", empty_layer=True),), diff_ids=()
        )
        backend.add_image("odd", odd, busybox_files(), [file(b"two")])
        config = config_of(backend, build(backend, "FROM odd\nRUN touch /x\n"))
        assert [entry.empty_layer for entry in config.history] == [True, False, False, False]
        assert len(config.diff_ids) == 3


def test_a_history_with_too_many_layers_is_mended() -> None:
    with MemoryBackend(platforms=[LINUX]) as backend:
        odd = busybox_config(history=(HistoryEntry("a"), HistoryEntry("b")))
        backend.add_image("odd", odd, busybox_files())
        config = config_of(backend, build(backend, "FROM odd\nRUN touch /x\n"))
        assert [entry.empty_layer for entry in config.history] == [False, True, False]


def test_files_come_from_stages_images_and_heredocs(backend: MemoryBackend, context: Path) -> None:
    backend.add_image("other", busybox_config(), [file(b"o", b"other")])
    build(
        backend,
        "FROM busybox AS made\nRUN echo one > /one\n"
        "FROM scratch\nCOPY --from=made /one /\nCOPY --from=other /o /\n"
        "COPY a.txt <<here <<'there' /both/\n$X\nhere\n$X\nthere\n",
        context,
        tags=["app"],
    )
    assert files_of(backend) == {
        "one": b"one\n",
        "o": b"other",
        "both/a.txt": b"alpha",
        "both/here": b"\n",
        "both/there": b"$X\n",
    }


def test_several_sources_with_a_heredoc_need_a_folder(
    backend: MemoryBackend, context: Path
) -> None:
    with pytest.raises(pybuild.PybuildError) as caught:
        build(backend, "FROM scratch\nCOPY a.txt <<x /file\ntext\nx\n", context)
    assert caught.value.where is not None
    assert caught.value.where.start_line == 2


def test_stages_that_the_target_does_not_need_are_not_built(backend: MemoryBackend) -> None:
    result = build(backend, "FROM busybox AS a\nRUN false\nFROM busybox AS b\nRUN true\n")
    assert [step.stage for step in result.steps] == ["b"]
    with pytest.raises(RunFailed):
        build(backend, "FROM busybox AS a\nRUN false\nFROM busybox AS b\nRUN true\n", target="A")


def test_a_run_that_fails_tells_its_code_place_and_last_lines(backend: MemoryBackend) -> None:
    recorder = Recorder()
    with pytest.raises(RunFailed) as caught:
        build(
            backend, "FROM busybox\n\nRUN echo first; echo second >&2; exit 7\n", reporter=recorder
        )
    error = caught.value
    assert error.process_exit_code == 7
    assert error.message == (
        'process "/bin/sh -c echo first; echo second >&2; exit 7" did not complete '
        "successfully: exit code: 7"
    )
    assert set(error.output) == {"first", "second"}
    assert error.where is not None
    assert error.where.start_line == 3
    assert error.files["Dockerfile"].startswith(b"FROM busybox")
    assert recorder.of(StepFinished)[-1].error is error
    assert b"".join(log.data for log in recorder.of(StepLog)) != b""


def test_the_first_failing_stage_cancels_the_others(backend: MemoryBackend) -> None:
    started = threading.Event()
    wait = waiting_runner(started)

    def runner(process: Any, tree: Any, mounts: Any, activity: Any) -> Any:
        if "slow" in process.args[-1]:
            return wait(process, tree, mounts, activity)
        assert started.wait(10)
        return RunOutcome(3)

    backend.runner = runner
    recorder = Recorder()
    with pytest.raises(RunFailed):
        build(
            backend,
            "FROM busybox AS a\nRUN slow\nFROM busybox AS b\nRUN quick\n"
            "FROM scratch\nCOPY --from=a / /a\nCOPY --from=b / /b\n",
            reporter=recorder,
        )
    ended = {finished.id: finished for finished in recorder.of(StepFinished)}
    by_title = {started.title: ended[started.id] for started in recorder.of(StepStarted)}
    assert by_title["RUN slow"].cancelled
    assert not by_title["RUN quick"].cancelled


def test_cancelling_ends_the_running_process_and_the_build(backend: MemoryBackend) -> None:
    started = threading.Event()
    backend.runner = waiting_runner(started)
    cancel = CancelToken()
    canceller = threading.Thread(target=lambda: started.wait(10) and cancel.cancel())
    canceller.start()
    with pytest.raises(BuildCancelled) as caught:
        build(backend, "FROM busybox\nRUN sleep\n", cancel=cancel, tags=["app"])
    canceller.join()
    assert caught.value.exit_code == 130
    with pytest.raises(ImageNotFound):
        image_of(backend)


def test_what_breaks_because_of_a_cancel_is_a_cancel() -> None:
    cancel = CancelToken()

    class Cut(MemoryBackend):
        def resolve(self, *_: Any) -> Any:
            cancel.cancel()
            raise BackendFailed("the connection was cut")

    with Cut(platforms=[LINUX]) as backend, pytest.raises(BuildCancelled):
        build(backend, "FROM busybox\n", cancel=cancel)


def test_a_cancelled_token_stops_a_build_before_it_opens_anything(backend: MemoryBackend) -> None:
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(BuildCancelled):
        build(backend, "FROM busybox\n", cancel=cancel)


def test_what_a_backend_lacks_is_refused_with_its_line_before_anything_runs(context: Path) -> None:
    with memory_backend(capabilities=[]) as backend:
        recorder = Recorder()
        with pytest.raises(UnsupportedByBackend, match="run") as caught:
            build(backend, "FROM busybox\nCOPY . /\nRUN true\n", context, reporter=recorder)
        assert caught.value.where is not None
        assert caught.value.where.start_line == 3
        assert not any("COPY" in title for title in titles(recorder))
        build(backend, "FROM busybox\nCOPY . /\nENV A=1\n", context)


def test_another_operating_system_is_refused(backend: MemoryBackend, context: Path) -> None:
    with pytest.raises(UnsupportedByBackend, match="windows/amd64"):
        build(backend, "FROM scratch\nCOPY a.txt /\n", context, platform="windows/amd64")


def test_another_architecture_is_built_and_a_run_for_it_warned_of(context: Path) -> None:
    with memory_backend() as backend:
        arm = Platform("linux", "arm64")
        backend.add_image("busybox", replace(busybox_config(), platform=arm), busybox_files())
        recorder = Recorder()
        result = build(
            backend, "FROM busybox\nRUN true\n", platform="linux/arm64", reporter=recorder
        )
        assert result.platform == arm
        assert any("emulate" in warned.message for warned in recorder.of(Warned))


def test_images_are_looked_up_at_the_same_time_with_the_pull_policy() -> None:
    meeting = threading.Barrier(2, timeout=10)
    policies = []

    class Meeting(MemoryBackend):
        def resolve(self, reference: Any, platform: Any, pull_policy: Any, activity: Any) -> Any:
            policies.append(pull_policy)
            meeting.wait()
            return super().resolve(reference, platform, pull_policy, activity)

    with Meeting(platforms=[LINUX]) as backend:
        for name in ("one", "two"):
            backend.add_image(name, busybox_config(), busybox_files())
        build(backend, "FROM one AS a\nFROM two\nCOPY --from=a /etc /e\n", pull="always")
    assert policies == [PullPolicy.ALWAYS] * 2


@pytest.mark.parametrize(
    ("pull", "policy"),
    [
        (True, PullPolicy.ALWAYS),
        (False, PullPolicy.MISSING),
        ("never", PullPolicy.NEVER),
        (PullPolicy.ALWAYS, PullPolicy.ALWAYS),
    ],
)
def test_the_pull_policy_has_docker_s_forms(pull: Any, policy: Any) -> None:
    seen = []

    class Asked(MemoryBackend):
        def resolve(self, reference: Any, platform: Any, pull_policy: Any, activity: Any) -> Any:
            seen.append(pull_policy)
            return super().resolve(reference, platform, pull_policy, activity)

    with Asked(platforms=[LINUX]) as backend:
        backend.add_image("busybox", busybox_config(), busybox_files())
        build(backend, "FROM busybox\n", pull=pull)
    assert seen == [policy]


def test_a_missing_image_fails_at_its_from(backend: MemoryBackend) -> None:
    with pytest.raises(ImageNotFound) as caught:
        build(backend, "FROM busybox AS a\nFROM nowhere/none\nCOPY --from=a / /\n")
    assert caught.value.where is not None
    assert caught.value.where.start_line == 2


def test_steps_are_cached_where_the_backend_can(context: Path) -> None:
    text = "FROM busybox\nCOPY a.txt /\nRUN touch /x\nWORKDIR /w\n"
    with memory_backend() as backend:
        first = build(backend, text, context)
        again = build(backend, text, context)
        assert [step.cached for step in first.steps] == [False] * 3
        assert [step.cached for step in again.steps] == [True] * 3
        assert [s.diff_id for s in again.steps] == [s.diff_id for s in first.steps]
        (context / "b.txt").write_text("not copied")
        assert all(step.cached for step in build(backend, text, context).steps)
        (context / "a.txt").write_text("changed")
        assert [step.cached for step in build(backend, text, context).steps] == [False] * 3
        assert not any(s.cached for s in build(backend, text, context, no_cache=True).steps)


def test_a_rebuilt_stage_with_the_same_files_keeps_what_copies_them(context: Path) -> None:
    text = "FROM busybox AS a\nCOPY a.txt /in\nRUN echo same > /out\nFROM busybox\nCOPY --from=a /out /\n"
    with memory_backend() as backend:
        build(backend, text, context)
        (context / "a.txt").write_text("changed")
        steps = build(backend, text, context).steps
        assert [step.cached for step in steps] == [False, False, True]


@pytest.mark.parametrize(
    "text",
    [
        "FROM scratch\nENV A=b\n",
        "FROM busybox\nENV A=b\n",
        "FROM busybox\nWORKDIR /tmp\n",
        "FROM busybox\nLABEL a=b\nRUN true\nWORKDIR /tmp\nCMD x\n",
        "FROM busybox\nWORKDIR /tmp\nCOPY file /\n",
    ],
)
def test_the_same_build_gives_the_same_image_whenever_it_is_done(context: Path, text: str) -> None:
    (context / "file").write_text("content")
    with memory_backend() as backend:
        first = build(backend, text, context)
        assert build(backend, text, context).digest == first.digest


def test_a_bind_mount_misses_when_its_files_change(context: Path) -> None:
    text = "FROM busybox\nRUN --mount=target=/src cat /src/a.txt > /out\n"
    with memory_backend() as backend:
        build(backend, text, context)
        assert build(backend, text, context).steps[0].cached
        (context / "a.txt").write_text("changed")
        assert not build(backend, text, context, tags=["app"]).steps[0].cached
        assert files_of(backend)["out"] == b"changed"


LENDING = "FROM busybox\nRUN --mount=type=secret,id=s,required cat /run/secrets/s > /dev/null\n"


def test_a_secret_changes_no_key_and_no_layer() -> None:
    with memory_backend() as backend:
        lent = [{"s": pybuild.Secret(value)} for value in (b"one", b"two")]
        first = build(backend, LENDING.replace("/dev/null", "/out"), secrets=lent[0])
        again = build(backend, LENDING.replace("/dev/null", "/out"), secrets=lent[1])
        assert again.steps[0].cached
        assert again.steps[0].diff_id == first.steps[0].diff_id


def test_what_a_step_requires_and_nobody_lends_is_told_before_anything_runs() -> None:
    ran: list[Any] = []

    def runner(process: Any, tree: Any, mounts: Any, activity: Any) -> Any:
        ran.append(process)
        return RunOutcome(0)

    with memory_backend(runner=runner) as backend:
        for flag, hint in (
            ("--mount=type=secret,id=s,required", "--secret id=s"),
            ("--mount=type=ssh,id=a,required", "--ssh a"),
        ):
            with pytest.raises(UsageError) as caught:
                build(backend, f"FROM busybox\nRUN first\nRUN {flag} x\n")
            assert caught.value.where is not None
            assert caught.value.where.start_line == 3
            assert hint in str(caught.value.hint)
        assert ran == []
        large = {"s": pybuild.Secret(b"x" * (500 * 1024 + 1))}
        with pytest.raises(UsageError, match="larger than"):
            build(backend, LENDING, secrets=large)


def test_what_is_optional_and_not_lent_is_left_out() -> None:
    text = "FROM busybox\nRUN --mount=type=secret,id=s,env=S --mount=type=ssh test ! -e /run\n"
    with memory_backend() as backend:
        build(backend, text)


def test_a_cache_is_kept_from_build_to_build() -> None:
    text = "FROM busybox\nRUN --mount=type=cache,target=/c {} && cat /c/f > /out\n"
    with memory_backend() as backend:
        build(backend, text.format("echo one > /c/f"))
        build(backend, text.format("echo two >> /c/f"), tags=["app"])
        assert files_of(backend)["out"] == b"one\ntwo\n"


def test_a_cache_that_begins_with_a_stage_misses_with_it() -> None:
    text = "FROM busybox AS a\nRUN echo {} > /f\nFROM busybox\n"
    text += "RUN --mount=type=cache,target=/c,from=a cat /c/f > /out\n"
    with memory_backend() as backend:
        for word in ("one", "two"):
            result = build(backend, text.format(word), tags=["app"])
            assert not result.steps[-1].cached
            assert files_of(backend)["out"] == f"{word}\n".encode()


def test_entitlements_are_given_by_name() -> None:
    seen: list[Any] = []

    def runner(process: Any, tree: Any, mounts: Any, activity: Any) -> Any:
        seen.append((process.network, process.insecure, process.cgroup_parent))
        return RunOutcome(0)

    with memory_backend(runner=runner) as backend:
        build(
            backend,
            "FROM busybox\nRUN --network=host --security=insecure x\n",
            allow=["network.host", "security.insecure"],
            cgroup_parent="builds/a/",
        )
        with pytest.raises(UsageError, match="no such entitlement"):
            build(backend, "FROM busybox\n", allow=["everything"])
        for path in ("", "/", "..", "a/../b", "/.", "a//b", "a\n"):
            with pytest.raises(UsageError, match="control group"):
                build(backend, "FROM busybox\n", cgroup_parent=path)
    assert seen == [(Network.HOST, True, "/builds/a")]


def test_a_backend_without_a_cache_gets_no_keys(context: Path) -> None:
    capabilities = set(Capability) - {Capability.STEP_CACHE}
    with memory_backend(capabilities=capabilities) as backend:
        build(backend, "FROM busybox\nRUN touch /x\n")
        assert backend._cache == {}


def test_layers_are_released_as_soon_as_no_stage_needs_them() -> None:
    seen: list[int] = []

    def runner(process: Any, tree: Any, mounts: Any, activity: Any) -> Any:
        seen.append(backend.live_layers)
        return RunOutcome(0, (file(process.args[-1].split()[-1].encode()),))

    with memory_backend(runner=runner) as backend:
        stages = "".join(f"FROM s{n - 1} AS s{n}\nRUN make f{n}\n" for n in range(1, 20))
        build(backend, f"FROM busybox AS s0\nRUN make f0\n{stages}")
        assert max(seen) <= 4
        assert backend.live_layers == 0


def test_an_image_that_is_only_copied_from_is_checked_out_to_be_read(context: Path) -> None:
    seen: dict[str, list[bool]] = {}

    class Recording(MemoryBackend):
        def checkout(self, base: Any, activity: Any, *, runs: bool = True) -> Any:
            seen.setdefault(base.reference.repository, []).append(runs)
            return super().checkout(base, activity, runs=runs)

    with Recording(platforms=[LINUX]) as backend:
        for name in ("below", "copied", "mounted"):
            backend.add_image(name, busybox_config(), [*busybox_files(), file(name.encode())])
        build(
            backend,
            "FROM below\nCOPY --from=copied /etc/passwd /a\nCOPY --from=copied /etc/passwd /b\n"
            "RUN --mount=from=mounted,target=/m true\n",
            context,
        )
    names = {name.rpartition("/")[2]: runs for name, runs in seen.items()}
    assert names == {"below": [True], "copied": [False], "mounted": [True]}


@pytest.mark.parametrize("point", ["checkout", "lookup", "create_image"])
def test_nothing_is_held_after_a_failure_anywhere(point: Any, context: Path) -> None:
    class Failing(MemoryBackend):
        pass

    def fail(*_: Any, **__: Any) -> Any:
        raise BackendFailed(f"{point} failed")

    setattr(Failing, point, fail)
    with Failing(platforms=[LINUX]) as backend:
        backend.add_image("busybox", busybox_config(), busybox_files())
        with pytest.raises(BackendFailed, match=point):
            build(
                backend,
                "FROM busybox AS a\nCOPY . /\nFROM busybox\nCOPY --from=a / /x\nRUN true\n",
                context,
            )
        assert backend.live_layers == 0


def test_an_error_while_releasing_is_a_warning_and_hides_nothing() -> None:
    class Sticky(MemoryBackend):
        def checkout(self, base: Any, activity: Any, *, runs: bool = True) -> Any:
            layer = super().checkout(base, activity, runs=runs)
            release = layer.release

            def fail() -> Any:
                release()
                raise BackendFailed("stuck")

            layer.release = fail
            return layer

    with Sticky(platforms=[LINUX]) as backend:
        backend.add_image("busybox", busybox_config(), busybox_files())
        recorder = Recorder()
        build(backend, "FROM busybox\nRUN touch /x\n", reporter=recorder)
        assert any("stuck" in warned.message for warned in recorder.of(Warned))
        with pytest.raises(RunFailed):
            build(backend, "FROM busybox\nRUN exit 1\n")


def test_a_backend_given_open_stays_open(backend: MemoryBackend) -> None:
    build(backend, "FROM busybox\n")
    build(backend, "FROM busybox\nRUN true\n")


def test_builds_run_in_parallel_threads(backend: MemoryBackend, context: Path) -> None:
    failures: list[BaseException] = []

    def one(number: int) -> None:
        try:
            build(
                backend,
                f"FROM busybox\nCOPY a.txt /\nRUN echo {number} > /n\n",
                context,
                tags=[f"app:{number}"],
            )
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for number in range(8):
        assert files_of(backend, f"app:{number}")["n"] == f"{number}\n".encode()


# Where the Dockerfile and the context come from


def tar_of(files: dict[str, bytes]) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    stream.seek(0)
    return stream


def copied(backend: MemoryBackend, context: Any, **options: Any) -> dict[str, bytes]:
    pybuild.build(context, backend=backend, tags=["app"], **options)
    return files_of(backend)


def test_the_dockerfile_is_found_in_the_context(backend: MemoryBackend, context: Path) -> None:
    (context / "Containerfile").write_text("FROM scratch\nCOPY a.txt /c\n")
    assert "c" in copied(backend, context)
    (context / "Dockerfile").write_text("FROM scratch\nCOPY a.txt /d\n")
    assert "d" in copied(backend, str(context))


def test_a_context_without_dockerfile_says_so(backend: MemoryBackend, context: Path) -> None:
    with pytest.raises(ContextError, match="no Dockerfile or Containerfile"):
        pybuild.build(context, backend=backend)


def test_a_given_dockerfile_is_relative_to_the_working_directory(
    backend: MemoryBackend, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside").write_text("FROM scratch\nCOPY a.txt /outside\n")
    (context / "inside").write_text("FROM scratch\nCOPY a.txt /inside\n")
    monkeypatch.chdir(tmp_path)
    assert "outside" in copied(backend, context, dockerfile="outside")
    assert "inside" in copied(backend, context, dockerfile="context/inside")
    assert "inside" in copied(backend, context, dockerfile="inside")
    with pytest.raises(ContextError, match="no nowhere"):
        pybuild.build(context, dockerfile="nowhere", backend=backend)


def test_the_dockerignore_beside_the_dockerfile_goes_first(
    backend: MemoryBackend, context: Path, tmp_path: Path
) -> None:
    (context / ".dockerignore").write_text("a.txt\n")
    text = "FROM scratch\nCOPY . /\n"
    (context / "Dockerfile").write_text(text)
    assert "a.txt" not in copied(backend, context)
    (context / "Dockerfile.dockerignore").write_text("b.txt\n")
    assert "b.txt" not in copied(backend, context)
    assert "a.txt" in copied(backend, context)
    (tmp_path / "other").write_text(text)
    (tmp_path / "other.dockerignore").write_text("*\n!a.txt\n")
    assert set(copied(backend, context, dockerfile=tmp_path / "other")) == {"a.txt"}


def test_a_dockerfile_that_links_out_of_the_context_is_not_read(
    backend: MemoryBackend, context: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("FROM scratch\n")
    for target in ("../secret", str(tmp_path / "secret")):
        (context / "Dockerfile").symlink_to(target)
        with pytest.raises(ContextError):
            pybuild.build(context, backend=backend)
        with pytest.raises(ContextError):
            pybuild.build(context, dockerfile=context / "Dockerfile", backend=backend)
        (context / "Dockerfile").unlink()
    (context / "out").symlink_to(tmp_path)
    with pytest.raises(ContextError):
        pybuild.build(context, dockerfile=context / "out" / "secret", backend=backend)


def test_a_dockerignore_that_links_out_of_the_context_is_not_read(
    backend: MemoryBackend, context: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("a.txt\n")
    (context / "Dockerfile").write_text("FROM scratch\nCOPY a.txt /\n")
    (context / ".dockerignore").symlink_to("../secret")
    assert "a.txt" in copied(backend, context)


def test_a_context_reached_by_a_link_is_a_context(
    backend: MemoryBackend, context: Path, tmp_path: Path
) -> None:
    (context / "Dockerfile").write_text("FROM scratch\nCOPY a.txt /\n")
    (tmp_path / "link").symlink_to(context)
    assert "a.txt" in copied(backend, tmp_path / "link")
    assert "a.txt" in copied(backend, context, dockerfile=tmp_path / "link" / "Dockerfile")


def test_a_tar_stream_is_a_context(backend: MemoryBackend) -> None:
    files = {
        "Dockerfile": b"FROM scratch\nCOPY . /\n",
        "sub/D": b"FROM scratch\nCOPY x /only\n",
        "x": b"1",
        "y": b"2",
        ".dockerignore": b"y\n",
    }
    assert set(copied(backend, tar_of(files))) == {"Dockerfile", "sub/D", "x", ".dockerignore"}
    assert set(copied(backend, tar_of(files), dockerfile="sub/D")) == {"only"}
    with pytest.raises(ContextError, match="no nowhere in the tar"):
        pybuild.build(tar_of(files), dockerfile="nowhere", backend=backend)


def test_a_stream_that_is_no_archive_is_the_dockerfile(backend: MemoryBackend) -> None:
    assert copied(backend, io.BytesIO(b"FROM scratch\nCOPY <<x /f\nhi\nx\n")) == {"f": b"hi\n"}
    with pytest.raises(ContextError):
        pybuild.build(io.BytesIO(b"FROM scratch\n"), dockerfile="D", backend=backend)
    with pytest.raises(DockerfileSyntaxError):
        pybuild.build(io.BytesIO(b""), backend=backend)


def test_an_endless_dockerfile_is_refused(backend: MemoryBackend) -> None:
    class Endless(io.RawIOBase):
        def readable(self) -> Any:
            return True

        def readinto(self, buffer: Any) -> Any:
            buffer[:] = b"#" * len(buffer)
            return len(buffer)

    with pytest.raises(ContextError, match="larger"):
        pybuild.build(io.BufferedReader(Endless()), backend=backend)


@pytest.mark.parametrize(
    ("context", "error"),
    [
        ("/nowhere/at/all", ContextError),
        (__file__, ContextError),
        ("https://host.example/repo.git#--upload-pack=x", UsageError),
        ("git@host.example:-repo.git", UsageError),
        ("ftp://host.example/x.tar", ContextError),
        (None, UsageError),
    ],
)
def test_contexts_that_cannot_be_are_refused(
    backend: MemoryBackend, context: Any, error: Any
) -> None:
    with pytest.raises(error):
        pybuild.build(context, backend=backend)


def test_a_copy_without_context_finds_nothing(backend: MemoryBackend) -> None:
    with pytest.raises(pybuild.StepFailed):
        build(backend, "FROM scratch\nCOPY a.txt /\n")


@pytest.mark.parametrize(
    "options",
    [
        {"tags": ["UPPER"]},
        {"tags": ["a@sha256:" + "0" * 64]},
        {"pull": "sometimes"},
        {"network": "mars"},
        {"platform": "what/is/this/now"},
        {"build_args": {"SOURCE_DATE_EPOCH": "soon"}},
        {"created": 10**30},
    ],
)
def test_wrong_arguments_are_usage_errors(backend: MemoryBackend, options: Any) -> None:
    with pytest.raises(UsageError):
        build(backend, "FROM busybox\n", **options)


def test_an_unknown_stage_is_told(backend: MemoryBackend) -> None:
    with pytest.raises(StageNotFound):
        build(backend, "FROM busybox AS build\n", target="biuld")


def test_labels_and_annotations_reach_config_and_manifest(backend: MemoryBackend) -> None:
    result = build(
        backend, "FROM busybox\nLABEL a=1 b=2\n", labels={"b": "3"}, annotations={"x": "y"}
    )
    assert config_of(backend, result).labels == {"a": "1", "b": "3"}
    with backend.open_blob(result.digest) as stream:
        assert json.loads(stream.read())["annotations"] == {"x": "y"}


# Plans


def test_a_plan_runs_nothing_and_looks_images_up(backend: MemoryBackend) -> None:
    planned = pybuild.plan_build(None, dockerfile=b"FROM busybox\nRUN exit 1\n", backend=backend)
    assert planned.unresolved == ()
    assert [step.title for step in planned.plan.target.steps] == ["RUN exit 1"]
    assert ("PATH", "/bin") in planned.plan.target.config.env


def test_a_plan_without_backend_leaves_images_open() -> None:
    planned = pybuild.plan_build(None, dockerfile=b"FROM busybox\nFROM busybox\n")
    assert [str(reference) for reference in planned.unresolved] == [
        "docker.io/library/busybox:latest"
    ]


def test_a_plan_with_a_backend_that_cannot_start_warns_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(name: Any, options: Any = None) -> Any:
        raise pybuild.BackendUnavailable("nothing listens", hint="start it")

    monkeypatch.setattr("pybuild.lookups.open_backend", refuse)
    recorder = Recorder()
    planned = pybuild.plan_build(
        None,
        dockerfile=b"FROM busybox\nFROM alpine\nCOPY --from=0 / /\n",
        backend="containerd",
        reporter=recorder,
    )
    assert len(planned.unresolved) == 2
    assert [w.hint for w in recorder.of(Warned)] == ["start it"]


def test_a_plan_of_scratch_opens_no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pybuild.lookups.open_backend", lambda *_: pytest.fail("opened"))
    pybuild.plan_build(None, dockerfile=b"FROM scratch\nENV A=1\n", backend="containerd")


def test_stages_of_a_cache_filter_run_again_and_others_do_not(backend: MemoryBackend) -> None:
    text = "FROM busybox AS Base\nRUN echo a > /a\nFROM busybox\nCOPY --from=base /a /b\nRUN echo c > /c\n"
    assert [step.cached for step in build(backend, text).steps] == [False, False, False]
    again = build(backend, text, no_cache_filter=["BASE", "other"])
    assert [step.cached for step in again.steps] == [False, True, True]
    assert all(step.cached for step in build(backend, text).steps)
