"""The memory backend keeps the contract, and holds its callers to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pybuild.backend import Backend, Process
from pybuild.files.trees import NewEntry
from pybuild.testkit.memory import MemoryBackend
from pybuild.testkit.suite import BackendSuite
from pybuild.testkit.suite_images import ImageSuite
from pybuild.testkit.workbench import RecordingActivity, Workbench, file, folder, hard_link, symlink


def _with_base() -> MemoryBackend:
    backend = MemoryBackend()
    backend.add_image(
        "busybox",
        None,
        [
            folder(b"bin"),
            file(b"bin/sh", b"simulated", 0o755),
            folder(b"etc"),
            file(b"etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
            folder(b"mnt"),
            folder(b"tmp", 0o1777),
        ],
    )
    return backend


class TestMemoryBackend(BackendSuite):
    simulated = True

    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        with _with_base() as backend:
            yield backend
        assert backend.live_layers == 0


class TestMemoryBackendWithoutCapabilities(ImageSuite):
    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        with _with_base() as backend:
            backend.capabilities = frozenset()
            yield backend
        assert backend.live_layers == 0


@pytest.mark.parametrize(
    "entries",
    [
        [file(b"no/parent", b"")],
        [symlink(b"link", b"bin"), file(b"link/sh", b"")],
        [file(b"../out", b"")],
        [file(b"/absolute", b"")],
        [hard_link(b"passwd", file(b"etc/passwd", b""))],
    ],
    ids=["no-parent", "through-link", "dots", "absolute", "link-to-lower-layer"],
)
def test_a_put_against_the_contract_is_refused(entries: list[NewEntry]) -> None:
    with Workbench(_with_base(), "busybox") as bench, pytest.raises(RuntimeError):
        bench.put(bench.base(), *entries)


def test_a_process_needs_a_layer_that_was_begun_for_it() -> None:
    with (
        Workbench(_with_base(), "busybox") as bench,
        bench.base().begin(runs=False) as rw,
        pytest.raises(RuntimeError, match="put only"),
    ):
        rw.run(Process(("true",), (), "/"), (), RecordingActivity())


def test_a_layer_that_is_never_released_is_counted() -> None:
    backend = _with_base()
    layer = backend.checkout(None, RecordingActivity())
    assert backend.live_layers == 1
    layer.release()
    assert backend.live_layers == 0
