"""What a user of the Python API writes; mypy checks it, nothing runs it."""

from __future__ import annotations

import io
from pathlib import Path
from subprocess import CompletedProcess
from typing import BinaryIO, assert_type

import pybuild
from pybuild import BuildResult
from pybuild.backends import open_backend
from pybuild.cachetransfer.places import CacheMode, LocalExport, LocalImport
from pybuild.dockerfile.instructions import Run
from pybuild.errors import PybuildError, RunFailed
from pybuild.export.outputs import OciOutput, RegistryOutput
from pybuild.files.trees import Tree
from pybuild.oci.platform import Platform
from pybuild.oci.registry import RegistryClient
from pybuild.run.events import BuildFinished, Event, StepLog


class Collector:
    """A Reporter needs no base class."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def report(self, event: Event) -> None:
        match event:
            case StepLog(data=data):
                self.lines.append(data)
            case pybuild.StepMissed(miss=pybuild.Miss(causes=causes)):
                assert_type(causes[0].kind, pybuild.CauseKind)
                assert_type(causes[0].before, str | None)
            case BuildFinished(result=result):
                assert_type(result.digest, str)
            case _:
                pass


def build_simply(folder: Path) -> str:
    result = pybuild.build(folder, tags=["app:1"], build_args={"A": "b"})
    assert_type(result, pybuild.BuildResult)
    assert_type(result.platform, Platform)
    assert_type(result.names, tuple[str, ...])
    assert_type(result.images[result.platform].digest, str)
    assert_type([step.seconds for step in result.steps], list[float])
    assert_type([step.miss for step in result.steps], list[pybuild.Miss | None])
    return result.digest


def build_with_caches(folder: Path) -> BuildResult:
    return pybuild.build(
        folder,
        cache_from=["reg.example/app", LocalImport(src="cache")],
        cache_to=["type=inline", LocalExport(dest="cache", mode=CacheMode.MAX, mounts=("pip",))],
    )


def build_twice_with_one_backend(archive: bytes) -> None:
    with open_backend("containerd", {"namespace": "k8s.io"}) as backend:
        pybuild.build(io.BytesIO(archive), backend=backend, reporter=Collector())
        pybuild.build(None, dockerfile=b"FROM scratch\n", backend=backend, pull="never")


def build_with_a_lock(folder: Path) -> bool:
    lock = pybuild.lock_images(folder, platform=["linux/amd64"], target="app")
    assert_type(lock, pybuild.Lock)
    assert_type([image.index for image in lock.images.values()], list[str | None])
    pybuild.build(folder, locked=lock)
    pybuild.build(folder, locked=True)
    return pybuild.read_lock(folder / "pybuild.lock") == lock


def look_without_building(folder: Path) -> bool:
    result = pybuild.check(folder, build_args={"A": "b"}, target="test")
    for warning in result.warnings:
        assert_type(warning, pybuild.LintWarning)
        assert_type(warning.where.start_line, int)
    assert_type(result.error, PybuildError | None)
    args = pybuild.outline(folder).outline.args
    assert_type([arg.value for arg in args], list[str])
    assert_type(pybuild.targets(folder).targets, tuple[pybuild.Target, ...])
    return result.error is None


def build_and_explain(folder: str) -> int:
    try:
        pybuild.build(folder, dockerfile=Path("other.Dockerfile"), target="test")
    except RunFailed as error:
        assert_type(error.output, tuple[str, ...])
        return error.process_exit_code
    except PybuildError as error:
        return error.exit_code
    return 0


def build_to_several_outputs(archive: BinaryIO) -> list[str]:
    with RegistryClient() as registry:
        result = pybuild.build(
            ".",
            tags=["registry.example/app:1"],
            outputs=[OciOutput(dest=archive), RegistryOutput(), "type=local,dest=out"],
            registry=registry,
        )
    assert_type(result.outputs, tuple[pybuild.OutputResult, ...])
    return [output.descriptor.digest for output in result.outputs if output.descriptor is not None]


def build_with_sources_from_elsewhere(folder: Path, tree: Tree) -> None:
    pybuild.build(
        "https://host.example/repository.git#main:sub",
        contexts={"src": folder, "base": "docker-image://busybox", "made": tree},
        secrets={"GIT_AUTH_TOKEN": pybuild.Secret(b"token")},
        remotes=pybuild.RemoteOptions(public_only=True),
        no_cache_filter=["test"],
    )


def build_what_is_cached(folder: Path) -> str:
    try:
        pybuild.build(folder, fail_on_miss=["deps"])
        pybuild.build(folder, fail_on_miss=True)
    except pybuild.CacheMissed as error:
        assert_type(error.miss, pybuild.Miss)
        return str(error.miss)
    assert_type(pybuild.explain(folder, target="test"), pybuild.RecordedBuild)
    return ""


def build_many_in_threads(files: dict[str, bytes], folder: Path) -> list[str]:
    with pybuild.Builder("embedded", max_builds=2) as builder:
        futures = [
            builder.submit(files, tags=["app:1"]),
            builder.submit(
                {"Dockerfile": "FROM scratch", "run": pybuild.File(b"#!", 0o755)}, logs=folder
            ),
            builder.submit(folder, dockerfile=pybuild.Dockerfile.parse("FROM scratch")),
        ]
        assert_type(futures[0].cancel(), bool)
        return [future.result().digest for future in futures]


def use_an_image(builder: pybuild.Builder, folder: Path) -> str:
    image = builder.image(builder.build(folder))
    assert_type(image, pybuild.Image)
    assert_type(image.config.env, tuple[tuple[str, str], ...])
    assert_type(image.fs.stat("/etc").st_mode, int)
    assert_type(image.run(["true"]), CompletedProcess[bytes])
    assert_type(image.run(["true"], text=True, mounts={"/x": {"a": b"b"}}), CompletedProcess[str])
    image.save(folder / "image.tar", "docker")
    for path, folders, files in image.fs.walk():
        assert_type(path, str)
        assert_type(folders + files, list[str])
    return image.fs.read_text("/etc/passwd")


def look_at_a_failure(builder: pybuild.Builder) -> str:
    try:
        builder.build(".")
    except pybuild.StepFailed as error:
        assert_type(error.log, Path | None)
        assert_type(error.step + error.source, str)
        return error.fs.read_text("/app/x.log")
    return ""


def stages_of(text: str) -> list[str]:
    images = []
    for stage in pybuild.Dockerfile.parse(text).stages:
        for instruction in stage.instructions:
            match instruction:
                case Run(command=command):
                    assert_type(command.args, tuple[str, ...])
                case _:
                    pass
        images.append(stage.head.image)
    return images


def wrong_arguments(folder: Path) -> None:
    pybuild.build(folder, tags=1)  # type: ignore[arg-type]
    pybuild.build(folder, "Dockerfile")  # type: ignore[call-arg]
    pybuild.build(folder, outputs=[1])  # type: ignore[list-item]
    pybuild.build(folder, unknown=True)  # type: ignore[call-arg]
    pybuild.Builder().build(folder, backend="memory")  # type: ignore[call-arg]
    pybuild.Builder().submit({"a": 1})  # type: ignore[dict-item]
    pybuild.Builder().image(folder)  # type: ignore[arg-type]
