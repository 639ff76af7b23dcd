"""Secrets for a container: in memory, with their owners, and in no specification."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from pybuild.backend import Process, SecretMount, User
from pybuild.errors import BackendFailed, StepFailed
from pybuild_containerd import lentfiles
from pybuild_containerd.lentfiles import give, memory_folder, with_secret_variables, write_secret

PROCESS = Process(("prog", "a b"), (("A", "1"),), "/")


def test_a_secret_is_a_file_in_a_private_folder_of_a_tmpfs() -> None:
    with memory_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        path = write_secret(folder, SecretMount("/s", b"canary", 0o440))
        assert path.read_bytes() == b"canary"
        assert stat.S_IMODE(path.stat().st_mode) == 0o440
        other = write_secret(folder, SecretMount("/s", b"other"))
        assert path != other
    assert not folder.exists()


def test_a_folder_on_a_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendFailed, match="tmpfs"), memory_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_root_gives_a_file_to_anybody(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    give(path, 0o640, 77, 78, "/s")
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (77, 78, 0o640)


def test_an_ordinary_user_gives_a_file_to_the_containers_root_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.touch()
    monkeypatch.setattr(lentfiles.os, "geteuid", lambda: 1000)
    give(path, 0o400, 0, 0, "/s")
    assert path.stat().st_uid == os.getuid()
    with pytest.raises(StepFailed, match="only root"):
        give(path, 0o400, 77, 0, "/s")


def test_a_process_without_secret_variables_stays_as_it_is() -> None:
    assert with_secret_variables(PROCESS) == (PROCESS, None)


@pytest.mark.parametrize(
    "value", ["", "plain", "it's", "'", "a\nb\n", '$(id) `id` \\ "', "é\udcff"]
)
def test_the_shell_gives_the_variables_and_then_is_the_process(tmp_path: Path, value: str) -> None:
    names = ("B", "_a1")
    script = 'printf %s "$B" > "$1"; printf "%s|" "$0" "$@" "$#" "$_a1"'
    out = tmp_path / "out"
    process = Process(
        ("/bin/sh", "-c", script, "name", str(out)),
        (),
        "/",
        User(7, 8),
        secret_env=tuple((name, value) for name in names),
    )
    made, mount = with_secret_variables(process)
    assert mount is not None
    assert (mount.mode, mount.uid, mount.gid) == (0o400, 7, 8)
    assert made.secret_env == ()
    assert value not in made.args or not value
    file = tmp_path / "variables"
    file.write_bytes(mount.content)
    args = [str(file) if word == mount.target else word for word in made.args]
    done = subprocess.run(args, check=True, capture_output=True, env={})
    assert done.stdout == b"|".join([b"name", os.fsencode(out), b"1", os.fsencode(value), b""])
    assert out.read_bytes() == os.fsencode(value)


@pytest.mark.parametrize("name", ["", "1a", "a-b", "a b", "a;id", "é", "A=B"])
def test_a_variable_that_no_shell_can_set_is_refused(name: str) -> None:
    with pytest.raises(StepFailed, match="no shell"):
        with_secret_variables(Process(("x",), (), "/", secret_env=((name, "v"),)))
