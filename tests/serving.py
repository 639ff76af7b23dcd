"""Servers on loopback for tests: files over http, and git repositories over http and git's own protocol."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

GIT_ENVIRONMENT = {
    "PATH": os.environ.get("PATH", os.defpath),
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "author",
    "GIT_AUTHOR_EMAIL": "author@host.example",
    "GIT_COMMITTER_NAME": "author",
    "GIT_COMMITTER_EMAIL": "author@host.example",
    "GIT_AUTHOR_DATE": "1700000000 +0000",
    "GIT_COMMITTER_DATE": "1700000000 +0000",
}


@dataclass(frozen=True)
class Answer:
    """What is served at a path. ``pace`` is seconds between the bytes; ``length`` what is announced."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None
    pace: float = 0.0


@dataclass(frozen=True)
class Asked:
    """A request that came; header names in lower case."""

    path: str
    headers: Mapping[str, str]


class WebServer:
    """Serves ``answers`` by path and keeps what was ``asked``. A context manager."""

    def __init__(self, root: Path | None = None) -> None:
        self.answers: dict[str, Answer | Callable[[], Answer]] = {}
        self.asked: list[Asked] = []
        self.root = root
        self.otherwise = Answer(status=404)
        self.login: str | None = None  # the Authorization that the files below the root need
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.asked.append(Asked(handler.path, headers))
        found = self.answers.get(path) or self._file(path, headers)
        answer = found if isinstance(found, Answer) else found()
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        length = len(answer.body) if answer.length is None else answer.length
        if length >= 0:
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        with suppress(OSError):
            if not answer.pace:
                handler.wfile.write(answer.body)
                return
            for byte in answer.body:
                handler.wfile.write(bytes([byte]))
                time.sleep(answer.pace)

    def _file(self, path: str, headers: Mapping[str, str]) -> Answer:
        if self.login is not None and headers.get("authorization") != self.login:
            return Answer(status=401, headers={"WWW-Authenticate": 'Basic realm="test"'})
        if self.root is None:
            return self.otherwise
        file = self.root / path.lstrip("/")
        return Answer(file.read_bytes()) if file.is_file() else self.otherwise


class Repository:
    """A git repository to be served, at ``folder``; commits have fixed times and authors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder.with_suffix(".work")
        self.work.mkdir(parents=True)
        self._git("init", "--quiet", "--initial-branch=main")

    def git(self, *words: str) -> str:
        """Run git in the working tree; its output without white space around."""
        return self._git(*words)

    def commit(self, files: Mapping[str, str]) -> str:
        """Add files, and make a commit of all that is in the working tree; its id."""
        for name, text in files.items():
            path = self.work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self._git("add", "--all", "--force", ".")
        self._git("commit", "--quiet", "--allow-empty", "--message=change")
        return self._git("rev-parse", "HEAD")

    def publish(self) -> None:
        """Make the bare repository at ``folder`` anew."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._git("clone", "--quiet", "--bare", ".", str(self.folder))
        self._git("--git-dir", str(self.folder), "update-server-info")
        (self.folder / "git-daemon-export-ok").touch()

    def _git(self, *words: str) -> str:
        command = ["git", "-c", "protocol.file.allow=always", *words]
        done = subprocess.run(
            command, cwd=self.work, env=GIT_ENVIRONMENT, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()


@contextmanager
def git_daemon(root: Path, port: int) -> Iterator[str]:
    """``git daemon`` for the repositories below `root`; its URL."""
    command = [
        "git",
        "daemon",
        "--listen=127.0.0.1",
        f"--port={port}",
        f"--base-path={root}",
        "--reuseaddr",
        "--informative-errors",
        str(root),
    ]
    process = subprocess.Popen(
        command, env=GIT_ENVIRONMENT, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        yield f"git://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.communicate()
