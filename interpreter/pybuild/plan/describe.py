"""A plan as text for people and as JSON: what ``--dry-run`` prints."""

from __future__ import annotations

import json
import re
from typing import Any

from pybuild.backend import Network
from pybuild.oci.image_config import serialize_config
from pybuild.oci.reference import familiar
from pybuild.plan.steps import (
    ContextSource,
    CopyStep,
    ImageSource,
    Plan,
    PlannedBind,
    PlannedCache,
    PlannedMount,
    PlannedScript,
    PlannedSecret,
    PlannedSsh,
    PlannedStage,
    PlannedTmpfs,
    RunStep,
    Source,
    StageSource,
    Step,
    WorkdirStep,
)

_SHORT_KEY = 12
_MAX_TITLE = 100
# of a proxy's URL, say
_CREDENTIALS = re.compile(r"//[^/@\s]*@")


def describe_plan(plan: Plan) -> str:
    """The stages with their steps, the image's config for each platform, and warnings.

    Ends with a newline.
    """
    labels = {stage.index: stage.label for stage in plan.stages}
    lines: list[str] = []
    for stage in plan.stages:
        is_target = any(stage is target.stage for target in plan.targets)
        lines += _stage_lines(stage, labels, is_target=is_target)
        lines.append("")
    for target in plan.targets:
        platform = f" for {target.platform}" if len(plan.targets) > 1 else ""
        lines.append(f"config of the image{platform}:")
        config = json.loads(serialize_config(target.stage.config))
        lines += [f"  {line}" for line in _config_lines(config)]
    for message, where in plan.warnings:
        lines.append(f"warning: {f'{where}: ' if where else ''}{message}")
    return "".join(f"{_printable(line)}\n" for line in lines)


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """The whole plan in JSON's types; contents of inline files as text.

    ``target`` is the stage of the only platform; of several, ``targets`` has one for each.
    """
    by_platform = {str(target.platform): target.stage.index for target in plan.targets}
    return {
        "stages": [_stage_object(stage) for stage in plan.stages],
        **({"targets": by_platform} if len(by_platform) > 1 else {"target": plan.target.index}),
        "warnings": [
            {"message": message, "where": str(where) if where else None}
            for message, where in plan.warnings
        ],
    }


def _stage_lines(stage: PlannedStage, labels: dict[int, str], *, is_target: bool) -> list[str]:
    mark = " (target)" if is_target else ""
    lines = [f"stage {stage.label}{mark}", f"  from {_parent(stage, labels)} for {stage.platform}"]
    width = len(str(len(stage.steps)))
    for number, step in enumerate(stage.steps, 1):
        key = step.key[:_SHORT_KEY]
        lines.append(f"  {number:{width}}/{len(stage.steps)} {_short(step.title)}")
        margin = " " * (2 * width + 4)
        lines += [f"{margin}{detail}" for detail in [*_details(step, labels), f"key {key}"]]
    return lines


def _parent(stage: PlannedStage, labels: dict[int, str]) -> str:
    match stage.parent:
        case StageSource(index):
            return f"stage {labels[index]}"
        case ImageSource(image):
            return f"{familiar(image.reference)} {image.digest}" if image else "scratch"


def _details(step: Step, labels: dict[int, str]) -> list[str]:
    match step:
        case RunStep():
            details = [_mount_text(mount, labels) for mount in step.mounts]
            if step.network is not Network.DEFAULT:
                details.append(f"network {step.network.value}")
            if step.insecure:
                details.append("security insecure")
            return [f"in {step.cwd}{f' as {step.user}' if step.user else ''}", *details]
        case CopyStep():
            names = [*step.patterns, *(f"<<{file.name}" for file in step.files)]
            names += [str(remote.location) for remote in step.remotes]
            return [f"{_source_text(step.source, labels)}: {' '.join(names)} -> {step.destination}"]
        case WorkdirStep():
            return []


def _mount_text(mount: PlannedMount, labels: dict[int, str]) -> str:
    match mount:
        case PlannedBind():
            mode = "" if mount.readonly else ", writes discarded"
            return (
                f"bind {_source_text(mount.source, labels)}: /{mount.path} at {mount.target}{mode}"
            )
        case PlannedTmpfs():
            return f"tmpfs at {mount.target}"
        case PlannedScript():
            return f"script at {mount.target}"
        case PlannedCache(target, ident, sharing, source):
            begun = "" if source is None else f", begun with {_source_text(source, labels)}"
            return f"cache {ident} at {target}, {sharing.value}{begun}"
        case PlannedSecret(ident, secret_target, env):
            at = f" at {secret_target}" if secret_target else ""
            return f"secret {ident}{at}{f' as ${env}' if env else ''}"
        case PlannedSsh(ident, target):
            return f"ssh {ident} at {target}"


def _source_text(source: Source, labels: dict[int, str]) -> str:
    match source:
        case ContextSource(None):
            return "context"
        case ContextSource(name):
            return f"context {name}"
        case StageSource(index):
            return f"stage {labels[index]}"
        case ImageSource(image):
            return f"image {familiar(image.reference)}" if image else "scratch"


def _config_lines(config: dict[str, Any]) -> list[str]:
    inner = config.pop("config")
    config.pop("rootfs")
    members = [*config.items(), *inner.items()]
    return [f"{name}: {_value(value)}" for name, value in members]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(title: str) -> str:
    return title if len(title) <= _MAX_TITLE else f"{title[: _MAX_TITLE - 1]}…"


def _printable(line: str) -> str:
    """`line` without control characters, which could drive a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _stage_object(stage: PlannedStage) -> dict[str, Any]:
    return {
        "index": stage.index,
        "name": stage.name,
        "platform": str(stage.platform),
        "parent": _source_object(stage.parent),
        "where": str(stage.where),
        "steps": [_step_object(step) for step in stage.steps],
        "config": json.loads(serialize_config(stage.config)),
        "inherited_history": len(stage.inherited),
        "history": [{"created_by": h.created_by, "step": h.step} for h in stage.history],
    }


def _step_object(step: Step) -> dict[str, Any]:
    common = {"title": step.title, "where": str(step.where), "key": step.key}
    match step:
        case RunStep():
            return {
                "type": "run",
                **common,
                "args": list(step.args),
                "env": [
                    _CREDENTIALS.sub("//***@", f"{name}={value}")
                    for name, value in step.process_env
                ],
                "cwd": step.cwd,
                "user": step.user,
                "network": step.network.value,
                "security": "insecure" if step.insecure else "sandbox",
                "mounts": [_mount_object(mount) for mount in step.mounts],
            }
        case CopyStep():
            return {
                "type": step.instruction.lower(),
                **common,
                "source": _source_object(step.source),
                "patterns": list(step.patterns),
                "files": [{"name": f.name, "content": _text(f.content)} for f in step.files],
                "destination": step.destination,
                "chown": step.chown,
                "chmod": step.chmod,
                "exclude": list(step.exclude),
                "parents": step.parents,
                "link": step.link,
                "unpack": step.unpack,
                **({"remotes": [str(r.location) for r in step.remotes]} if step.remotes else {}),
            }
        case WorkdirStep():
            return {"type": "workdir", **common, "path": step.path, "user": step.user}


def _mount_object(mount: PlannedMount) -> dict[str, Any]:
    match mount:
        case PlannedBind():
            return {
                "type": "bind",
                "target": mount.target,
                "source": _source_object(mount.source),
                "path": mount.path,
                "readonly": mount.readonly,
            }
        case PlannedTmpfs():
            return {"type": "tmpfs", "target": mount.target, "size": mount.size}
        case PlannedScript():
            return {"type": "script", "target": mount.target, "content": _text(mount.content)}
        case PlannedCache():
            return {
                "type": "cache",
                "target": mount.target,
                "id": mount.ident,
                "sharing": mount.sharing.value,
                "source": None if mount.source is None else _source_object(mount.source),
                "path": mount.path,
                "readonly": mount.readonly,
                "mode": mount.mode,
                "uid": mount.uid,
                "gid": mount.gid,
            }
        case PlannedSecret():
            return {"type": "secret", **_lent_object(mount), "env": mount.env}
        case PlannedSsh():
            return {"type": "ssh", **_lent_object(mount)}


def _lent_object(mount: PlannedSecret | PlannedSsh) -> dict[str, Any]:
    return {
        "id": mount.id,
        "target": mount.target,
        "required": mount.required,
        "mode": mount.mode,
        "uid": mount.uid,
        "gid": mount.gid,
    }


def _source_object(source: Source) -> dict[str, Any]:
    match source:
        case ContextSource(name):
            return {"context": name}
        case StageSource(index):
            return {"stage": index}
        case ImageSource(image) if image is not None:
            return {"image": str(image.reference), "digest": image.digest}
        case ImageSource():
            return {"scratch": True}


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")
