"""Other builders' build cases: their contexts laid out on disk, their flags as arguments of build()."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pybuild.flagvalues import parse_host

CONFORMANCE = Path(__file__).resolve().parents[2].parent / "shared" / "conformance"
_OLD = 1485449953  # the time that buildah's contexts are written for


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


def options_of(flags: Iterable[str]) -> dict[str, Any]:
    """docker build's flags of a case as keyword arguments of :func:`pybuild.build`."""
    options: dict[str, Any] = {}
    words = iter(flags)
    for word in words:
        flag, _, value = word.partition("=")
        if flag in ("-q", "--no-cache"):
            if flag == "--no-cache":
                options["no_cache"] = True
            continue
        value = value or next(words)
        match flag:
            case "--build-arg":
                name, _, given = value.partition("=")
                options.setdefault("build_args", {})[name] = given
            case "--label":
                name, _, given = value.partition("=")
                options.setdefault("labels", {})[name] = given
            case "--add-host":
                options.setdefault("add_hosts", []).append(parse_host(value))
            case "--network" | "--target":
                options[flag[2:]] = value
            case other:
                raise AssertionError(f"unknown flag {other}")
    return options
