"""Hostile repositories and servers behind ADD and contexts: none reaches a file of the host."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from threatening import host_state

import pybuild
from pybuild.errors import ContextError, FetchFailed, PybuildError, UsageError
from pybuild.files.trees import walk
from pybuild.oci.image_config import ImageConfig
from pybuild.oci.layerindex import Kind
from pybuild.oci.reference import parse_reference
from pybuild.remotes.locations import parse_git
from pybuild.remotes.options import RemoteOptions
from pybuild.testkit.memory import MemoryBackend
from pybuild.testkit.workbench import RecordingActivity
from serving import Answer, Repository, WebServer

pytestmark = pytest.mark.git

SECRET = b"host secret\n"
COPY = b"FROM scratch\nCOPY dir/secret /\n"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder of the host with a secret and a repository in it, which must stay as it is."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(SECRET)
    victim = Repository(folder / "victim.git")
    victim.commit({"secret": SECRET.decode()})
    victim.publish()
    before = host_state(folder)
    yield folder
    assert host_state(folder) == before


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[tuple[Repository, WebServer]]:
    """A repository, and the server that serves it once it is published."""
    repository = Repository(tmp_path / "served" / "hostile.git")
    with WebServer(tmp_path / "served") as server:
        yield repository, server


def add(source: str, **options: bool) -> dict[str, bytes]:
    """The content of an image with `source` added; links are told by what they hold."""
    found: dict[str, bytes] = {}
    with MemoryBackend() as backend:
        pybuild.build(
            None,
            dockerfile=f"FROM scratch\nADD {source} /\n".encode(),
            backend=backend,
            tags=["app"],
            remotes=RemoteOptions(search_path=os.environ["PATH"], **options),
        )
        activity = RecordingActivity()
        image = backend.resolve(
            parse_reference("app:latest"),
            backend.platforms[0],
            pybuild.PullPolicy.NEVER,
            activity,
        )
        with backend.checkout(image, activity) as layer:
            tree = layer.tree()
            for entry in walk(tree, b""):
                if entry.kind is Kind.FILE:
                    with tree.open(entry.path) as stream:
                        found[entry.path.decode()] = stream.read()
                elif entry.kind is Kind.SYMLINK:
                    found[entry.path.decode()] = b"-> " + entry.link
    return found


@pytest.mark.parametrize(
    "url",
    [
        "{outside}/victim.git",
        "file://{outside}/victim.git",
        "ext::sh -c 'touch {outside}/touched'",
        "--upload-pack=touch {outside}/touched",
        "-u{outside}/x",
        "ssh://-oProxyCommand=touch%20{outside}/touched/x",
        "fd::17",
        "../../outside/victim.git",
        "../hostile.git\n\tupdate = !touch {outside}/touched",
    ],
)
def test_a_submodule_leads_to_no_file_and_no_program_of_the_host(
    outside: Path, hostile: tuple[Repository, WebServer], url: str
) -> None:
    """git CVE-2018-17456, CVE-2022-39253 and their like."""
    repository, server = hostile
    commit = repository.commit({"file": "x"})
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{commit},mod")
    (repository.work / ".gitmodules").write_text(
        f'[submodule "mod"]\n\tpath = mod\n\turl = {url.format(outside=outside)}\n'
    )
    repository.git("add", ".gitmodules")
    repository.git("commit", "--quiet", "--message=hostile")
    repository.publish()
    with pytest.raises(FetchFailed, match="git submodule failed"):
        add(f"{server.url}/hostile.git")
    assert add(f"{server.url}/hostile.git?submodules=false")["file"] == b"x"


def test_links_out_of_a_repository_are_links_in_the_image(
    outside: Path, hostile: tuple[Repository, WebServer]
) -> None:
    repository, server = hostile
    (repository.work / "abs").symlink_to(outside / "secret")
    (repository.work / "up").symlink_to("../../../../../../outside/secret")
    (repository.work / "dir").symlink_to(outside)
    (repository.work / "Dockerfile").symlink_to(outside / "secret")
    repository.commit({"file": "x"})
    repository.publish()
    url = f"{server.url}/hostile.git"
    found = add(url)
    assert SECRET not in found.values()
    assert found["abs"] == f"-> {outside}/secret".encode()
    options = RemoteOptions(search_path=os.environ["PATH"])
    for context in (url, f"{url}#:dir", f"{url}#main:up", f"{url}#main:../../../outside"):
        with MemoryBackend() as backend, pytest.raises((ContextError, FetchFailed)) as caught:
            pybuild.build(context, backend=backend, remotes=options)
        assert SECRET.decode().strip() not in str(caught.value)
    with MemoryBackend() as backend, pytest.raises(PybuildError):
        pybuild.build(url, dockerfile=COPY, backend=backend, remotes=options)


def test_a_repository_of_links_gives_nothing_even_where_files_may_be_read(
    outside: Path, tmp_path: Path
) -> None:
    """GHSA-vp35-85q5-9f25: a clone from a folder whose .git/objects is a link."""
    repository = Repository(tmp_path / "linked.git")
    repository.commit({"file": "x"})
    repository.publish()
    shutil.move(repository.folder / "objects", tmp_path / "objects")
    (repository.folder / "objects").symlink_to(tmp_path / "objects")
    (tmp_path / "objects" / "link").symlink_to(outside / "secret")
    (tmp_path / "objects" / "info" / "alternates").write_text(f"{outside}/victim.git/objects\n")
    source = f"git@127.0.0.1:{repository.folder}"
    with pytest.raises(FetchFailed):
        add(source)  # ssh, where nothing listens
    with pytest.raises(UsageError):
        parse_git(f"file://{repository.folder}")


def test_nothing_that_a_repository_brings_is_executed(
    outside: Path, hostile: tuple[Repository, WebServer]
) -> None:
    repository, server = hostile
    touch = f"touch {outside}/touched"
    repository.commit(
        {
            ".gitattributes": "* filter=evil diff=evil merge=evil\n",
            ".gitconfig": f'[filter "evil"]\n\tsmudge = {touch}\n[core]\n\tfsmonitor = {touch}\n',
            "hooks/post-checkout": f"#!/bin/sh\n{touch}\n",
            ".githooks/post-checkout": f"#!/bin/sh\n{touch}\n",
            "bare/HEAD": "ref: refs/heads/main\n",
            "bare/config": f"[core]\n\tbare = true\n\tfsmonitor = {touch}\n\thooksPath = hooks\n",
            "bare/objects/x": "",
            "bare/refs/x": "",
        }
    )
    (repository.work / "hooks/post-checkout").chmod(0o755)
    repository.commit({})
    repository.publish()
    for tail in ("", "?keep-git-dir", "#:bare"):
        add(f"{server.url}/hostile.git{tail}")


@pytest.mark.parametrize(
    "listed",
    [
        b"",
        b"\0\xff" * 1000,
        b"not a commit\trefs/heads/main\n",
        b"-" * 40 + b"\trefs/heads/main\n",
        b"1" * 40 + b"\trefs/heads/main\n",
    ],
)
def test_a_server_that_lies_about_its_refs_gets_an_error(listed: bytes) -> None:
    with WebServer() as server:
        server.answers["/a.git/info/refs"] = Answer(listed)
        server.answers["/a.git/HEAD"] = Answer(b"ref: refs/heads/main\n")
        with pytest.raises(FetchFailed) as caught:
            add(f"{server.url}/a.git#main")
    assert str(caught.value).isprintable()


def test_git_follows_a_redirect_to_no_other_protocol(outside: Path) -> None:
    with WebServer() as server:
        for target in (f"file://{outside}/victim.git/info/refs", "ext::true/info/refs"):
            server.answers["/a.git/info/refs"] = Answer(status=302, headers={"Location": target})
            with pytest.raises(FetchFailed):
                add(f"{server.url}/a.git")


@pytest.mark.parametrize(
    "name", ["..%2f..%2fetc%2fcron.d%2fx", "%2e%2e", "a%00b", "%2fetc%2fpasswd"]
)
def test_the_name_of_a_file_leads_nowhere(name: str) -> None:
    with WebServer() as server:
        disposition = {"Content-Disposition": "attachment; filename=../../evil"}
        server.otherwise = Answer(b"x", headers=disposition)
        (path,) = add(f"{server.url}/{name}")
    assert path in {"x", "passwd", "__unnamed__"}


def test_a_trigger_of_a_base_image_fetches_as_the_caller_allows() -> None:
    """An ONBUILD ADD of an address inside the network, which the image's author can't reach."""
    with WebServer() as server, MemoryBackend() as backend:
        server.answers["/x"] = Answer(b"internal")
        config = ImageConfig(backend.platforms[0], onbuild=(f"ADD {server.url}/x /",))
        backend.add_image("base", config)
        with pytest.raises(FetchFailed, match="no public address"):
            pybuild.build(
                None,
                dockerfile=b"FROM base\n",
                backend=backend,
                remotes=RemoteOptions(public_only=True),
            )
        assert server.asked == []
