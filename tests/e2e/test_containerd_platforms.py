"""Several platforms in one build, on a real containerd."""

from __future__ import annotations

import tarfile

import pytest
from commandline import CommandLine, OnContainerd

from pybuild.backend import PullPolicy
from pybuild.oci.descriptor import OCI_INDEX, Descriptor
from pybuild.oci.platform import host_platform, parse_platform
from pybuild.oci.reference import parse_reference
from pybuild.sandbox.emulation import executes
from pybuild.testkit.validate import validate_index
from pybuild.testkit.workbench import RecordingActivity, content
from pybuild_containerd.backend import open_backend

pytestmark = [pytest.mark.root, pytest.mark.containerd]

HERE = str(host_platform())
FOREIGN = next(name for name in ("linux/arm64", "linux/s390x") if name != HERE)
CROSS = """\
FROM --platform=$BUILDPLATFORM busybox AS tools
RUN echo the tools are made; cat /proc/sys/kernel/random/uuid > /tools
FROM --platform=$BUILDPLATFORM tools AS build
ARG TARGETPLATFORM
RUN echo made for $TARGETPLATFORM > /out
FROM scratch
COPY --from=build /out /tools /
COPY Dockerfile /
"""


def test_an_index_is_built_whose_platforms_share_a_stage(pybuild: CommandLine) -> None:
    context = pybuild.context(CROSS)
    ended = pybuild.build(
        "--progress=plain", f"--platform={HERE},{FOREIGN}", "-t", "several:1", context
    )
    assert sum(line.endswith(" the tools are made") for line in ended.err.splitlines()) == 1
    size = len(pybuild.blob(ended.digest))
    files = []
    options = {"address": pybuild.daemon.address, "namespace": pybuild.namespace}
    with open_backend(options) as backend:
        validate_index(backend, Descriptor(OCI_INDEX, ended.digest, size))
        for platform in (HERE, FOREIGN):
            activity = RecordingActivity()
            reference = parse_reference("docker.io/library/several:1")
            image = backend.resolve(reference, parse_platform(platform), PullPolicy.NEVER, activity)
            with backend.checkout(image, activity) as layer:
                files.append([content(layer, path) for path in (b"out", b"tools")])
    assert [out for out, _ in files] == [f"made for {p}\n".encode() for p in (HERE, FOREIGN)]
    assert files[0][1] == files[1][1]


def test_containerd_keeps_and_finds_every_platform_of_an_index(pybuild: OnContainerd) -> None:
    context = pybuild.context("FROM scratch\nCOPY Dockerfile /\n")
    ended = pybuild.build(f"--platform={HERE},{FOREIGN}", "-t", "kept:1", context)
    pybuild.collect_garbage()
    manifests = [entry["digest"] for entry in pybuild.manifest(ended.digest)["manifests"]]
    assert [pybuild.config(each)["architecture"] for each in manifests] == [
        HERE.split("/")[1],
        FOREIGN.split("/")[1],
    ]
    blobs = pybuild.ctr("content", "ls").splitlines()
    (labels,) = [line for line in blobs if line.startswith(ended.digest)]
    for number, digest in enumerate(manifests):
        assert f"containerd.io/gc.ref.content.m.{number}={digest}" in labels
    name = "docker.io/library/kept:1"
    for platform, digest in zip((HERE, FOREIGN), manifests, strict=True):
        archive = pybuild.folder / "archive.tar"
        pybuild.ctr("images", "export", "--platform", platform, str(archive), name)
        with tarfile.open(archive) as exported:
            assert f"blobs/{digest.replace(':', '/')}" in exported.getnames()
    names = pybuild.ctr("images", "ls", "-q").split()
    assert not [each for each in names if any(digest in each for digest in manifests)]
    pybuild.ctr("images", "rm", "--sync", name)
    left = pybuild.ctr("content", "ls")
    assert not [digest for digest in (ended.digest, *manifests) if digest in left]


def test_an_index_without_a_name_is_kept(elsewhere: CommandLine) -> None:
    context = elsewhere.context("FROM scratch\nCOPY Dockerfile /\n")
    ended = elsewhere.build(f"--platform={HERE},{FOREIGN}", context)
    assert elsewhere.ctr("images", "ls", "-q").split() == [f"pybuild-dangling@{ended.digest}"]
    assert len(elsewhere.manifest(ended.digest)["manifests"]) == 2


def test_a_run_without_an_emulator_is_refused_with_its_line(pybuild: CommandLine) -> None:
    if executes(FOREIGN.split("/")[1]) is not False:
        pytest.skip(f"inherent: this machine emulates {FOREIGN}")
    text = "FROM scratch\nCOPY Dockerfile /\nRUN true\n"
    said = pybuild.fail(4, f"--platform={HERE},{FOREIGN}", pybuild.context(text))
    assert FOREIGN in said
    assert "Dockerfile:3" in said
    assert "qemu-user-static" in said


def test_the_plan_of_several_platforms_is_shown(pybuild: CommandLine) -> None:
    ended = pybuild.build("--dry-run", f"--platform={HERE},{FOREIGN}", pybuild.context(CROSS))
    assert ended.out.count("RUN echo the tools") == 1
    assert ended.out.count("(target)") == 2
    assert f"config of the image for {FOREIGN}:" in ended.out
