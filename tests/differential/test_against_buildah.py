"""The same Dockerfiles built by pybuild and by buildah: same config, same file tree.

Where they differ on purpose, BuildKit's behaviour is ours: ACCEPTED says where and why.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from rootfs import Node, config_differences, differences, read_tree

from pybuild import build
from pybuild.testkit.baseimages import BUSYBOX, busybox_layout
from pybuild.testkit.containerd import PrivateContainerd
from sharedcontext import make_context

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.buildah]

_CASES = sorted((Path(__file__).parent / "cases").glob("*.Dockerfile"))

# buildah can't mount an image without running its triggers
_CONFIG_ONLY = {"onbuild"}

# case pattern -> (pattern of the difference, why ours is right)
ACCEPTED: list[tuple[str, str, str]] = [
    ("*", "config Labels: *io.buildah.version*", "buildah labels what it makes"),
    ("*", "etc/hostname: only in buildah's image", "the mount point of a RUN leaves no trace"),
    ("*", "etc/hosts: only in buildah's image", "the mount point of a RUN leaves no trace"),
    ("*", "etc/resolv.conf: only in buildah's image", "the mount point of a RUN leaves no trace"),
    ("*", "config ArgsEscaped: True / None", "BuildKit sets it with every CMD in shell form"),
    ("scratch-*", "config WorkingDir: '/' / ''", "BuildKit starts a scratch stage in /"),
    ("scratch-from-stage", "config Env: *PATH=*", "BuildKit gives a scratch stage its PATH"),
    ("scratch-from-stage", "*: only in buildah's image", "buildah leaves mount points behind"),
    (
        "add-tar-as-owner",
        "unpacked*: [ug]id *",
        "BuildKit gives what it unpacks to --chown's owner",
    ),
    ("arg-env-precedence", "who: content *", "in BuildKit an ARG after the ENV wins"),
    ("copy-chmod", "[ab]: mode *", "BuildKit makes a missing destination with --chmod's mode"),
    ("dockerignore", "everything/setuid.sh: mode *", "BuildKit keeps set-user-id bits of files"),
    ("escape-directive", "config Env: *", "with ` as escape a backslash is kept"),
    ("run-mount-bind", "mnt: only in pybuild's image", "buildah removes the base's own folder"),
    ("shell", "config Cmd: *", "CMD in shell form uses SHELL"),
    ("workdir-chain", "one/two: only in pybuild's image", "every WORKDIR makes its folder"),
]


@dataclass(frozen=True)
class Buildah:
    """A buildah with a store of its own."""

    store: Path

    def run(self, *arguments: str) -> str:
        store = ["--root", f"{self.store}/root", "--runroot", f"{self.store}/run"]
        command = ["buildah", *store, "--storage-driver", "overlay", *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr[-2000:]}"
        return done.stdout.strip()

    def build(self, dockerfile: Path, context: Path) -> str:
        """Build and return the image's id."""
        options = ["--isolation", "chroot", "--format", "docker", "--layers", "--pull-never"]
        out = self.run("bud", "--quiet", *options, "-f", str(dockerfile), str(context))
        return out.splitlines()[-1]

    def config(self, image: str) -> dict[str, Any]:
        inspected = json.loads(self.run("inspect", "--type", "image", image))
        docker: dict[str, Any] = inspected["Docker"]
        return docker

    @contextlib.contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        container = self.run("from", "--pull-never", image)
        try:
            yield Path(self.run("mount", container))
        finally:
            self.run("umount", container)
            self.run("rm", container)


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    layout = busybox_layout(tmp_path_factory.mktemp("layouts") / "busybox", BUSYBOX)
    with tempfile.TemporaryDirectory(prefix="buildah-") as folder:
        builder = Buildah(Path(folder))
        try:
            loaded = builder.run("pull", f"oci:{layout}")
            builder.run("tag", loaded.splitlines()[-1], BUSYBOX)
            yield builder
            builder.run("rmi", "--all", "--force")
        finally:
            # the store mounts its own folder, to keep what is below it private
            subprocess.run(["umount", f"{folder}/root/overlay"], check=False, capture_output=True)


@contextlib.contextmanager
def _mounted_by_ctr(daemon: PrivateContainerd, name: str, folder: Path) -> Iterator[Path]:
    ctr = ["ctr", "-a", daemon.address, "-n", "default", "images"]
    folder.mkdir()
    subprocess.run([*ctr, "mount", name, str(folder)], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run([*ctr, "unmount", "--rm", str(folder)], check=True, capture_output=True)


def _config_of(daemon: PrivateContainerd, digest: str) -> dict[str, Any]:
    command = ["ctr", "-a", daemon.address, "-n", "default", "content", "get", digest]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    config: dict[str, Any] = json.loads(raw)
    return config


def _unaccepted(case: str, found: list[str]) -> list[str]:
    return [
        line
        for line in found
        if not any(fnmatch(case, where) and fnmatch(line, what) for where, what, _ in ACCEPTED)
    ]


@pytest.mark.parametrize("dockerfile", _CASES, ids=lambda path: path.stem)
def test_both_builders_make_the_same_image(
    dockerfile: Path, base_images: PrivateContainerd, buildah: Buildah, tmp_path: Path
) -> None:
    context = tmp_path / "context"
    context.mkdir()
    make_context(context)
    started = time.time() - 60
    result = build(
        context,
        dockerfile=dockerfile,
        tags=[f"differential:{dockerfile.stem}"],
        backend="containerd",
        backend_options={"address": base_images.address, "cache_dir": tmp_path / "cache"},
    )
    image = buildah.build(dockerfile, context)
    found = config_differences(_config_of(base_images, result.config_digest), buildah.config(image))
    ours: dict[bytes, Node]
    with _mounted_by_ctr(base_images, result.names[0], tmp_path / "mounted") as root:
        ours = read_tree(root)
    if dockerfile.stem not in _CONFIG_ONLY:
        with buildah.mounted(image) as root:
            found += differences(ours, read_tree(root), started)
    assert _unaccepted(dockerfile.stem, found) == []


def test_enough_cases_are_compared() -> None:
    assert len(_CASES) >= 40
