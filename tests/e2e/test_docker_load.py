"""Images loaded into a real Docker, where there is one; tests/unit has a socket in its place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding import Stores
from pybuild import Builder
from pybuild.export.outputs import DockerLoadOutput

pytestmark = [pytest.mark.root]


@pytest.fixture
def docker_host() -> Iterator[str]:
    """The address of a Docker with its own folders, without a network."""
    if shutil.which("dockerd") is None or shutil.which("docker") is None:
        pytest.skip("accepted: Docker isn't installed; test_dockersocket.py stands in for it")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "config.json").write_text("{}")
        options = {
            "config-file": folder / "config.json",
            "data-root": folder / "data",
            "exec-root": folder / "exec",
            "pidfile": folder / "pid",
            "host": f"unix://{folder}/d.sock",
            "bridge": "none",
            "iptables": "false",
            "ip6tables": "false",
            "storage-driver": "vfs",
        }
        command = ["dockerd", *(f"--{name}={value}" for name, value in options.items())]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        with process:
            try:
                wait_for(folder / "d.sock", process, folder / "log")
                yield f"unix://{folder}/d.sock"
            finally:
                process.terminate()
                process.wait(60)


def wait_for(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"dockerd doesn't start: {log.read_text()}")
        time.sleep(0.05)


def test_docker_loads_an_image_under_all_its_names(docker_host: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text('FROM scratch\nCOPY a /x/\nENV A=1\nCMD ["/x/a"]\n')
    (tmp_path / "a").write_text("content")
    names = ["hello:1", "registry.example/team/app:2"]
    environment = {**os.environ, "DOCKER_HOST": docker_host}
    command = [sys.executable, "-m", "pybuild", "--backend=memory", "-o", "type=docker"]
    tags = [word for name in names for word in ("-t", name)]
    subprocess.run([*command, *tags, str(tmp_path)], check=True, env=environment)
    inspect = ["docker", "--host", docker_host, "inspect", "--format"]
    for name in names:
        found = subprocess.run(
            [*inspect, "{{.Config.Cmd}} {{.Config.Env}} {{len .RootFS.Layers}}", name],
            check=True,
            capture_output=True,
            text=True,
        )
        assert found.stdout.startswith("[/x/a] [")
        assert found.stdout.endswith("A=1] 1\n")


def test_a_container_of_a_built_image_runs_and_is_looked_into(
    docker_host: str, stores: Stores
) -> None:
    """As testcontainers has it: the image is handed over, and docker does the rest."""
    text = (
        "FROM busybox\nRUN mkdir -p /home/web && echo made > /home/web/made \\\n"
        " && echo web:x:1234:1234::/home/web:/bin/sh >> /etc/passwd\n"
        "COPY --chown=web start /start\nENV WHO=me\nWORKDIR /home/web\nUSER web\n"
        'ENTRYPOINT ["/bin/sh", "/start"]\nCMD ["first"]\n'
    )
    start = "echo $1 $WHO $(id -u) $(pwd) $(cat made); sleep 300\n"
    with stores.lent() as root, Builder(backend_options={"root": root}) as builder:
        image = builder.image(
            builder.build({"Dockerfile": text, "start": start}, tags=["app:test"])
        )
        image.load_into(DockerLoadOutput(host=docker_host))

    def docker(*words: str) -> str:
        command = ["docker", "--host", docker_host, *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    container = docker("run", "--detach", "--network=none", "app:test", "second").strip()
    try:
        deadline = time.monotonic() + 60
        while not (logs := docker("logs", container)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert logs == "second me 1234 /home/web made\n"
        assert docker("exec", container, "stat", "-c", "%U %n", "/start") == "web /start\n"
        assert docker("diff", container) == ""
    finally:
        docker("rm", "--force", container)
