"""Repositories fetched by git, from servers on loopback."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from building import build, config_of, files_of, image_of, memory_backend

import pybuild
from pybuild.errors import BuildCancelled, ContextError, FetchFailed
from pybuild.files.trees import Tree, walk
from pybuild.oci.layerindex import Kind
from pybuild.remotes.git import check_out
from pybuild.remotes.locations import parse_git
from pybuild.remotes.options import RemoteOptions
from pybuild.secrets import Secret
from pybuild.testkit.memory import MemoryBackend
from pybuild.testkit.workbench import RecordingActivity
from serving import Repository, WebServer, git_daemon

pytestmark = pytest.mark.git

COMMITTED = 1700000000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repositories")


@pytest.fixture(scope="module")
def commits(root: Path) -> dict[str, str]:
    """A repository ``a.git``: ids of its commits by name. Branch and tag ``both`` differ."""
    made = Repository(root / "a.git")
    ids = {"first": made.commit({"file": "1", "sub/inner": "i", "run.sh": "#!/bin/sh\n"})}
    (made.work / "run.sh").chmod(0o755)
    (made.work / "link").symlink_to("sub")
    ids["second"] = made.commit({"file": "2"})
    made.git("tag", "light")
    made.git("tag", "--annotate", "--message=x", "annotated")
    ids["annotated"] = made.git("rev-parse", "annotated")
    made.git("tag", "both")
    made.git("checkout", "--quiet", "-b", "both")
    ids["both"] = made.commit({"file": "branch"})
    made.git("checkout", "--quiet", "main")
    ids["main"] = made.commit({"file": "3"})
    made.publish()
    return ids


@pytest.fixture(scope="module")
def daemon(root: Path, commits: dict[str, str]) -> Iterator[str]:
    """What ``git daemon`` serves the repositories as."""
    assert commits
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with git_daemon(root, port) as url:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield url


@pytest.fixture
def web(root: Path, commits: dict[str, str]) -> Iterator[WebServer]:
    """The repositories over http as files, git's dumb protocol."""
    assert commits
    with WebServer(root) as server:
        yield server


@pytest.fixture
def backend() -> Iterator[MemoryBackend]:
    with memory_backend() as made:
        yield made
        assert made.live_layers == 0


def options(**given: Any) -> RemoteOptions:
    return RemoteOptions(search_path=os.environ["PATH"], **given)


def content(tree: Tree) -> dict[str, str]:
    found = {}
    for entry in walk(tree, b""):
        if entry.kind is Kind.FILE and not entry.path.startswith(b".git/"):
            with tree.open(entry.path) as stream:
                found[entry.path.decode()] = stream.read().decode()
    return found


def fetched(url: str, secrets: dict[str, Secret] | None = None, **given: Any) -> dict[str, str]:
    """The files at a git URL, and under ``commit`` the commit."""
    made = check_out(parse_git(url), options(**given), secrets or {}, RecordingActivity())
    try:
        return {**content(made.tree), "commit": made.commit}
    finally:
        made.close()


@pytest.mark.parametrize("protocol", ["git", "http"])
def test_a_ref_leads_to_its_commit(
    daemon: str, web: WebServer, commits: dict[str, str], protocol: str
) -> None:
    base = daemon if protocol == "git" else web.url
    expected = {
        "": ("main", "3"),
        "#main": ("main", "3"),
        "#light": ("second", "2"),
        "#annotated": ("second", "2"),
        "#both": ("both", "branch"),
        "?tag=both": ("second", "2"),
        "?branch=both": ("both", "branch"),
        "#refs/tags/both": ("second", "2"),
        "#tags/both": ("second", "2"),
    }
    for tail, (commit, text) in expected.items():
        found = fetched(f"{base}/a.git{tail}")
        assert (tail, found["commit"], found["file"]) == (tail, commits[commit], text)
        assert sorted(found) == ["commit", "file", "run.sh", "sub/inner"]


@pytest.mark.parametrize("protocol", ["git", "http"])
def test_a_commit_is_found_by_its_id_wherever_it_is(
    daemon: str, web: WebServer, commits: dict[str, str], protocol: str
) -> None:
    base = daemon if protocol == "git" else web.url
    assert fetched(f"{base}/a.git#{commits['first']}")["file"] == "1"
    assert fetched(f"{base}/a.git#{commits['annotated']}")["commit"] == commits["second"]
    query = f"?ref=main&fetch-by-commit&commit={commits['second']}"
    assert fetched(f"{base}/a.git{query}")["file"] == "2"
    with pytest.raises(FetchFailed):
        fetched(f"{base}/a.git#{'1' * 40}")


def test_a_checksum_is_the_beginning_of_the_commit_or_of_its_tag(
    daemon: str, commits: dict[str, str]
) -> None:
    for ref, name in (("main", "main"), ("annotated", "second"), ("annotated", "annotated")):
        assert fetched(f"{daemon}/a.git?ref={ref}&checksum={commits[name][:9]}")["file"]
    assert (
        fetched(f"{daemon}/a.git?ref={commits['first']}&checksum={commits['first'][:7]}")["file"]
        == "1"
    )
    for ref in ("main", "annotated", commits["main"]):
        with pytest.raises(FetchFailed, match="expected checksum"):
            fetched(f"{daemon}/a.git?ref={ref}&checksum={commits['first'][:9]}")


def test_modes_links_and_owners_are_those_of_the_repository(daemon: str) -> None:
    made = check_out(parse_git(f"{daemon}/a.git?mtime=commit"), options(), {}, RecordingActivity())
    try:
        found = {entry.path: entry for entry in walk(made.tree, b"") if entry.path}
    finally:
        made.close()
    assert {path: entry.mode for path, entry in found.items() if entry.kind is not Kind.SYMLINK} == {
        b"file": 0o644, b"run.sh": 0o755, b"sub": 0o755, b"sub/inner": 0o644,
    }  # fmt: skip
    assert found[b"link"].link == b"sub"
    assert {(e.uid, e.gid, e.mtime) for e in found.values()} == {(0, 0, COMMITTED)}


def test_a_subdir_is_the_root_and_must_be_a_real_folder(daemon: str) -> None:
    assert sorted(fetched(f"{daemon}/a.git#main:sub")) == ["commit", "inner"]
    assert sorted(fetched(f"{daemon}/a.git#main:../../sub")) == ["commit", "inner"]
    for subdir in ("link", "file", "nowhere", "link/inner"):
        with pytest.raises(ContextError):
            fetched(f"{daemon}/a.git#main:{subdir}")


def test_the_git_folder_is_kept_when_asked_for_and_says_nothing_of_this_machine(
    daemon: str, commits: dict[str, str]
) -> None:
    trees = []
    for _ in range(2):
        made = check_out(
            parse_git(f"{daemon}/a.git?keep-git-dir&ref=light"), options(), {}, RecordingActivity()
        )
        try:
            tree = {}
            for entry in walk(made.tree, b".git"):
                if entry.kind is Kind.FILE and b"/pack/" not in entry.path:
                    with made.tree.open(entry.path) as stream:
                        tree[entry.path.decode()] = stream.read()
            trees.append(tree)
        finally:
            made.close()
    assert trees[0] == trees[1]
    kept = trees[0]
    assert kept[".git/HEAD"].decode().strip() == commits["second"]
    assert kept[".git/refs/tags/light"].decode().strip() == commits["second"]
    assert f"url = {daemon}/a.git" in kept[".git/config"].decode()
    assert not any("hooks" in path or "logs" in path or "FETCH_HEAD" in path for path in kept)
    assert not any(b"pybuild-git" in data for data in kept.values())


def test_add_copies_a_repository_with_its_flags(backend: MemoryBackend, daemon: str) -> None:
    text = f"FROM scratch\nADD --chown=3:4 --exclude=sub {daemon}/a.git#main /src\nADD --keep-git-dir {daemon}/a.git /g/\n"
    build(backend, text, tags=["app"], remotes=options())
    files = files_of(backend)
    assert files["src/file"] == b"3"
    assert "src/sub/inner" not in files
    assert "src/.git/HEAD" not in files
    assert "g/.git/HEAD" in files
    with backend.checkout(image_of(backend), RecordingActivity()) as layer:
        entry = layer.tree().get(b"src/run.sh")
    assert entry is not None
    assert (entry.uid, entry.gid, entry.mode) == (3, 4, 0o755)


def test_the_key_is_of_the_files_of_the_commit(backend: MemoryBackend, daemon: str) -> None:
    text = f"FROM scratch\nADD {daemon}/a.git#light /\n"
    cached = [build(backend, text, remotes=options()).steps[0].cached for _ in range(2)]
    assert cached == [False, True]


def test_a_repository_is_a_context_with_its_dockerfile(
    backend: MemoryBackend, root: Path, daemon: str
) -> None:
    made = Repository(root / "context.git")
    made.commit(
        {
            "Dockerfile": "FROM scratch\nCOPY . /\n",
            "other/Dockerfile": "FROM scratch\nCOPY x /y\n",
            "other/x": "x",
            "a": "1",
            "ignored": "2",
            ".dockerignore": "ignored\nother\nDockerfile\n",
        }
    )
    made.publish()
    url = f"{daemon}/context.git"
    pybuild.build(url, backend=backend, tags=["app"], remotes=options())
    assert sorted(files_of(backend)) == [".dockerignore", "a"]
    pybuild.build(f"{url}#:other", backend=backend, tags=["app"], remotes=options())
    assert files_of(backend) == {"y": b"x"}
    for dockerfile in (b"FROM scratch\nCOPY a /b\n", "Dockerfile"):
        pybuild.build(url, dockerfile=dockerfile, backend=backend, tags=["app"], remotes=options())
        assert "b" in files_of(backend) or "a" in files_of(backend)
    with pytest.raises(ContextError, match="there is no nowhere"):
        pybuild.build(url, dockerfile="nowhere", backend=backend, remotes=options())
    args = {"BUILDKIT_CONTEXT_KEEP_GIT_DIR": "1"}
    pybuild.build(url, backend=backend, tags=["app"], remotes=options(), build_args=args)
    assert ".git/HEAD" in files_of(backend)


def test_a_repository_is_a_named_context(backend: MemoryBackend, daemon: str) -> None:
    text = "FROM src AS one\nFROM scratch\nCOPY --from=one /inner /a\n"
    contexts = {"src": f"{daemon}/a.git#:sub"}
    build(backend, text, tags=["app"], contexts=contexts, remotes=options())
    assert files_of(backend) == {"a": b"i"}


def test_submodules_are_fetched_unless_told_otherwise(root: Path, daemon: str) -> None:
    inner = Repository(root / "inner.git")
    inner.commit({"deep": "d"})
    inner.publish()
    outer = Repository(root / "outer.git")
    outer.git("submodule", "--quiet", "add", str(inner.folder), "mod")
    outer.git("config", "--file", ".gitmodules", "submodule.mod.url", "../inner.git")
    outer.commit({"file": "o"})
    outer.publish()
    found = fetched(f"{daemon}/outer.git")
    assert found["mod/deep"] == "d"
    assert not any(path.endswith(".git") for path in found)
    assert "mod/deep" not in fetched(f"{daemon}/outer.git?submodules=false")


def test_submodules_are_refused_where_addresses_matter(
    root: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Repository(root / "modules.git")
    made.commit({".gitmodules": '[submodule "x"]\n\tpath = x\n\turl = http://127.0.0.1:1/x\n'})
    made.publish()
    monkeypatch.setattr("pybuild.remotes.git.is_public", lambda address: True)
    with pytest.raises(FetchFailed, match="whose addresses can't be checked"):
        fetched(f"{web.url}/modules.git", public_only=True)
    assert fetched(f"{web.url}/modules.git?submodules=false", public_only=True)["commit"]


def test_ssh_is_started_with_its_checks_and_the_agent_alone(
    root: Path, commits: dict[str, str], tmp_path: Path
) -> None:
    """A program in place of ssh does what the server would: it runs the command that it is given."""
    said = tmp_path / "said"
    program = tmp_path / "ssh"
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" "agent $SSH_AUTH_SOCK" > {said}\n'
        'for last; do :; done\nexec sh -c "$last"\n'
    )
    program.chmod(0o755)
    given = RemoteOptions(
        search_path=f"{tmp_path}:{os.environ['PATH']}", ssh_agent="/run/agent.sock"
    )
    for url in (f"ssh://me@host.example:2222{root}/a.git#light", f"me@host.example:{root}/a.git"):
        made = check_out(parse_git(url), given, {}, RecordingActivity())
        try:
            assert content(made.tree)["file"] == ("2" if "#light" in url else "3")
        finally:
            made.close()
        lines = said.read_text().splitlines()
        assert {"BatchMode=yes", "StrictHostKeyChecking=yes", "ForwardAgent=no"} <= {*lines}
        assert lines[lines.index("-F") + 1] == "none"
        assert "me@host.example" in lines
        assert ("2222" in lines) is url.startswith("ssh:")
        assert lines[-1] == "agent /run/agent.sock"


def test_git_gets_the_keys_that_are_lent_as_the_default_agent(
    backend: MemoryBackend, root: Path, commits: dict[str, str], tmp_path: Path
) -> None:
    key = tmp_path / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lent", "-f", key], check=True
    )
    said = tmp_path / "said"
    program = tmp_path / "ssh"
    program.write_text(
        f'#!/bin/sh\nssh-add -l > {said}\nfor last; do :; done\nexec sh -c "$last"\n'
    )
    program.chmod(0o755)
    build(
        backend,
        f"FROM scratch\nADD ssh://me@host.example{root}/a.git /\n",
        remotes=RemoteOptions(search_path=f"{tmp_path}:{os.environ['PATH']}"),
        ssh={"default": [key]},
        tags=["app"],
    )
    assert "file" in files_of(backend)
    assert "lent (ED25519)" in said.read_text()


def test_a_login_reaches_the_server_and_no_argument(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.login = "basic eC1hY2Nlc3MtdG9rZW46Y2FuYXJ5"  # x-access-token:canary
    seen = tmp_path / "arguments"
    wrapper = tmp_path / "bin" / "git"
    wrapper.parent.mkdir()
    real = next(p for p in os.environ["PATH"].split(":") if (Path(p) / "git").exists())
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {seen}\nexec {real}/git "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    secrets = {"GIT_AUTH_TOKEN": Secret(b"canary\n")}
    assert fetched(f"{web.url}/a.git#light", secrets)["file"] == "2"
    assert "ls-remote" in seen.read_text()
    assert "canary" not in seen.read_text()
    named = {f"GIT_AUTH_HEADER.{web.host}": Secret(web.login.encode())}
    assert fetched(f"{web.url}/a.git#light", named)["file"] == "2"
    web.login = "Basic bWU6Y2FuYXJ5"  # me:canary
    with_login = web.url.replace("//", "//me:canary@")
    assert fetched(f"{with_login}/a.git#light")["file"] == "2"
    with pytest.raises(FetchFailed, match="git ls-remote failed") as caught:
        fetched(f"{with_login.replace('canary', 'wrong')}/a.git")
    assert "wrong" not in str(caught.value)


def test_a_login_is_for_the_repositorys_own_host_alone(root: Path, web: WebServer) -> None:
    with WebServer(root) as other:
        outer = Repository(root / "foreign.git")
        (root / "inner2.git").mkdir(exist_ok=True)
        inner = Repository(root / "inner2.git")
        inner.commit({"deep": "d"})
        inner.publish()
        outer.git("submodule", "--quiet", "add", str(inner.folder), "mod")
        outer.git("config", "--file", ".gitmodules", "submodule.mod.url", f"{other.url}/inner2.git")
        outer.commit({"file": "o"})
        outer.publish()
        secrets = {"GIT_AUTH_TOKEN": Secret(b"canary")}
        assert fetched(f"{web.url}/foreign.git", secrets)["mod/deep"] == "d"
        assert all("authorization" in asked.headers for asked in web.asked)
        assert not any("authorization" in asked.headers for asked in other.asked)


def test_nothing_is_left_after_success_failure_and_cancel(
    daemon: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fetched(f"{daemon}/a.git")
    with pytest.raises(FetchFailed, match="has no nowhere"):
        fetched(f"{daemon}/a.git#nowhere")
    with pytest.raises(FetchFailed):
        fetched(f"{daemon}/missing.git")
    assert list(tmp_path.iterdir()) == []


def test_a_cancel_ends_git_and_its_helpers(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"git://127.0.0.1:{silent.getsockname()[1]}/a.git"
        activity = RecordingActivity()
        threading.Timer(0.5, activity.cancel).start()
        began = time.monotonic()
        with pytest.raises(BuildCancelled):
            check_out(parse_git(url), options(), {}, activity)
        assert time.monotonic() - began < 10


def test_a_server_that_never_answers_is_given_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"git://127.0.0.1:{silent.getsockname()[1]}/a.git"
        with pytest.raises(FetchFailed, match="took too long"):
            fetched(url, git_seconds=0.5)


def test_without_git_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match="git isn't installed") as caught:
        check_out(
            parse_git("git://127.0.0.1:1/a"),
            RemoteOptions(search_path=str(tmp_path)),
            {},
            RecordingActivity(),
        )
    assert caught.value.hint is not None


def test_only_public_addresses_are_read_from_if_so_asked(web: WebServer) -> None:
    for url in (f"{web.url}/a.git", "http://localhost:1/a.git"):
        with pytest.raises(FetchFailed, match="no public address"):
            fetched(url, public_only=True)
    with pytest.raises(FetchFailed, match="can't be held to public addresses"):
        fetched("git://127.0.0.1:1/a", public_only=True)
    assert web.asked == []


def test_an_old_git_is_not_trusted_with_public_addresses(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pybuild.remotes.git.is_public", lambda address: True)
    assert fetched(f"{web.url}/a.git", public_only=True)["file"] == "3"
    (tmp_path / "git").write_text("#!/bin/sh\necho git version 2.36.9\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(FetchFailed, match="this git") as caught:
        fetched(f"{web.url}/a.git", public_only=True)
    assert "2.37" in (caught.value.hint or "")


def test_the_environment_of_the_caller_does_not_reach_git(
    daemon: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.write_text('[url "git://127.0.0.1:1/"]\n\tinsteadOf = git://127.0.0.1\n')
    for name, value in {
        "GIT_CONFIG_GLOBAL": str(config),
        "HOME": str(tmp_path),
        "GIT_DIR": "/nonexistent",
        "GIT_TEMPLATE_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".gitconfig").write_text(config.read_text())
    assert fetched(f"{daemon}/a.git")["file"] == "3"


def test_a_result_with_a_repository_is_the_image_config_without_its_url(
    backend: MemoryBackend, web: WebServer
) -> None:
    web.login = "Basic bWU6Y2FuYXJ5"
    url = f"{web.url.replace('//', '//me:canary@')}/a.git"
    result = build(
        backend, f"FROM scratch\nADD --keep-git-dir {url} /\n", tags=["app"], remotes=options()
    )
    assert "canary" not in repr(config_of(backend, result)) + repr(result)
    assert not any(b"canary" in data for data in files_of(backend).values())


def test_modes_do_not_depend_on_the_umask(daemon: str) -> None:
    before = os.umask(0o077)
    try:
        made = check_out(parse_git(f"{daemon}/a.git"), options(), {}, RecordingActivity())
    finally:
        os.umask(before)
    try:
        modes = {entry.path: stat.S_IMODE(entry.mode) for entry in walk(made.tree, b"")}
    finally:
        made.close()
    assert (modes[b"file"], modes[b"sub"]) == (0o644, 0o755)
