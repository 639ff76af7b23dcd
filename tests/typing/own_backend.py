"""What the author of a backend and its tests writes; mypy checks it, nothing runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import BinaryIO

import pytest

from pybuild.backend import (
    Activity,
    Backend,
    BaseImage,
    BindMount,
    CacheMount,
    Capability,
    Image,
    ImageSpec,
    IndexSpec,
    Mount,
    Process,
    PullPolicy,
    ROLayer,
    SecretMount,
    SshMount,
    TmpfsMount,
)
from pybuild.errors import ImageNotFound
from pybuild.files.layout import LayoutImage
from pybuild.files.trees import Tree
from pybuild.oci.compression import Packing
from pybuild.oci.descriptor import Descriptor, LayerDiff
from pybuild.oci.platform import Platform, host_platform
from pybuild.oci.reference import Reference
from pybuild.testkit.memory import MemoryBackend, RunOutcome
from pybuild.testkit.suite import BackendSuite


class NoBackend(Backend):
    name = "none"

    def __init__(self) -> None:
        self.platforms = (host_platform(),)
        self.capabilities: frozenset[Capability] = frozenset()

    def resolve(
        self, reference: Reference, platform: Platform, pull_policy: PullPolicy, activity: Activity
    ) -> BaseImage:
        activity.raise_if_cancelled()
        raise ImageNotFound(f"no image {reference}")

    def import_image(self, image: LayoutImage, activity: Activity) -> BaseImage:
        activity.raise_if_cancelled()
        return BaseImage(image.reference, image.descriptor.digest, image.config, image.layers)

    def checkout(self, base: BaseImage | None, activity: Activity, *, runs: bool = True) -> ROLayer:
        raise NotImplementedError

    def lookup(self, key: str) -> ROLayer | None:
        return None

    def recompress(self, layer: LayerDiff, wanted: Packing, activity: Activity) -> LayerDiff:
        return layer

    def create_image(self, spec: ImageSpec, top: ROLayer, activity: Activity) -> Image:
        raise NotImplementedError

    def create_index(self, spec: IndexSpec, activity: Activity) -> Descriptor:
        return spec.document().index

    def open_blob(self, digest: str) -> BinaryIO:
        return BytesIO()

    def close(self) -> None:
        pass


def open_backend(options: Mapping[str, object]) -> Backend:
    return NoBackend()


class TestNoBackend(BackendSuite):
    base_reference = "localhost/base:1"

    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        with NoBackend() as backend:
            yield backend


def targets(mounts: Sequence[Mount]) -> list[str]:
    found = []
    for mount in mounts:
        match mount:
            case BindMount():
                found.append(f"{mount.target} ({'ro' if mount.readonly else 'rw'})")
            case TmpfsMount():
                found.append(f"{mount.target} ({mount.size})")
            case CacheMount() | SecretMount() | SshMount():
                found.append(mount.target)
    return found


def runner(process: Process, tree: Tree, mounts: Sequence[Mount], activity: Activity) -> RunOutcome:
    activity.log(1, " ".join(process.args).encode())
    return RunOutcome(exit_code=0 if tree.get(b"etc/passwd") else 1)


backend = MemoryBackend(runner=runner, platforms=[Platform("linux", "arm64")])
