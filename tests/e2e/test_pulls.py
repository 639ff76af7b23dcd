"""Base images from registries, through the command line into both backends."""

from __future__ import annotations

import base64
import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from commandline import CommandLine, OnContainerd, OnEmbedded
from test_docker_registry import HTPASSWD, copy, layer, running_registry

from pybuild.oci.descriptor import Descriptor, digest_of
from pybuild.oci.layerwriter import write_layer
from pybuild.oci.platform import Platform, host_platform, parse_platform
from pybuild.testkit.baseimages import busybox_entries
from pybuild.testkit.registry import Fault, Registry

OTHER = next(p for p in ("linux/arm64", "linux/amd64") if parse_platform(p) != host_platform())


@pytest.fixture(params=["containerd", "embedded"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@functools.cache
def busybox_layer() -> tuple[bytes, str]:
    parts: list[bytes] = []
    written = write_layer(busybox_entries(), parts.append)
    return b"".join(parts), written.diff.diff_id


def config(platform: Platform, *diff_ids: str, **members: Any) -> dict[str, Any]:
    return {
        "os": platform.os,
        "architecture": platform.architecture,
        **({"variant": platform.variant} if platform.variant else {}),
        "config": members,
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }


def add_busybox(registry: Registry, name: str, *extra: tuple[bytes, str]) -> Descriptor:
    """A runnable image; `extra` are layers with their diff ids."""
    layers = [busybox_layer(), *extra]
    found = config(host_platform(), *(diff_id for _, diff_id in layers), Env=["PATH=/bin"])
    return registry.add_image(name, found, [blob for blob, _ in layers])


def add_platform(registry: Registry, name: str, platform: str) -> Descriptor:
    """An image with one file, for any platform, that says in a label for which."""
    blob, diff_id = layer(f"for-{platform.replace('/', '-')}", 1000)
    parsed = parse_platform(platform)
    return registry.add_image(name, config(parsed, diff_id, Labels={"for": platform}), [blob])


def labels(pybuild: CommandLine, digest: str) -> Any:
    return pybuild.config(digest)["config"]["Labels"]


def login(folder: Path, address: str, password: str) -> dict[str, str]:
    """The environment with a docker config.json."""
    auth = base64.b64encode(f"me:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {address: {"auth": auth}}}))
    return {"DOCKER_CONFIG": str(folder)}


# Names, platforms


def test_from_dockers_registry_by_tag_and_by_digest(elsewhere: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    folder.mkdir()
    with Registry() as ours, running_registry(folder) as theirs:
        manifest = add_busybox(ours, "busybox:1")
        name = f"{theirs.address}/team/busybox"
        copy(folder, f"{ours.address}/busybox:1", f"{name}:1")
        for number, source in enumerate((f"{name}:1", f"{name}@{manifest.digest}")):
            context = elsewhere.context(f"FROM {source}\nRUN echo ran > /ran\nCMD cat /ran\n")
            elsewhere.build("-t", f"pulled:{number}", context)
            assert elsewhere.run(f"pulled:{number}") == "ran\n"
        assert f"{name}:1" in elsewhere.images()
        said = elsewhere.fail(3, elsewhere.context(f"FROM {name}:2\n"))
        assert f"{name}:2" in said
        assert "Dockerfile:1" in said
        wrong = f"sha256:{'0' * 64}"
        assert wrong in elsewhere.fail(3, elsewhere.context(f"FROM {name}@{wrong}\n"))


def test_the_platform_asked_for_is_taken_from_an_index(
    elsewhere: CommandLine, registry: Registry
) -> None:
    names = ["linux/arm/v6", "linux/arm/v7", "linux/arm64", "linux/amd64", "linux/s390x"]
    found = [(add_platform(registry, "app", name), parse_platform(name)) for name in names]
    registry.add_index("app:1", found)
    context = elsewhere.context(f"FROM {registry.address}/app:1\nCOPY Dockerfile /\n")
    for asked, expected in {
        "linux/arm64": "linux/arm64",
        "linux/arm64/v8": "linux/arm64",
        "linux/s390x": "linux/s390x",
        "linux/arm": "linux/arm/v7",
        "linux/arm/v6": "linux/arm/v6",
        "linux/arm/v8": "linux/arm/v7",
    }.items():
        ended = elsewhere.build(f"--platform={asked}", context)
        assert labels(elsewhere, ended.digest) == {"for": expected}, asked
        assert "WARN" not in ended.err
    own = elsewhere.build(context)
    assert labels(elsewhere, own.digest) == {"for": f"linux/{host_platform().architecture}"}
    said = elsewhere.fail(3, "--platform=linux/riscv64", context)
    assert "linux/riscv64" in said
    assert "linux/s390x" in said  # one of those that there are


def test_from_with_a_platform_of_its_own(elsewhere: CommandLine, registry: Registry) -> None:
    names = ["linux/arm64", "linux/amd64"]
    found = [(add_platform(registry, "app", name), parse_platform(name)) for name in names]
    registry.add_index("app:1", found)
    dockerfile = f"FROM --platform={OTHER} {registry.address}/app:1\nCOPY Dockerfile /\n"
    ended = elsewhere.build(elsewhere.context(dockerfile))
    assert labels(elsewhere, ended.digest) == {"for": OTHER}


def test_a_local_image_of_another_platform_is_pulled_again_or_refused(
    elsewhere: CommandLine, registry: Registry
) -> None:
    names = ["linux/arm64", "linux/amd64"]
    found = [(add_platform(registry, "app", name), parse_platform(name)) for name in names]
    registry.add_index("app:1", found)
    context = elsewhere.context(f"FROM {registry.address}/app:1\nCOPY Dockerfile /\n")
    elsewhere.build(f"--platform={OTHER}", context)
    said = elsewhere.fail(3, "--pull=never", context)
    assert str(host_platform()) in said
    ended = elsewhere.build(context)
    assert labels(elsewhere, ended.digest) != {"for": OTHER}
    elsewhere.build("--pull=never", context)


def test_a_config_of_another_platform_is_warned_of_with_both(
    elsewhere: CommandLine, registry: Registry
) -> None:
    add_platform(registry, "liar:1", OTHER)
    context = elsewhere.context(f"FROM {registry.address}/liar:1\nCOPY Dockerfile /\n")
    ended = elsewhere.build(context)
    warnings = [line for line in ended.err.splitlines() if "InvalidBaseImagePlatform" in line]
    assert warnings
    assert all(OTHER in line and str(host_platform()) in line for line in warnings)


# Logins and mirrors


@pytest.mark.parametrize("tokens", [False, True], ids=["basic", "tokens"])
def test_a_login_from_dockers_config(elsewhere: CommandLine, tokens: bool) -> None:
    with Registry(username="me", password="pw", tokens=tokens) as registry:
        add_busybox(registry, "private:1")
        context = elsewhere.context(f"FROM {registry.address}/private:1\nRUN true\n")
        said = elsewhere.fail(3, context)
        assert f"docker login {registry.address}" in said
        wrong = login(elsewhere.home, registry.address, "guessed")
        said = elsewhere.fail(3, context, env=wrong)
        assert f"docker login {registry.address}" in said
        assert "guessed" not in said
        elsewhere.build(context, env=login(elsewhere.home, registry.address, "pw"))


def test_a_login_at_dockers_registry(elsewhere: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    folder.mkdir()
    with Registry() as ours, running_registry(folder, HTPASSWD) as theirs:
        add_busybox(ours, "busybox:1")
        source, target = f"{ours.address}/busybox:1", f"{theirs.address}/busybox:1"
        copy(folder, source, target, "--dest-creds", "me:pw")
        context = elsewhere.context(f"FROM {target}\nRUN true\n")
        said = elsewhere.fail(3, context)
        assert f"docker login {theirs.address}" in said
        assert "Dockerfile:1" in said
        elsewhere.build(context, env=login(elsewhere.home, theirs.address, "pw"))


def test_a_mirror_answers_for_another_registry(
    elsewhere: CommandLine, registry: Registry, tmp_path: Path
) -> None:
    add_busybox(registry, "team/app:1")
    folder = tmp_path / "hosts" / "far.example"
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(
        f'server = "http://127.0.0.1:1"\n[host."{registry.url}"]\n'
        'capabilities = ["pull", "resolve"]\n'
    )
    context = elsewhere.context("FROM far.example/team/app:1\nRUN true\n")
    elsewhere.build("--hosts-dir", folder.parent, context)
    assert "far.example/team/app:1" in elsewhere.images()
    assert registry.requested("GET", r"/v2/team/app/blobs/")


# Policies


def test_policies_say_when_the_registry_is_asked(
    elsewhere: CommandLine, registry: Registry
) -> None:
    add_busybox(registry, "app:1")
    context = elsewhere.context(f"FROM {registry.address}/app:1\nRUN cat /etc/hostname; true\n")
    said = elsewhere.fail(3, "--pull=never", context)
    assert f"{registry.address}/app:1" in said
    assert registry.requests == []
    elsewhere.build(context)
    asked = len(registry.requests)
    assert asked
    elsewhere.build(context)
    elsewhere.build("--pull=never", context)
    assert len(registry.requests) == asked
    add_busybox(registry, "app:1", layer("newer", 10))
    elsewhere.build("--pull=missing", context)
    assert len(registry.requests) == asked
    for option in ("--pull", "--pull=always"):
        ended = elsewhere.build(option, context)
        assert len(registry.requests) > asked
        asked = len(registry.requests)
        assert layer("newer", 10)[1] in elsewhere.diff_ids(ended.digest)


# What goes wrong on the way


def test_an_interrupted_download_is_resumed(elsewhere: CommandLine, registry: Registry) -> None:
    big = layer("big", 3_000_000)
    add_busybox(registry, "app:1", big)
    digest = digest_of(big[0])
    registry.add_fault(Fault(rf"blobs/{digest}", truncate=1_000_000))
    registry.add_fault(Fault(rf"blobs/{digest}", truncate=500_000))
    elsewhere.build(elsewhere.context(f"FROM {registry.address}/app:1\nRUN test -f /big\n"))
    requests = registry.requested("GET", rf"blobs/{digest}")
    offsets = [re.fullmatch(r"bytes=(\d+)-.*", r.headers.get("range", "")) for r in requests]
    assert offsets[0] is None
    resumed = [int(found[1]) for found in offsets[1:] if found]
    assert len(resumed) == len(requests) - 1 == 2
    assert all(offset > 0 for offset in resumed)
    assert digest in elsewhere.blobs()


@pytest.mark.parametrize("longer", [False, True], ids=["the same length", "longer"])
def test_wrong_bytes_are_refused_and_not_stored(
    elsewhere: CommandLine, registry: Registry, longer: bool
) -> None:
    good, diff_id = layer("big", 300_000)
    wrong = good + b"x" if longer else bytes(len(good))
    add_busybox(registry, "app:1", (good, diff_id))
    registry.add_fault(Fault(rf"blobs/{digest_of(good)}", times=None, content=wrong))
    said = elsewhere.fail(
        3, elsewhere.context(f"FROM {registry.address}/app:1\nRUN true\n"), timeout=60
    )
    assert digest_of(good) in said
    assert "Dockerfile:1" in said
    assert not elsewhere.blobs() & {digest_of(good), digest_of(wrong)}
    if isinstance(elsewhere, OnContainerd):  # a store may know an image before it has its layers
        assert elsewhere.images() == set()


def test_a_layer_that_isnt_what_the_config_says_is_refused(
    elsewhere: CommandLine, registry: Registry
) -> None:
    add_busybox(registry, "app:1", (layer("one", 10)[0], layer("two", 10)[1]))
    said = elsewhere.fail(3, elsewhere.context(f"FROM {registry.address}/app:1\nRUN true\n"))
    assert layer("two", 10)[1] in said


def test_a_manifest_of_another_digest_is_refused(
    elsewhere: CommandLine, registry: Registry
) -> None:
    asked, other = add_busybox(registry, "app:1"), add_busybox(registry, "b:1", layer("x", 9))
    registry.add_fault(
        Fault(rf"manifests/{asked.digest}", times=None, content=registry.read_manifest("b:1")[1])
    )
    context = elsewhere.context(f"FROM {registry.address}/app@{asked.digest}\nRUN true\n")
    assert asked.digest in elsewhere.fail(3, context)
    assert other.digest not in elsewhere.blobs()


def test_a_registry_that_fails_for_a_while_is_asked_again(
    elsewhere: CommandLine, registry: Registry
) -> None:
    add_busybox(registry, "app:1")
    registry.add_fault(Fault("manifests/", status=503, headers={"Retry-After": "0"}))
    registry.add_fault(Fault("blobs/", reset=True))
    elsewhere.build(elsewhere.context(f"FROM {registry.address}/app:1\nRUN true\n"))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("manifests/", times=None, status=500), "500"),
        (
            Fault("manifests/", times=None, status=429, headers={"Retry-After": "0"}),
            "no more requests",
        ),
        (Fault("manifests/", times=None, content=b"{"), "manifest"),
        (Fault("manifests/", times=None, content=b"<html>"), "manifest"),
    ],
)
def test_a_broken_registry_is_said(
    elsewhere: CommandLine, registry: Registry, fault: Fault, says: str
) -> None:
    add_busybox(registry, "app:1")
    registry.add_fault(fault)
    context = elsewhere.context(f"FROM {registry.address}/app:1\nRUN true\n")
    said = elsewhere.fail(3, context, timeout=120)
    assert says in said
    assert "Dockerfile:1" in said


# Repair


@pytest.mark.parametrize("backend", ["containerd"])
def test_what_was_removed_from_containerd_is_repaired(
    elsewhere: OnContainerd, registry: Registry
) -> None:
    extra = layer("extra", 20_000)
    add_busybox(registry, "app:1", extra)
    context = elsewhere.context(f"FROM {registry.address}/app:1\nRUN echo x > /x\n")
    elsewhere.build("-t", "built", context)
    chains = {line.split()[0]: line.split()[1] for line in _snapshots(elsewhere)}
    for name in sorted(chains, key=lambda name: _depth(name, chains), reverse=True):
        try:
            elsewhere.ctr("snapshots", "rm", name)
        except AssertionError as error:  # containerd may have collected it meanwhile
            assert "not found" in str(error)  # noqa: PT017 - nothing has to be raised
    ended = elsewhere.build("-t", "built", context)
    assert len(_snapshots(elsewhere)) == len(elsewhere.diff_ids(ended.digest))
    assert elsewhere.run("built:latest", "cat", "/x") == "x\n"
    asked = len(registry.requests)
    elsewhere.ctr("content", "rm", digest_of(extra[0]))
    ended = elsewhere.build("-t", "built", context)
    assert digest_of(extra[0]) in elsewhere.blobs()
    assert len(registry.requests) > asked
    assert "complete" in elsewhere.ctr("images", "check", "name==docker.io/library/built:latest")


@pytest.mark.parametrize("backend", ["embedded"])
def test_what_was_removed_from_the_store_is_repaired(
    elsewhere: OnEmbedded, registry: Registry
) -> None:
    extra = layer("extra", 20_000)
    add_busybox(registry, "app:1", extra)
    context = elsewhere.context(f"FROM {registry.address}/app:1\nRUN echo x > /x\n")
    ended = elsewhere.build("-t", "built", context)
    (name,) = (elsewhere.root / "blobs").rglob(digest_of(extra[0]).partition(":")[2])
    name.unlink()
    for folder in (elsewhere.root / "layers").iterdir():
        shutil.rmtree(folder)
    again = elsewhere.build("--no-cache", "-t", "built", context)
    assert elsewhere.diff_ids(again.digest)[:-1] == elsewhere.diff_ids(ended.digest)[:-1]
    assert digest_of(extra[0]) in elsewhere.blobs()
    assert elsewhere.run("built:latest", "cat", "/x") == "x\n"
    elsewhere.build("fsck", "--repair")  # the layer that nothing needed any more


def _snapshots(command: OnContainerd) -> list[str]:
    command.collect_garbage()
    rows = command.ctr("snapshots", "ls").splitlines()[1:]
    return [row if len(row.split()) == 3 else f"{row.split()[0]} - Committed" for row in rows]


def _depth(name: str, parents: dict[str, str]) -> int:
    depth = 0
    while name in parents:
        name, depth = parents[name], depth + 1
    return depth
