"""What tests of whole builds share: a memory backend with images, and reading its results."""

from __future__ import annotations

import threading
from typing import Any

import pybuild
from pybuild.backend import Activity, BaseImage, PullPolicy
from pybuild.files.trees import walk
from pybuild.oci.image_config import ImageConfig, parse_config
from pybuild.oci.layerindex import Kind
from pybuild.oci.platform import Platform
from pybuild.oci.reference import parse_reference
from pybuild.run.activity import CancelToken
from pybuild.run.events import Event
from pybuild.testkit.memory import MemoryBackend
from pybuild.testkit.toyshell import RunOutcome
from pybuild.testkit.workbench import file, folder, symlink

LINUX = Platform("linux", "amd64")


class Recorder:
    """Keeps all events."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def report(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def memory_backend(**options: Any) -> MemoryBackend:
    """A backend with a small busybox."""
    backend = MemoryBackend(platforms=[LINUX], **options)
    backend.add_image("busybox", busybox_config(), busybox_files())
    return backend


def busybox_config(**members: Any) -> ImageConfig:
    return ImageConfig(LINUX, env=(("PATH", "/bin"),), cmd=("sh",), **members)


def busybox_files() -> list[Any]:
    return [
        folder(b"etc"),
        file(
            b"etc/passwd",
            b"root:x:0:0::/root:/bin/sh\nweb:x:101:102::/srv:/bin/sh\n",
        ),
        file(b"etc/group", b"root:x:0:\nweb:x:102:\nextra:x:103:web\n"),
        folder(b"usr"),
        folder(b"usr/bin"),
        file(b"usr/bin/sh", b"#!", 0o755),
        symlink(b"bin", b"usr/bin"),
        folder(b"tmp", 0o1777),
    ]


def build(backend: MemoryBackend, dockerfile: str, context: Any = None, **options: Any) -> Any:
    """Build from text. `context` None is no context."""
    return pybuild.build(context, dockerfile=dockerfile.encode(), backend=backend, **options)


def image_of(backend: MemoryBackend, name: str = "app") -> BaseImage:
    return backend.resolve(parse_reference(name), LINUX, PullPolicy.NEVER, NoActivity())


def config_of(backend: MemoryBackend, result: pybuild.BuildResult) -> ImageConfig:
    with backend.open_blob(result.config_digest) as stream:
        return parse_config(stream.read())


def files_of(backend: MemoryBackend, name: str = "app") -> dict[str, bytes]:
    """The regular files of an image."""
    with backend.checkout(image_of(backend, name), NoActivity()) as layer:
        tree = layer.tree()
        found = {}
        for entry in walk(tree, b""):
            if entry.kind is Kind.FILE:
                with tree.open(entry.path) as stream:
                    found[entry.path.decode()] = stream.read()
        return found


class NoActivity:
    """An activity that nobody looks at."""

    def __init__(self) -> None:
        self._token = CancelToken()

    def log(self, stream: int, data: bytes) -> None: ...

    def progress(self, item: str, done: int, total: int | None) -> None: ...

    def warn(self, message: str, hint: str | None = None) -> None: ...

    def raise_if_cancelled(self) -> None: ...

    def on_cancel(self, callback: Any) -> Any:
        return self._token.on_cancel(callback)


def waiting_runner(started: threading.Event) -> Any:
    """A runner whose processes last until they are cancelled."""

    def run(process: Any, tree: Any, mounts: Any, activity: Activity) -> RunOutcome:
        killed = threading.Event()
        with activity.on_cancel(killed.set):
            started.set()
            assert killed.wait(20)
        return RunOutcome(137)

    return run
