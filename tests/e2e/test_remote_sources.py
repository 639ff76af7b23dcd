"""Sources from elsewhere through the command and a real containerd: contexts, ADD, layouts, secrets."""

from __future__ import annotations

import json
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from commandline import CommandLine

from pybuild.testkit.baseimages import busybox_layout
from searching import contents
from serving import Answer, Repository, WebServer

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.git]

CANARY = "canary-5b1f"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WebServer]:
    (tmp_path / "served").mkdir()
    with WebServer(tmp_path / "served") as server:
        yield server


@pytest.fixture
def repository(tmp_path: Path, server: WebServer) -> str:
    """The URL of a repository with a Dockerfile."""
    assert server.root is not None
    made = Repository(server.root / "a.git")
    made.commit(
        {
            "Dockerfile": "FROM busybox\nCOPY greeting /\nRUN cat /greeting > /copied\n",
            "greeting": "from git\n",
            "sub/Dockerfile": "FROM scratch\nCOPY in /\n",
            "sub/in": "sub",
        }
    )
    made.publish()
    return f"{server.url}/a.git"


def test_a_repository_is_built_with_its_own_dockerfile(
    pybuild: CommandLine, repository: str
) -> None:
    pybuild.build("-t", "fromgit:1", repository)
    assert pybuild.run("fromgit:1", "cat", "/copied") == "from git\n"
    pybuild.build("-t", "fromgit:2", "-f", "-", repository, stdin=b"FROM busybox\nCOPY sub/in /x\n")
    assert pybuild.run("fromgit:2", "cat", "/x") == "sub"
    pybuild.build("-t", "fromgit:3", f"{repository}#main:sub")
    error = pybuild.fail(3, f"{repository}#nowhere")
    assert "has no nowhere" in error


def test_an_archive_and_a_dockerfile_on_the_web_are_built(
    pybuild: CommandLine, server: WebServer, tmp_path: Path
) -> None:
    context = pybuild.context("FROM busybox\nCOPY a /\n", a="archived")
    with tarfile.open(tmp_path / "served" / "c.tgz", "w:gz") as tar:
        tar.add(context, ".")
    pybuild.build("-t", "fromweb:1", f"{server.url}/c.tgz")
    assert pybuild.run("fromweb:1", "cat", "/a") == "archived"
    server.answers["/D"] = Answer(b"FROM busybox\nRUN echo hi > /b\n")
    pybuild.build("-t", "fromweb:2", f"{server.url}/D")
    assert pybuild.run("fromweb:2", "cat", "/b") == "hi\n"


def test_what_is_added_from_the_web_and_from_git_is_in_the_image(
    pybuild: CommandLine, server: WebServer, repository: str
) -> None:
    server.answers["/file"] = Answer(
        b"web", headers={"Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT"}
    )
    text = f"FROM busybox\nADD {server.url}/file /w/\nADD {repository} /g\nRUN ls -lR /g\n"
    pybuild.build("-t", "added:1", pybuild.context(text))
    said = pybuild.run("added:1", "stat", "-c", "%n %a %u %Y", "/w/file")
    assert said == "/w/file 600 0 1700000000\n"
    assert pybuild.run("added:1", "cat", "/g/sub/in") == "sub"


def test_named_contexts_of_every_kind(
    pybuild: CommandLine, repository: str, tmp_path: Path
) -> None:
    layout = busybox_layout(tmp_path / "layout", "localhost/laid/out:7")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "f").write_text("folder")
    text = (
        "FROM missing AS base\nFROM base\n"
        "COPY --from=dir f /\nCOPY --from=git greeting /\nCOPY --from=image /etc/passwd /p\n"
        "RUN --mount=from=dir,target=/m cat /m/f > /mounted\n"
    )
    contexts = {
        "missing": f"oci-layout://{layout}:7",
        "dir": str(folder),
        "git": repository,
        "image": "docker-image://busybox",
    }
    flags = [f"--build-context={name}={value}" for name, value in contexts.items()]
    pybuild.build("-t", "named:1", *flags, pybuild.context(text))
    said = pybuild.run("named:1", "cat", "/f", "/greeting", "/mounted")
    assert said == "folderfrom git\nfolder"
    assert "laid/out" not in pybuild.ctr("images", "ls", "-q")


def test_an_image_in_a_layout_needs_no_registry(elsewhere: CommandLine, tmp_path: Path) -> None:
    layout = busybox_layout(tmp_path / "layout", "localhost/laid/out:7")
    with tarfile.open(tmp_path / "layout.tar", "w") as tar:
        tar.add(layout, ".")
    digests = set()
    for place in (layout, tmp_path / "layout.tar"):
        ended = elsewhere.build(
            f"--build-context=base=oci-layout://{place}",
            "--build-arg=SOURCE_DATE_EPOCH=1700000000",
            "-t",
            "only:1",
            elsewhere.context("FROM base\nRUN echo ran > /x\n"),
        )
        digests.add(ended.digest)
    assert elsewhere.run("only:1", "cat", "/x") == "ran\n"
    assert len(digests) == 1
    dry = elsewhere.build(
        "--dry-run=json",
        f"--build-context=base=oci-layout://{layout}",
        elsewhere.context("FROM base\nENV A=b\n"),
    )
    assert json.loads(dry.out)["not_resolved"] == []


def test_logins_are_in_no_image_and_in_no_state_of_the_daemon(
    pybuild: CommandLine, server: WebServer, repository: str, tmp_path: Path
) -> None:
    """BuildKit CVE-2023-26054 and CVE-2025-0495."""
    server.answers["/file"] = Answer(b"web")
    server.login = f"Bearer {CANARY}"
    (tmp_path / "token").write_text(f"{CANARY}\n")
    host = server.host
    text = (
        "FROM busybox\n"
        f"ADD http://me:{CANARY}@{host}/file /w/\n"
        f"ADD --keep-git-dir {repository} /g\nRUN env; cat /proc/self/environ\n"
    )
    ended = pybuild.build(
        "-t",
        "secretly:1",
        "--progress=rawjson",
        f"--secret=id=HTTP_AUTH_TOKEN_127.0.0.1,src={tmp_path / 'token'}",
        "--secret=id=GIT_AUTH_HEADER,env=HEADER",
        pybuild.context(text),
        env={"HEADER": server.login},
    )
    assert all(x.headers["authorization"] == server.login for x in server.asked)
    assert len({x.path.split("/")[1] for x in server.asked}) == 2
    assert CANARY not in ended.out + ended.err
    archive = tmp_path / "image.tar"
    pybuild.ctr("images", "export", str(archive), "docker.io/library/secretly:1")
    places = tmp_path / "home", pybuild.daemon.folder
    assert [path for path, content in contents(*places) if CANARY.encode() in content] == []
    assert CANARY not in json.dumps(pybuild.config(ended.digest))


def test_build_args_come_from_a_file_and_the_command_line_overrides_them(
    pybuild: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "args").write_text("# comment\nA=1\n\nB=two words\nC\nD=4=4\n")
    text = "FROM busybox\nARG A\nARG B\nARG C\nARG D\nRUN echo $A,$B,$C,$D > /args\n"
    pybuild.build(
        "-t", "args:1", "--build-arg-file", tmp_path / "args", "--build-arg=A=9",
        pybuild.context(text), env={"C": "outside"},
    )  # fmt: skip
    assert pybuild.run("args:1", "cat", "/args") == "9,two words,outside,4=4\n"
    said = pybuild.fail(2, "--build-arg-file", "/nowhere", pybuild.context(text))
    assert "/nowhere" in said


def test_public_only_keeps_a_build_from_this_machine_and_its_network(
    pybuild: CommandLine, server: WebServer, repository: str
) -> None:
    for source in (f"{server.url}/file", repository):
        text = f"FROM scratch\nADD {source} /\n"
        said = pybuild.fail(3, "--public-only", pybuild.context(text))
        assert "is no public address" in said
        assert "Dockerfile:2" in said
    assert server.asked == []


def test_a_source_that_nobody_serves_is_told_plainly(pybuild: CommandLine) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for source in (f"http://127.0.0.1:{port}/x", f"http://127.0.0.1:{port}/x.git"):
        said = pybuild.fail(3, pybuild.context(f"FROM scratch\nADD {source} /\n"))
        assert "--> Dockerfile:2" in said
