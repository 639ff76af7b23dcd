"""Hostile caches of other machines: one warning, and the build goes on as if there were none."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_base_image_threats import hard, link, member, tar

import pybuild
from embedding import Stores, busybox_registry, check_store
from pybuild.backend import Backend
from pybuild.backends import open_backend
from pybuild.cachetransfer.document import CACHE_ANNOTATION, CACHE_CONFIG
from pybuild.export.outputs import LocalOutput
from pybuild.oci.descriptor import OCI_LAYER_GZIP, digest_of
from pybuild.oci.tarformat import Member, header
from pybuild.run.events import Event, Warned
from pybuild.run.result import BuildResult
from pybuild.testkit.baseimages import busybox_config, busybox_entries
from pybuild.testkit.memory import MemoryBackend
from pybuild.testkit.registry import Fault, Registry

pytestmark = pytest.mark.root

DOCKERFILE = """\
FROM {base}
RUN mkdir /made && echo real > /made/file
COPY file /made/copied
RUN --mount=type=cache,id=kept,target=/kept cat /kept/* > /seen || true; echo x > /kept/new
"""


class Machine:
    """Builds on a backend without a cache of its own, told of that at `ref`."""

    def __init__(self, opened: Callable[[], Backend], base: str, context: Path) -> None:
        self._opened = opened
        self._base = base
        self._context = context
        self.ref = ""
        self.warnings: list[str] = []

    def build(self, **options: Any) -> BuildResult:
        self.warnings = []
        with self._opened() as backend:
            return pybuild.build(
                self._context,
                dockerfile=DOCKERFILE.format(base=self._base).encode(),
                backend=backend,
                reporter=self,
                created=1,
                **options,
            )

    def build_with_cache(self, **options: Any) -> BuildResult:
        return self.build(cache_from=[self.ref], **options)

    def report(self, event: Event) -> None:
        if isinstance(event, Warned) and "user id" not in event.message:
            self.warnings.append(event.message)


class Cache:
    """A copy of the cache that an honest build wrote as "honest", to be changed and put there."""

    def __init__(self, registry: Registry, honest: str) -> None:
        self.registry = registry
        self.name = f"{honest}-{os.urandom(4).hex()}"
        self.ref = f"{registry.address}/{self.name}"
        self.manifest: Any = json.loads(registry.read_manifest(f"{honest}:latest")[1])
        self.document: Any = json.loads(registry.blobs(honest)[self.manifest["config"]["digest"]])
        for blob in registry.blobs(honest).values():
            registry.add_blob(self.name, blob)
        self.put_manifest()

    def replace_layer(self, position: int, blob: bytes, diff_id: str | None = None) -> None:
        """Put another blob in a layer's place, and say of it that it holds `diff_id`."""
        self.registry.add_blob(self.name, blob)
        named = {"mediaType": OCI_LAYER_GZIP, "digest": digest_of(blob), "size": len(blob)}
        self.manifest["layers"][position] = named
        for row in (*self.document["layers"], *self.document["mounts"]):
            if row[2] == position:
                row[1] = diff_id or digest_of(gzip.decompress(blob))

    def put(self, document: bytes | None = None) -> None:
        content = json.dumps(self.document).encode() if document is None else document
        self.registry.add_blob(self.name, content)
        self.manifest["config"] = {
            "mediaType": CACHE_CONFIG,
            "digest": digest_of(content),
            "size": len(content),
        }
        self.put_manifest()

    def put_manifest(self) -> None:
        self.registry.add_manifest(f"{self.name}:latest", json.dumps(self.manifest).encode())


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return Stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with busybox_registry() as registry:
        yield registry


def new_context(folder: Path) -> Path:
    folder.mkdir()
    (folder / "file").write_text("copied\n")
    return folder


@pytest.fixture
def context(tmp_path: Path) -> Path:
    return new_context(tmp_path / "context")


def simulated() -> Backend:
    backend = MemoryBackend()
    backend.add_image("busybox", busybox_config(), busybox_entries())
    return backend


@pytest.fixture(scope="module")
def honest(registry: Registry, stores: Stores, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The results of honest builds, by backend, which left caches under those names."""
    made = {}
    context = new_context(tmp_path_factory.mktemp("honest") / "context")
    with stores.lent(empty=True) as root:
        for name, opened, base in (
            ("memory", simulated, "busybox"),
            ("embedded", partial(open_backend, "embedded", {"root": root}), _base(registry)),
        ):
            to = f"type=registry,ref={registry.address}/{name},mode=max,mounts=kept"
            made[name] = Machine(opened, base, context).build(cache_to=[to])
    return made


def _base(registry: Registry) -> str:
    return f"{registry.address}/busybox"


@pytest.fixture
def machine(
    request: pytest.FixtureRequest, registry: Registry, stores: Stores, context: Path
) -> Iterator[Machine]:
    """A new machine: simulated, where only documents matter."""
    if "simulation" in request.keywords:
        yield Machine(simulated, "busybox", context)
        return
    with stores.lent(empty=True) as root:
        opened = partial(open_backend, "embedded", {"root": root})
        yield Machine(opened, _base(registry), context)
        check_store(root)


@pytest.fixture
def _kind(request: pytest.FixtureRequest) -> str:
    return "memory" if "simulation" in request.keywords else "embedded"


@pytest.fixture
def clean(honest: Any, _kind: str) -> BuildResult:
    """What the build makes without any cache."""
    found: BuildResult = honest[_kind]
    return found


@pytest.fixture
def cache(registry: Registry, clean: BuildResult, machine: Machine, _kind: str) -> Cache:
    """A cache, of which the machine is told."""
    found = Cache(registry, _kind)
    machine.ref = found.ref
    return found


def ran(result: BuildResult) -> int:
    return sum(not step.cached for step in result.steps)


def deep() -> bytes:
    return b'{"version":1,"layers":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def changed(change: Callable[[Any], object]) -> Callable[[Cache], bytes]:
    def make(cache: Cache) -> bytes:
        change(cache.document)
        return json.dumps(cache.document).encode()

    return make


HOSTILE_DOCUMENTS = {
    "no json": lambda _: b"\xff\xfe{",
    "empty": lambda _: b"",
    "a list": lambda _: b"[]",
    "deep": lambda _: deep(),
    "too large": lambda _: b'{"version":1,"x":"' + b"x" * (9 << 20) + b'"}',
    "members twice": lambda _: b'{"version":1,"version":1,"steps":[]}',
    "no number": lambda _: b'{"version":NaN}',
    "huge number": lambda _: b'{"version":1,"layers":[[' + b"9" * 10_000 + b',"",0]]}',
    "another version": changed(lambda d: d.update(version=2)),
    "version is true": changed(lambda d: d.update(version=True)),
    "layers are no list": changed(lambda d: d.update(layers={"0": 1})),
    "a row too short": changed(lambda d: d["layers"].append([0])),
    "a row is text": changed(lambda d: d["steps"].append("steps")),
    "a layer on itself": changed(lambda d: d["layers"][1].__setitem__(0, 1)),
    "a layer on a later one": changed(lambda d: d["layers"][0].__setitem__(0, 2)),
    "a layer on minus two": changed(lambda d: d["layers"][0].__setitem__(0, -2)),
    "a layer on true": changed(lambda d: d["layers"][1].__setitem__(0, True)),
    "a layer on a fraction": changed(lambda d: d["layers"][1].__setitem__(0, 0.5)),
    "a blob that isn't there": changed(lambda d: d["layers"][1].__setitem__(2, 99)),
    "a diff id that is a path": changed(lambda d: d["layers"][1].__setitem__(1, "sha256:../../x")),
    "a diff id that is a number": changed(lambda d: d["layers"][1].__setitem__(1, 5)),
    "a base layer above others": changed(
        lambda d: d["layers"].append([len(d["layers"]) - 1, d["layers"][0][1], -1])
    ),
    "five thousand layers": changed(
        lambda d: d["layers"].extend([n + 2, f"sha256:{n:064x}", 0] for n in range(1, 5000))
    ),
    "very many steps": changed(
        lambda d: d.update(steps=[[f"{n:064x}", True, -1, False, 0] for n in range(70_000)])
    ),
    "a key twice": changed(lambda d: d["steps"].append(d["steps"][0])),
    "a key that is a path": changed(lambda d: d["steps"][0].__setitem__(0, "../" * 20)),
    "a step on no layer": changed(lambda d: d["steps"][0].__setitem__(2, 99)),
    "a step that made the base": changed(lambda d: d["steps"][0].__setitem__(2, 0)),
    "a step at no time": changed(lambda d: d["steps"][0].__setitem__(4, 1 << 70)),
    "a step before time": changed(lambda d: d["steps"][0].__setitem__(4, -1)),
    "a mount twice": changed(lambda d: d["mounts"].append(d["mounts"][0])),
    "a mount without a blob": changed(lambda d: d["mounts"][0].__setitem__(2, -1)),
    "a mount with a number's name": changed(lambda d: d["mounts"][0].__setitem__(0, 7)),
}


@pytest.mark.simulation
@pytest.mark.parametrize("make", HOSTILE_DOCUMENTS.values(), ids=HOSTILE_DOCUMENTS.keys())
def test_a_hostile_document_is_one_warning(
    machine: Machine,
    clean: BuildResult,
    cache: Cache,
    make: Callable[[Cache], bytes],
) -> None:
    cache.put(make(cache))
    began = time.monotonic()
    result = machine.build_with_cache()
    assert (ran(result), result.digest) == (3, clean.digest)
    assert len(machine.warnings) == 1
    assert machine.warnings[0].isprintable()
    assert len(machine.warnings[0]) < 500
    assert time.monotonic() - began < 30


HOSTILE_MANIFESTS: dict[str, Callable[[Any], object]] = {
    "index as well": lambda m: m.update(manifests=[]),
    "another kind": lambda m: m["config"].update(mediaType="application/x-\x1b[31m"),
    "urls": lambda m: m["layers"][0].update(urls=["http://127.0.0.1:1/x"]),
    "digest is a path": lambda m: m["layers"][0].update(digest="sha256:../../../etc/passwd"),
    "negative size": lambda m: m["layers"][0].update(size=-1),
    "no layers": lambda m: m.pop("layers"),
    "very many layers": lambda m: m.update(layers=m["layers"] * 3000),
    "a config that isn't there": lambda m: m["config"].update(digest=f"sha256:{'0' * 64}"),
    "a config that is larger": lambda m: m["config"].update(size=m["config"]["size"] + 1),
}


@pytest.mark.simulation
@pytest.mark.parametrize("change", HOSTILE_MANIFESTS.values(), ids=HOSTILE_MANIFESTS.keys())
def test_a_hostile_manifest_is_one_warning(
    machine: Machine,
    clean: BuildResult,
    cache: Cache,
    change: Callable[[Any], object],
) -> None:
    change(cache.manifest)
    cache.put_manifest()
    result = machine.build_with_cache()
    assert (ran(result), result.digest) == (3, clean.digest)
    assert len(machine.warnings) == 1
    assert machine.warnings[0].isprintable()


def test_changed_bytes_are_never_used(machine: Machine, clean: BuildResult, cache: Cache) -> None:
    for layer in cache.manifest["layers"]:
        bad = bytes(layer["size"])
        cache.registry.add_fault(
            Fault(f"/{cache.name}/blobs/{layer['digest']}", times=None, content=bad)
        )
    result = machine.build_with_cache(tags=["app"])
    assert result.digest == clean.digest
    assert len(machine.warnings) == 1
    assert "can't be used" in machine.warnings[0]
    # nor by a later build
    assert machine.build().digest == clean.digest


@pytest.mark.parametrize("claimed", ["unknown", "base"])
def test_a_layer_that_isnt_what_it_is_said_to_be_is_refused(
    machine: Machine,
    clean: BuildResult,
    cache: Cache,
    tmp_path: Path,
    claimed: str,
) -> None:
    """Its digest is right, so only its content tells; the diff id may be one that is known."""
    evil = gzip.compress(tar([member("made/file", body=b"evil\n")]))
    base = cache.document["layers"][0][1]
    cache.replace_layer(0, evil, base if claimed == "base" else f"sha256:{'1' * 64}")
    cache.put()
    result = machine.build_with_cache(outputs=[LocalOutput(dest=str(tmp_path / "out"))])
    assert result.digest == clean.digest
    assert (tmp_path / "out/made/file").read_text() == "real\n"
    assert len(machine.warnings) == 1
    assert ran(machine.build()) == 0


def test_a_cache_cant_stand_in_for_the_base_image(
    machine: Machine, clean: BuildResult, cache: Cache
) -> None:
    evil = gzip.compress(tar([member("bin/sh", body=b"evil", mode=0o755)]))
    cache.replace_layer(0, evil)
    cache.document["mounts"] = []
    rows = cache.document["layers"]
    rows[:] = [[-1, digest_of(gzip.decompress(evil)), 0]] * len(rows)
    cache.put()
    result = machine.build_with_cache()
    assert (ran(result), result.digest, machine.warnings) == (3, clean.digest, [])


HOSTILE_LAYERS = {
    "out": [member("../../../outside/escaped", body=b"x")],
    "by a link": [link("made", "/"), link("made/../../l", "/"), member("../l/x", body=b"x")],
    "by a hard link": [hard("made/file", "../../../etc/passwd")],
    "overlay's mark": [
        member("made", b"5", pax_headers={"SCHILY.xattr.trusted.overlay.opaque": "y"})
    ],
    "a removal's device": [member("made/file", b"3")],
}


@pytest.mark.parametrize("members", HOSTILE_LAYERS.values(), ids=HOSTILE_LAYERS.keys())
def test_a_hostile_layer_is_refused(
    machine: Machine,
    clean: BuildResult,
    cache: Cache,
    tmp_path: Path,
    members: Any,
) -> None:
    cache.replace_layer(0, gzip.compress(tar(members)))
    cache.put()
    result = machine.build_with_cache(outputs=[LocalOutput(dest=str(tmp_path / "out"))])
    assert result.digest == clean.digest
    assert len(machine.warnings) == 1
    assert sorted(os.listdir(tmp_path)) == ["context", "out"]  # noqa: PTH208


def test_a_layer_that_claims_a_tebibyte_is_refused(
    machine: Machine, clean: BuildResult, cache: Cache
) -> None:
    head = header(Member(b"made/file", ord("0"), 0o644, size=1 << 40))
    cache.replace_layer(0, gzip.compress(head + bytes(1 << 20)), f"sha256:{'2' * 64}")
    cache.put()
    assert machine.build_with_cache().digest == clean.digest
    assert len(machine.warnings) == 1


HOSTILE_MOUNTS: dict[str, Any] = {
    "out": [member("../../../outside", body=b"x")],
    "a link in its place": [link("m", "/etc")],
    "a file in its place": [member("m", body=b"x")],
    "nothing": [],
}


@pytest.mark.parametrize("members", HOSTILE_MOUNTS.values(), ids=HOSTILE_MOUNTS.keys())
def test_a_hostile_cache_mount_begins_empty(
    machine: Machine, cache: Cache, context: Path, members: Any
) -> None:
    cache.replace_layer(cache.document["mounts"][0][2], gzip.compress(tar(members)))
    cache.put()
    (context / "file").write_text("changed\n")
    result = machine.build_with_cache()
    assert ran(result) == 2
    assert len(machine.warnings) == 1
    assert machine.warnings[0].startswith("the cache mount at /kept begins empty: ")


def test_a_cache_mount_s_links_lead_nowhere_on_the_host(
    machine: Machine, cache: Cache, context: Path
) -> None:
    members = [
        member("m", b"5"),
        link("m/folder", "/"),
        link("m/passwd", "/etc/hostname-of-the-host"),
        member("m/plain", body=b"plain\n"),
    ]
    cache.replace_layer(cache.document["mounts"][0][2], gzip.compress(tar(members)))
    cache.put()
    (context / "file").write_text("changed\n")
    result = machine.build_with_cache()
    assert machine.warnings == []
    assert ran(result) == 2


@pytest.mark.parametrize("text", ["{", '{"version":1,"steps":[["x"]]}', "\ud800", "\x1b[2J"])
@pytest.mark.simulation
def test_a_hostile_annotation_of_an_image_is_one_warning(
    machine: Machine, registry: Registry, cache: Cache, clean: BuildResult, text: str
) -> None:
    cache.manifest = json.loads(registry.read_manifest("busybox:latest")[1])
    cache.manifest["annotations"] = {CACHE_ANNOTATION: text}
    cache.put_manifest()
    result = machine.build_with_cache()
    assert (ran(result), result.digest) == (3, clean.digest)
    assert len(machine.warnings) == 1
    assert machine.warnings[0].isprintable()


@pytest.mark.simulation
def test_a_registry_that_never_ends_is_left(
    machine: Machine, registry: Registry, cache: Cache, clean: BuildResult
) -> None:
    path = f"/{cache.name}/manifests/"
    registry.add_fault(Fault(path, times=None, content=b" " * (5 << 20)))
    result = machine.build_with_cache()
    assert (ran(result), result.digest) == (3, clean.digest)
    assert len(machine.warnings) == 1
