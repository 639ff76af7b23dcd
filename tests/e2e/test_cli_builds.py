"""What the command line's options do, on both backends."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import PROGRAM, CommandLine, OnContainerd, OnEmbedded

from pybuild import __version__
from pybuild.oci.platform import host_platform

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
DIGEST = r"sha256:[0-9a-f]{64}"
HELLO = 'FROM busybox\nRUN echo made > /made\nCMD ["cat", "/made"]\n'
RunOf = Callable[..., str]


@pytest.fixture(params=["containerd", "embedded"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def tar_of(compression: str, **files: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


# Results


def test_the_readmes_first_build_ends_with_name_and_digest_and_runs(pybuild: CommandLine) -> None:
    ended = pybuild.build("-t", "hello:1", SAMPLES / "hello")
    assert re.fullmatch(rf"docker\.io/library/hello:1 {DIGEST}\n", ended.out)
    assert pybuild.run("hello:1") == "Hello, world, from an image that pybuild made.\n"
    assert ended.out.split()[0] in pybuild.images()
    assert ended.digest in pybuild.blobs()


def test_each_name_is_a_line_and_a_nameless_image_is_its_digest(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM scratch\nLABEL a=b\n")
    ended = pybuild.build("-t", "one", "-t", "registry.example/team/two:3", context)
    assert ended.out.splitlines() == [
        f"docker.io/library/one:latest {ended.digest}",
        f"registry.example/team/two:3 {ended.digest}",
    ]
    assert re.fullmatch(rf"{DIGEST}\n", pybuild.build(context).out)


def test_quiet_prints_the_digest_alone(pybuild: CommandLine) -> None:
    ended = pybuild.build("-q", "-t", "quiet", pybuild.context(HELLO))
    assert ended.err == ""
    assert re.fullmatch(rf"{DIGEST}\n", ended.out)


def test_digests_and_names_are_written_to_files(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM scratch\nLABEL a=c\n")
    ended = pybuild.build(
        "--iidfile=id", "--metadata-file", "meta.json", "-t", "a", "-t", "b", context
    )
    assert (pybuild.folder / "id").read_text() == ended.digest
    manifest = pybuild.manifest(ended.digest)
    config = manifest["config"]["digest"]
    platform = {name: pybuild.config(ended.digest)[name] for name in ("architecture", "os")}
    assert json.loads((pybuild.folder / "meta.json").read_text()) == {
        "containerimage.config.digest": config,
        "containerimage.descriptor": {
            "mediaType": manifest["mediaType"],
            "digest": ended.digest,
            "size": len(pybuild.blob(ended.digest)),
            "platform": platform,
        },
        "containerimage.digest": ended.digest,
        "image.name": "docker.io/library/a:latest,docker.io/library/b:latest",
    }


def test_a_failed_build_leaves_no_digest_of_an_earlier_one(pybuild: CommandLine) -> None:
    (pybuild.folder / "id").write_text("sha256:of-the-build-before")
    pybuild.fail(1, "--iidfile", "id", pybuild.context("FROM busybox\nRUN false\n"))
    assert not (pybuild.folder / "id").exists()


def test_the_entry_point_is_the_same_command(pybuild: CommandLine) -> None:
    script = Path(PROGRAM[0]).with_name("pybuild")
    done = subprocess.run([script, "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == pybuild.build("--version").out == f"pybuild {__version__}\n"


# Where the Dockerfile and the context come from


def test_a_dockerfile_on_standard_input_uses_the_folder(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM nothing\n", word="from the folder\n")
    text = b'FROM busybox\nCOPY word /\nCMD ["cat", "/word"]\n'
    pybuild.build("-t", "stdin", "-f", "-", context, stdin=text)
    assert pybuild.run("stdin:latest") == "from the folder\n"


def test_a_dockerfile_as_the_context_has_none(pybuild: CommandLine) -> None:
    pybuild.build("-t", "alone", "-", stdin=HELLO.encode())
    assert pybuild.run("alone:latest") == "made\n"
    text = b"FROM busybox\nCOPY word /\n"
    assert "word" in pybuild.fail(1, "-", stdin=text)


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_a_tar_on_standard_input_is_the_context(pybuild: CommandLine, compression: str) -> None:
    files = {"Dockerfile": 'FROM busybox\nCOPY word /\nCMD ["cat", "/word"]\n', "word": "tarred\n"}
    tar = tar_of(compression, **files)
    pybuild.build("-t", "tarred", "-", stdin=tar)
    assert pybuild.run("tarred:latest") == "tarred\n"
    pybuild.build("-t", "tarred", "-f", "word", "-", stdin=tar_of(compression, word="FROM scratch"))


def test_a_containerfile_serves_where_there_is_no_dockerfile(pybuild: CommandLine) -> None:
    folder = pybuild.context(HELLO)
    (folder / "Dockerfile").rename(folder / "Containerfile")
    pybuild.build("-t", "contained", folder)
    assert pybuild.run("contained:latest") == "made\n"
    (folder / "Dockerfile").write_text("FROM scratch\nLABEL first=yes\n")
    ended = pybuild.build(folder)
    assert pybuild.config(ended.digest)["config"]["Labels"] == {"first": "yes"}


def test_a_dockerfile_may_lie_outside_of_the_context(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM nothing\n", word="x")
    (pybuild.folder / "other.Dockerfile").write_text("FROM scratch\nCOPY word /\n")
    pybuild.build("-f", "other.Dockerfile", context)
    pybuild.build("-f", pybuild.folder / "other.Dockerfile", context.name)
    pybuild.build("-f", "../other.Dockerfile", ".", cwd=context)


def test_dockerignore_hides_files(pybuild: CommandLine) -> None:
    files: dict[str, str | bytes] = {"__dockerignore": "*.log\n", "a__log": "x", "b__txt": "x"}
    ended = pybuild.build("-t", "ignored", pybuild.context("FROM busybox\nCOPY . /c/\n", **files))
    assert ended.digest
    assert set(pybuild.run("ignored:latest", "ls", "-A", "/c").split()) == {
        ".dockerignore",
        "Dockerfile",
        "b.txt",
    }


# What the image is


def test_target_and_build_args_choose(pybuild: CommandLine) -> None:
    context = pybuild.context(
        "ARG BASE=busybox\nFROM $BASE AS one\nARG WORD=default\nARG OTHER\n"
        "ENV WORD=$WORD OTHER=$OTHER\nFROM one AS two\nRUN exit 3\n"
    )
    options = ("--target=one", "--build-arg", "WORD=given", "--build-arg=OTHER")
    ended = pybuild.build(*options, context, env={"OTHER": "from the environment"})
    env = pybuild.config(ended.digest)["config"]["Env"]
    assert env[1:] == ["WORD=given", "OTHER=from the environment"]
    assert "nowhere:1" in pybuild.fail(
        3, "--build-arg", "BASE=localhost:1/nowhere:1", "--target", "one", context
    )


def test_a_build_arg_that_nothing_declares_is_warned_of(pybuild: CommandLine) -> None:
    ended = pybuild.build("--build-arg", "TYPO=1", pybuild.context("FROM scratch\nLABEL a=b\n"))
    assert re.search(r"WARN: .*TYPO", ended.err), ended.err


def test_labels_and_annotations_end_where_they_belong(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM scratch\nLABEL a=dockerfile b=dockerfile\n")
    ended = pybuild.build(
        "--label", "b=flag", "--label=c=x=y", "--annotation", "org.example=1", context
    )
    config, manifest = pybuild.config(ended.digest), pybuild.manifest(ended.digest)
    assert config["config"]["Labels"] == {"a": "dockerfile", "b": "flag", "c": "x=y"}
    assert manifest["annotations"] == {"org.example": "1"}


def test_the_machines_own_platform_is_the_default(pybuild: CommandLine) -> None:
    context = pybuild.context(HELLO)
    plain, asked = pybuild.build(context), pybuild.build(f"--platform={host_platform()}", context)
    for ended in (plain, asked):
        config = pybuild.config(ended.digest)
        assert (config["os"], config["architecture"]) == ("linux", host_platform().architecture)
        assert "WARN" not in ended.err


def test_source_date_epoch_makes_equal_images(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM busybox\nCOPY Dockerfile /\nWORKDIR /w\n")
    option = ("--build-arg", "SOURCE_DATE_EPOCH=1700000000")
    first, second = pybuild.build(*option, context), pybuild.build(*option, "--no-cache", context)
    assert first.digest == second.digest
    assert pybuild.config(first.digest)["created"] == "2023-11-14T22:13:20Z"


# What a RUN sees


def test_network_none_has_loopback_alone_and_host_has_the_hosts(busybox_run: RunOf) -> None:
    mine = {path.name for path in Path("/sys/class/net").iterdir()}
    script = "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '"
    assert busybox_run(script, "--network=none").split() == ["lo"]
    for mode in ("host", "default"):
        assert set(busybox_run(script, "--network", mode).split()) == mine
    assert busybox_run(f"--network=none {script}", "--network", "host").split() == ["lo"]


def test_added_hosts_are_found(busybox_run: RunOf) -> None:
    hosts = busybox_run(
        "cat /etc/hosts", "--add-host", "one:10.1.2.3", "--add-host=two=fd00::2"
    ).splitlines()
    assert [line.split() for line in hosts if "one" in line or "two" in line] == [
        ["10.1.2.3", "one"],
        ["fd00::2", "two"],
    ]


def test_the_size_of_shared_memory(busybox_run: RunOf) -> None:
    script = "df -k /dev/shm | tail -n 1 | awk '{print $2}'"
    assert busybox_run(script) == "65536"
    assert busybox_run(script, "--shm-size", "128m") == "131072"


def test_limits_are_in_force(busybox_run: RunOf) -> None:
    limits = busybox_run(
        "ulimit -Sn; ulimit -Hn; ulimit -c",
        "--ulimit",
        "nofile=777:888",
        "--ulimit=core=0",
    )
    assert limits.split() == ["777", "888", "0"]


def test_added_hosts_leave_no_trace_in_the_image(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM busybox\nRUN touch /x\n")
    ended = pybuild.build("-t", "traceless", "--add-host=one:10.1.2.3", context)
    assert (
        pybuild.run("traceless:latest", "ls", "/etc").split()
        == pybuild.run("busybox:latest", "ls", "/etc").split()
    )
    assert len(pybuild.manifest(ended.digest)["layers"]) == 2


# Progress


def test_plain_progress_looks_like_buildkits(pybuild: CommandLine) -> None:
    dockerfile = "FROM busybox AS build\nRUN echo out; echo err >&2; printf unfinished\nCOPY f /\n"
    context = pybuild.context(dockerfile, f="x")
    lines = pybuild.build("--progress=plain", "-t", "plain", context).err.splitlines()
    assert lines[0] == "#1 [internal] load build definition from Dockerfile"
    for line in lines:
        assert re.fullmatch(
            r"|#\d+ (\[\w+( \d/\d)?\] .+|exporting to image|exporting (manifest|config) .+"
            r"|(unpacking|naming to) .+|\d+\.\d{3} .*|DONE \d+\.\d+s|CACHED|miss: .+)",
            line,
        ), line
    (run,) = [line for line in lines if "RUN echo" in line]
    number, rest = run.split(" ", 1)
    assert re.match(r"\[build \d/\d\] RUN echo out", rest)
    said = [line.split(" ", 2)[2] for line in lines if re.match(rf"{number} \d", line)]
    assert sorted(said) == ["err", "out", "unfinished"]
    assert any(re.fullmatch(rf"{number} DONE \d+\.\ds", line) for line in lines)
    assert re.fullmatch(r"#\d+ DONE \d+\.\ds", lines[-1])


def test_rawjson_is_an_object_a_line(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM busybox\nRUN echo spoken; exit 4\n")
    ended = pybuild("--progress", "rawjson", context)
    events = [json.loads(line) for line in ended.err.splitlines() if line.startswith("{")]
    assert ended.code == 1
    started = {e["id"] for e in events if e["event"] == "step-started"}
    finished = {e["id"]: e for e in events if e["event"] == "step-finished"}
    assert started == set(finished)
    (failed,) = [e["error"] for e in finished.values() if e["error"]]
    assert (failed["type"], failed["exit_code"]) == ("RunFailed", 4)
    assert failed["where"]["start_line"] == 2
    assert "spoken\n" in [e["text"] for e in events if e["event"] == "step-log"]
    ended = pybuild.build("--progress", "rawjson", "-t", "j", pybuild.context(HELLO))
    last = json.loads(ended.err.splitlines()[-1])
    assert (last["event"], last["digest"]) == ("build-finished", ended.digest)
    assert last["names"] == ["docker.io/library/j:latest"]


def test_output_comes_while_the_process_runs(pybuild: CommandLine) -> None:
    context = pybuild.context("FROM busybox\nRUN echo first; sleep 30\n")
    with pybuild.start("--progress=plain", context) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.rstrip().endswith(" first"):
                break
        else:
            pytest.fail("the line never came")
        process.terminate()
        assert process.wait(20) == 130


# Without a build


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_dry_run_needs_no_daemon(on_containerd: OnContainerd, form: str) -> None:
    context = on_containerd.context(
        "FROM busybox AS one\nRUN make it\nFROM scratch\nCOPY --from=one / /\n"
    )
    ended = on_containerd.build(
        f"--dry-run={form}", context, env={"CONTAINERD_ADDRESS": "/nowhere/c.sock"}
    )
    assert "RUN make it" in ended.out
    if form == "json":
        plan = json.loads(ended.out)
        assert plan["not_resolved"] == ["docker.io/library/busybox:latest"]
        assert len(plan["stages"]) == 2
    else:
        assert "not resolved: docker.io/library/busybox:latest" in ended.out
        assert "warning: base images are not looked up" in ended.err


def test_a_dry_run_changes_nothing(pybuild: CommandLine) -> None:
    before = pybuild.images(), pybuild.blobs()
    ended = pybuild.build("--dry-run", "-t", "dry", pybuild.context("FROM busybox\nRUN make it\n"))
    assert "not resolved" not in ended.out
    assert (pybuild.images(), pybuild.blobs()) == before


def test_the_doctor_says_what_is_there(on_containerd: OnContainerd) -> None:
    said = on_containerd.build("doctor").out
    for pattern in (
        rf"ok +pybuild +{re.escape(__version__)}",
        r"ok +backend containerd +available \(chosen\)",
        rf"ok +backend containerd: address +{re.escape(on_containerd.daemon.address)}",
        r"ok +backend containerd: version +\S*\d\.\d",
        r"ok +backend containerd: snapshotter +overlayfs",
        r"ok +backend containerd: namespace +default",
    ):
        assert re.search(pattern, said), (pattern, said)


def test_the_doctor_says_what_to_do(on_containerd: OnContainerd) -> None:
    ended = on_containerd("doctor", "--containerd-address", "/nowhere/c.sock")
    assert ended.code == 4
    assert re.search(r"FAIL +backend containerd .*/nowhere/c\.sock.*\(chosen\)\n +-> \w", ended.out)
    assert "Traceback" not in ended.out + ended.err


def test_the_doctor_explains_the_mode_of_the_sandbox(on_embedded: OnEmbedded) -> None:
    said = on_embedded.build("doctor").out
    assert re.search(r"ok +backend embedded +available \(chosen\)", said)
    assert re.search(rf"backend embedded: store +{on_embedded.root}\n", said)
    assert re.search(r"backend embedded: processes run as +(root in )?a user namespace", said)


# Several at once


@pytest.mark.parametrize("count", [2, 8])
def test_builds_at_once_of_one_dockerfile(pybuild: CommandLine, count: int) -> None:
    context = pybuild.context(
        "FROM busybox AS one\nRUN echo one > /one && sleep 0.2\nFROM busybox\n"
        'RUN echo two > /two\nCOPY --from=one /one /\nCOPY f /\nCMD ["cat", "/one", "/two"]\n',
        f="x",
    )
    processes = [pybuild.start("-q", "-t", f"at-once:{n}", context) for n in range(count)]
    ended = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, ended
    pybuild.check_nothing_left()
    for number in range(count):
        assert pybuild.run(f"at-once:{number}") == "one\ntwo\n"
    ids = {tuple(pybuild.diff_ids(out.strip()))[-1] for out, _ in ended}
    assert len(ids) == 1
