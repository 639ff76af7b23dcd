from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from building import files_of, image_of, memory_backend, waiting_runner

from pybuild import __version__, cli
from pybuild.arguments import (
    BuildArguments,
    parse_arguments,
    parse_build_args,
    parse_host,
    parse_size,
    parse_ulimit,
)
from pybuild.backend import HostEntry, Ulimit
from pybuild.errors import (
    AuthenticationRequired,
    BackendFailed,
    BackendUnavailable,
    ImageNotFound,
    PybuildError,
    UsageError,
)
from pybuild.oci.descriptor import OCI_INDEX
from pybuild_containerd.options import parse_options

ENVIRONMENT = [
    "PYBUILD_BACKEND",
    "PYBUILD_PROGRESS",
    "BUILDKIT_PROGRESS",
    "CONTAINERD_ADDRESS",
    "CONTAINERD_NAMESPACE",
    "CONTAINERD_SNAPSHOTTER",
    "DOCKER_CONFIG",
    "NO_COLOR",
    "XDG_RUNTIME_DIR",
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "ALL_PROXY",
    "all_proxy",
]


class Kept:
    """What `open_backend` is asked for; the backend itself outlives each command."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.asked: list[tuple[str, dict]] = []

    def __call__(self, name: Any, options: Any = None) -> Any:
        self.asked.append((name, dict(options or {})))
        return self.backend


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    backend = memory_backend()
    monkeypatch.setattr(backend, "close", lambda: None)
    kept = Kept(backend)
    monkeypatch.setattr("pybuild.api.open_backend", kept)
    yield kept
    assert backend.live_layers == 0


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "a.txt").write_text("alpha")
    (folder / "Dockerfile").write_text("FROM busybox\nCOPY a.txt /\nRUN echo hello\n")
    return folder


def parsed(*words: str, environ: Any = None) -> BuildArguments:
    arguments = parse_arguments(words, environ or {}, "1")
    assert isinstance(arguments, BuildArguments)
    return arguments


# Words


def test_every_option_is_read() -> None:
    found = parsed(
        "build", "-f", "D", "-t", "a:1", "--tag=b", "--build-arg", "A=1", "--build-arg=B",
        "--build-arg", "C", "--target", "t", "--platform", "linux/arm64", "--pull", "--no-cache",
        "--label", "l=v", "--label", "empty", "--annotation", "x=y=z", "--annotation",
        "manifest:m=n", "--annotation=manifest,index:both=1", "--annotation=odd:z=2",
        "--annotation", "index:i=3", "--network", "none", "--add-host", "h:1.2.3.4", "--shm-size", "1g",
        "--ulimit", "nofile=10:20", "--iidfile", "i", "--metadata-file", "m", "-q",
        "--progress", "rawjson", "--backend", "memory", "--root", "/r", "--containerd-address", "/s",
        "--containerd-namespace", "n", "--snapshotter", "s", "--moby-labels", "--no-unpack",
        "--hosts-dir", "/h", "--dry-run=json", "-D", "ctx",
        environ={"B": "from outside"},
    )  # fmt: skip
    assert found == BuildArguments(
        context="ctx",
        file="D",
        tags=("a:1", "b"),
        build_args={"A": "1", "B": "from outside"},
        target="t",
        platforms=("linux/arm64",),
        pull="always",
        no_cache=True,
        labels={"l": "v", "empty": ""},
        annotations={"x": "y=z", "m": "n", "both": "1", "odd:z": "2"},
        index_annotations={"both": "1", "i": "3"},
        network="none",
        add_hosts=(HostEntry("h", "1.2.3.4"),),
        shm_size=1 << 30,
        ulimits=(Ulimit("nofile", 10, 20),),
        iidfile="i",
        metadata_file="m",
        quiet=True,
        progress="rawjson",
        dry_run="json",
        backend="memory",
        root="/r",
        address="/s",
        namespace="n",
        snapshotter="s",
        hosts_dir="/h",
        moby_labels=True,
        unpack=False,
        debug=True,
    )


@pytest.mark.parametrize(
    ("words", "member", "value"),
    [
        (["--pull", "."], "pull", "always"),
        (["--pull=true", "."], "pull", "always"),
        (["--pull=false", "."], "pull", "missing"),
        (["--pull=never", "."], "pull", "never"),
        (["."], "pull", "missing"),
        (["--no-cache=false", "."], "no_cache", False),
        (["--dry-run", "."], "dry_run", "text"),
        (["--rm", "--force-rm", "."], "context", "."),
        (["-"], "context", "-"),
        (["-f", "-", "."], "file", "-"),
        (["--", "-odd"], "context", "-odd"),
        (["-qt", "a", "."], "tags", ("a",)),
    ],
)
def test_flags_have_docker_s_forms(words: Any, member: Any, value: Any) -> None:
    assert getattr(parsed(*words), member) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "build context is missing"),
        (["a", "b"], '"b" is another'),
        (["--taget", "x", "."], "unknown flag --taget; did you mean --target?"),
        (["--tarfet=x", "."], "unknown flag --tarfet; did you mean --target?"),
        (["--qqqqqq", "."], "unknown flag --qqqqqq"),
        (["-Z", "."], "unknown flag -Z"),
        (["-t"], "expected one argument"),
        (["--progress", "loud", "."], "--progress: invalid choice"),
        (["--pull=often", "."], "is not missing, always or never"),
        (["--no-cache=maybe", "."], "is not true or false"),
        (["--build-arg", "=x", "."], "has no name"),
        (["--label", "=x", "."], "has no name"),
        (["--annotation", "x", "."], "is not KEY=VALUE"),
        (["--annotation", "index-descriptor:x=y", "."], "not supported yet"),
        (["--secret", "id=x", "."], "--secret is not supported yet"),
        (["--ssh=default", "."], "--ssh is not supported yet"),
        (["-o", "type=local", "."], "-o is not supported yet"),
        (["--output=x", "."], "--output is not supported yet"),
        (["--push", "."], "--push is not supported yet"),
        (["--load", "."], "--load is not supported yet"),
        (["--cache-from=x", "."], "--cache-from is not supported yet"),
        (["doctor", "--taget"], "unknown flag --taget"),
    ],
)
def test_wrong_words_are_told_plainly(words: Any, message: Any) -> None:
    with pytest.raises(UsageError) as caught:
        parse_arguments(words, {}, "1")
    assert message in caught.value.message


def test_a_build_arg_without_value_comes_from_the_environment_or_not_at_all() -> None:
    assert parse_build_args(["A", "B", "C=", "D=x=y"], {"A": "1"}) == {
        "A": "1",
        "C": "",
        "D": "x=y",
    }


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("db:10.0.0.1", HostEntry("db", "10.0.0.1")),
        ("db=10.0.0.1", HostEntry("db", "10.0.0.1")),
        ("db:[2001:DB8::1]", HostEntry("db", "2001:db8::1")),
        ("db=[::1]", HostEntry("db", "::1")),
        ("db:::1", HostEntry("db", "::1")),
    ],
)
def test_hosts_may_be_written_as_docker_allows(text: Any, host: Any) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize(
    "text", ["db", "db:", ":1.2.3.4", "db:x", "db:1.2.3", "db:host-gateway", "a b:1.2.3.4"]
)
def test_wrong_hosts_are_refused(text: Any) -> None:
    with pytest.raises(UsageError):
        parse_host(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("65536", 65536),
        ("64m", 64 << 20),
        ("1.5G", 3 << 29),
        ("2kb", 2048),
        ("1KiB", 1024),
    ],
)
def test_sizes_have_binary_units(text: Any, size: Any) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "-1", "1x", "1e9", "9" * 30])
def test_wrong_sizes_are_refused(text: Any) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("nofile=1024", Ulimit("nofile", 1024, 1024)),
        ("nproc=5:10", Ulimit("nproc", 5, 10)),
        ("core=-1", Ulimit("core", -1, -1)),
        ("core=0:-1", Ulimit("core", 0, -1)),
    ],
)
def test_ulimits_have_one_or_two_numbers(text: Any, limit: Any) -> None:
    assert parse_ulimit(text) == limit


@pytest.mark.parametrize(
    "text", ["nofile", "nofile=", "nofile=x", "nofiles=1", "nofile=2:1", "core=-1:5", "core=-2"]
)
def test_wrong_ulimits_are_refused(text: Any) -> None:
    with pytest.raises(UsageError):
        parse_ulimit(text)


# The command


def test_the_names_and_digest_are_all_that_standard_output_gets(
    kept: Kept, context: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["-t", "app", "-t", "b:2", str(context)]) == 0
    out, err = capsys.readouterr()
    digest = image_of(kept.backend).digest
    assert out == f"docker.io/library/app:latest {digest}\ndocker.io/library/b:2 {digest}\n"
    assert "RUN echo hello\n" in err
    assert " hello\n" in err
    assert "naming to docker.io/library/app:latest done\n" in err


def test_an_unnamed_image_is_printed_by_its_digest(
    kept: Kept, context: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([str(context)]) == 0
    assert capsys.readouterr().out.startswith("sha256:")


def test_quiet_prints_the_digest_alone(
    kept: Kept, context: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["-q", "-t", "app", str(context)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{image_of(kept.backend).digest}\n"
    assert err == ""


def test_digests_and_names_are_written_to_files(kept: Kept, context: Path, tmp_path: Path) -> None:
    words = ["-t", "app", "-t", "b", "--iidfile", "iid", "--metadata-file", "meta", str(context)]
    assert cli.main(words) == 0
    digest = image_of(kept.backend).digest
    assert (tmp_path / "iid").read_text() == digest
    metadata = json.loads((tmp_path / "meta").read_text())
    assert metadata["containerimage.digest"] == digest
    assert metadata["containerimage.config.digest"].startswith("sha256:")
    assert metadata["containerimage.descriptor"]["digest"] == digest
    assert metadata["image.name"] == "docker.io/library/app:latest,docker.io/library/b:latest"


def test_what_is_written_of_several_platforms_is_the_index(
    kept: Kept, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = tmp_path / "several"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    words = ["--platform=linux/arm64,linux/amd64", "--annotation=index:a=b", "-t", "app"]
    files = ["--iidfile", "iid", "--metadata-file", "meta"]
    assert cli.main([*words, *files, str(context)]) == 0
    name, digest = capsys.readouterr().out.split()
    assert name == "docker.io/library/app:latest"
    assert (tmp_path / "iid").read_text() == digest
    with kept.backend.open_blob(digest) as stream:
        document = json.loads(stream.read())
    assert [entry["platform"]["architecture"] for entry in document["manifests"]] == [
        "arm64",
        "amd64",
    ]
    assert document["annotations"] == {"a": "b"}
    metadata = json.loads((tmp_path / "meta").read_text())
    assert metadata["containerimage.digest"] == digest
    assert metadata["containerimage.descriptor"]["mediaType"] == OCI_INDEX
    assert "containerimage.config.digest" not in metadata


def test_a_file_that_cannot_be_written_is_told(
    kept: Kept, context: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--iidfile", "/nowhere/iid", str(context)]) == 2
    assert "can't write" in capsys.readouterr().err


def test_a_failed_build_leaves_no_digest_of_an_earlier_one(
    kept: Kept, context: Path, tmp_path: Path
) -> None:
    (tmp_path / "iid").write_text("old")
    (context / "Dockerfile").write_text("FROM busybox\nRUN exit 1\n")
    assert cli.main(["--iidfile", "iid", str(context)]) == 1
    assert not (tmp_path / "iid").exists()


def test_raw_json_goes_to_standard_error(
    kept: Kept, context: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--progress", "rawjson", str(context)]) == 0
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert events[-1]["event"] == "build-finished"


def test_the_dockerfile_may_come_from_standard_input(
    kept: Kept, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = io.TextIOWrapper(io.BytesIO(b"FROM scratch\nCOPY a.txt /in\n"))
    monkeypatch.setattr("sys.stdin", text)
    assert cli.main(["-f", "-", "-t", "app", str(context)]) == 0
    assert files_of(kept.backend) == {"in": b"alpha"}


def test_the_context_may_come_from_standard_input(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = io.TextIOWrapper(io.BytesIO(b"FROM scratch\nCOPY <<x /in\nhi\nx\n"))
    monkeypatch.setattr("sys.stdin", text)
    assert cli.main(["-t", "app", "-"]) == 0
    assert files_of(kept.backend) == {"in": b"hi\n"}


def test_standard_input_is_not_both(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-f", "-", "-"]) == 2
    assert "can't be both" in capsys.readouterr().err


def test_a_syntax_error_shows_its_line_and_what_was_meant(
    kept: Kept, context: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (context / "Dockerfile").write_text("FROM busybox\n\nCOPY --form=build /out /out\n")
    assert cli.main(["--progress", "plain", str(context)]) == 2
    err = capsys.readouterr().err
    assert "did you mean" in err
    assert "--> Dockerfile:3" in err
    assert " 3 | COPY --form=build /out /out\n" in err
    assert "^^^" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("progress", [["--progress=plain"], ["-q"]])
def test_a_failing_run_shows_its_output_once(
    kept: Kept, context: Path, capsys: pytest.CaptureFixture[str], progress: Any
) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nRUN echo nonsense; exit 9\n")
    assert cli.main([*progress, str(context)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "did not complete successfully: exit code: 9" in err
    assert sum(line.endswith(" nonsense") for line in err.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ImageNotFound("no such image"), 3),
        (AuthenticationRequired("needs a login"), 3),
        (BackendFailed("containerd went away"), 4),
    ],
)
def test_failures_of_a_backend_have_their_codes(
    *,
    kept: Kept,
    context: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Any,
    code: Any,
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(kept.backend, "resolve", fail)
    assert cli.main([str(context)]) == code
    err = capsys.readouterr().err
    assert f"error: {error.message}" in err
    assert " 1 | FROM busybox" in err


def test_a_backend_that_is_not_there_is_told_with_the_known_ones(
    context: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--backend", "memroy", str(context)]) == 4
    err = capsys.readouterr().err
    assert 'no backend "memroy"; did you mean memory?' in err
    assert "containerd, memory" in err


def test_a_bug_ends_with_70_and_its_traceback(
    kept: Kept, context: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(kept.backend, "create_image", fail)
    assert cli.main([str(context)]) == 70
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err
    assert "this is a bug in pybuild" in err


def test_debug_shows_the_traceback_of_an_error(
    kept: Kept, context: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (context / "Dockerfile").write_text("FORM x\n")
    assert cli.main(["-D", str(context)]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_the_backend_and_its_options_come_from_flags_then_the_environment(
    kept: Kept, context: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text("{}")
    monkeypatch.setenv("CONTAINERD_ADDRESS", "/env.sock")
    monkeypatch.setenv("CONTAINERD_NAMESPACE", "env")
    monkeypatch.setenv("CONTAINERD_SNAPSHOTTER", "native")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/me")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    cli.main(["--containerd-namespace", "flag", "--no-unpack", str(context)])
    name, options = kept.asked[0]
    assert name == "containerd"
    options.pop("cache_dir")
    options.pop("hosts_dir", None)
    assert options == {
        "environment_address": "/env.sock",
        "namespace": "flag",
        "snapshotter": "native",
        "xdg_runtime_dir": "/run/me",
        "unpack": False,
        "docker_config": str(tmp_path / ".docker/config.json"),
        "proxies": {"https": "http://proxy:1"},
    }
    monkeypatch.setenv("PYBUILD_BACKEND", "memory")
    cli.main([str(context)])
    assert kept.asked[1] == ("memory", {})


def test_the_containerd_backend_knows_all_options_that_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONTAINERD_ADDRESS", "/env.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/me")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:1")
    arguments = parsed(
        "--containerd-address=/a", "--containerd-namespace=n", "--snapshotter=s", "--moby-labels",
        "--hosts-dir=/h", ".",
    )  # fmt: skip
    options = parse_options(cli._backend_options(arguments))
    assert options.address == "/a"
    assert options.moby_labels is True


# Progress by environment


@pytest.mark.parametrize(
    ("words", "environ", "terminal", "mode"),
    [
        ([], {}, True, "tty"),
        ([], {}, False, "plain"),
        ([], {"TERM": "dumb"}, True, "plain"),
        ([], {"NO_COLOR": "1"}, True, "plain"),
        ([], {"BUILDKIT_PROGRESS": "rawjson"}, True, "rawjson"),
        ([], {"BUILDKIT_PROGRESS": "rawjson", "PYBUILD_PROGRESS": "plain"}, True, "plain"),
        (["--progress", "plain"], {"BUILDKIT_PROGRESS": "rawjson"}, True, "plain"),
        (["--progress", "tty"], {}, False, "plain"),
        (["-q", "--progress", "tty"], {}, True, "quiet"),
    ],
)
def test_progress_is_chosen_by_flag_environment_and_terminal(
    *, monkeypatch: pytest.MonkeyPatch, words: Any, environ: Any, terminal: Any, mode: Any
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert cli._progress_mode(parsed(*words, ".")) == mode


# Signals, pipes


def test_a_signal_cancels_the_build_and_exits_130(
    kept: Kept, context: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = threading.Event()
    kept.backend.runner = waiting_runner(started)

    def interrupt() -> None:
        assert started.wait(20)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=interrupt)
    thread.start()
    code = cli.main([str(context)])
    thread.join()
    assert code == 130
    err = capsys.readouterr().err
    assert "CANCELED" in err
    assert "Traceback" not in err
    assert signal.getsignal(signal.SIGTERM) is before


def test_progress_that_nobody_reads_cancels_the_build(
    kept: Kept, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Broken())
    kept.backend.runner = waiting_runner(threading.Event())
    assert cli.main(["--progress=plain", str(context)]) == 130


COMMAND = [sys.executable, "-m", "pybuild"]


def run(*words: str, **options: Any) -> Any:
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=60, check=False, **options
    )


def test_a_second_interrupt_ends_the_process_at_once(tmp_path: Path) -> None:
    program = (
        "import sys, threading, pybuild.api\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from building import memory_backend\n"
        "def stubborn(process, tree, mounts, activity):\n"
        "    print('running', flush=True)\n"
        "    threading.Event().wait(60)\n"
        "backend = memory_backend(runner=stubborn)\n"
        "pybuild.api.open_backend = lambda *_: backend\n"
        "from pybuild.cli import main\n"
        "sys.exit(main(['-f', 'D', '.']))\n"
    )
    (tmp_path / "D").write_text("FROM busybox\nRUN true\n")
    here = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", program, here],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"running\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130


def test_a_closed_standard_output_gives_no_traceback(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    (tmp_path / "D").write_text("FROM scratch\nENV A=1\n")
    done = subprocess.run(
        [*COMMAND, "--backend=memory", "--progress=plain", "-f", "D", "."],
        stdout=writer,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 130
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


def test_help_fits_a_reader_in_a_hurry() -> None:
    done = run("--help")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 100
    assert "--secret" not in done.stdout
    for flag in ("--file", "--tag", "--build-arg", "--dry-run", "--containerd-address"):
        assert flag in done.stdout


def test_version_is_printed() -> None:
    assert run("--version").stdout == f"pybuild {__version__}\n"


def test_the_version_is_that_of_the_distribution() -> None:
    assert version("pybuild-oci") == __version__


def test_a_usage_error_exits_with_2_and_a_hint() -> None:
    done = run("--secret", "id=x", ".")
    assert done.returncode == 2
    assert done.stderr == "error: --secret is not supported yet (secrets)\n"


# Dry runs


def test_a_dry_run_prints_the_plan_and_builds_nothing(
    kept: Kept, context: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--dry-run", "-t", "app", str(context)]) == 0
    out = capsys.readouterr().out
    assert "RUN echo hello" in out
    assert "not resolved" not in out
    with pytest.raises(PybuildError):
        image_of(kept.backend)


def test_a_dry_run_as_json_is_json(
    kept: Kept, context: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--dry-run=json", str(context)]) == 0
    assert json.loads(capsys.readouterr().out)["not_resolved"] == []


@pytest.mark.parametrize("backend", ["none", "containerd"])
def test_a_dry_run_needs_no_backend(
    context: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, backend: Any
) -> None:
    def refuse(name: Any, options: Any = None) -> Any:
        raise BackendUnavailable("nothing listens", hint="start containerd")

    monkeypatch.setattr("pybuild.api.open_backend", refuse)
    assert cli.main(["--dry-run", "--backend", backend, str(context)]) == 0
    out, err = capsys.readouterr()
    assert "not resolved: docker.io/library/busybox:latest" in out
    assert ("nothing listens" in err) == (backend == "containerd")


@pytest.mark.parametrize(
    "program",
    [
        "import pybuild",
        "from pybuild.dockerfile.parse import parse; parse(b'FROM a AS b\\nRUN x\\n')",
        "from pybuild.cli import main; assert main(['--dry-run', '-f', 'D', '.']) == 0",
        "import pybuild.cli as c; assert c.main(['--backend=memory', '-f', 'D', '.']) == 0",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(tmp_path: Path, program: Any) -> None:
    (tmp_path / "D").write_text("FROM scratch\nCOPY D /\n")
    heavy = ("grpc", "urllib3", "tqdm", "google.protobuf", "pybuild_containerd")
    code = (
        f"import sys\n{program}\n"
        f"found = [name for name in {heavy} if name in sys.modules]\nassert not found, found"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr


# Doctor


def test_doctor_says_what_is_there_and_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: Any, options: Any = None) -> Any:
        if name == "containerd":
            raise BackendUnavailable("nothing listens", hint="start containerd")
        backend = memory_backend()
        backend.describe = lambda: [("colour", "blue")]
        return backend

    monkeypatch.setattr("pybuild.doctor.open_backend", refuse)
    assert cli.main(["doctor", "--backend", "containerd"]) == 4
    out = capsys.readouterr().out
    assert "FAIL  backend containerd" in out
    assert "-> start containerd" in out
    assert "ok    backend memory " in out
    assert "colour" in out
    assert cli.main(["doctor", "--backend", "memory"]) == 0
