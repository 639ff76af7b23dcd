"""Lock files: what is written of a Dockerfile's images and sources, and builds that keep to it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from building import build, busybox_config, busybox_files, memory_backend

import pybuild
from descriptors import open_below
from pybuild import Lock, LockedImage, PullPolicy, cli
from pybuild.errors import (
    FetchFailed,
    ImageNotFound,
    InvalidImage,
    LockError,
    PybuildError,
    UsageError,
)
from pybuild.lockfile import changes, parse_lock, read_lock
from pybuild.oci.descriptor import Descriptor, digest_of
from pybuild.oci.platform import Platform
from pybuild.oci.reference import parse_reference
from pybuild.plan.steps import ImageSource
from pybuild.testkit.memory import MemoryBackend
from pybuild.testkit.registry import Registry
from serving import Answer, Repository, WebServer

AMD, ARM = Platform("linux", "amd64"), Platform("linux", "arm64")
ONE, TWO, THREE = (digest_of(text) for text in (b"1", b"2", b"3"))
FULL = Lock(
    ("linux/amd64", "linux/arm64"),
    {
        ("docker.io/library/b:1", "linux/arm64"): LockedImage(TWO),
        ("docker.io/library/b:1", "linux/amd64"): LockedImage(ONE, THREE),
        ("host:5000/a:2", "linux/amd64"): LockedImage(THREE),
    },
    {"https://host/x?a=1": ONE, 'https://host/"\\': TWO},
    {"https://host/x.git#main": "ab" * 20},
)


# The file


def test_a_lock_is_text_with_an_entry_a_line_sorted() -> None:
    lines = [line for line in str(FULL).splitlines() if not line.startswith("#")]
    assert lines == [
        "version = 1",
        'platforms = ["linux/amd64", "linux/arm64"]',
        "",
        "[images]",
        f'"docker.io/library/b:1 linux/amd64" = {{ digest = "{ONE}", index = "{THREE}" }}',
        f'"docker.io/library/b:1 linux/arm64" = {{ digest = "{TWO}" }}',
        f'"host:5000/a:2 linux/amd64" = {{ digest = "{THREE}" }}',
        "",
        "[files]",
        f'"https://host/\\"\\\\" = "{TWO}"',
        f'"https://host/x?a=1" = "{ONE}"',
        "",
        "[commits]",
        f'"https://host/x.git#main" = "{"ab" * 20}"',
    ]


@pytest.mark.parametrize("lock", [FULL, Lock(), Lock(("linux/arm/v7",))])
def test_what_was_written_is_read_again(lock: Lock) -> None:
    assert parse_lock(str(lock).encode(), "l") == lock
    assert parse_lock(str(lock).replace("\n", "\r\n").encode(), "l") == lock


def test_it_is_toml() -> None:
    import tomllib  # noqa: PLC0415 - for this test alone

    found = tomllib.loads(str(FULL))
    assert found["platforms"] == list(FULL.platforms)
    assert found["images"]["docker.io/library/b:1 linux/amd64"] == {"digest": ONE, "index": THREE}
    assert found["files"] == FULL.files
    assert found["commits"] == FULL.commits


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"version = 1", "in the lock file twice"),
        (b"colour = 1", 'no value "colour"'),
        (b"what is this", "not what pybuild lock writes"),
        (b"\xff", "no UTF-8"),
        (b"platforms = [" + b'"linux/amd64"   ' * 500 + b"!", "not what pybuild lock writes"),
        (b'platforms = ["no platform!"]', "no platform"),
        (b"[colours]", 'no table "colours"'),
        (b'[images]\n"a" = "b"', "not what pybuild lock writes"),
        (b'[images]\n"a linux/amd64" = { digest = "%b" }' % ONE.encode(), "no full name"),
        (b'[images]\n"host/a:1@%b linux/amd64" = { digest = "x" }' % ONE.encode(), "no full name"),
        (b'[images]\n"host.a/a:1 linux/amd64" = { digest = "sha256:1" }', "no digest"),
        (b'[images]\n"host.a/a:1 nonsense" = { digest = "%b" }' % ONE.encode(), "no platform"),
        (b'[images]\n"host.a/A:1 linux/amd64" = { digest = "x" }', "lower case"),
        (b'[files]\n"u" = "%b"\n"u" = "%b"' % (ONE.encode(), ONE.encode()), "twice"),
        (b'[files]\n"u" = "sha512:1"', "no digest"),
        (b'[commits]\n"u" = "main"', "no whole commit"),
        (b"[files]\n[files]", "twice"),
        (b'[files]\n"u" = 3', "not what pybuild lock writes"),
    ],
)
def test_a_fault_is_told_with_its_line(line: bytes, error: str) -> None:
    content = b"version = 1\n\n# a comment\n" + line
    with pytest.raises(LockError, match=error) as raised:
        parse_lock(content, "x.lock")
    last = content.count(b"\n") + 1
    assert raised.value.where == pybuild.SourceRange("x.lock", last, last)
    assert raised.value.files == {"x.lock": content}


def test_a_file_of_no_version_or_another_one_is_refused() -> None:
    with pytest.raises(LockError, match="no version"):
        parse_lock(b"", "x.lock")
    with pytest.raises(LockError, match="the version 2, not 1"):
        parse_lock(b"version = 2\n", "x.lock")


def test_what_is_no_file_of_a_sensible_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LockError, match="there is no lock file"):
        read_lock(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ""):
        with pytest.raises(LockError, match="can't read the lock file"):
            read_lock(tmp_path / name)
    (tmp_path / "large").write_bytes(b"#" * (1 << 21))
    with pytest.raises(LockError, match="more than"):
        read_lock(tmp_path / "large")


@pytest.mark.skipif(sys.platform != "linux", reason="inherent: asks /proc")
def test_a_lock_file_that_is_refused_is_closed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ""):
        with pytest.raises(LockError):
            read_lock(tmp_path / name)
    assert open_below(tmp_path) == []


def test_changes_are_new_gone_and_other_entries() -> None:
    name = ("host:5000/a:2", "linux/amd64")
    images = {**FULL.images, name: LockedImage(ONE)}
    del images["docker.io/library/b:1", "linux/arm64"]
    after = Lock(FULL.platforms, images, {"https://host/x?a=1": ONE, "https://new": TWO})
    assert list(map(str, changes(FULL, after))) == [
        "docker.io/library/b:1 linux/arm64 is not asked for any more",
        f"host:5000/a:2 linux/amd64 changed from {THREE} to {ONE}",
        'https://host/"\\ is not asked for any more',
        "https://host/x.git#main is not asked for any more",
        f"https://new is new: {TWO}",
    ]
    assert changes(FULL, FULL) == ()


# Making one


@dataclass
class Images:
    """A registry with images; their manifests, and the indexes of those for two platforms."""

    registry: Registry
    manifests: dict[str, dict[str, Descriptor]] = field(default_factory=dict)
    indexes: dict[str, Descriptor] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return self.registry.address

    def add(self, name: str, mark: str = "", **config: Any) -> None:
        """An image for one platform."""
        manifest = self.registry.add_image(f"{name}:latest", document(AMD, mark, config))
        self.manifests[name] = {"linux/amd64": manifest}

    def add_both(self, name: str, mark: str = "") -> None:
        """An index of two images."""
        made = {
            str(one): self.registry.add_image(name, document(one, mark, {})) for one in (AMD, ARM)
        }
        entries = [(made[str(one)], one) for one in (AMD, ARM)]
        self.indexes[name] = self.registry.add_index(f"{name}:latest", entries)
        self.manifests[name] = made

    def locked(self, name: str, platform: str = "linux/amd64") -> LockedImage:
        index = self.indexes.get(name)
        return LockedImage(self.manifests[name][platform].digest, index and index.digest)


def document(platform: Platform, mark: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "os": platform.os,
        "architecture": platform.architecture,
        "config": {"Labels": {"mark": mark}, **config},
        "rootfs": {"type": "layers", "diff_ids": []},
    }


@pytest.fixture
def images() -> Iterator[Images]:
    with Registry() as registry:
        yield Images(registry)


def locked(dockerfile: str, **options: Any) -> Lock:
    options = {"platform": "linux/amd64", **options}
    return pybuild.lock_images(None, dockerfile=dockerfile.encode(), **options)


def test_all_images_of_all_stages_are_locked(images: Images) -> None:
    host = images.host
    for name in ("copied", "mounted", "unused", "replacement"):
        images.add(name, name)
    images.add("base", OnBuild=[f"COPY --from={host}/triggered / /"])
    images.add("triggered")
    images.add_both("both")
    lock = locked(
        f"ARG NAME=both\nFROM {host}/$NAME AS one\nFROM {host}/unused\nFROM {host}/base\n"
        f"COPY --from={host}/copied / /\nRUN --mount=from={host}/mounted,target=/m true\n"
        "COPY --from=replaced / /\nFROM scratch\n",
        contexts={"replaced": f"docker-image://{host}/replacement"},
    )
    names = ["both", "unused", "base", "triggered", "copied", "mounted", "replacement"]
    assert lock == Lock(
        ("linux/amd64",),
        {(f"{host}/{name}:latest", "linux/amd64"): images.locked(name) for name in names},
    )


def test_only_what_a_target_needs_is_locked_for_it(images: Images) -> None:
    images.add("a")
    dockerfile = f"FROM {images.host}/a AS a\nFROM {images.host}/none\n"
    assert len(locked(dockerfile, target="a").images) == 1
    with pytest.raises(ImageNotFound) as raised:
        locked(dockerfile)
    assert raised.value.where is not None
    assert raised.value.where.start_line == 2


def test_several_platforms_are_locked_as_builders_too(images: Images) -> None:
    images.add_both("a")
    images.add_both("tools")
    host = images.host
    lock = locked(
        f"FROM --platform=$BUILDPLATFORM {host}/tools\nFROM {host}/a\n",
        platform="linux/amd64,linux/arm64",
    )
    assert lock.platforms == ("linux/amd64", "linux/arm64")
    assert lock.images == {
        (f"{host}/{name}:latest", platform): images.locked(name, platform)
        for name in ("a", "tools")
        for platform in lock.platforms
    }
    # each is asked for once
    assert len(images.registry.requested("GET", "/tools/manifests/latest")) == 2


def test_an_image_with_a_digest_is_not_locked_but_must_be_there(images: Images) -> None:
    images.add("a")
    name = f"{images.host}/a@{images.manifests['a']['linux/amd64'].digest}"
    assert locked(f"FROM {name}\n").images == {}
    with pytest.raises(ImageNotFound):
        locked(f"FROM {images.host}/a@{ONE}\n")


def test_sources_of_add_are_locked_without_their_logins() -> None:
    with WebServer() as server:
        server.answers["/f"] = server.answers["/g"] = Answer(b"content")
        digest = digest_of(b"content")
        url = f"http://me:pw@{server.host}/f"
        lock = locked(
            f"FROM scratch\nADD {url} {url} /\nADD --checksum={digest} {server.url}/g /\n"
        )
        assert lock.files == {f"{server.url}/f": digest}
        assert [one.path for one in server.asked] == ["/f"]


@pytest.mark.git
def test_commits_of_repositories_are_locked(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "r.git")
    first = repository.commit({"file": "1", "sub/file": "1"})
    repository.git("tag", "--annotate", "--message=x", "v1")
    second = repository.commit({"file": "2"})
    repository.publish()
    with WebServer(tmp_path) as server:
        url = f"{server.url}/r.git"
        dockerfile = f"FROM scratch\nADD {url} /a\nADD {url}#v1:sub /b\nADD {url}#v1 /c\nADD {url}#{first} /d\n"
        lock = locked(dockerfile)
        assert lock.commits == {url: second, f"{url}#v1": first}
        # a branch that moves doesn't change the build
        backend = memory_backend()
        before = build(backend, dockerfile, locked=lock, created=1).digest
        repository.commit({"file": "3"})
        repository.publish()
        assert build(backend, dockerfile, locked=lock, created=1).digest == before
        assert build(backend, dockerfile, created=1).digest != before
        assert len(changes(lock, locked(dockerfile))) == 1


# Building with one


@pytest.fixture
def backend() -> Iterator[MemoryBackend]:
    with memory_backend() as backend:
        yield backend


def lock_of(backend: MemoryBackend, name: str = "busybox") -> Lock:
    image = backend.resolve(parse_reference(f"{name}:latest"), AMD, PullPolicy.NEVER, Quiet())
    images = {(f"docker.io/library/{name}:latest", "linux/amd64"): LockedImage(image.digest)}
    return Lock(("linux/amd64",), images)


class Quiet:
    def raise_if_cancelled(self) -> None: ...


def test_a_build_takes_the_locked_image_whatever_the_name_means_now(
    backend: MemoryBackend,
) -> None:
    dockerfile = "FROM busybox\nRUN echo x > /x\n"
    lock = lock_of(backend)
    before = build(backend, dockerfile, created=1)
    backend.add_image("kept", busybox_config(), busybox_files())  # as a registry has it
    backend.add_image("busybox", busybox_config(labels={"a": "b"}), busybox_files())
    again = build(backend, dockerfile, locked=lock, created=1, pull=True)
    assert again.digest == before.digest
    assert again.steps[0].cached
    assert build(backend, dockerfile, created=1).digest != before.digest


def test_a_name_that_is_not_locked_is_refused_with_its_line_before_anything_runs(
    backend: MemoryBackend,
) -> None:
    backend.add_image("other")
    ran: list[object] = []
    backend.runner = lambda *arguments: ran.append(arguments)  # type: ignore[assignment, func-returns-value]
    text = "FROM busybox AS first\nRUN x\nFROM busybox\nRUN x\nCOPY --from=other / /\n"
    with pytest.raises(LockError, match="other:latest is not in the lock file") as raised:
        build(backend, text, locked=lock_of(backend))
    assert raised.value.where == pybuild.SourceRange("Dockerfile", 5, 5)
    assert ran == []


def test_a_platform_that_is_not_locked_is_refused_with_what_to_do(backend: MemoryBackend) -> None:
    with pytest.raises(LockError, match=r"locked for linux/amd64, not for linux/arm64") as raised:
        build(backend, "FROM busybox\n", locked=lock_of(backend), platform="linux/arm64")
    assert raised.value.hint == "pybuild lock --platform linux/amd64,linux/arm64"


def test_an_index_that_leads_elsewhere_is_refused(backend: MemoryBackend) -> None:
    (image,) = lock_of(backend).images.values()
    name = ("docker.io/library/busybox:latest", "linux/amd64")
    lock = Lock((), {name: LockedImage(ONE, image.digest)})
    with pytest.raises(InvalidImage, match="its index leads to"):
        build(backend, "FROM busybox\n", locked=lock)


def test_images_with_digests_need_no_lock(backend: MemoryBackend) -> None:
    (image,) = lock_of(backend).images.values()
    build(backend, f"FROM busybox@{image.digest}\n", locked=Lock())
    build(backend, "FROM scratch\nENV A=b\n", locked=Lock())


def test_a_file_that_changed_since_is_refused(backend: MemoryBackend) -> None:
    with WebServer() as server:
        server.answers["/f"] = Answer(b"before")
        text = f"FROM scratch\nADD {server.url}/f /\n"
        lock = locked(text)
        assert build(backend, text, locked=lock).digest
        server.answers["/f"] = Answer(b"after")
        with pytest.raises(FetchFailed, match="digest mismatch") as raised:
            build(backend, text, locked=lock)
        assert raised.value.where is not None
        with pytest.raises(LockError, match="/f is not in the lock file") as missing:
            build(backend, text, locked=Lock())
        assert missing.value.where == pybuild.SourceRange("Dockerfile", 2, 2)


def test_a_dry_run_keeps_to_the_lock(backend: MemoryBackend) -> None:
    text = b"FROM busybox\n"
    planned = pybuild.plan_build(None, dockerfile=text, backend=backend, locked=lock_of(backend))
    parent = planned.plan.target.parent
    assert isinstance(parent, ImageSource)
    with pytest.raises(LockError):
        pybuild.plan_build(None, dockerfile=text, backend=backend, locked=Lock())


# The command


@pytest.fixture
def context(tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch) -> Path:
    images.add_both("base", "first")
    (tmp_path / "Dockerfile").write_text(f"FROM {images.host}/base\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "home"))
    return tmp_path


def test_the_command_writes_checks_and_updates(
    context: Path, images: Images, capsys: pytest.CaptureFixture[str]
) -> None:
    path = context / "pybuild.lock"
    words = ["lock", str(context)]
    both = "--platform=linux/amd64,linux/arm64"
    assert cli.main([*words, both]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {path}"
    written = path.read_bytes()
    # the platforms of the file stay
    assert cli.main([*words, "--check"]) == 0
    assert capsys.readouterr().out == f"{path} is up to date\n"
    images.add_both("base", "second")
    assert cli.main([*words, "--check"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(" changed from ")[0] for line in told] == [
        f"{images.host}/base:latest linux/amd64",
        f"{images.host}/base:latest linux/arm64",
    ]
    assert path.read_bytes() == written
    assert cli.main(words) == 0
    assert read_lock(path).images[f"{images.host}/base:latest", "linux/arm64"] == images.locked(
        "base", "linux/arm64"
    )
    assert path.stat().st_mode & 0o111 == 0


def test_a_lock_file_may_be_elsewhere(context: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = context / "other.lock"
    assert cli.main(["lock", "-o", str(other), "-f", str(context / "Dockerfile"), "/"]) == 0
    assert other.exists()
    assert not (context / "pybuild.lock").exists()
    assert cli.main(["--backend=none", "--dry-run", f"--locked={other}", str(context)]) == 0
    capsys.readouterr()
    assert cli.main(["--backend=none", "--dry-run", "--locked", str(context)]) == 2
    assert "there is no lock file" in capsys.readouterr().err


def test_what_is_no_lock_file_is_not_replaced(
    context: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, precious = context / "pybuild.lock", context / "precious"
    precious.write_text("precious\n")
    assert cli.main(["lock", "-o", str(precious), str(context)]) == 2
    assert f"--> {precious}:1\n 1 | precious\n" in capsys.readouterr().err
    path.symlink_to(precious)
    for words in (["lock"], ["lock", "--check"], ["--backend=none", "--dry-run", "--locked"]):
        assert cli.main([*words, str(context)]) == 2
        shown = capsys.readouterr().err
        assert "is a link" in shown
        assert " | " not in shown
    assert precious.read_text() == "precious\n"


def test_a_context_that_is_no_folder_needs_the_lock_file_named() -> None:
    for name in (None, "sub/Dockerfile"):
        with pytest.raises(UsageError, match="the Dockerfile is in no folder"):
            pybuild.build("https://host/context.tar", dockerfile=name, locked=True)


def test_what_is_there_beside_the_dockerfile_in_a_subfolder_is_used(context: Path) -> None:
    (context / "sub").mkdir()
    (context / "sub" / "Dockerfile").write_text("FROM scratch\nENV A=b\n")
    with pytest.raises(LockError, match=r"sub/pybuild\.lock"):
        pybuild.plan_build(context, dockerfile="sub/Dockerfile", locked=True)
    (context / "sub" / "pybuild.lock").write_text(str(Lock()))
    assert pybuild.plan_build(context, dockerfile="sub/Dockerfile", locked=True).plan


def test_an_error_of_the_lock_file_shows_its_line(
    context: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (context / "pybuild.lock").write_text("version = 1\n[images]\n<<<<<<< HEAD\n")
    assert cli.main(["--backend=none", "--dry-run", "--locked", str(context)]) == 2
    shown = capsys.readouterr().err
    assert "pybuild.lock:3\n 3 | <<<<<<< HEAD\n" in shown
    assert "hint: remove the file, and pybuild lock writes it anew" in shown


def test_a_build_without_a_lock_loads_nothing_of_it() -> None:
    import sys  # noqa: PLC0415 - a process of its own

    script = (
        "import sys, pybuild.api, pybuild.cli\n"
        "print(*(n for n in sys.modules if n.startswith(('pybuild.lock', 'pybuild.pinning'))))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert done.stdout.split() == []


def test_what_a_lock_error_is() -> None:
    assert issubclass(LockError, PybuildError)
    assert LockError.exit_code == 2
