"""Repositories fetched by the git command, kept from all that a hostile one could do with it.

git runs without any configuration of the machine or the user, without hooks and templates,
and speaks the listed protocols alone, in submodules too (git-config(1), git(1)
``GIT_ALLOW_PROTOCOL``). Logins reach it by its environment, never by its arguments.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from pybuild.errors import FetchFailed
from pybuild.files.context import ContextTree, open_context_directory
from pybuild.oci.http import Activity, is_public
from pybuild.remotes.locations import GitLocation, is_commit
from pybuild.remotes.options import RemoteOptions
from pybuild.remotes.web import header_value
from pybuild.secrets import Secret
from pybuild.values import dataclass

_PROTOCOLS = "http:https:git:ssh"
_PORTS = {"http": 80, "https": 443}
_PINNING = (2, 37)  # the version of git that knows http.curloptResolve
_MOST_OUTPUT = 4 << 20
_SLOWEST = "100"  # bytes a second
_SSH = "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=yes -o ForwardAgent=no"
_FETCH = ("fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head")
_HINTS = {
    "Host key verification failed": "add the host to ~/.ssh/known_hosts (ssh-keyscan)",
    "Permission denied": "git over ssh needs an agent with the key (SSH_AUTH_SOCK), or --ssh default=KEY",
    "could not read Username": "it may need a login: --secret id=GIT_AUTH_TOKEN,env=...",
    "Authentication failed": "the login in GIT_AUTH_TOKEN or GIT_AUTH_HEADER was refused",
    "not allowed": "only http, https, git and ssh are spoken, in submodules too",
    "Could not resolve host": "check the URL, the network, and the proxy if there is one",
}


@dataclass(frozen=True, slots=True)
class Checkout:
    """The files of one repository at the commit with this id, in a private folder until closed."""

    tree: ContextTree
    commit: str
    folder: tempfile.TemporaryDirectory[str]

    def close(self) -> None:
        """Remove the folder. Idempotent."""
        self.tree.close()
        self.folder.cleanup()


def check_out(
    location: GitLocation,
    options: RemoteOptions,
    secrets: Mapping[str, Secret],
    activity: Activity,
) -> Checkout:
    """Fetch what `location` names, without older history if the server allows that.

    The secrets GIT_AUTH_TOKEN and GIT_AUTH_HEADER, or these with ``.`` and the host, are sent to
    the repository's own host. Raises FetchFailed, ContextError, BuildCancelled.
    """
    folder = tempfile.TemporaryDirectory(prefix="pybuild-git-")
    try:
        work = Path(folder.name) / "work"
        work.mkdir(mode=0o755)
        command = _Command(_environment(location, options, secrets, Path(folder.name)), work)
        repository = _Repository(location, options, command, activity)
        commit = repository.fetch()
        repository.check_out(commit)
        tree = open_context_directory(work)
        try:
            return Checkout(tree.below(location.subdir), commit, folder)
        except BaseException:
            tree.close()
            raise
    except BaseException:
        folder.cleanup()
        raise


def find_commit(
    location: GitLocation,
    options: RemoteOptions,
    secrets: Mapping[str, Secret],
    activity: Activity,
) -> str:
    """The id of the commit that `location` names now. Fetches nothing; raises as check_out."""
    with tempfile.TemporaryDirectory(prefix="pybuild-git-") as folder:
        environment = _environment(location, options, secrets, Path(folder))
        command = _Command(environment, Path(folder))
        return _Repository(location, options, command, activity).find()


class _Command:
    """The git command in one working tree, with one environment."""

    def __init__(self, environment: Mapping[str, str], work: Path) -> None:
        self.work = work
        self._environment = environment
        found = shutil.which("git", path=environment["PATH"])
        if found is None:
            raise FetchFailed(
                "git isn't installed, which fetches repositories",
                hint="install the package git, or fetch the repository before the build",
            )
        self._program = found

    def run(self, words: Sequence[str], activity: Activity, seconds: float) -> tuple[int, str, str]:
        """The exit code, and what was written to standard output and error.

        On cancel, and after `seconds`, all its processes are killed. Raises BuildCancelled.
        """
        activity.raise_if_cancelled()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                [self._program, *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.work,
                env=self._environment,
                start_new_session=True,
                umask=0o022,
            )
            with activity.on_cancel(lambda: _kill(process)):
                try:
                    process.wait(seconds)
                except subprocess.TimeoutExpired:
                    err.write(b"\nfatal: it took too long\n")
                finally:
                    _kill(process)
            activity.raise_if_cancelled()
            return process.returncode, _text(out), _text(err)


class _Repository:
    """One clone in the making."""

    def __init__(
        self,
        location: GitLocation,
        options: RemoteOptions,
        command: _Command,
        activity: Activity,
    ) -> None:
        self._location = location
        self._options = options
        self._command = command
        self._activity = activity
        self._work = command.work
        self._name = ""  # of the ref that was found

    def find(self) -> str:
        """The commit's id, as far as the ref tells it, or a tag's."""
        if self._options.public_only:
            self._require(_PINNING)
        return self._resolve()

    def fetch(self) -> str:
        """Get the commit's objects; the commit's id."""
        remote, wanted = self._location.remote, self.find()
        hashes = "sha256" if len(wanted) == 64 else "sha1"
        self._run("init", "--quiet", f"--object-format={hashes}")
        self._run("remote", "add", "--", "origin", remote)
        if self._try(*_FETCH, "--depth=1", "--", remote, wanted)[0] != 0:
            # not every server gives a single commit, or one without its history
            refs = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
            self._run(*_FETCH, "--", remote, *refs)
        commit = self._run(
            "rev-parse", "--verify", "--end-of-options", f"{wanted}^{{commit}}"
        ).strip()
        if not self._name:
            self._check(wanted, commit)
        return commit

    def check_out(self, commit: str) -> None:
        """Write the files, those of submodules too, and leave of .git what is asked for."""
        self._run("checkout", "--quiet", "--force", "--detach", commit, "--")
        if self._location.submodules and (self._work / ".gitmodules").exists():
            self._update_submodules()
        seconds = self._time_of(commit) if self._location.commit_times else None
        if self._location.keep_git_dir and not self._location.subdir:
            if self._name:
                self._run("update-ref", self._name, commit)
            # an index without the times and numbers of this machine's files
            self._run("read-tree", commit)
            shutil.rmtree(self._work / ".git" / "logs", ignore_errors=True)
        else:
            self._remove_git_dirs()
        if seconds is not None:
            self._set_times(seconds)

    def _require(self, version: tuple[int, int]) -> None:
        found = re.search(r"(\d+)\.(\d+)", self._run("version"))
        if found is None or (int(found[1]), int(found[2])) < version:
            raise FetchFailed(
                "this git can't be held to public addresses",
                hint=f"that needs version {version[0]}.{version[1]} or newer",
            )

    def _resolve(self) -> str:
        """The commit's id, as far as the ref tells it, or a tag's."""
        location = self._location
        if location.is_commit:
            return location.ref
        if location.fetch_by_commit:
            return location.checksum
        ref = location.ref or "HEAD"
        listed = self._run("ls-remote", "--", location.remote, ref, f"{ref}^{{}}")
        lines = (line.partition("\t") for line in listed.splitlines())
        ids = {name: commit for commit, _, name in lines if is_commit(commit)}
        # branches before tags, as git has it
        for name in (ref, f"refs/{ref}", f"refs/heads/{ref}", f"refs/tags/{ref}"):
            if name in ids:
                commit = ids.get(f"{name}^{{}}", ids[name])
                self._check(ids[name], commit)
                self._name = name
                return commit
        raise FetchFailed(
            f"{location.remote} has no {location.ref or 'default branch'}",
            hint="a branch, a tag or a whole commit id stands behind the #",
        )

    def _check(self, *ids: str) -> None:
        wanted = self._location.checksum
        if wanted and not any(one.startswith(wanted) for one in ids):
            found = " or ".join(dict.fromkeys(ids))
            raise FetchFailed(f"expected checksum to match {wanted}, got {found}")

    def _update_submodules(self) -> None:
        if self._options.public_only:
            raise FetchFailed(
                f"{self._location} has submodules, whose addresses can't be checked",
                hint="leave them out with ?submodules=false",
            )
        update = ("submodule", "--quiet", "update", "--init", "--recursive")
        if self._try(*update, "--depth=1")[0] != 0:
            self._run(*update)

    def _remove_git_dirs(self) -> None:
        """The repository's own .git, and the files by which submodules find theirs."""
        shutil.rmtree(self._work / ".git")
        for folder, _, files in os.walk(self._work):
            if ".git" in files:
                (Path(folder) / ".git").unlink()

    def _time_of(self, commit: str) -> int:
        """When it was committed. By plumbing, which a broken .gitmodules doesn't disturb."""
        lines = self._run("cat-file", "commit", commit).partition("\n\n")[0].splitlines()
        words = next((line.split() for line in lines if line.startswith("committer ")), [])
        if len(words) < 3 or not words[-2].isdigit() or len(words[-2]) > 11:
            raise FetchFailed(f"the commit {commit} has no time")
        return int(words[-2])

    def _set_times(self, seconds: int) -> None:
        for folder, folders, files in os.walk(self._work, topdown=False):
            for name in (*files, *folders):
                os.utime(Path(folder) / name, (seconds, seconds), follow_symlinks=False)
        os.utime(self._work, (seconds, seconds))

    def _run(self, *words: str) -> str:
        code, out, err = self._try(*words)
        if code != 0:
            raise self._failed(words[0], err)
        return out

    def _try(self, *words: str) -> tuple[int, str, str]:
        return self._command.run(words, self._activity, self._options.git_seconds)

    def _failed(self, word: str, err: str) -> FetchFailed:
        lines = [line.strip() for line in err.splitlines() if line.strip()]
        said = [line for line in lines if line.startswith(("fatal:", "error:", "ERROR:"))]
        reason = "".join(c if c.isprintable() else " " for c in (said or lines or [""])[0][:300])
        hint = next((hint for sign, hint in _HINTS.items() if sign in err), None)
        return FetchFailed(f"git {word} failed for {self._location}: {reason}", hint=hint)


def _environment(
    location: GitLocation, options: RemoteOptions, secrets: Mapping[str, Secret], folder: Path
) -> dict[str, str]:
    """All that git knows of its surroundings."""
    home = folder / "home"
    home.mkdir()
    environment = {
        "PATH": options.search_path or os.defpath,
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TEMPLATE_DIR": "",  # none
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": f"{_PROTOCOLS}:file" if options.allow_file else _PROTOCOLS,
        "GIT_SSH_COMMAND": _SSH,
    }
    if options.ssh_agent:
        environment["SSH_AUTH_SOCK"] = options.ssh_agent
    config = {
        "core.hooksPath": os.devnull,
        "core.fsmonitor": "false",
        "core.autocrlf": "false",
        "gc.auto": "0",
        "maintenance.auto": "false",
        "http.lowSpeedLimit": _SLOWEST,
        "http.lowSpeedTime": str(max(1, int(options.patience))),
        "init.defaultBranch": "master",
    }
    if options.public_only:
        config |= _pinned(location)
    else:
        environment |= {f"{kind}_proxy": url for kind, url in options.proxies.items()}
    config |= _authorization(location, secrets)
    environment["GIT_CONFIG_COUNT"] = str(len(config))
    for number, (name, value) in enumerate(config.items()):
        environment[f"GIT_CONFIG_KEY_{number}"] = name
        environment[f"GIT_CONFIG_VALUE_{number}"] = value
    return environment


def _authorization(location: GitLocation, secrets: Mapping[str, Secret]) -> dict[str, str]:
    """The header that logs in, for the repository's own scheme, host and port."""
    parts = urlsplit(location.remote)
    if parts.scheme.lower() not in _PORTS:
        return {}
    value = ""
    for name in ("GIT_AUTH_HEADER", "GIT_AUTH_TOKEN"):
        if location.login and not value:
            value = f"Basic {b64encode(location.login.encode()).decode()}"
        secret = secrets.get(f"{name}.{parts.netloc}") or secrets.get(name)
        if secret is None:
            continue
        value = header_value(secret, parts.netloc)
        if name == "GIT_AUTH_TOKEN":
            value = f"basic {b64encode(f'x-access-token:{value}'.encode()).decode()}"
        break
    key = f"http.{parts.scheme}://{parts.netloc}/.extraHeader"
    return {key: f"Authorization: {value}"} if value else {}


def _pinned(location: GitLocation) -> dict[str, str]:
    """Have git connect to a public address of the repository's host alone. Raises FetchFailed."""
    parts = urlsplit(location.remote)
    scheme, host = parts.scheme.lower(), parts.hostname or ""
    if scheme not in _PORTS:
        raise FetchFailed(
            f"{location.remote} can't be held to public addresses", hint="use it over https"
        )
    port = parts.port or _PORTS[scheme]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise FetchFailed(f"{host} can't be resolved", hint="check the URL") from error
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    for address in addresses:
        if not is_public(address):
            raise FetchFailed(
                f"{host} is {address}, which is no public address",
                hint="only public addresses may be read from in this build",
            )
    shown = ",".join(f"[{one}]" if ":" in one else one for one in addresses)
    return {"http.curloptResolve": f"{host}:{port}:{shown}", "http.followRedirects": "false"}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it started, which is a group of its own where there are such."""
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _text(stream: BinaryIO) -> str:
    stream.seek(0)
    return stream.read(_MOST_OUTPUT).decode("utf-8", "replace")
