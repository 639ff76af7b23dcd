"""Secrets and agents' sockets as files of this machine that a runtime can mount.

A secret must not get into a snapshot, nor into the specification of a container: containerd
keeps both on disk. So it is a file of a file system in memory, in a folder that only this
user may enter, and is gone when the step has ended.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pybuild.backend import CacheMount, Mount, Process, SecretMount, SshMount
from pybuild.errors import BackendFailed, StepFailed
from pybuild.values import replace
from pybuild_containerd.workfolder import WorkFolder

_MEMORY = Path("/dev/shm")  # noqa: S108 - made by the kernel's mount, and checked
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_SHELL = "/bin/sh"
# "$1" is read by the shell itself, and the arguments of the process are what they were
_READ_AND_EXECUTE = '. "$1" && shift && exec "$@"'


@contextmanager
def memory_folder(parent: Path = _MEMORY) -> Iterator[Path]:
    """A new private folder in memory, removed with the context. Raises BackendFailed.

    What a killed process of this user left in `parent` is removed by the next one.
    """
    if not _is_in_memory(parent):
        raise BackendFailed(
            f"secrets need {parent} to be a tmpfs, so that they reach no disk",
            hint="mount one there, or use the embedded backend",
        )
    with WorkFolder(parent) as folder:
        yield folder.path


def write_secret(folder: Path, mount: SecretMount) -> Path:
    """The secret as a new file in `folder`, with owner and mode. Raises StepFailed."""
    path = folder / secrets.token_hex(8)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(mount.content)
    give(path, mount.mode, mount.uid, mount.gid, mount.target)
    return path


def give(path: Path, mode: int, uid: int, gid: int, target: str) -> None:
    """Set mode and owner as a RUN is to see them at `target`. Raises StepFailed.

    Who isn't root can't make a file another user's; to the root of a container, which may
    read everything, it doesn't matter.
    """
    if os.geteuid() == 0:
        os.chown(path, uid, gid)
    elif (uid, gid) != (0, 0):
        raise StepFailed(
            f"only root can give what is mounted at {target} to the user {uid}:{gid}",
            hint="run pybuild as root, or use the embedded backend",
        )
    path.chmod(mode)


def with_secret_variables(process: Process) -> tuple[Process, SecretMount | None]:
    """`process`, told by a file of the variables that its specification may not have.

    The image's shell reads the file and then becomes the process. Raises StepFailed for a
    variable that no shell can set.
    """
    if not process.secret_env:
        return process, None
    target = f"/dev/pybuild-{secrets.token_hex(8)}"
    lines = [f"export {_checked(name)}={_quoted(value)}\n" for name, value in process.secret_env]
    content = "".join(lines).encode("utf-8", "surrogateescape")
    args = (_SHELL, "-c", _READ_AND_EXECUTE, _SHELL, target, *process.args)
    user = process.user
    mount = SecretMount(target, content, 0o400, user.uid, user.gid)
    return replace(process, args=args, secret_env=()), mount


def refuse_for_task(mounts: Sequence[Mount], *, near: bool) -> None:
    """Raise StepFailed for what no task can be shown; `near` says that it runs on this machine."""
    for mount in mounts:
        if isinstance(mount, CacheMount) and mount.inside:
            raise StepFailed(
                f"the cache mount at {mount.target} can't show a part of its cache",
                hint="containerd's tasks follow links in it: leave out source, or give a from",
            )
        if isinstance(mount, SecretMount | SshMount) and not near:
            raise StepFailed(
                f"{mount.target} can't be mounted: containerd runs on another machine",
                hint="secrets and SSH agents are lent to steps on this machine only",
            )


def _checked(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise StepFailed(f'no shell has a variable called "{name}" to give a secret in')
    return name


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"


def _is_in_memory(folder: Path) -> bool:
    """Whether a tmpfs is mounted right there."""
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return False
    kinds = [
        line.partition(" - ")[2].split()[0] for line in lines if line.split()[4] == str(folder)
    ]
    return kinds[-1:] == ["tmpfs"]
