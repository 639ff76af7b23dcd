"""Steps whose program crun or runc starts: what is refused, and how failures are told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pybuild.errors import BackendUnavailable, StepFailed
from pybuild.sandbox import runtimes
from pybuild.sandbox.client import Sandbox, SandboxFailed
from pybuild.sandbox.mapping import Kind, Mapping
from pybuild.sandbox.modes import try_runtime
from pybuild.sandbox.runtimes import RUNTIMES, Runtime, find_runtime
from pybuild.sandbox.spec import Plain, RunSpec
from sandboxing import best_mapping, run_tests_as_user, steps_in, usable_runtime

each_runtime = pytest.mark.parametrize("name", RUNTIMES)


def program(folder: Path, script: str) -> Path:
    """An executable script of the shell."""
    path = folder / "runtime"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    folder.chmod(0o755)
    return path


def sandbox_with(folder: Path, path: Path) -> Sandbox:
    """A sandbox, to be started, with a runtime that isn't one."""
    return Sandbox(best_mapping(folder), runtime=Runtime("crun", os.fspath(path), "1.8"))


@each_runtime
def test_a_runtime_tells_its_version_and_passes_its_trial(tmp_path: Path, name: str) -> None:
    mapping = best_mapping(tmp_path)
    runtime = usable_runtime(name, mapping)
    assert runtime.path.endswith(f"/{name}")
    assert runtime.version[0].isdecimal()
    with Sandbox(mapping, runtime=runtime) as sandbox:
        try_runtime(sandbox)


def test_a_missing_runtime_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, "system_program", lambda _name: None)
    with pytest.raises(BackendUnavailable, match="crun isn't installed") as caught:
        find_runtime("crun", best_mapping(tmp_path))
    assert caught.value.hint == "install the package crun; --runner=sandbox needs no runtime"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo runc version 1.0.3; echo spec: 1.0.2", "is runc 1.0.3: a RUN needs 1.1 or newer"),
        ("echo hello", "tells no version: 'hello'"),
        ("exit 1", "doesn't work: .* exit status 1"),
        ("kill -9 $$", "doesn't work: .*SIGKILL"),
    ],
)
def test_an_old_or_broken_runtime_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    path = program(tmp_path, script)
    monkeypatch.setattr(runtimes, "system_program", lambda _name: os.fspath(path))
    with pytest.raises(BackendUnavailable, match=message) as caught:
        find_runtime("runc", Mapping(Kind.IDENTITY))
    assert "--runner=sandbox" in str(caught.value.hint)


def test_crun_is_refused_where_device_files_would_work(tmp_path: Path) -> None:
    usable_runtime("crun", best_mapping(tmp_path))
    with pytest.raises(BackendUnavailable, match="device files of the image") as caught:
        find_runtime("crun", Mapping(Kind.INIT))
    assert "--runner=runc" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 0", "crun doesn't run the step: it tells of no process"),
        (
            'while [ "$1" != --pid-file ]; do shift; done; echo 1 >$2',
            "crun doesn't run the step: it tells of no process",
        ),
        ("exit 3", "crun doesn't run the step: it ended with 3"),
        ("kill -9 $$", "crun doesn't run the step: it ended with -9"),
        (
            """while [ "$1" != --log ]; do shift; done; echo '{"msg":"a"}' >$2
            echo '{"msg":"no group"}' >>$2; exit 1""",
            "crun doesn't run the step: no group",
        ),
        (
            'while [ "$1" != --log ]; do shift; done; echo plain >$2; exit 1',
            "crun doesn't run the step: plain",
        ),
    ],
)
def test_a_runtime_that_fails_is_an_error_of_its_own(
    tmp_path: Path, script: str, message: str
) -> None:
    with sandbox_with(tmp_path, program(tmp_path, script)) as sandbox:
        with pytest.raises(SandboxFailed, match=message) as caught:
            sandbox.run(RunSpec(Plain(b"/"), ("/bin/sh", "-c", "exit 1")), lambda *_: None)
        assert caught.value.step == "crun"
        assert caught.value.hint == "--runner=sandbox needs no runtime"
        with pytest.raises(BackendUnavailable, match=f"crun 1.8 can't be used here: {message}"):
            try_runtime(sandbox)


def test_a_runtime_that_has_gone_is_an_error(tmp_path: Path) -> None:
    with (
        sandbox_with(tmp_path, tmp_path / "nothing") as sandbox,
        pytest.raises(BackendUnavailable, match=r"crun 1\.8 can't be used here: .* ended"),
    ):
        try_runtime(sandbox)


def test_a_runtime_that_runs_nothing_is_found_out(tmp_path: Path) -> None:
    path = program(
        tmp_path,
        'while [ "$1" != --pid-file ]; do shift; done; sleep 0.3 & echo $! >$2',
    )
    with (
        sandbox_with(tmp_path, path) as sandbox,
        pytest.raises(BackendUnavailable, match="a shell ended with 0, not 7"),
    ):
        try_runtime(sandbox)


@each_runtime
def test_what_is_not_utf8_is_refused_before_anything_runs(tmp_path: Path, name: str) -> None:
    odd = os.fsdecode(b"\xff")
    with steps_in(tmp_path, way=name) as steps:
        for fields in ({"env": (("A", odd),)}, {"env": ((odd, "a"),)}, {"cwd": f"/{odd}"}):
            with pytest.raises(StepFailed, match=f"{name} takes .* UTF-8") as caught:
                steps.run("echo x >/tmp/made", **fields)
            assert caught.value.hint == "--runner=sandbox needs no runtime"
        assert list(steps.folder.glob("*/upper/*")) == []


@each_runtime
def test_a_runtime_runs_steps_of_other_users_where_there_are_ids(tmp_path: Path, name: str) -> None:
    with steps_in(tmp_path, way=name) as steps:
        if steps.sandbox.mapping.kind is not Kind.SINGLE:
            assert steps.run("id -u", uid=33).out == "33\n"
            return
        with pytest.raises(StepFailed, match="only as root here"):
            steps.run("echo x >/tmp/made", uid=33)
        assert list(steps.folder.glob("*/upper/*")) == []


@each_runtime
def test_the_runtime_and_the_machine_are_not_seen_by_the_step(tmp_path: Path, name: str) -> None:
    with steps_in(tmp_path, way=name) as steps:
        ran = steps.run(
            "cat /proc/[0-9]*/cmdline /proc/self/mountinfo; umount /proc; ls -d /proc/*; echo end",
            insecure=True,
        )
    assert ran.lines[-1] == "end"
    assert "/proc/*" in ran.err  # below it is nothing
    for hidden in (name, str(tmp_path), "zygote"):
        assert hidden not in ran.out


@each_runtime
@pytest.mark.parametrize("cwd", ["/proc/self/fd/7", "/proc/self/fd/3/../..", "/l/x"])
def test_a_working_directory_behind_a_descriptor_is_refused(
    tmp_path: Path, name: str, cwd: str
) -> None:
    """CVE-2024-21626: a descriptor of the runtime's, open while it changes there."""
    with steps_in(tmp_path, way=name) as steps:
        links = steps.layer("links")
        (links / "l").symlink_to("/proc/self/fd/7")
        with pytest.raises(SandboxFailed, match="working directory"):
            steps.run("pwd", cwd=cwd, lowers=[links, steps.base])


@pytest.mark.root
@pytest.mark.parametrize("kind", ["range", "single"])
def test_the_same_holds_for_other_users(tmp_path: Path, kind: str) -> None:
    """This file, as an ordinary user."""
    run_tests_as_user(tmp_path, [__file__], subordinate=kind == "range")
