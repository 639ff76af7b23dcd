"""A process in an image, on the memory backend; with a kernel in tests/e2e."""

from __future__ import annotations

import threading

import pytest

from pybuild import cli
from pybuild.errors import BuildCancelled, ImageNotFound, UnsupportedByBackend, UsageError
from pybuild.oci.image_config import ImageConfig
from pybuild.oci.platform import host_platform
from pybuild.run.activity import CancelToken
from pybuild.runcommand import parse_run_arguments
from pybuild.running import run_image
from pybuild.testkit.memory import MemoryBackend
from pybuild.testkit.workbench import file, folder


@pytest.fixture
def backend() -> MemoryBackend:
    backend = MemoryBackend()
    config = ImageConfig(
        host_platform(),
        env=(("PATH", "/bin"), ("WHO", "image")),
        entrypoint=("/bin/sh", "-c"),
        cmd=("echo from $WHO",),
        user="web",
        working_dir="/tmp",
    )
    passwd = b"root:x:0:0::/:\nweb:x:33:44::/:\n"
    entries = [folder(b"etc"), file(b"etc/passwd", passwd), folder(b"tmp", 0o1777)]
    backend.add_image("app", config, entries)
    backend.add_image("empty", ImageConfig(host_platform()), entries)
    return backend


def test_the_images_own_command_runs_in_its_environment(backend: MemoryBackend) -> None:
    done = run_image("app", backend=backend)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"from image\n", b"")
    assert done.args == ["/bin/sh", "-c", "echo from $WHO"]


def test_arguments_replace_the_command_and_variables_are_added(backend: MemoryBackend) -> None:
    done = run_image("app", ["echo $WHO $MORE"], backend=backend, env={"WHO": "me", "MORE": "x"})
    assert done.stdout == b"me x\n"


def test_the_exit_code_comes_back(backend: MemoryBackend) -> None:
    assert run_image("app", ["exit 7"], backend=backend).returncode == 7


def test_output_goes_where_it_is_wanted(backend: MemoryBackend) -> None:
    seen: list[tuple[int, bytes]] = []
    done = run_image("app", backend=backend, on_output=lambda *piece: seen.append(piece))
    assert (seen, done.stdout) == ([(1, b"from image\n")], b"")


def test_nothing_that_the_process_changes_is_kept(backend: MemoryBackend) -> None:
    run_image("app", ["echo x > /tmp/made"], backend=backend)
    assert run_image("app", ["cat /tmp/made"], backend=backend).returncode != 0
    assert backend.live_layers == 0


def test_an_image_without_a_command_needs_one(backend: MemoryBackend) -> None:
    with pytest.raises(UsageError, match="neither an entrypoint nor a command"):
        run_image("empty", backend=backend)


def test_an_image_that_is_not_there_is_told(backend: MemoryBackend) -> None:
    with pytest.raises(ImageNotFound):
        run_image("nowhere", backend=backend)


def test_a_backend_without_processes_is_told() -> None:
    with pytest.raises(UnsupportedByBackend, match="runs no processes"):
        run_image("app", backend=MemoryBackend(capabilities=()))


def test_a_cancelled_run_ends(backend: MemoryBackend) -> None:
    cancel = CancelToken()
    threading.Timer(0.05, cancel.cancel).start()
    with pytest.raises(BuildCancelled):
        run_image("app", ["sleep 30"], backend=backend, cancel=cancel)


def test_the_command_line_passes_output_and_exit_code_on(
    backend: MemoryBackend,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    monkeypatch.setattr("pybuild.running.open_backend", lambda *_: backend)
    words = ["-e", "MORE=x", "--workdir", "/", "app", "echo $MORE; pwd; echo bad >&2; exit 3"]
    assert cli.main(["run", *words]) == 3
    assert capfdbinary.readouterr() == (b"x\n/\n", b"bad\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the image is missing"),
        (["--network", "hots", "app"], 'the network "hots"'),
        (["--usr", "me", "app"], "unknown flag --usr; did you mean --user?"),
    ],
)
def test_wrong_words_are_told(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", *words]) == 2
    assert message in capsys.readouterr().err


def test_what_follows_the_image_is_the_processs_own() -> None:
    found = parse_run_arguments(["-e", "HERE", "app", "ls", "-u", "--help"], {"HERE": "1"}, "0")
    assert (found.image, found.args, found.env) == ("app", ("ls", "-u", "--help"), {"HERE": "1"})
