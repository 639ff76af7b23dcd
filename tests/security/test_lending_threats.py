"""What is lent to steps gets nowhere else, and caches lead nowhere."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
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
from pybuild.testkit.containerd import PrivateContainerd
from pybuild.testkit.workbench import Workbench, file, folder, symlink
from pybuild_containerd.lentfiles import memory_folder

pytestmark = pytest.mark.root

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
