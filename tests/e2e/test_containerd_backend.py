"""The containerd backend against a real containerd, registry and runc."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Barrier, Thread
from typing import Any, NoReturn

import pytest

from promptness import AT_ONCE
from pybuild.backend import BaseImage, BindMount, PullPolicy, ROLayer, TmpfsMount
from pybuild.errors import (
    BackendUnavailable,
    BuildCancelled,
    ImageNotFound,
    InvalidImage,
    PlatformMismatch,
    StepFailed,
    UsageError,
)
from pybuild.files.trees import MemoryTree, NewEntry
from pybuild.files.upperdir import OverlayNotPlain
from pybuild.oci.descriptor import DOCKER_CONFIG, DOCKER_LAYER_GZIP, DOCKER_MANIFEST, chain_id
from pybuild.oci.image_config import ImageConfig, serialize_config
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.layerwriter import write_layer
from pybuild.oci.platform import Platform
from pybuild.oci.reference import parse_reference
from pybuild.testkit.baseimages import busybox_entries
from pybuild.testkit.containerd import PrivateContainerd, check_nothing_left
from pybuild.testkit.registry import Fault, Registry
from pybuild.testkit.validate import validate
from pybuild.testkit.workbench import (
    RecordingActivity,
    Workbench,
    content,
    file,
    folder,
    symlink,
)
from pybuild_containerd.backend import ContainerdBackend, open_backend
from pybuild_containerd.client import Client
from pybuild_containerd.probe import usable_snapshotters
from sandboxing import alive

pytestmark = [pytest.mark.root, pytest.mark.containerd]

HERE = Platform("linux", "amd64")
ELSEWHERE = Platform("linux", "s390x")


class Store:
    """A namespace of the session's containerd, for one test."""

    def __init__(self, daemon: PrivateContainerd, namespace: str, cache: Path) -> None:
        self.daemon = daemon
        self.namespace = namespace
        self.cache = cache

    def open(self, **options: object) -> ContainerdBackend:
        given = {"address": self.daemon.address, "namespace": self.namespace}
        backend = open_backend({**given, "cache_dir": self.cache, **options})
        assert isinstance(backend, ContainerdBackend)
        return backend

    def ctr(self, *arguments: str) -> str:
        command = ["ctr", "-a", self.daemon.address, "-n", self.namespace, *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def snapshots(self) -> set[str]:
        self.daemon.collect_garbage(self.namespace)
        return {line.split()[0] for line in self.ctr("snapshots", "ls").splitlines()[1:]}

    def blobs(self) -> dict[str, str]:
        """The digests of all blobs, and their labels as ctr shows them."""
        self.daemon.collect_garbage(self.namespace)
        lines = [line.split("\t") for line in self.ctr("content", "ls").splitlines()[1:]]
        return {line[0]: line[-1] for line in lines}


@pytest.fixture
def store(
    containerd: PrivateContainerd, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Store]:
    name = f"e2e-{abs(hash(request.node.nodeid))}"
    yield Store(containerd, name, tmp_path / "cache")
    check_nothing_left(containerd.address, name, containerd.folder)


@pytest.fixture
def bench(store: Store) -> Iterator[Workbench]:
    """Steps in `store`, on a base of busybox without the folders that a RUN mounts on."""
    with store.open() as backend, Workbench(backend, "") as bench:
        yield bench


def _busybox(bench: Workbench, *more: NewEntry) -> ROLayer:
    bare = [e for e in busybox_entries() if e.entry.path not in {b"dev", b"proc", b"sys"}]
    return bench.put(bench.scratch(), *bare, *more)


def _changed(bench: Workbench, layer: ROLayer) -> list[tuple[bytes, Kind]]:
    assert isinstance(bench.backend, ContainerdBackend)
    assert layer.diff is not None
    return [(e.path, e.kind) for e in bench.backend._files.index(layer.diff)]


# Images


def test_a_made_image_runs_and_is_complete(store: Store) -> None:
    with store.open() as backend, Workbench(backend, "") as bench:
        ran = bench.run(_busybox(bench), "echo made > /made; rm /etc/shadow")
        image = bench.create(ran.layer, "hello:1", "other/name", cmd=("/bin/cat", "/made"))
        validate(backend, image)
    assert store.ctr("run", "--rm", "docker.io/library/hello:1", "x1") == "made\n"
    checked = store.ctr("images", "check").splitlines()[1:]
    assert {line.split()[0] for line in checked} == {
        "docker.io/library/hello:1",
        "docker.io/other/name:latest",
    }
    assert all("complete (3/3)" in line and line.rstrip().endswith("true") for line in checked)


def test_all_but_the_image_is_gone_after_the_build(store: Store) -> None:
    with store.open() as backend, Workbench(backend, "") as bench:
        base = _busybox(bench)
        bench.put(base, file(b"unused", b"x"))
        bench.run(base, "echo unused > /y")
        mount = BindMount("/m", MemoryTree([file(b"f", b"x")]))
        made = bench.run(base, "cp /m/f /f", [mount]).layer
        image = bench.create(made, "kept")
        kept = {diff.blob.digest for diff in made.diffs}
        chains = {chain_id(tuple(d.diff_id for d in made.diffs[:n])) for n in (1, 2)}
    assert set(store.blobs()) == kept | {image.manifest.digest, image.config_digest}
    assert store.snapshots() == chains


def test_without_unpack_no_snapshot_stays(store: Store) -> None:
    with store.open(unpack=False) as backend, Workbench(backend, "") as bench:
        bench.create(bench.run(_busybox(bench), "echo x > /x").layer, "packed")
    assert store.snapshots() == set()
    assert store.ctr("images", "check").splitlines()[1].rstrip().endswith("false")


def test_an_image_without_a_name_survives_the_garbage_collector(store: Store) -> None:
    with store.open() as backend, Workbench(backend, "") as bench:
        image = bench.create(bench.put(bench.scratch(), file(b"a", b"x")))
    names = store.ctr("images", "ls", "-q").split()
    assert names == [f"pybuild-dangling@{image.manifest.digest}"]
    assert image.manifest.digest in store.blobs()


def test_in_mobys_namespace_dockers_labels_and_blob_are_added(store: Store) -> None:
    with store.open(moby_labels=True) as backend, Workbench(backend, "") as bench:
        parent = bench.create(bench.put(bench.scratch(), file(b"a", b"x")), cmd=("sh",))
        bench.create(bench.put(bench.scratch(), file(b"a", b"x")), "parent", cmd=("sh",))
        base = bench.image("docker.io/library/parent:latest")
        layer = bench.hold(backend.checkout(base, bench.activity))
        child = bench.create(bench.put(layer, file(b"b", b"y")), "child", base=base)
    listed = {line.split()[0]: line for line in store.ctr("images", "ls").splitlines()[1:]}
    assert f"moby-dangling@{parent.manifest.digest}" in listed
    root, above = (
        listed["docker.io/library/parent:latest"],
        listed["docker.io/library/child:latest"],
    )
    assert "org.mobyproject.image.fromscratch=1" in root
    assert "org.mobyproject.image.parent" not in root
    assert f"org.mobyproject.image.parent={parent.manifest.digest}" in above
    assert "org.mobyproject.image.fromscratch" not in above
    blobs = store.blobs()
    marked = {d for d, labels in blobs.items() if "org.mobyproject.content.image=" in labels}
    assert len(marked) == 2
    (of_child,) = [d for d in marked if f"content.image={child.manifest.digest}" in blobs[d]]
    assert f"org.mobyproject.image.containerconfig={of_child}" in above
    assert f"gc.ref.content.moby/container.config={of_child}" in blobs[child.config_digest]
    assert json.loads(store.ctr("content", "get", of_child)) == {}


def test_a_name_that_moves_keeps_what_others_have_marked_on_it(store: Store) -> None:
    with store.open() as backend, Workbench(backend, "") as bench:
        bench.create(bench.put(bench.scratch(), file(b"a", b"1")), "moving")
        store.ctr("images", "label", "docker.io/library/moving:latest", "mine=1")
        image = bench.create(bench.put(bench.scratch(), file(b"a", b"2")), "moving")
    line = store.ctr("images", "ls").splitlines()[1]
    assert image.manifest.digest in line
    assert "mine=1" in line


# Base images


def _add(
    registry: Registry, name: str, platform: Platform = HERE, *, docker: bool = False
) -> tuple[Any, bytes]:
    """An image of one small layer in the registry; its manifest and layer."""
    blob = bytearray()
    text = f"{name} {platform}".encode()
    entries = [file(b"name", text), folder(b"etc"), file(b"etc/passwd", b"root:x:0:0::/:/bin/sh\n")]
    written = write_layer(entries, blob.extend)
    config = serialize_config(ImageConfig(platform, diff_ids=(written.diff.diff_id,)))
    types = {}
    if docker:
        types = {
            "layer_type": DOCKER_LAYER_GZIP,
            "config_type": DOCKER_CONFIG,
            "media_type": DOCKER_MANIFEST,
        }
    return registry.add_image(name, config, [bytes(blob)], **types), bytes(blob)


def _resolve(
    backend: ContainerdBackend,
    name: str,
    policy: PullPolicy = PullPolicy.MISSING,
    platform: Platform = HERE,
) -> tuple[BaseImage, RecordingActivity]:
    activity = RecordingActivity()
    return backend.resolve(parse_reference(name), platform, policy, activity), activity


def _pull(backend: ContainerdBackend, name: str, platform: Platform = HERE, **policy: Any) -> bytes:
    base, activity = _resolve(backend, name, platform=platform, **policy)
    with backend.checkout(base, activity) as layer:
        return content(layer, b"name")


@pytest.mark.parametrize("docker", [False, True])
def test_a_missing_image_is_pulled_recorded_and_found_without_the_registry(
    store: Store, registry: Registry, docker: bool
) -> None:
    manifest, _ = _add(registry, "team/app:1", docker=docker)
    name = f"{registry.address}/team/app:1"
    with store.open() as backend:
        assert _pull(backend, name) == b"team/app:1 linux/amd64"
    assert store.ctr("images", "ls", "-q").split() == [name]
    assert "complete (2/2)" in store.ctr("images", "check")
    asked = len(registry.requested("GET", ".*"))
    with store.open() as backend:
        assert _pull(backend, name, policy=PullPolicy.NEVER) == b"team/app:1 linux/amd64"
        by_digest = f"{registry.address}/team/app@{manifest.digest}"
        assert _resolve(backend, by_digest, PullPolicy.NEVER)[0].digest == manifest.digest
    assert len(registry.requested("GET", ".*")) == asked


def test_an_image_built_on_dockers_media_types_has_ocis_alone(
    store: Store, registry: Registry
) -> None:
    _add(registry, "app:1", docker=True)
    with store.open() as backend, Workbench(backend, "") as bench:
        base = bench.image(f"{registry.address}/app:1")
        layer = bench.hold(backend.checkout(base, bench.activity))
        image = bench.create(bench.put(layer, file(b"b", b"")), "above", base=base)
        validate(backend, image)
        with closing(backend.open_blob(image.manifest.digest)) as blob:
            manifest = json.load(blob)
    assert all("vnd.oci" in layer["mediaType"] for layer in manifest["layers"])


def test_policies_say_when_the_registry_is_asked(store: Store, registry: Registry) -> None:
    name = f"{registry.address}/app:1"
    with store.open() as backend:
        with pytest.raises(ImageNotFound, match="not in containerd's store"):
            _resolve(backend, name, PullPolicy.NEVER)
        _add(registry, "app:1")
        _pull(backend, name)
        old, _ = _resolve(backend, name)
        moved, _ = _add(registry, "other:1")
        registry.add_manifest("app:1", registry.read_manifest("other:1")[1])
        for digest, blob in registry.blobs("other").items():
            assert registry.add_blob("app", blob) == digest
        assert _resolve(backend, name)[0].digest == old.digest
        assert _pull(backend, name, policy=PullPolicy.ALWAYS) == b"other:1 linux/amd64"
        assert _resolve(backend, name, PullPolicy.NEVER)[0].digest == moved.digest


def test_the_platform_asked_for_is_chosen_from_an_index(store: Store, registry: Registry) -> None:
    listed = [
        (_add(registry, f"app:{platform.architecture}", platform)[0], platform)
        for platform in (ELSEWHERE, HERE)
    ]
    registry.add_index("app:1", listed)
    name = f"{registry.address}/app:1"
    with store.open() as backend:
        assert _pull(backend, name) == b"app:amd64 linux/amd64"
        # what is here is an index that knows the other platform, but not its content
        assert _pull(backend, name, ELSEWHERE) == b"app:s390x linux/s390x"
        assert _pull(backend, name, policy=PullPolicy.NEVER) == b"app:amd64 linux/amd64"
        with pytest.raises(PlatformMismatch):
            _resolve(backend, name, platform=Platform("linux", "riscv64"))


def test_a_local_image_of_another_platform_is_pulled_again_or_refused(
    store: Store, registry: Registry
) -> None:
    _add(registry, "app:1", ELSEWHERE)
    name = f"{registry.address}/app:1"
    with store.open() as backend:
        _pull(backend, name, ELSEWHERE)
        with pytest.raises(PlatformMismatch, match="local image"):
            _resolve(backend, name, PullPolicy.NEVER)
        _add(registry, "app:1", HERE)
        assert _pull(backend, name) == b"app:1 linux/amd64"


def test_a_config_of_another_platform_is_warned_of(store: Store, registry: Registry) -> None:
    manifest, _ = _add(registry, "app:wrong", ELSEWHERE)
    registry.add_index("app:1", [(manifest, HERE)])
    with store.open() as backend:
        _, activity = _resolve(backend, f"{registry.address}/app:1")
        (warning,) = activity.warnings
    assert "linux/amd64" in warning
    assert "linux/s390x" in warning
    assert "bug in the build" in warning


def test_a_layer_missing_from_the_store_is_fetched_again(store: Store, registry: Registry) -> None:
    _add(registry, "app:1")
    name = f"{registry.address}/app:1"
    with store.open() as backend:
        base, activity = _resolve(backend, name)
        backend.checkout(base, activity).release()
    store.ctr("content", "rm", base.layers[0].blob.digest)
    with store.open() as backend:
        assert _pull(backend, name) == b"app:1 linux/amd64"


def test_a_layer_that_isnt_what_its_config_says_is_refused(
    store: Store, registry: Registry
) -> None:
    _, layer = _add(registry, "app:1")
    lie = serialize_config(ImageConfig(HERE, diff_ids=(f"sha256:{'1' * 64}",)))
    registry.add_image("liar:1", lie, [layer])
    with store.open() as backend, Workbench(backend, "") as bench:
        base = bench.image(f"{registry.address}/liar:1")
        layer_of_liar = bench.hold(backend.checkout(base, bench.activity))
        with pytest.raises(InvalidImage, match="but the image's config says"):
            layer_of_liar.tree()
        with pytest.raises(InvalidImage, match="but the image's config says"):
            bench.create(layer_of_liar, "liar")
    assert store.snapshots() == set()


def test_bytes_that_are_wrong_are_never_stored(store: Store, registry: Registry) -> None:
    # a layer that no other test pulls: containerd takes what another namespace has from there
    _add(registry, "wrong:1")
    with store.open() as backend:
        base, activity = _resolve(backend, f"{registry.address}/wrong:1")
        blob = base.layers[0].blob
        fault = Fault(f".*{blob.digest}", times=None, content=bytes(blob.size))
        registry.add_fault(fault)
        with pytest.raises(InvalidImage):
            backend.checkout(base, activity)
        assert blob.digest not in store.blobs()
    assert store.ctr("images", "ls", "-q") == ""


def test_a_removed_snapshot_is_unpacked_again(store: Store) -> None:
    with store.open() as backend, Workbench(backend, "") as bench:
        top = bench.put(_busybox(bench), file(b"x", b"x"))
        bench.create(top, "base")
        chain = chain_id(tuple(diff.diff_id for diff in top.diffs))
    store.ctr("snapshots", "rm", chain)
    with store.open() as backend, Workbench(backend, "docker.io/library/base:latest") as bench:
        assert bench.run(bench.base(), "cat /x").out == "x"
        assert chain in store.snapshots()


# Runs and their mounts


def test_mount_points_that_the_image_hides_leave_nothing(bench: Workbench) -> None:
    """A whiteout and an opaque folder hide what is shown from below, so that runc makes stubs."""
    base = _busybox(bench, folder(b"dev"), folder(b"proc"), folder(b"away"), folder(b"away/in"))
    hiding = bench.put(
        base,
        NewEntry(Entry(b"dev", Kind.WHITEOUT)),
        NewEntry(Entry(b"etc", Kind.DIRECTORY, 0o755)),
        NewEntry(Entry(b"etc", Kind.OPAQUE)),
        NewEntry(Entry(b"away", Kind.WHITEOUT)),
    )
    mount = BindMount("/away/in/deep", MemoryTree([file(b"f", b"seen")]))
    ran = bench.run(hiding, "cat /away/in/deep/f; cat /etc/hosts > /copy; ls /dev/null", [mount])
    assert ran.code == 0, ran.err
    assert ran.out == "seen/dev/null\n"
    assert (b"copy", Kind.FILE) in _changed(bench, ran.layer)
    tree = ran.layer.tree()
    assert [tree.get(path) for path in (b"dev", b"away", b"etc/hosts", b"etc/resolv.conf")] == [
        None
    ] * 4
    again = bench.run(ran.layer, "cat /copy; ls -A /etc")
    assert "localhost" in again.out
    assert again.layer.diff is None


def test_a_link_in_etc_leads_where_it_says_inside_the_image(bench: Workbench) -> None:
    linked = bench.put(
        _busybox(bench),
        symlink(b"etc/resolv.conf", b"../run/resolve/stub"),
        symlink(b"etc/hosts", b"/h"),
    )
    ran = bench.run(linked, "cat /etc/hosts; cat /run/resolve/stub > /dev/null && echo fine")
    assert "buildkit" in ran.out or "worker" in ran.out
    assert ran.out.endswith("fine\n")
    assert ran.layer.diff is None


def test_mount_targets_are_resolved_through_the_images_links(bench: Workbench) -> None:
    base = _busybox(
        bench, symlink(b"up", b"../../../../../.."), symlink(b"lib64", b"usr/lib"), folder(b"real")
    )
    mounts = [
        BindMount("/lib64/new", MemoryTree([file(b"f", b"1")])),
        TmpfsMount("/up/real/t"),
    ]
    ran = bench.run(base, "cat /usr/lib/new/f; grep -c ' /real/t ' /proc/mounts", mounts)
    assert (ran.code, ran.out) == (0, "11\n")
    assert ran.layer.diff is None


@pytest.mark.parametrize("name", [b"proc", b"dev", b"sys"])
def test_an_image_whose_system_folders_are_links_runs_nothing(
    bench: Workbench, name: bytes
) -> None:
    with pytest.raises(StepFailed, match="of the image is no folder"):
        bench.run(bench.put(_busybox(bench), symlink(name, b"/etc")), "true")


def test_a_folder_is_no_place_for_a_file_mount(bench: Workbench) -> None:
    mount = BindMount("/etc", MemoryTree([file(b"f", b"")]), b"f")
    with pytest.raises(StepFailed, match="can't be mounted on"):
        bench.run(_busybox(bench), "true", [mount])


def test_working_directories_never_lead_to_the_hosts_open_files(bench: Workbench) -> None:
    base = _busybox(
        bench, *(symlink(f"fd{n}".encode(), f"/proc/self/fd/{n}".encode()) for n in range(3, 30))
    )
    for n in range(3, 30):
        for cwd in (f"/proc/self/fd/{n}", f"/fd{n}", f"/fd{n}/..", f"/dev/fd/{n}"):
            with pytest.raises(StepFailed, match="working directory"):
                bench.run(base, "true", cwd=cwd)


def test_a_missing_working_directory_is_made(bench: Workbench) -> None:
    ran = bench.run(_busybox(bench), "pwd", cwd="/srv/new")
    assert ran.out == "/srv/new\n"
    assert ran.layer.tree().get(b"srv/new") is not None


def test_a_whole_layer_is_mounted_without_a_copy(bench: Workbench) -> None:
    other = bench.put(bench.put(bench.scratch(), file(b"a", b"1")), file(b"b", b"2"))
    for readonly in (True, False):
        mount = BindMount("/m", other.tree(), readonly=readonly, layer=other)
        ran = bench.run(_busybox(bench), "cat /m/a /m/b; echo x > /m/c && ls /m", [mount])
        assert ran.out == ("12" if readonly else "12a\nb\nc\n")
        assert ran.layer.diff is None
    assert list(other.tree().children(b"")) == [b"a", b"b"]


def test_a_bind_mount_of_a_link_is_refused(bench: Workbench) -> None:
    mount = BindMount("/m", MemoryTree([symlink(b"l", b"/etc/shadow")]), b"l")
    with pytest.raises(StepFailed, match="is a symlink"):
        bench.run(_busybox(bench), "true", [mount])


@pytest.mark.parametrize(
    ("args", "code"),
    [(("/nowhere",), 127), (("nowhere",), 127), (("/etc/passwd",), 126), (("/etc",), 126)],
)
def test_what_cant_be_executed_ends_as_in_a_shell_and_says_why(
    bench: Workbench, args: tuple[str, ...], code: int
) -> None:
    ran = bench.run(_busybox(bench), args)
    assert ran.code == code
    assert args[0] in ran.err
    assert ran.layer.diff is None


def test_secrets_of_the_machine_are_masked(bench: Workbench) -> None:
    script = "head -c 1 /proc/kcore; cat /proc/interrupts; echo x > /proc/sys/kernel/hostname; echo x > /sys/x; true"
    ran = bench.run(_busybox(bench), script)
    assert ran.out == ""
    assert "Read-only file system" in ran.err


def test_a_layer_above_a_hundred_others_runs(bench: Workbench) -> None:
    """Their folders make more mount options than the kernel takes at once."""
    layer = _busybox(bench)
    for number in range(100):
        layer = bench.put(layer, file(f"f{number}".encode(), b"x"))
    ran = bench.run(layer, "ls / | grep -c '^f[0-9]'; echo > /new")
    assert ran.out == "100\n"
    assert _changed(bench, ran.layer) == [(b"new", Kind.FILE)]


def test_cancel_while_anything_is_going_on_leaves_nothing(store: Store) -> None:
    for delay in (0.0, 0.01, 0.03, 0.06, 0.09, 0.15, 0.4):
        with store.open() as backend, Workbench(backend, "") as bench:
            base = _busybox(bench)
            activity = RecordingActivity()
            canceller = Thread(target=lambda d=delay, a=activity: (time.sleep(d), a.cancel()))
            canceller.start()
            begun = time.monotonic()
            with pytest.raises(BuildCancelled):
                bench.run(base, "sleep 30 & sleep 30", activity=activity)
            assert time.monotonic() - begun < delay + AT_ONCE
            canceller.join()
        check_nothing_left(store.daemon.address, store.namespace, store.daemon.folder)


def test_an_overlay_that_refers_to_lower_files_is_compared_by_containerd(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OverlayNotPlain("it has redirect")

    monkeypatch.setattr("pybuild_containerd.changes.upper_entries", refuse)
    ran = bench.run(_busybox(bench), "mkdir /d; echo x > /d/f; rm -r /home")
    assert sorted(_changed(bench, ran.layer), key=lambda e: e[0]) == [
        (b"d", Kind.DIRECTORY),
        (b"d/f", Kind.FILE),
        (b"home", Kind.WHITEOUT),
    ]
    assert bench.run(ran.layer, "cat /d/f").out == "x\n"


# Several builds, and builds that die


def _builds_at_once(stores: list[Callable[[], None]]) -> None:
    failures: list[BaseException] = []
    barrier = Barrier(len(stores))

    def guarded(build: Callable[[], None]) -> None:
        try:
            barrier.wait()
            build()
        except BaseException as error:  # noqa: BLE001 - raised below, in the test's own thread
            failures.append(error)

    threads = [Thread(target=guarded, args=(build,)) for build in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_equal_builds_at_once_all_succeed(store: Store) -> None:
    made = set()

    def build(number: int) -> None:
        with store.open() as backend, Workbench(backend, "") as bench:
            put = bench.put(_busybox(bench), file(b"a", b"same"))
            ran = bench.run(put, "touch -d @7 /ran; touch -d @7 /")
            image = bench.create(ran.layer, f"at-once:{number}")
            validate(backend, image)
            made.add(image.manifest.digest)

    _builds_at_once([partial(build, number) for number in range(4)])
    assert len(made) == 1
    for number in range(4):
        assert store.ctr(
            "run", "--rm", f"docker.io/library/at-once:{number}", f"r{number}", "ls", "/ran"
        )


_KILLED = """
import sys
from pybuild.testkit.baseimages import busybox_entries
from pybuild.testkit.workbench import Workbench
from pybuild_containerd.backend import open_backend

address, namespace, runner = sys.argv[1:]
options = {"address": address, "namespace": namespace, "runner": runner}
with open_backend(options) as backend:
    with Workbench(backend, "") as bench:
        base = bench.put(bench.scratch(), *busybox_entries())
        class Tell(type(bench.activity)):
            def log(self, stream, data):
                print(data.decode(), end="", flush=True)
        bench.run(base, "echo running; sleep 60", activity=Tell())
"""


def test_what_a_killed_build_left_is_removed_by_the_next(store: Store) -> None:
    command = [sys.executable, "-c", _KILLED, store.daemon.address, store.namespace, "task"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "running\n"
        with store.open():
            # a live build's container is left alone
            assert len(store.ctr("tasks", "ls", "-q").split()) == 1
        killed.kill()
    with store.open():
        assert store.ctr("tasks", "ls", "-q") == ""
        assert store.ctr("containers", "ls", "-q") == ""


def test_a_killed_build_takes_its_sandbox_with_it(store: Store) -> None:
    mark = f"61.{os.getpid()}"
    script = _KILLED.replace("sleep 60", f"(sleep {mark} &); sleep {mark}")
    command = [sys.executable, "-c", script, store.daemon.address, store.namespace, "sandbox"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "running\n"
        while len(alive(mark)) < 2:
            assert killed.poll() is None
            time.sleep(0.01)
        killed.kill()
    deadline = time.monotonic() + 10
    while alive(mark) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert alive(mark) == []
    with store.open():
        pass  # removes the snapshot


_ORDINARY = """
import os, sys
from isal import igzip, igzip_lib, isal_zlib
from pybuild.backend import BindMount
from pybuild.files.trees import MemoryTree
from pybuild.testkit.baseimages import busybox_entries
from pybuild.testkit.workbench import Workbench, file
from pybuild_containerd.backend import open_backend

# only now: an ordinary user may not read where Python itself is
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
address, namespace = sys.argv[1:]
with open_backend({"address": address, "namespace": namespace}) as backend:
    assert ("reads snapshots itself", "no") in backend.describe()
    with Workbench(backend, "") as bench:
        base = bench.put(bench.scratch(), *busybox_entries())
        mount = BindMount("/mnt/in", MemoryTree([file(b"f", b"seen")]))
        ran = bench.run(base, "cp /mnt/in/f /f; id -u", [mount])
        assert (ran.code, ran.out) == (0, "0\\n"), ran
        assert [e.path for e in backend._files.index(ran.layer.diff)] == [b"f"]
        bench.create(ran.layer, "by-nobody", cmd=("/bin/cat", "/f"))
"""


def test_a_user_who_can_only_open_the_socket_builds_an_image(store: Store) -> None:
    socket = Path(store.daemon.address)
    before = socket.stat()
    socket.chmod(0o666)
    try:
        command = [sys.executable, "-c", _ORDINARY, str(socket), store.namespace]
        # its temporary files can't be in the folder of this session, which is root's
        environment = {**os.environ, "TMPDIR": "/tmp"}
        subprocess.run(command, check=True, cwd="/", env=environment)
    finally:
        socket.chmod(before.st_mode)
    assert store.ctr("run", "--rm", "docker.io/library/by-nobody:latest", "x") == "seen"


# Opening


def test_a_snapshotter_that_isnt_there_is_said_with_those_that_are(store: Store) -> None:
    with pytest.raises(BackendUnavailable, match="overlayfs"):
        store.open(snapshotter="zfs")


def test_an_unknown_option_is_refused_before_connecting() -> None:
    with pytest.raises(UsageError, match="adress"):
        open_backend({"adress": "/nowhere"})


def test_indexes_of_base_images_are_kept_in_the_cache(store: Store) -> None:
    with store.open() as backend, Workbench(backend, "") as bench:
        bench.create(_busybox(bench), "base")
    for _ in range(2):
        with store.open() as backend, Workbench(backend, "docker.io/library/base:latest") as bench:
            assert bench.base().tree().get(b"etc/passwd") is not None
    (cached,) = (store.cache / "indexes").iterdir()
    cached.write_bytes(b"damaged")
    with store.open() as backend, Workbench(backend, "docker.io/library/base:latest") as bench:
        assert bench.base().tree().get(b"etc/passwd") is not None
    assert cached.read_bytes() != b"damaged"


@pytest.mark.parametrize("other", ["native", "erofs"])
def test_a_build_on_another_snapshotter_makes_the_same_layers(store: Store, other: str) -> None:
    if other == "erofs":
        _skip_without_erofs(store)
    made = []
    for snapshotter in ("overlayfs", other):
        with store.open(snapshotter=snapshotter) as backend, Workbench(backend, "") as bench:
            ran = bench.run(_busybox(bench), "mkdir /d; echo x > /d/f; rm -r /home")
            again = bench.run(ran.layer, "rm -r /d; echo y > /g")
            layers = (ran.layer, again.layer)
            made.append([sorted(_changed(bench, each), key=lambda e: e[0]) for each in layers])
    assert made[0] == made[1]


def _skip_without_erofs(store: Store) -> None:
    with Client(store.daemon.address, store.namespace) as client:
        names = {found.name for found in usable_snapshotters(client)}
    if "erofs" not in names or shutil.which("mkfs.erofs") is None:
        pytest.skip("inherent: this containerd has no erofs snapshotter, or no mkfs.erofs")
