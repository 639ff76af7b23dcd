"""What the build cases need: both backends, with base images under the names they use."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from build_cases import BACKENDS, image_tree

from pybuild import Backend, BuildResult, PullPolicy, build
from pybuild.files.trees import resolve
from pybuild.oci.layerindex import Kind
from pybuild.testkit.baseimages import busybox_layout
from pybuild.testkit.containerd import PrivateContainerd
from pybuild_containerd.backend import open_backend as open_containerd
from pybuild_embedded.backend import open_backend as open_embedded

_CREATED = 1_600_000_000  # both backends then have the same bases
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
FROM plain
RUN printf '#!/bin/sh\\nexec /bin/sh "$@"\\n' > /bin/bash && chmod 755 /bin/bash \
 && touch /usr/bin/script \
 && { grep -q ^lp: /etc/group || echo lp:x:7: >> /etc/group; } \
 && { grep -q ^lp: /etc/passwd || echo lp:x:4:7:lp:/var/spool/lpd:/bin/false >> /etc/passwd; } \
 && { grep -q ^adm: /etc/group || echo adm:x:4: >> /etc/group; } \
 && { grep -q ^wheel: /etc/group || echo wheel:x:10:root >> /etc/group; } \
 && { [ -e /etc/os-release ] || echo ID=busybox > /etc/os-release; }
"""


@pytest.fixture(scope="session")
def plain_layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with busybox."""
    return busybox_layout(tmp_path_factory.mktemp("layout") / "plain")


@pytest.fixture(scope="session")
def embedded_cases(
    tmp_path_factory: pytest.TempPathFactory, plain_layout: Path
) -> Iterator[Backend]:
    """The embedded backend, on a store with the cases' base images."""
    with open_embedded({"root": tmp_path_factory.mktemp("store")}) as backend:
        _make_bases(backend, plain_layout)
        yield backend


@pytest.fixture(scope="session")
def containerd_cases(
    containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory, plain_layout: Path
) -> Iterator[Backend]:
    """The containerd backend, in a namespace with the cases' base images."""
    options = {
        "address": containerd.address,
        "namespace": "cases",
        "cache_dir": tmp_path_factory.mktemp("cache"),
        "unpack": False,
    }
    with open_containerd(options) as backend:
        _make_bases(backend, plain_layout)
        yield backend


def _make_bases(backend: Backend, layout: Path) -> None:
    contexts = {"plain": f"oci-layout://{layout}"}
    build(None, dockerfile=_BASE, tags=_NAMES, contexts=contexts, backend=backend, created=_CREATED)


@pytest.fixture(params=BACKENDS)
def cases_backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn."""
    backend: Backend = request.getfixturevalue(f"{request.param}_cases")
    return backend


@pytest.fixture
def build_on_cases(cases_backend: Backend) -> Callable[..., BuildResult]:
    def build_case(context: Path | None, **options: Any) -> BuildResult:
        return build(
            context, backend=cases_backend, tags=["case"], pull=PullPolicy.NEVER, **options
        )

    return build_case


@pytest.fixture
def read_config(cases_backend: Backend) -> Callable[[BuildResult], dict[str, Any]]:
    def read(result: BuildResult) -> dict[str, Any]:
        with cases_backend.open_blob(result.config_digest) as blob:
            config: dict[str, Any] = json.load(blob)
        return config

    return read


@pytest.fixture
def read_image_file(cases_backend: Backend) -> Callable[[BuildResult, str], bytes | None]:
    """The content of a file in an image; None where there is none."""

    def read(result: BuildResult, path: str) -> bytes | None:
        with image_tree(cases_backend, result.names[0]) as tree:
            name = path.lstrip("/").encode()
            if tree.get(name) is None:
                return None
            entry = tree.get(target := resolve(tree, name))
            if entry is None or entry.kind is not Kind.FILE:
                return b""  # a link into nowhere is there as well
            with tree.open(target) as file:
                return file.read()

    return read
