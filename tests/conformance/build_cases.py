"""Other builders' build cases: their contexts laid out on disk, their flags as arguments of build()."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pybuild import Backend, PullPolicy
from pybuild.arguments import parse_arguments
from pybuild.files.trees import Tree
from pybuild.oci.platform import host_platform
from pybuild.oci.reference import parse_reference
from pybuild.run.activity import CancelToken, Events
from pybuild.secrets import Secret

BACKENDS = (
    "embedded",
    pytest.param("containerd", marks=pytest.mark.containerd),
)
CONFORMANCE = Path(__file__).resolve().parents[2].parent / "shared" / "conformance"
_OLD = 1485449953  # the time that buildah's contexts are written for
_PASSED = (
    "build_args",
    "target",
    "labels",
    "no_cache",
    "network",
    "add_hosts",
    "shm_size",
    "ulimits",
    "cgroup_parent",
    "allow",
    "contexts",
)


def load(name: str) -> list[dict[str, Any]]:
    """The cases of one file; none where the folder is absent (the test module then skips)."""
    path = CONFORMANCE / name
    if not path.exists():
        return []
    cases: list[dict[str, Any]] = json.loads(path.read_text())["cases"]
    return cases


def lay_out(operations: Iterable[dict[str, Any]], root: Path) -> None:
    """Carry out a case's context operations below `root`, in order."""
    for operation in operations:
        path = root / operation["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = int(operation["mode"], 8) if isinstance(operation.get("mode"), str) else None
        match operation["op"]:
            case "write":
                path.write_bytes((operation["data"] or "").encode())
                path.chmod(mode if mode is not None else 0o644)
            case "mkdir" | "mkdirall":
                path.mkdir(parents=True, exist_ok=True)
                path.chmod(mode if mode is not None else 0o755)
            case "chmod":
                path.chmod(mode if mode is not None else int(operation["mode"]))
            case "chown":
                os.chown(path, operation["uid"], operation["gid"], follow_symlinks=False)
            case "symlink":
                path.symlink_to(operation["target"])
            case "link":
                os.link(root / operation["target"], path)
            case "setxattr":
                for name, value in operation["xattrs"].items():
                    os.setxattr(path, name, value.encode())
            case "utime":
                os.utime(path, (operation["mtime"],) * 2, follow_symlinks=False)
            case "tar":
                _write_tar(path, operation["entries"])
            case other:
                raise AssertionError(f"unknown operation {other}")


def _write_tar(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    types = {"TypeReg": tarfile.REGTYPE, "TypeDir": tarfile.DIRTYPE}
    with tarfile.open(path, "w") as tar:
        for entry in entries:
            member = tarfile.TarInfo(entry["name"])
            member.type = types[entry["typeflag"]]
            member.size, member.mode = entry["size"], entry["mode"]
            member.uid, member.gid, member.mtime = entry["uid"], entry["gid"], entry["modtime"]
            tar.addfile(member, io.BytesIO(entry["data"].encode()))


def copy_fixture(name: str, root: Path) -> None:
    """Copy a folder of `contexts/`, with the modes and times that git doesn't keep."""
    shutil.copytree(CONFORMANCE / "contexts" / name, root, symlinks=True, dirs_exist_ok=True)
    for folder, folders, files in os.walk(root, topdown=False):
        for entry in [*files, *folders]:
            path = Path(folder, entry)
            if not path.is_symlink():
                executable = path.is_dir() or path.stat().st_mode & 0o100
                path.chmod(0o755 if executable else 0o644)
            os.utime(path, (_OLD, _OLD), follow_symlinks=False)
    root.chmod(0o755)


def options_of(flags: Iterable[str], environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """docker build's flags of a case as keyword arguments of :func:`pybuild.build`.

    `environ` has the values of variables that the flags name. Raises UsageError.
    """
    given = parse_arguments([*flags, "."], environ or {}, version="")
    found = {name: getattr(given, name) for name in _PASSED}
    secrets = {secret.id: secret.env or "" for secret in given.secrets}
    values = {ident: Secret((environ or {})[name].encode()) for ident, name in secrets.items()}
    agents = {option.id: option.paths for option in given.ssh}
    return found | {"secrets": values, "ssh": agents, "platform": given.platforms or None}


@contextmanager
def image_tree(backend: Backend, name: str) -> Iterator[Tree]:
    """The files of the image `name` in the backend's store."""
    activity = Events(None).silent(CancelToken())
    image = backend.resolve(parse_reference(name), host_platform(), PullPolicy.NEVER, activity)
    with backend.checkout(image, activity) as layer:
        yield layer.tree()
