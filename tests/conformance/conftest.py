"""What the recorded build cases need: one backend, base images under the names they use."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pybuild import Backend, BuildResult, PullPolicy, build
from pybuild.files.trees import resolve
from pybuild.oci.layerindex import Kind
from pybuild.oci.platform import host_platform
from pybuild.oci.reference import parse_reference
from pybuild.run.activity import CancelToken, Events
from pybuild.testkit.baseimages import busybox_layout
from pybuild.testkit.containerd import PrivateContainerd
from pybuild.testkit.layouts import import_into_containerd
from pybuild_containerd.backend import open_backend

_NAMESPACE = "cases"
_NAMES = (
    "busybox",
    "alpine",
    "centos:7",
    "mirror.gcr.io/busybox",
    "mirror.gcr.io/alpine",
    "quay.io/libpod/centos:7",
    "quay.io/libpod/busybox",
)
# busybox's ash stands in for bash; the rest are users and groups that the cases name
_BASE = b"""\
FROM docker.io/library/plain
RUN printf '#!/bin/sh\\nexec /bin/sh "$@"\\n' > /bin/bash && chmod 755 /bin/bash \
 && touch /usr/bin/script \
 && { grep -q ^lp: /etc/group || echo lp:x:7: >> /etc/group; } \
 && { grep -q ^lp: /etc/passwd || echo lp:x:4:7:lp:/var/spool/lpd:/bin/false >> /etc/passwd; } \
 && { grep -q ^adm: /etc/group || echo adm:x:4: >> /etc/group; } \
 && { grep -q ^wheel: /etc/group || echo wheel:x:10:root >> /etc/group; } \
 && { [ -e /etc/os-release ] || echo ID=busybox > /etc/os-release; }
"""


@pytest.fixture(scope="session")
def cases_backend(
    containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    """A backend whose store has the cases' base images."""
    folder = tmp_path_factory.mktemp("layout") / "plain"
    layout = busybox_layout(folder, "docker.io/library/plain:latest")
    import_into_containerd(layout, containerd.address, _NAMESPACE)
    options = {
        "address": containerd.address,
        "namespace": _NAMESPACE,
        "cache_dir": tmp_path_factory.mktemp("cache"),
        "unpack": False,
    }
    with open_backend(options) as backend:
        build(None, dockerfile=_BASE, tags=_NAMES, backend=backend)
    with open_backend(options) as backend:
        yield backend


@pytest.fixture
def build_on_cases(cases_backend: Backend) -> Callable[..., BuildResult]:
    def build_case(context: Path | None, **options: Any) -> BuildResult:
        return build(
            context, backend=cases_backend, tags=["case"], pull=PullPolicy.NEVER, **options
        )

    return build_case


@pytest.fixture
def read_config(containerd: PrivateContainerd) -> Callable[[BuildResult], dict[str, Any]]:
    def read(result: BuildResult) -> dict[str, Any]:
        command = ["ctr", "-a", containerd.address, "-n", _NAMESPACE, "content", "get"]
        raw = subprocess.run([*command, result.config_digest], check=True, capture_output=True)
        config: dict[str, Any] = json.loads(raw.stdout)
        return config

    return read


@pytest.fixture
def read_image_file(cases_backend: Backend) -> Callable[[BuildResult, str], bytes | None]:
    """The content of a file in an image; None where there is none."""

    def read(result: BuildResult, path: str) -> bytes | None:
        activity = Events(None).silent(CancelToken())
        reference = parse_reference(result.names[0])
        image = cases_backend.resolve(reference, host_platform(), PullPolicy.NEVER, activity)
        with cases_backend.checkout(image, activity) as layer:
            tree = layer.tree()
            name = path.lstrip("/").encode()
            if tree.get(name) is None:
                return None
            entry = tree.get(target := resolve(tree, name))
            if entry is None or entry.kind is not Kind.FILE:
                return b""  # a link into nowhere is there as well
            with tree.open(target) as file:
                return file.read()

    return read
