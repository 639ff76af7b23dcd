"""Hostile contexts and secret surroundings, through the command and the real backends."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from threatening import Builds, Ended, assert_clear, run_command

from pybuild.files.trees import walk
from pybuild.testkit.registry import Registry
from searching import contents

PASSWORD = "canary-password-91c2"


def planned(context: Path, *options: str) -> Ended:
    return run_command("--dry-run", "--backend=none", *options, context=context)


@pytest.mark.parametrize("name", ["Dockerfile", ".dockerignore"])
@pytest.mark.parametrize("target", ["{host}/secret", "../outside/secret", "d/../../outside/secret"])
def test_a_file_of_the_host_is_never_read_in_place_of_the_contexts(
    host: Path, tmp_path: Path, name: str, target: str
) -> None:
    """buildah CVE-2026-44517, podman CVE-2022-4122."""
    context = tmp_path / "context"
    (context / "d").mkdir(parents=True)
    (context / name).symlink_to(target.format(host=host))
    if name != "Dockerfile":
        (context / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    ended = planned(context)
    assert_clear(ended, codes=(0, 3) if name == ".dockerignore" else (3,))
    assert "host secret" not in ended.err + ended.out


@pytest.mark.parametrize(
    "kind", ["fifo", "folder", "device", "zeros", "socket", "circle", "sparse"]
)
@pytest.mark.parametrize("name", ["Dockerfile", ".dockerignore"])
def test_what_is_no_ordinary_file_is_refused_at_once(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    (tmp_path / "Dockerfile.good").write_text("FROM scratch\nCOPY x /\n")
    server = socket.socket(socket.AF_UNIX)
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/tty")
        case "zeros":
            path.symlink_to("/dev/zero")
        case "socket":
            server.bind(str(path))
        case "circle":
            path.symlink_to(name)
        case _:
            with path.open("wb") as file:
                file.truncate(2**40)
    options = () if name == "Dockerfile" else ("-f", str(tmp_path / "Dockerfile.good"))
    ended = planned(tmp_path, *options)
    server.close()
    # a .dockerignore that can't be one may count as none
    assert_clear(ended, seconds=15, codes=(3,) if name == "Dockerfile" else (0, 3))


def test_a_tar_that_leads_out_writes_nothing_and_reads_nothing(host: Path) -> None:
    """GHSA of half-extracted contexts: the fallback Dockerfile went through a link."""
    for name, target in (("Dockerfile", f"{host}/secret"), ("Dockerfile", "../../etc/passwd")):
        blob = io.BytesIO()
        with tarfile.open(fileobj=blob, mode="w") as tar:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
            info = tarfile.TarInfo(f"../../../../../../..{host}/new")
            info.size = 4
            tar.addfile(info, io.BytesIO(b"evil"))
        ended = run_command("--dry-run", "--backend=none", stdin=blob.getvalue())
        assert_clear(ended, codes=(2, 3))
        assert "host secret" not in ended.err
        assert not (host / "new").exists()


@pytest.mark.root
def test_odd_files_of_a_context_reach_the_image_byte_by_byte(
    builds: Builds, tmp_path: Path
) -> None:
    folder = os.fsencode(tmp_path / "context")
    os.mkdir(folder)  # noqa: PTH102
    names = [b"new\nline", b"back\\slash", b"\xff\xfe", b"n" * 255, b" ", b"-rf", b"*", b"\x1b[2J"]
    names += ["ü".encode(), "u\u0308".encode(), b".wh", b"a.wh.b"]
    for name in names:
        with open(folder + b"/" + name, "wb") as file:  # noqa: PTH123
            file.write(name)
    os.link(folder + b"/ ", folder + b"/second")
    os.mkfifo(folder + b"/fifo")
    builds.build("FROM busybox\nCOPY . /c/\nRUN ls /c | wc -l\n", Path(os.fsdecode(folder)))
    tree = builds.tree()
    for name in names:
        with tree.open(b"c/" + name) as stream:
            assert stream.read() == name
    paths = {entry.path for entry in walk(tree, b"c")}
    assert paths >= {b"c/" + name for name in (*names, b"second")}


# Secrets of the surroundings


@pytest.fixture
def watched() -> Callable[..., tuple[Ended, str]]:
    """Runs the command, and gives all command lines that any process had meanwhile."""

    def run(*arguments: str, stdin: bytes, env: dict[str, str]) -> tuple[Ended, str]:
        seen: set[bytes] = set()
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(0.01):
                for path in Path("/proc").glob("[0-9]*/cmdline"):
                    try:
                        seen.add(path.read_bytes())
                    except OSError:
                        continue

        thread = threading.Thread(target=look)
        thread.start()
        try:
            ended = run_command(*arguments, stdin=stdin, env=env)
        finally:
            stop.set()
            thread.join()
        return ended, "\n".join(line.decode("utf-8", "replace") for line in seen)

    return run


@pytest.mark.root
@pytest.mark.parametrize("progress", ["plain", "rawjson"])
@pytest.mark.parametrize("outcome", ["works", "wrong password", "fails"])
def test_a_login_is_in_no_output_command_line_or_state(
    builds: Builds,
    tmp_path: Path,
    watched: Callable[..., tuple[Ended, str]],
    progress: str,
    outcome: str,
) -> None:
    """BuildKit CVE-2023-26054."""
    right = PASSWORD if outcome != "wrong password" else "another"
    with Registry(username="me", password=right, tokens=outcome == "works") as registry:
        config = {"os": "linux", "architecture": "amd64"}
        registry.add_image("private:1", json.dumps(config).encode(), [])
        packed = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        (tmp_path / "config.json").write_text(
            json.dumps({"auths": {registry.address: {"auth": packed}}})
        )
        command = 'COPY --from=busybox / /\nRUN ["/bin/sh", "-c", "sleep 0.3; env; exit 0"]\n'
        if outcome == "fails":
            command = command.replace("exit 0", "exit 3")
        ended, lines = watched(
            "--debug",
            f"--progress={progress}",
            *builds.options,
            "--tag=private-made",
            stdin=f"FROM {registry.address}/private:1\n{command}".encode(),
            env={
                "DOCKER_CONFIG": str(tmp_path),
                "XDG_CACHE_HOME": str(tmp_path / "cache"),
                "MY_TOKEN": PASSWORD,
                "AWS_SECRET_ACCESS_KEY": PASSWORD,
            },
        )
    assert ended.code == {"works": 0, "wrong password": 3, "fails": 1}[outcome], ended.err
    for secret in (PASSWORD, packed):
        assert secret not in ended.out + ended.err
        assert secret not in lines
        assert secret.encode() not in b"".join(_files(tmp_path / "cache"))
        assert secret.encode() not in b"".join(_files(builds.state, small=True))


def _files(folder: Path, *, small: bool = False) -> list[bytes]:
    """The files below: all, or those that are no layer."""
    found = (content for _, content in contents(folder, without={"snapshots", "layers"}))
    return [content for content in found if not small or len(content) < 4 * 1024 * 1024]


def test_a_password_in_an_address_is_not_repeated(tmp_path: Path) -> None:
    for text in (
        f"FROM scratch\nADD https://me:{PASSWORD}@127.0.0.1:1/x /\n",
        f"FROM scratch\nADD https://me:{PASSWORD}@127.0.0.1:1/x.git /\n",
    ):
        ended = run_command("--dry-run", "--backend=none", stdin=text.encode())
        assert_clear(ended, codes=(0,))
        assert PASSWORD not in ended.out + ended.err
