"""Outputs of the command line on containerd, read by other programs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from commandline import CommandLine
from test_docker_registry import require, running_registry, skopeo

from pybuild.testkit.baseimages import BUSYBOX
from pybuild.testkit.layouts import LayoutReader
from pybuild.testkit.validate import validate

pytestmark = [pytest.mark.containerd, pytest.mark.root]

DOCKERFILE = """\
FROM busybox
COPY data /srv/data
RUN echo made > /made && rm /etc/group && mkdir -m 1777 /sticky && chown 12:34 /made
ENV GREETING=hello
"""


@pytest.fixture
def context(pybuild: CommandLine) -> Path:
    return pybuild.context(DOCKERFILE, data="content")


def inspect(folder: Path, source: str) -> Any:
    policy = folder / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    environment = {**os.environ, "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}
    command = [require("skopeo"), "--policy", str(policy), "inspect", "--tls-verify=false"]
    done = subprocess.run(
        [*command, source], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("options", ["", ",compression=zstd,force-compression=true"])
def test_skopeo_and_umoci_read_our_layouts(
    pybuild: CommandLine, context: Path, tmp_path: Path, options: str
) -> None:
    archive, folder = tmp_path / "a.tar", tmp_path / "layout"
    made = pybuild.build(
        *("-t", "app:1", "-o", f"type=oci,dest={archive}{options}"),
        *("-o", f"type=oci,tar=false,dest={folder}{options}", context),
    )
    found = inspect(tmp_path, f"oci-archive:{archive}:1")
    assert found["Digest"] == made.digest
    assert "GREETING=hello" in found["Env"]
    skopeo(tmp_path, "copy", f"oci-archive:{archive}:1", f"dir:{tmp_path / 'dir'}")
    for layout in (LayoutReader(archive), LayoutReader(folder)):
        validate(layout, layout.images()["docker.io/library/app:1"], base_layers=1)
    if options:
        return  # umoci knows no zstd
    bundle = tmp_path / "bundle"
    subprocess.run(
        [require("umoci"), "unpack", "--image", f"{folder}:1", str(bundle)],
        check=True,
        capture_output=True,
    )
    assert (bundle / "rootfs/made").read_text() == "made\n"
    assert not (bundle / "rootfs/etc/group").exists()
    assert pybuild.ctr("images", "ls", "-q", "name==docker.io/library/app:1") == ""


def test_skopeo_reads_our_docker_archives(
    pybuild: CommandLine, context: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "a.tar"
    pybuild.build("-t", "app:1", "-o", f"type=docker,dest={archive}", context)
    assert "GREETING=hello" in inspect(tmp_path, f"docker-archive:{archive}:app:1")["Env"]
    skopeo(tmp_path, "copy", f"docker-archive:{archive}:app:1", f"dir:{tmp_path / 'dir'}")
    layout = LayoutReader(archive)
    validate(layout, layout.images()["docker.io/library/app:1"], base_layers=1)


def test_containerd_imports_what_it_exported(
    pybuild: CommandLine, elsewhere: CommandLine, context: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "a.tar"
    made = pybuild.build("-t", "app:1", "-o", f"type=oci,dest={archive}", context)
    elsewhere.ctr("images", "import", str(archive))
    assert made.digest in elsewhere.ctr("images", "ls", "name==docker.io/library/app:1")
    assert elsewhere.run("app:1", "cat", "/made") == "made\n"
    elsewhere.ctr("images", "rm", "--sync", "docker.io/library/app:1")


def test_a_folder_and_a_tar_have_what_a_container_sees(
    pybuild: CommandLine, context: Path, tmp_path: Path
) -> None:
    folder, archive = tmp_path / "out", tmp_path / "a.tar"
    pybuild.build("-o", folder, "-o", f"type=tar,dest={archive}", "-o", "type=image",
                  "-t", "files:1", context)  # fmt: skip
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "-xpf", archive, "--numeric-owner", "-C", unpacked], check=True)
    command = (
        "cd / && find . -xdev -path ./proc -prune -o -path ./sys -prune -o -path ./dev -prune -o"
    )
    # ctr drops what it hasn't copied when the container ends, which tells on a busy machine
    listing = f"{command} -type f -exec stat -c '%n %a %u %g %s' {{}} +; sleep 1"
    seen = pybuild.run("files:1", "sh", "-c", listing)
    expected = sorted(
        line for line in seen.splitlines() if not line.startswith(("./etc/hosts", "./etc/resolv"))
    )
    for place in (folder, unpacked):
        assert [line for line in files_below(place) if line in expected] == expected
        assert stat.S_IMODE((place / "sticky").stat().st_mode) == 0o1777
        assert not (place / "etc/group").exists()


def files_below(place: Path) -> list[str]:
    found = []
    for path in place.rglob("*"):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            mode = stat.S_IMODE(status.st_mode)
            owner = f"{status.st_uid} {status.st_gid}"
            found.append(f"./{path.relative_to(place)} {mode:o} {owner} {status.st_size}")
    return sorted(found)


def test_an_archive_on_standard_output_is_all_that_is_there(
    pybuild: CommandLine, context: Path, tmp_path: Path
) -> None:
    with (tmp_path / "a.tar").open("wb") as out:
        process = pybuild.start("-o", "type=tar", context, stdout=out, stderr=subprocess.DEVNULL)
        assert process.wait(120) == 0
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert archive.getmember("made").uid == 12


def test_an_epoch_makes_equal_archives(pybuild: CommandLine, context: Path, tmp_path: Path) -> None:
    archives = []
    for number in range(2):
        path = tmp_path / f"{number}.tar"
        os.utime(context / "data", (2_000_000_000 + number, 2_000_000_000 + number))
        epoch = {"SOURCE_DATE_EPOCH": "1700000000"} if number else {}
        flag = () if number else ("--source-date-epoch", "1700000000")
        made = pybuild.build(*flag, "-o", f"type=oci,dest={path}", context, env=epoch)
        archives.append(path.read_bytes())
        layout = LayoutReader(path)
        config = layout.read_json(
            f"blobs/{layout.images()[made.digest].config_digest.replace(':', '/')}"
        )
        assert config["created"] == "2023-11-14T22:13:20Z"
        assert config["history"][-1]["created"] == "2023-11-14T22:13:20Z"
    assert archives[0] == archives[1]


def test_an_image_is_pushed_to_dockers_registry(
    pybuild: CommandLine, context: Path, tmp_path: Path
) -> None:
    with running_registry(tmp_path) as registry:
        name = f"{registry.address}/team/app:1"
        made = pybuild.build("-t", name, "--push", context)
        found = inspect(tmp_path, f"docker://{name}")
        assert found["Digest"] == made.digest
        again = pybuild.build(
            "-t", f"{registry.address}/other/app:2", "--push", "--pull",
            pybuild.context(f"FROM {name}\nRUN echo more > /more\n"),
        )  # fmt: skip
        assert (
            inspect(tmp_path, f"docker://{registry.address}/other/app:2")["Digest"] == again.digest
        )
        docker = pybuild.build(
            "-o", f"type=registry,oci-mediatypes=false,name={name}-docker", context
        )
        assert inspect(tmp_path, f"docker://{name}-docker")["Digest"] == docker.digest


@contextmanager
def breaking(address: str, cuts: list[int]) -> Iterator[str]:
    """A way to `address` that breaks connections: each after so many bytes of request."""
    host, _, port = address.partition(":")
    threads: list[threading.Thread] = []

    def forward(source: socket.socket, sink: socket.socket, limit: list[int]) -> None:
        passed = 0
        with suppress(OSError):
            while piece := source.recv(65536):
                sink.sendall(piece)
                passed += len(piece)
                if limit and passed > limit[0]:
                    limit.pop(0)
                    break
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def serve(client: socket.socket) -> None:
        with client, socket.create_connection((host, int(port))) as server:
            back = threading.Thread(target=forward, args=(server, client, []))
            back.start()
            forward(client, server, cuts)
            back.join()

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threads.append(threading.Thread(target=serve, args=listener.accept()[:1]))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads.append(threading.Thread(target=accept, args=(listener,)))
        threads[-1].start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(30)


def test_a_push_survives_connections_that_break(pybuild: CommandLine, tmp_path: Path) -> None:
    context = pybuild.context("FROM scratch\nCOPY large /\n", large=os.urandom(6 << 20))
    cuts = [2 << 20, 3 << 20]
    with running_registry(tmp_path) as registry, breaking(registry.address, cuts) as way:
        made = pybuild.build("-t", f"{way}/app:1", "--push", context)
        assert cuts == []
        assert inspect(tmp_path, f"docker://{registry.address}/app:1")["Digest"] == made.digest


def test_an_image_of_another_backend_is_loaded_into_containerd(
    elsewhere: CommandLine, tmp_path: Path
) -> None:
    busybox = shutil.which("busybox") or require("busybox")
    context = elsewhere.context(
        'FROM scratch\nCOPY busybox /bin/sh\nCMD ["/bin/sh", "-c", "echo loaded"]\n',
        busybox=Path(busybox).read_bytes(),
    )
    (context / "busybox").chmod(0o755)
    options = ("--backend=memory", "--containerd-address", elsewhere.daemon.address)
    made = elsewhere.build(*options, "--load", "-t", "app:1", context)
    assert elsewhere.run("app:1") == "loaded\n"
    assert made.digest in elsewhere.ctr("images", "ls", "name==docker.io/library/app:1")
    elsewhere.build(*options, "--load", "-t", "app:1", context)
    elsewhere.ctr("images", "rm", "--sync", "docker.io/library/app:1")


def test_nothing_of_a_failed_output_is_left(pybuild: CommandLine, tmp_path: Path) -> None:
    context = pybuild.context(f"FROM {BUSYBOX}\n")
    place = tmp_path / "full"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], check=True)
    try:
        for output in ("type=oci,dest={}/a", "type=docker,dest={}/a", "type=tar,dest={}/a"):
            said = pybuild.fail(5, "-o", output.format(place), context)
            assert "No space left on device" in said
            assert list(place.iterdir()) == []
        said = pybuild.fail(5, "-o", f"type=oci,tar=false,dest={place}/layout", context)
        assert list(place.iterdir()) == []
        said = pybuild.fail(5, "-o", place, context)
        assert "No space left on device" in said
    finally:
        subprocess.run(["umount", place], check=True)
