"""kaniko, which builds in its own root: here that of a folder, in namespaces of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from builder import Build
from measuring import Command, Daemons
from workfolder import remove

# $1 is the root, $2 the context, $3 the Dockerfile's folder; kaniko leaves mounts alone
_ENTER = """set -e
mount --make-rprivate /
mount --rbind "$2" "$1/workspace"
mount --rbind "$3" "$1/dockerfile"
mount --rbind /dev "$1/dev"
mount -t proc proc "$1/proc"
root=$1
shift 3
exec chroot "$root" /kaniko/executor "$@"
"""
_OPTIONS = ("--force", "--insecure-pull", "--skip-tls-verify-pull", "--no-push")


@dataclass(frozen=True)
class Kaniko:
    """It keeps nothing between builds: each pulls the base, and writes an archive of the image."""

    executor: Path
    folder: Path
    name: str = "kaniko"
    keeps_steps: bool = False
    daemons: Daemons = ()

    def command(self, build: Build) -> Command:
        root = self._new_root()
        enter = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _ENTER, "sh")
        folders = (str(root), str(build.context), str(build.dockerfile.parent))
        sources = (
            "--context=dir:///workspace",
            f"--dockerfile=/dockerfile/{build.dockerfile.name}",
        )
        target = (f"--destination={build.tag}", "--tar-path=/kaniko/made.tar")
        return Command((*enter, *folders, *_OPTIONS, *sources, *target))

    def forget(self, tag: str) -> None:
        del tag
        self.empty()

    def empty(self) -> None:
        remove(self.folder / "root")

    def _new_root(self) -> Path:
        """A root with nothing but kaniko; what it had built in the last one is gone."""
        self.empty()
        root = self.folder / "root"
        for name in ("kaniko", "workspace", "dockerfile", "dev", "proc", "etc", "tmp"):
            (root / name).mkdir(parents=True)
        shutil.copy(self.executor, root / "kaniko" / "executor")
        return root


@contextmanager
def kaniko(folder: Path, executor: Path) -> Iterator[Kaniko]:
    yield Kaniko(executor, folder)
