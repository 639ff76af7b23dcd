from __future__ import annotations

import io
import json
import os
import re
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
from pybuild.arguments import BuildArguments, parse_arguments
from pybuild.backend import HostEntry, Ulimit
from pybuild.cachetransfer.places import (
    InlineExport,
    LocalImport,
    RegistryExport,
    RegistryImport,
)
from pybuild.environment import backend_options, build_args_of, proxies_of, secrets_of
from pybuild.errors import (
    AuthenticationRequired,
    BackendFailed,
    BackendUnavailable,
    ImageNotFound,
    PybuildError,
    UsageError,
)
from pybuild.export.outputs import LocalOutput, TarOutput
from pybuild.flagvalues import (
    CallArguments,
    SecretArgument,
    parse_build_args,
    parse_host,
    parse_secret,
    parse_size,
    parse_ulimit,
)
from pybuild.lendingflags import SshOption
from pybuild.oci.descriptor import OCI_INDEX
from pybuild.oci.reference import parse_reference
from pybuild.secrets import Secret
from pybuild.testkit.layouts import LayoutReader
from pybuild.testkit.registry import Registry
from pybuild.testkit.validate import validate
from pybuild_containerd.options import parse_options

ENVIRONMENT = [
    "PYBUILD_BACKEND",
    "PYBUILD_PROGRESS",
    "BUILDKIT_PROGRESS",
    "CONTAINERD_ADDRESS",
    "CONTAINERD_NAMESPACE",
    "CONTAINERD_SNAPSHOTTER",
    "DOCKER_CONFIG",
    "DOCKER_HOST",
    "SOURCE_DATE_EPOCH",
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
    monkeypatch.setattr("pybuild.lookups.open_backend", kept)
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


@pytest.mark.parametrize(
    ("text", "size"), [("20g", 20 << 30), ("15%", "15%"), ("5", 5), ("", None)]
)
def test_the_environment_says_how_large_a_store_may_be(text: str, size: object) -> None:
    found = backend_options(parsed("--backend=embedded", "."), {"PYBUILD_MAX_SIZE": text})
    assert found.get("max_size") == size


def test_call_and_locked_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="--locked is for builds"):
        parsed("--check", "--locked", ".")


def test_every_option_is_read() -> None:
    found = parsed(
        "build", "-f", "D", "-t", "a:1", "--tag=b", "--build-arg", "A=1", "--build-arg=B",
        "--build-arg", "C", "--target", "t", "--platform", "linux/arm64", "--pull", "--no-cache",
        "--label", "l=v", "--label", "empty", "--annotation", "x=y=z", "--annotation",
        "manifest:m=n", "--annotation=manifest,index:both=1", "--annotation=odd:z=2",
        "--annotation", "index:i=3", "--network", "none", "--add-host", "h:1.2.3.4", "--shm-size", "1g",
        "--ulimit", "nofile=10:20", "--iidfile", "i", "--metadata-file", "m", "-q", "--report", "r",
        "--progress", "rawjson", "--backend", "memory", "--root", "/r", "--containerd-address", "/s",
        "--containerd-namespace", "n", "--snapshotter", "s", "--runner", "task",
        "--moby-labels", "--no-unpack",
        "--hosts-dir", "/h", "--build-context", "c=d=e", "--secret", "id=s,src=p", "--public-only",
        "--build-arg-file", "af", "--no-cache-filter", "x,y", "--no-cache-filter=z",
        "--fail-on-miss=x,Y", "--fail-on-miss=z", "--on-error=shell",
        "--dry-run=json", "--call",
        "lint,format=json,ignorestatus=1", "-D", "-o", "out", "--output", "type=tar,dest=t",
        "--push", "--load", "--cgroup-parent", "/g", "--allow", "security.insecure",
        "--allow=network.host", "--ssh=default", "--ca", "host",
        "--ca=f", "--cache-from=r.io/a", "--cache-from", "type=local,src=l",
        "--cache-to=type=inline", "--cache-to", "type=registry,ref=r.io/a", "ctx",
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
        locked=None,
        no_cache=True,
        labels={"l": "v", "empty": ""},
        annotations={"x": "y=z", "m": "n", "both": "1", "odd:z": "2"},
        index_annotations={"both": "1", "i": "3"},
        network="none",
        add_hosts=(HostEntry("h", "1.2.3.4"),),
        shm_size=1 << 30,
        ulimits=(Ulimit("nofile", 10, 20),),
        cgroup_parent="/g",
        allow=("network.host", "security.insecure"),
        ssh=(SshOption("default"),),
        ca=("host", "f"),
        outputs=(LocalOutput(dest="out"), TarOutput(dest="t")),
        push=True,
        load=True,
        on_error="shell",
        iidfile="i",
        metadata_file="m",
        report="r",
        quiet=True,
        progress="rawjson",
        contexts={"c": "d=e"},
        secrets=(SecretArgument("s", "p"),),
        public_only=True,
        build_arg_files=("af",),
        no_cache_filter=("x", "y", "z"),
        cache_from=(RegistryImport(ref=parse_reference("r.io/a:latest")), LocalImport(src="l")),
        cache_to=(InlineExport(), RegistryExport(ref=parse_reference("r.io/a:latest"))),
        fail_on_miss=("x", "Y", "z"),
        dry_run="json",
        call=CallArguments("check", as_json=True, ignore_status=True),
        backend="memory",
        root="/r",
        address="/s",
        namespace="n",
        snapshotter="s",
        runner="task",
        hosts_dir="/h",
        moby_labels=True,
        unpack=False,
        debug=True,
    )


@pytest.mark.parametrize(
    ("words", "member", "value"),
    [
        (["--pull", "."], "pull", "always"),
        (["--locked", "."], "locked", ""),
        (["--locked=f", "."], "locked", "f"),
        (["--pull=true", "."], "pull", "always"),
        (["--pull=false", "."], "pull", "missing"),
        (["--pull=never", "."], "pull", "never"),
        (["."], "pull", "missing"),
        (["--no-cache=false", "."], "no_cache", False),
        (["--dry-run", "."], "dry_run", "text"),
        (["."], "call", None),
        (["--call=build", "."], "call", None),
        (["--call", "outline", "."], "call", CallArguments("outline")),
        (["--call=targets,format=text", "."], "call", CallArguments("targets")),
        (["--check", "."], "call", CallArguments("check")),
        (["--check=false", "."], "call", None),
        (["--rm", "--force-rm", "."], "context", "."),
        (["-"], "context", "-"),
        (["-f", "-", "."], "file", "-"),
        (["--", "-odd"], "context", "-odd"),
        (["-qt", "a", "."], "tags", ("a",)),
        (["."], "fail_on_miss", ()),
        (["--fail-on-miss", "."], "fail_on_miss", True),
        (["--fail-on-miss=a,b", "."], "fail_on_miss", ("a", "b")),
        (["--fail-on-miss=a", "--fail-on-miss", "."], "fail_on_miss", True),
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
        (["--secret", "x", "."], "isn't understood"),
        (["--secret", "src=x", "."], "needs an id"),
        (["--secret", "id=x,src=y,env=z", "."], "either src or env"),
        (["--secret", "id=x,type=other", "."], "needs an id"),
        (["--build-context", "x", "."], "is not NAME=VALUE"),
        (["--ssh==x", "."], "is not default, ID=SOCKET"),
        (["--allow", "all", "."], "no such entitlement"),
        (["-o", "type=local", "."], "type=local needs dest"),
        (["--output=type=tra", "."], 'there is no type "tra"'),
        (["--cache-from=X", "."], "invalid image name"),
        (["--cache-from=type=gha", "."], "caches in GitHub's cache (type=gha) are not supported"),
        (["--cache-to=type=registry", "."], "it has no ref"),
        (["--sbom", "."], "--sbom is not supported yet"),
        (["--call=", "."], '--call "" is not known'),
        (["--call=check,outline", "."], '"check,outline" is not known'),
        (["--call=check,colour=red", "."], "is not known"),
        (["--call=check,format=xml", "."], "the format is text or json"),
        (["--call=check,ignorestatus=x", "."], "is not true or false"),
        (["doctor", "--taget"], "unknown flag --taget"),
    ],
)
def test_wrong_words_are_told_plainly(words: Any, message: Any) -> None:
    with pytest.raises(UsageError) as caught:
        parse_arguments(words, {}, "1")
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("words", "environ", "epoch"),
    [
        (["--source-date-epoch", "1", "--build-arg", "SOURCE_DATE_EPOCH=2"], "3", "1"),
        (["--build-arg", "SOURCE_DATE_EPOCH=2"], "3", "2"),
        ([], "3", "3"),
        ([], "", None),
    ],
)
def test_the_epoch_is_the_flags_else_a_build_args_else_the_environments(
    words: Any, environ: str, epoch: str | None
) -> None:
    found = parsed(*words, ".", environ={"SOURCE_DATE_EPOCH": environ})
    assert found.build_args.get("SOURCE_DATE_EPOCH") == epoch


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


@pytest.mark.parametrize("progress", ["plain", "rawjson", "quiet"])
def test_a_report_is_written_beside_any_progress(
    kept: Kept, context: Path, tmp_path: Path, progress: str
) -> None:
    words = ["-q"] if progress == "quiet" else ["--progress", progress]
    assert cli.main([*words, "--report", "r.html", "-t", "app", str(context)]) == 0
    assert image_of(kept.backend).digest in (tmp_path / "r.html").read_text()


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
    descriptor = metadata["containerimage.descriptor"]
    assert descriptor["digest"] == digest
    assert descriptor["platform"] == {"architecture": "amd64", "os": "linux"}
    with kept.backend.open_blob(digest) as stream:
        assert descriptor["size"] == len(stream.read())
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
    assert "containerd, embedded, memory" in err


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


def test_a_home_that_cant_be_read_has_no_docker_configuration(
    kept: Kept, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Path.is_file

    def forbidden(path: Path) -> bool:
        if path.name == "config.json":
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path)

    monkeypatch.setattr(Path, "is_file", forbidden)
    assert cli.main([str(context)]) == 0
    assert "docker_config" not in kept.asked[0][1]


def test_the_containerd_backend_knows_all_options_that_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONTAINERD_ADDRESS", "/env.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/me")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:1")
    arguments = parsed(
        "--containerd-address=/a", "--containerd-namespace=n", "--snapshotter=s", "--runner=task", "--moby-labels",
        "--hosts-dir=/h", ".",
    )  # fmt: skip
    options = parse_options(backend_options(arguments, os.environ))
    assert options.address == "/a"
    assert options.moby_labels is True
    assert options.runner == "task"


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


# Outputs


def test_outputs_are_written_instead_of_the_store(
    kept: Kept, context: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-t", "app", "-o", "out", "-o", "type=oci,dest=a.tar", str(context)]
    assert cli.main(words) == 0
    (image,) = LayoutReader(tmp_path / "a.tar").images().values()
    out = capsys.readouterr().out
    assert out == f"docker.io/library/app:latest {image.manifest.digest}\n"
    assert (tmp_path / "out/a.txt").read_text() == "alpha"
    with pytest.raises(ImageNotFound):
        image_of(kept.backend)


def test_push_sends_the_image_with_the_login_of_docker(
    kept: Kept, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYBUILD_BACKEND", "containerd")
    with Registry(username="me", password="pw") as registry:
        auths = {registry.address: {"username": "me", "password": "pw"}}
        (tmp_path / ".docker").mkdir()
        (tmp_path / ".docker/config.json").write_text(json.dumps({"auths": auths}))
        name = f"{registry.address}/app:1"
        assert cli.main(["-t", name, "--push", "--metadata-file", "m", str(context)]) == 0
        digest = registry.read_manifest("app:1")[0].digest
        assert json.loads((tmp_path / "m").read_text())["containerimage.digest"] == digest
        with pytest.raises(ImageNotFound):
            image_of(kept.backend, name)
        assert cli.main(["-t", name, "-o", "type=image", "--push", "--load", str(context)]) == 0
        assert image_of(kept.backend, name).digest == registry.read_manifest("app:1")[0].digest


def test_push_without_a_login_says_what_to_do(
    kept: Kept, context: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Registry(username="me", password="pw") as registry:
        assert cli.main(["-t", f"{registry.address}/app:1", "--push", str(context)]) == 3
        assert f"docker login {registry.address}" in capsys.readouterr().err


def test_load_goes_to_the_docker_that_the_environment_names(
    kept: Kept, context: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYBUILD_BACKEND", "memory")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/d.sock")
    for words in (["--load"], ["-o", "type=docker"]):
        assert cli.main([*words, str(context)]) == 5
        assert "Docker at unix:///nowhere/d.sock: No such file" in capsys.readouterr().err


def test_load_goes_to_the_containerd_that_the_command_line_names(
    kept: Kept, context: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = memory_backend()
    monkeypatch.setattr(other, "close", lambda: None)
    asked = []

    def opened(name: str, options: Any) -> Any:
        asked.append((name, options["address"]))
        return other

    monkeypatch.setenv("PYBUILD_BACKEND", "memory")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/d.sock")
    monkeypatch.setattr("pybuild.export.exporting.open_backend", opened)
    words = ["--load", "--containerd-address", "/x.sock", "-t", "app", str(context)]
    assert cli.main(words) == 0
    assert asked == [("containerd", "/x.sock")]
    assert files_of(other)["a.txt"] == b"alpha"


def test_load_is_the_store_itself_if_that_is_containerds(kept: Kept, context: Path) -> None:
    assert cli.main(["--backend=containerd", "--load", "-t", "app", str(context)]) == 0
    assert files_of(kept.backend)["a.txt"] == b"alpha"


def test_an_archive_is_not_written_to_a_terminal(
    kept: Kept, context: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert cli.main(["-o", "-", str(context)]) == 2
    assert "isn't written to a terminal" in capsys.readouterr().err


def test_only_one_archive_goes_to_standard_output(
    kept: Kept, context: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["-o", "-", "-o", "type=oci", str(context)]) == 2
    assert "only one output" in capsys.readouterr().err


COMMAND = [sys.executable, "-m", "pybuild"]


def archive_of(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    (folder / "D").write_text("FROM scratch\nCOPY large /\n")
    (folder / "large").write_bytes(os.urandom(1 << 20))
    command = [*COMMAND, "--backend=memory", "--progress=plain", "-f", "D", *words, "."]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_standard_output_gets_the_archive_and_nothing_else(tmp_path: Path) -> None:
    with archive_of(tmp_path, "-o", "type=docker,dest=-", "-t", "app") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    (tmp_path / "a.tar").write_bytes(out)
    layout = LayoutReader(tmp_path / "a.tar")
    validate(layout, layout.images()["docker.io/library/app:latest"])


def test_a_reader_that_waits_forever_does_not_hold_up_a_cancel(tmp_path: Path) -> None:
    with archive_of(tmp_path, "-o", "-") as process:
        assert process.stdout is not None
        process.stdout.read(512)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_a_reader_that_goes_away_is_told(tmp_path: Path) -> None:
    with archive_of(tmp_path, "-o", "-") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(512)
        process.stdout.close()
        assert process.wait(60) == 5
        assert b"nobody reads it any more" in process.stderr.read()


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
    assert len(lines) < 100
    assert max(map(len, lines)) <= 100
    assert "--sbom" not in done.stdout
    for flag in ("--file", "--tag", "--build-arg", "--dry-run", "--containerd-address"):
        assert flag in done.stdout


def test_version_is_printed() -> None:
    assert run("--version").stdout == f"pybuild {__version__}\n"


def test_the_version_is_that_of_the_distribution() -> None:
    assert version("pybuild-oci") == __version__


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id=a,src=/p", SecretArgument("a", "/p")),
        ("type=file,id=a,source=/p", SecretArgument("a", "/p")),
        ("id=a,env=B", SecretArgument("a", None, "B")),
        ("type=env,id=a,src=B", SecretArgument("a", None, "B")),
        ("type=env,id=SET", SecretArgument("SET", None, "SET")),
        ("id=SET", SecretArgument("SET", None, "SET")),
        ("id=unset", SecretArgument("unset", "unset")),
    ],
)
def test_a_secret_is_in_a_file_or_in_the_environment(text: str, expected: SecretArgument) -> None:
    assert parse_secret(text, {"SET": "x"}) == expected


def test_secrets_are_read_where_they_are(context: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xffbytes\n")
    found = secrets_of(
        parsed("--secret=id=a,src=file", "--secret=id=b,env=HOME", str(context)), os.environ
    )
    assert (found["a"], found["b"]) == (Secret(b"\xffbytes\n"), Secret(str(tmp_path).encode()))
    assert "bytes" not in repr(found)
    (tmp_path / "large").write_bytes(bytes(600_000))
    for wrong in ("id=a,src=nowhere", "id=a,env=NOT_SET", "id=a,src=large"):
        with pytest.raises(UsageError):
            secrets_of(parsed(f"--secret={wrong}", str(context)), os.environ)


def test_build_args_of_a_file_give_way_to_those_of_the_command_line(
    context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROM_OUTSIDE", "outside")
    (tmp_path / "one").write_bytes(b"# A=0\r\nA=1\r\n\n  \nB= x y \nFROM_OUTSIDE\nNOT_SET\n")
    (tmp_path / "two").write_text("A=2\nC=#3\n")
    files = ("--build-arg-file=one", "--build-arg-file=two")
    found = build_args_of(parsed(*files, "--build-arg=C=4", str(context)), os.environ)
    assert found == {"A": "2", "B": " x y ", "FROM_OUTSIDE": "outside", "C": "4"}
    (tmp_path / "one").write_text("=x\n")
    with pytest.raises(UsageError):
        build_args_of(parsed(*files, str(context)), os.environ)


def test_proxies_are_those_of_the_standard_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.request import getproxies_environment  # noqa: PLC0415  (what it is compared to)

    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    given = {
        "HTTP_PROXY": "http://a",
        "http_proxy": "http://b",
        "NO_PROXY": "c",
        "Ftp_Proxy": "http://d",
    }
    for name, value in {**given, "https_proxy": ""}.items():
        monkeypatch.setenv(name, value)
    assert proxies_of(os.environ) == getproxies_environment()
    monkeypatch.delenv("http_proxy")
    monkeypatch.setenv("REQUEST_METHOD", "GET")
    assert proxies_of(os.environ) == getproxies_environment() == {"no": "c", "ftp": "http://d"}


def test_a_usage_error_exits_with_2_and_a_hint() -> None:
    done = run("--sbom", "x", ".")
    assert done.returncode == 2
    assert done.stderr == "error: --sbom is not supported yet (SBOMs)\n"


# What is lent to steps


@pytest.fixture
def lent(kept: Kept, context: Path) -> Path:
    """A Dockerfile whose step shows what it was given."""
    del kept
    text = "FROM busybox\nRUN --mount=type=secret,id=s --mount=type=secret,id=e,env=E "
    text += "cat /run/secrets/s && echo $E\n"
    (context / "Dockerfile").write_text(text)
    return context


def test_secrets_come_from_files_and_the_environment(
    lent: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_text("from a file\n")
    monkeypatch.setenv("V", "from a variable")
    words = ["--no-cache", "--progress=plain", str(lent)]
    for secret, name in (
        ("id=s,src=file", "id=e,env=V"),
        ("id=s,type=file,src=file", "id=e,type=env,src=V"),
    ):
        assert cli.main(["--secret", secret, "--secret", name, *words]) == 0
        err = capsys.readouterr().err
        assert "from a file" in err
        assert "from a variable" in err
    monkeypatch.setenv("e", "by its name")
    Path("s").write_text("by its id\n")
    assert cli.main(["--secret", "id=s", "--secret", "id=e", *words]) == 0
    err = capsys.readouterr().err
    assert "by its id" in err
    assert "by its name" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--secret", "id=s,src=missing"], "missing"),
        (["--secret", "id=s,src=/"], "directory"),
        (["--secret", "id=s,env=MISSING"], "not in the environment"),
        (["--ssh", "default"], "SSH_AUTH_SOCK"),
        (["--ca", "nothing"], "nothing"),
        (["--ca", "file"], "no certificate"),
    ],
)
def test_what_cant_be_lent_is_told(
    lent: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: Any,
    said: Any,
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    Path("file").write_text("no PEM\n")
    assert cli.main([*words, str(lent)]) == 2
    assert said in capsys.readouterr().err


def test_certificates_are_lent_to_every_step(
    kept: Kept, context: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del kept
    certificate = "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n"
    Path("ca.pem").write_text(certificate)
    (context / "Dockerfile").write_text("FROM busybox\nRUN cat $SSL_CERT_FILE\n")
    assert cli.main(["--progress=plain", "--ca=ca.pem", "--ca=ca.pem", str(context)]) == 0
    assert capsys.readouterr().err.count("BEGIN CERTIFICATE") == 2


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

    monkeypatch.setattr("pybuild.lookups.open_backend", refuse)
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


def test_explain_tells_of_each_step_of_the_last_build_that_missed_something(
    context: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = Kept(memory_backend(notes=tmp_path / "notes"))
    monkeypatch.setattr(kept.backend, "close", lambda: None)
    monkeypatch.setattr("pybuild.api.open_backend", kept)
    monkeypatch.setattr("pybuild.explanations.open_backend", kept)
    assert cli.main(["explain", str(context)]) == 2
    assert "no build of" in capsys.readouterr().err
    assert cli.main(["-q", str(context)]) == 0
    (context / "a.txt").write_text("changed")
    assert cli.main(["-q", "--fail-on-miss", str(context)]) == 1
    told = capsys.readouterr().err
    assert "error: the step is not in the cache: a.txt changed (content)\n" in told
    assert " 2 | COPY a.txt /\n" in told
    assert cli.main(["-q", str(context)]) == 0
    capsys.readouterr()
    monkeypatch.chdir(context)
    assert cli.main(["explain"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"build of \d{4}-\d\d-\d\d [\d:]{8} for linux/amd64: succeeded", head)
    assert [line for line in lines if "compared with the build of" not in line] == [
        "",
        "stage stage-0",
        "  miss  1/2 COPY a.txt /",
        "          a.txt changed (content)",
        "  miss  2/2 RUN echo hello",
        "          an earlier step of the stage was no hit",
    ]
    assert cli.main(["explain", "--format=json", "--target", "other"]) == 2
    assert cli.main(["explain", "--format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (stage,) = found["stages"]
    assert stage["steps"][0]["miss"]["causes"] == [
        {"kind": "file-content", "name": "a.txt", "before": None, "after": None, "source": ""}
    ]
    assert [step["state"] for step in stage["steps"]] == ["made", "made"]


def test_explain_tells_what_a_build_that_ended_early_did_not_come_to(
    context: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = Kept(memory_backend(notes=tmp_path / "notes"))
    monkeypatch.setattr(kept.backend, "close", lambda: None)
    monkeypatch.setattr("pybuild.api.open_backend", kept)
    monkeypatch.setattr("pybuild.explanations.open_backend", kept)
    text = "FROM busybox\nWORKDIR /tmp\nRUN exit {}\nRUN true\n"
    (context / "Dockerfile").write_text(text.format(1))
    assert cli.main(["-q", str(context)]) == 1
    assert cli.main(["explain", str(context)]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "stage stage-0",
        "  none  1/3 WORKDIR /tmp",
        "  miss  2/3 RUN exit 1",
        "          never built here",
        "          the step failed",
        "  1 of 3 steps was not begun",
    ]
    (context / "Dockerfile").write_text(text.format(0))
    assert cli.main(["-q", "--fail-on-miss", str(context)]) == 1
    assert cli.main(["explain", str(context)]) == 0
    out = capsys.readouterr().out
    assert "instruction changed; it was RUN exit 1\n" in out
    assert "          the step did not run\n" in out


def test_wrong_words_of_explain_are_told_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--fromat=json"], ["--format=yaml"], ["a", "b"]):
        assert cli.main(["explain", *words]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit):
        cli.main(["explain", "--help"])
    assert "Nothing is built." in " ".join(capsys.readouterr().out.split())
