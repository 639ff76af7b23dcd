"""What is lent to steps gets nowhere else, and caches lead nowhere."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from secrets import token_hex

import pytest
from threatening import Builds

import pybuild
from pybuild.backend import CacheMount, SecretMount, SshMount
from pybuild.errors import StepFailed
from pybuild.testkit.baseimages import BUSYBOX, busybox_layout
from pybuild.testkit.containerd import PrivateContainerd, check_nothing_left
from pybuild.testkit.layouts import import_into_containerd
from pybuild.testkit.workbench import Workbench, file, folder, symlink
from pybuild_containerd.lentfiles import memory_folder

pytestmark = pytest.mark.root

PROGRAM = (sys.executable, "-m", "pybuild")
DOCKERFILE = """\
FROM busybox
RUN --mount=type=secret,id=file --mount=type=secret,id=variable,env=TOKEN \
    --mount=type=ssh --mount=type=cache,target=/c \
    cat /run/secrets/file > /dev/null; test -n "$TOKEN" && test -S $SSH_AUTH_SOCK && \
    test -n "$https_proxy" && echo used; sleep 3; echo made > /made
"""


def _files(*tops: Path) -> Iterator[Path]:
    for top in tops:
        for place, _, names in os.walk(top):
            yield from (Path(place, name) for name in names)


def _with_canary(canaries: list[bytes], *tops: Path) -> list[str]:
    """The files below `tops` that hold one of the canaries, and the canary."""
    found = []
    for path in _files(*tops):
        if path.is_symlink() or not path.is_file():
            continue
        try:
            content = path.read_bytes()
        except OSError:  # gone meanwhile
            continue
        found += [f"{path}: {canary!r}" for canary in canaries if canary in content]
    return found


def _processes_with(canaries: list[bytes]) -> list[str]:
    """Processes whose arguments hold a canary."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        found += [f"{process}: {words!r}" for canary in canaries if canary in words]
    return found


def test_a_canary_is_found_nowhere(containerd: PrivateContainerd, tmp_path: Path) -> None:
    """BuildKit CVE-2025-0495: secrets, keys and the credentials of proxies."""
    namespace, cache, key = f"canary-{token_hex(4)}", tmp_path / "cache", tmp_path / "key"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    canaries = [f"canary-{token_hex(8)}".encode() for _ in range(3)]
    canaries.append(key.read_bytes().splitlines()[2])
    secret = tmp_path / "given"
    secret.write_bytes(canaries[0])
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(cache),
        "PYBUILD_BACKEND": "containerd",
        "CONTAINERD_ADDRESS": containerd.address,
        "CONTAINERD_NAMESPACE": namespace,
        "GIVEN": canaries[1].decode(),
        "https_proxy": f"http://user:{canaries[2].decode()}@127.0.0.1:1",
    }
    layout = busybox_layout(tmp_path / "layout", BUSYBOX)
    import_into_containerd(layout, containerd.address, namespace)
    flags = [
        "--progress=rawjson",
        f"--secret=id=file,src={secret}",
        "--secret=id=variable,env=GIVEN",
        f"--ssh=default={key}",
        "--build-arg=https_proxy",
        "--metadata-file=metadata",
        "-t=canary",
    ]
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    places = [containerd.folder, cache, Path(tempfile.gettempdir()), context]
    with subprocess.Popen(
        [*PROGRAM, *flags, str(context)],
        cwd=context,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        seen = []
        while process.poll() is None and not seen:
            seen = _processes_with(canaries)
            time.sleep(0.05)
        out, err = process.communicate()
    assert process.returncode == 0, err.decode()
    assert b"used" in err
    assert seen == []
    assert [canary for canary in canaries if canary in out + err] == []
    assert _with_canary(canaries, *places) == []
    assert [
        path for path in Path("/dev/shm").glob("pybuild-*") if _with_canary(canaries, path)
    ] == []
    # layers are compressed: their content is read as files, and the documents as they are
    image = subprocess.run(
        [
            "ctr",
            "-a",
            containerd.address,
            "-n",
            namespace,
            "images",
            "export",
            "-",
            "docker.io/library/canary:latest",
        ],
        check=True,
        capture_output=True,
    ).stdout
    assert [canary for canary in canaries if canary in image] == []
    assert not any(canary in text for canary in canaries for text in _unpacked(image))
    dry = subprocess.run(
        [*PROGRAM, "--dry-run=json", *flags, str(context)],
        check=True,
        capture_output=True,
        cwd=context,
        env=environment,
    )
    assert [canary for canary in canaries if canary in dry.stdout + dry.stderr] == []
    check_nothing_left(containerd.address, namespace, containerd.folder)


def _unpacked(image: bytes) -> Iterator[bytes]:
    """The uncompressed blobs of an image's archive."""
    with tarfile.open(fileobj=io.BytesIO(image)) as archive:
        for member in archive:
            content = archive.extractfile(member)
            data = b"" if content is None else content.read()
            yield gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


# Caches


@pytest.fixture(scope="module")
def bench(builds: Builds) -> Iterator[Workbench]:
    builds.image(
        "lending-links",
        file(b"plain", b"plain\n"),
        symlink(b"abs", b"/etc"),
        symlink(b"up", b"../../../../../.."),
        symlink(b"ghost", b"/no/where"),
        symlink(b"magic", b"/proc/self/fd"),
        folder(b"d"),
        file(b"d/f", b"f\n"),
    )
    with Workbench(builds.backend, "lending-links") as made:
        yield made


@pytest.mark.parametrize(
    "ident", ["../../x", "/etc", "..", "a/../../b", "x\n", "\udcff", "", "x" * 5000, "%s{}\0"]
)
def test_the_id_of_a_cache_is_never_a_path(bench: Workbench, host: Path, ident: str) -> None:
    """buildah CVE-2024-9675."""
    mount = CacheMount("/c", ident)
    bench.run(bench.base(), "echo kept > /c/f", [mount])
    ran = bench.run(bench.base(), "ls -a /c; cat /c/f", [mount])
    assert ran.out.split() == [".", "..", "f", "kept"]


def test_what_a_cache_begins_with_stays_inside_its_source(
    builds: Builds, bench: Workbench, host: Path
) -> None:
    """buildah CVE-2024-11218."""
    for source in ("/up", "../..", "/abs/../../..", "/"):
        builds.build(
            f"FROM busybox\nRUN --mount=type=cache,id=a{token_hex(4)},from=lending-links,"
            f"source={source},target=/c test -e /c/plain && test ! -e /c{host} && echo inside\n"
        )
        assert builds.log == "inside\n"
    for source in ("/ghost", "/magic", "/magic/3", "/plain"):
        with pytest.raises(StepFailed):
            builds.build(
                f"FROM busybox\nRUN --mount=type=cache,from=lending-links,source={source},"
                "target=/c true\n"
            )


def test_a_link_in_a_cache_is_never_followed_out_of_it(bench: Workbench, host: Path) -> None:
    """BuildKit CVE-2024-23651."""
    mount = CacheMount("/c", token_hex(8))
    bench.run(bench.base(), f"ln -s / /c/root; ln -s {host} /c/sub; mkdir /c/dir", [mount])
    for inside in (b"root", b"sub", b"root/etc", b"..", b"dir/../..", b"/etc"):
        with pytest.raises(StepFailed):
            bench.run(bench.base(), "cat /c/secret", [replace(mount, inside=inside)])


def test_a_mount_in_a_cache_goes_through_no_link_out_of_the_root(
    bench: Workbench, host: Path
) -> None:
    """runc CVE-2021-30465: what a cache holds is another step's choice."""
    mount = CacheMount("/c", token_hex(8))
    bench.run(bench.base(), f"ln -s / /c/root; ln -s {host} /c/sub", [mount])
    inner = [SecretMount("/c/root/s", b"x"), CacheMount("/c/sub/new", token_hex(8))]
    with suppress(StepFailed):  # which is as good
        ran = bench.run(bench.base(), f"touch {host}/new/made; ls {host}; cat /s", [mount, *inner])
        assert (ran.code, ran.out) == (0, "new\nx")


def test_lent_files_are_shown_inside_the_root_and_leave_no_stub(
    bench: Workbench, host: Path
) -> None:
    """BuildKit CVE-2024-23652."""
    agent = Path(tempfile.mkdtemp(prefix="s", dir=tempfile.gettempdir())) / "a"
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(agent))
            mounts = [
                SecretMount("/abs/new", b"1\n"),
                SecretMount(f"/up{host}/made", b"2\n"),
                SecretMount("/ghost/secret", b"3\n"),
                SshMount("/up/agent", agent),
                CacheMount("/abs/cache", token_hex(8)),
            ]
            script = (
                f"cat /etc/new {host}/made /no/where/secret; test -S /agent && touch /etc/cache/x"
            )
            ran = bench.run(bench.base(), script, mounts)
    finally:
        shutil.rmtree(agent.parent)
    assert (ran.code, ran.out) == (0, "1\n2\n3\n")
    assert ran.layer.diff is None


@pytest.mark.parametrize(
    "target", ["/proc/self/environ", "/proc", "/sys/x", "/dev", "/dev/null", "/magic/3"]
)
def test_nothing_lent_is_shown_where_the_system_is(
    bench: Workbench, host: Path, target: str
) -> None:
    for mount in (SecretMount(target, b"x"), CacheMount(target, "c")):
        with pytest.raises(StepFailed):
            bench.run(bench.base(), "true", [mount])


def test_a_cache_shows_no_files_of_others(builds: Builds, bench: Workbench) -> None:
    """The folder of a cache is readable by root alone where the backend keeps it."""
    mount = CacheMount("/c", token_hex(8))
    bench.run(bench.base(), "echo s > /c/f; chmod 4755 /c/f", [mount])
    daemon = builds.state
    listed = subprocess.run(
        [
            "setpriv",
            "--reuid=4242",
            "--regid=4242",
            "--clear-groups",
            "find",
            str(daemon),
            "-name",
            "f",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert listed.stdout == ""


def test_secrets_of_a_killed_build_are_removed_by_the_next(containerd: PrivateContainerd) -> None:
    script = (
        "import os, signal\n"
        "from pybuild.backend import SecretMount\n"
        "from pybuild_containerd.lentfiles import memory_folder, write_secret\n"
        "with memory_folder() as folder:\n"
        "    write_secret(folder, SecretMount('/s', b'canary'))\n"
        "    print(folder, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    left = Path(done.stdout.decode().strip())
    assert left.is_dir()
    with memory_folder():
        assert not left.exists()


def test_public_texts_of_a_secret_show_nothing() -> None:
    secret = pybuild.Secret(b"canary")
    mount = SecretMount("/s", b"canary")
    assert "canary" not in f"{secret} {secret!r} {mount} {mount!r}"
