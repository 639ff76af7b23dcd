from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pybuild.errors import BackendUnavailable, UsageError
from pybuild_containerd.address import choose_address, find_obstacle, socket_path


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """One whose path is short, for a socket's has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="pb-", dir="/tmp") as folder:
        yield Path(folder)


@contextmanager
def listening(path: Path) -> Iterator[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(16)
        yield str(path)


@pytest.mark.parametrize("address", ["/run/c.sock", "unix:///run/c.sock", "unix:/run/c.sock"])
def test_a_path_may_stand_with_or_without_its_scheme(address: str) -> None:
    assert socket_path(address) == "/run/c.sock"


@pytest.mark.parametrize(
    "address",
    ["", "run/c.sock", "unix://run/c.sock", "tcp://127.0.0.1:1", "http://x/y", "unix://", "/a\0b"],
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(UsageError):
        socket_path(address)


def test_a_missing_socket_is_told_from_a_stale_one_and_from_a_file(tmp_path: Path) -> None:
    with listening(tmp_path / "stale.sock"):
        pass
    (tmp_path / "file").touch()
    reasons = {
        name: getattr(find_obstacle(str(tmp_path / name)), "reason", None)
        for name in ("missing", "stale.sock", "file", "file/below")
    }
    assert reasons == {
        "missing": "there is no socket",
        "stale.sock": "nothing listens there",
        "file": "it is no socket",
        "file/below": "there is no socket",
    }


def test_a_path_too_long_for_a_socket_is_an_obstacle() -> None:
    obstacle = find_obstacle("/" + "x" * 200)
    assert obstacle is not None
    assert "longer than 107 bytes" in obstacle.reason


def test_a_socket_without_permission_is_an_obstacle(tmp_path: Path) -> None:
    with listening(tmp_path / "c.sock") as path:
        tmp_path.chmod(0o711)
        Path(path).chmod(0o600)
        if os.geteuid() != 0:
            Path(path).chmod(0o000)
        program = (
            "import os, sys\n"
            "from pybuild_containerd.address import find_obstacle\n"
            "os.geteuid() or os.setuid(65534)\n"
            "print(find_obstacle(sys.argv[1]).reason)"
        )
        for folder in tmp_path.parents:
            if folder.stat().st_uid == os.geteuid() and folder.stat().st_mode & 0o011 != 0o011:
                folder.chmod(folder.stat().st_mode | 0o011)
        told = subprocess.run(
            [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
        )
    assert told.stdout.strip() == "permission denied"


def test_a_listener_is_no_obstacle(tmp_path: Path) -> None:
    with listening(tmp_path / "c.sock") as path:
        assert find_obstacle(path) is None


def test_an_option_goes_before_the_environment_and_both_before_known_places(tmp_path: Path) -> None:
    with (
        listening(tmp_path / "a") as option,
        listening(tmp_path / "b") as variable,
        listening(tmp_path / "run/containerd/containerd.sock") as system,
    ):
        assert choose_address(option, variable, root=str(tmp_path)) == option
        assert choose_address(None, f"unix://{variable}", root=str(tmp_path)) == variable
        assert choose_address(root=str(tmp_path)) == system


@pytest.mark.parametrize(
    "place",
    [
        "run/containerd/containerd.sock",
        "var/run/containerd/containerd.sock",
        "run/k3s/containerd/containerd.sock",
        "run/docker/containerd/containerd.sock",
    ],
)
def test_each_known_place_is_found(tmp_path: Path, place: str) -> None:
    with listening(tmp_path / place) as path:
        assert choose_address(root=str(tmp_path)) == path


def test_a_stale_socket_of_the_system_doesnt_hide_dockers(tmp_path: Path) -> None:
    with listening(tmp_path / "run/containerd/containerd.sock"):
        pass
    with listening(tmp_path / "run/docker/containerd/containerd.sock") as docker:
        assert choose_address(root=str(tmp_path)) == docker


def test_a_given_address_that_doesnt_work_is_not_replaced_by_another(tmp_path: Path) -> None:
    with (
        listening(tmp_path / "run/containerd/containerd.sock"),
        pytest.raises(BackendUnavailable, match="no-such"),
    ):
        choose_address(str(tmp_path / "no-such"), root=str(tmp_path))


def test_the_error_lists_every_place_and_rootless_ones_by_their_process(tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    (runtime / "containerd-rootless").mkdir(parents=True)
    (runtime / "containerd-rootless/child_pid").write_text("999999999\n")
    with pytest.raises(BackendUnavailable) as caught:
        choose_address(runtime_folder=str(runtime), root=str(tmp_path))
    for place in (
        f"{tmp_path}/run/containerd/containerd.sock: there is no socket",
        "/run/k3s/",
        "/proc/999999999/root/run/containerd/containerd.sock",
        "/run/docker/",
    ):
        assert place in caught.value.message
    assert "CONTAINERD_ADDRESS" in (caught.value.hint or "")


def test_the_hint_is_about_a_place_that_exists(tmp_path: Path) -> None:
    with listening(tmp_path / "run/k3s/containerd/containerd.sock") as k3s:
        pass
    with pytest.raises(BackendUnavailable) as caught:
        choose_address(root=str(tmp_path))
    assert caught.value.hint == f"for {k3s}: start containerd again"


@pytest.mark.parametrize("text", ["", "x", "-1\n", "1/../../2"])
def test_a_broken_pid_file_of_rootlesskit_is_no_error_of_its_own(tmp_path: Path, text: str) -> None:
    (tmp_path / "containerd-rootless").mkdir()
    (tmp_path / "containerd-rootless/child_pid").write_text(text)
    with pytest.raises(BackendUnavailable):
        choose_address(runtime_folder=str(tmp_path), root=str(tmp_path))
