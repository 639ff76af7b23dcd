"""The only maker of cache keys.

A key is the sha256, in hexadecimal, of canonical JSON that begins with a version tag and the
name of what is hashed. Strings are never joined, so no two inputs share a text; files, of which
there may be many, are rows of bytes with their lengths.

When planning, every step gets a *plan key* (:func:`step_key`): the key of what it starts
on, the instruction with all variables expanded, and the variables that its process sees.
It says nothing of the files that a COPY, ADD or bind mount reads, nor which stage they come
from. So a plan key alone never identifies a result: the run extends it by the digests of
those files (:func:`copy_key`, :func:`mount_key`) and by the key that the step below really
got, which makes a rebuilt stage with the same files a hit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

from pybuild.backend import BaseImage
from pybuild.oci.image_config import serialize_config
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.platform import Platform
from pybuild.plan.steps import (
    ContextSource,
    CopyStep,
    ImageSource,
    PlannedBind,
    PlannedCache,
    PlannedMount,
    PlannedScript,
    PlannedSecret,
    PlannedSsh,
    PlannedTmpfs,
    RunStep,
    Source,
    StageSource,
    Step,
    WorkdirStep,
)
from pybuild.remotes.locations import GitLocation, Location, WebLocation

KEY_VERSION = "pybuild-key-1"
"""Another one when keys are made otherwise, or steps do otherwise with the same files."""


def base_key(image: BaseImage | None, platform: Platform) -> str:
    """The key of a stage that starts on `image`, or on scratch for None."""
    return _key("base", [_image(image), str(platform), platform.os_version])


def step_key(parent: str, step: Step) -> str:
    """The plan key of `step` on what has the plan key `parent`. ``step.key`` is not looked at."""
    kind, fields = step_fields(step)
    return _key(kind, [parent, fields])


def step_fields(step: Step) -> tuple[str, Mapping[str, Any]]:
    """What a plan key is made of besides the parent's: the kind of step, and JSON values by name."""
    match step:
        case RunStep():
            return "run", _run(step)
        case CopyStep():
            return "copy", _copy(step)
        case WorkdirStep():
            return "workdir", {"path": step.path, "user": step.user}


def chained_key(step_key: str, parent: str) -> str:
    """The key of a step without input files, on what really got the key `parent`."""
    return _key("chained", [step_key, parent])


def copy_key(step_key: str, files: Iterable[Entry], *, parent: str = "") -> str:
    """The key of a COPY or ADD that selects `files`, in any order.

    `parent` is the key that the step below really got. Modification times don't count.
    Every regular file must have its digest.
    """
    return _key("copy-files", [step_key, parent, files_digest(files)])


def mount_key(step_key: str, mounts: Mapping[str, Iterable[Entry]], *, parent: str = "") -> str:
    """The key of a RUN whose bind mounts show these files, by mount target; see `copy_key`."""
    shown = [[target, files_digest(files)] for target, files in sorted(mounts.items())]
    return _key("run-mounts", [step_key, parent, shown])


def files_digest(files: Iterable[Entry]) -> str:
    """One digest of what `files` are: path, kind, mode, owner, link, content, xattrs.

    Raises ValueError for a regular file whose digest isn't known.
    """
    return _key("files", sha256(b"".join(sorted(map(_row, files)))).hexdigest())


def _row(entry: Entry) -> bytes:
    """Bytes that no other entry has, nor any that begins with them: all lengths come first."""
    path, link, digest = entry.path, entry.link, (entry.digest or "").encode()
    is_file = entry.kind is Kind.FILE
    if is_file and not digest and not link:
        raise ValueError(f"the digest of {path!r} is not known")
    return b"%d:%b%d:%b%d:%b%b %d %d %d %d %d %d;%b" % (
        *(len(path), path, len(link), link, len(digest), digest),
        b"file" if is_file else entry.kind.value.encode(),
        *(entry.mode, entry.uid, entry.gid, *entry.device),
        len(entry.xattrs),
        b"".join(map(_xattr, entry.xattrs)) if entry.xattrs else b"",
    )


def _xattr(xattr: tuple[str, bytes]) -> bytes:
    name, value = xattr[0].encode("utf-8", "surrogateescape"), xattr[1]
    return b"%d:%b%d:%b" % (len(name), name, len(value), value)


def _run(step: RunStep) -> dict[str, Any]:
    return {
        "args": step.args,
        "env": step.env,
        "cwd": step.cwd,
        "user": step.user,
        "mounts": [_mount(mount) for mount in step.mounts],
        "network": step.network.value,
        "hostname": step.hostname,
        "hosts": [[host.name, host.address] for host in step.extra_hosts],
        "shm": step.shm_size,
        "ulimits": [[limit.name, limit.soft, limit.hard] for limit in step.ulimits],
        "insecure": step.insecure,
        "cgroup": step.cgroup_parent,
    }


def _copy(step: CopyStep) -> dict[str, Any]:
    remotes = [[r.position, r.unpack, *_location(r.location)] for r in step.remotes]
    return {
        "instruction": step.instruction,
        "source": _source(step.source),
        "patterns": step.patterns,
        "files": [[file.name, _bytes(file.content)] for file in step.files],
        "destination": step.destination,
        "chown": step.chown,
        "chmod": step.chmod,
        "exclude": step.exclude,
        "parents": step.parents,
        "link": step.link,
        "unpack": step.unpack,
        **({"remotes": remotes} if remotes else {}),
    }


def _location(location: Location) -> list[Any]:
    """What is fetched, without the login."""
    match location:
        case WebLocation(url=url, checksum=checksum):
            return ["web", url, checksum]
        case GitLocation() as git:
            switches = [git.keep_git_dir, git.submodules, git.commit_times]
            return ["git", git.remote, git.ref, git.subdir, git.checksum, *switches]


def _mount(mount: PlannedMount) -> list[Any]:
    """A mount without what its files, and the values of secrets, hold."""
    match mount:
        case PlannedBind():
            return ["bind", mount.target, _source(mount.source), mount.path, mount.readonly]
        case PlannedTmpfs():
            return ["tmpfs", mount.target, mount.size]
        case PlannedScript():
            return ["script", mount.target, _bytes(mount.content)]
        case PlannedCache(target, ident, _, source, path, readonly, mode, uid, gid):
            # how builds at the same time share it changes no result
            begun = None if source is None else _source(source)
            return ["cache", target, ident, begun, path, readonly, mode, uid, gid]
        case PlannedSecret(ident, secret_target, env, _, file_mode, owner, group):
            return ["secret", ident, secret_target, env, file_mode, owner, group]
        case PlannedSsh(ident, target, _, file_mode, owner, group):
            return ["ssh", ident, target, file_mode, owner, group]


def _source(source: Source) -> list[Any]:
    match source:
        case ContextSource():
            return ["context", source.name]
        case StageSource():
            return ["stage"]
        case ImageSource():
            return ["image", _image(source.image)]


def _image(image: BaseImage | None) -> list[str] | None:
    if image is None:
        return None
    return [image.digest, sha256(serialize_config(image.config)).hexdigest()]


def _bytes(data: bytes) -> str:
    return data.decode("latin-1")


def _key(kind: str, value: object) -> str:
    text = json.dumps([KEY_VERSION, kind, value], sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()
