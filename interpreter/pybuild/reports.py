"""The results of checks, outlines and lists of targets as text and as JSON, in BuildKit's forms.

JSON has the members that BuildKit's subrequests of version 1.0.0 write, but for ``url``.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from pybuild.checks import CheckResult, OutlineResult, TargetsResult
from pybuild.dockerfile.targets import Target
from pybuild.errors import PybuildError, SourceRange
from pybuild.plan.outline import Outline, OutlineArg, OutlineMount
from pybuild.run.excerpt import excerpt
from pybuild.run.output import without_escapes

Result = CheckResult | OutlineResult | TargetsResult


def describe(result: Result) -> str:
    """`result` as text, without a newline at the end; control characters are left out."""
    match result:
        case CheckResult():
            return _describe_check(result)
        case OutlineResult():
            return _describe_outline(result)
        case TargetsResult():
            rows = [(_target_name(target), target.description) for target in result.targets]
            return _table([("TARGET", "DESCRIPTION"), *rows], 1)


def as_json(result: Result) -> dict[str, Any]:
    """`result` in JSON's types. A Dockerfile's text is in it as base64."""
    match result:
        case CheckResult():
            return _check_as_json(result)
        case OutlineResult(outline):
            return _outline_as_json(outline, result.source)
        case TargetsResult(targets):
            listed = [_target(target) for target in targets]
            return {"targets": listed, "sources": [_base64(result.source)]}


def _describe_check(result: CheckResult) -> str:
    """How many warnings there are, and each with its lines. An error isn't told of."""
    count = len(result.warnings)
    if not count:
        return "" if result.error else "Check complete, no warnings found."
    found = "1 warning has" if count == 1 else f"{count} warnings have"
    lines = [f"Check complete, {found} been found!"]
    for warning in result.warnings:
        lines += ["", f"WARNING: {warning.rule}", without_escapes(warning.message)]
        lines += excerpt(warning.where, result.source)
    return "\n".join(lines)


def _check_as_json(result: CheckResult) -> dict[str, Any]:
    warnings = [
        {
            "ruleName": warning.rule,
            "description": warning.description,
            "detail": warning.message,
            "location": _location(warning.where),
        }
        for warning in result.warnings
    ]
    source = {"filename": result.name, "data": _base64(result.source), "language": "Dockerfile"}
    error = {} if result.error is None else {"buildError": _error(result.error)}
    return {"warnings": warnings, "sources": [source], **error}


def _describe_outline(result: OutlineResult) -> str:
    outline = result.outline
    parts: list[str] = []
    if outline.name or outline.description:
        rows = [("TARGET:", outline.name or "(default)")]
        if outline.description:
            rows.append(("DESCRIPTION:", outline.description))
        parts.append(_table(rows, 1))
    if outline.args:
        args = [(arg.name, arg.value, arg.description) for arg in outline.args]
        parts.append(_table([("BUILD ARG", "VALUE", "DESCRIPTION"), *args], 3))
    for title, mounts in (("SECRET", outline.secrets), ("SSH", outline.ssh)):
        if mounts:
            named = [(mount.id, "true" if mount.required else "") for mount in mounts]
            parts.append(_table([(title, "REQUIRED"), *named], 3))
    return "\n\n".join(parts)


def _outline_as_json(outline: Outline, source: bytes) -> dict[str, Any]:
    return _filled(
        {
            "name": outline.name,
            "description": outline.description,
            "args": [_arg(arg) for arg in outline.args],
            "secrets": [_mount(mount) for mount in outline.secrets],
            "ssh": [_mount(mount) for mount in outline.ssh],
            "sources": [_base64(source)],
        }
    )


def _target(target: Target) -> dict[str, Any]:
    return _filled(
        {
            "name": target.name,
            "default": target.default,
            "description": target.description,
            "base": target.base,
            "platform": target.platform,
            "location": _location(target.where),
        }
    )


def _target_name(target: Target) -> str:
    if not target.default:
        return target.name or ""
    return f"{target.name} (default)" if target.name else "(default)"


def _table(rows: Sequence[Sequence[str]], gap: int) -> str:
    """Columns as wide as their longest cell, and `gap` spaces between them."""
    cells = [[without_escapes(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) + gap for column in zip(*cells, strict=True)][:-1]
    return "\n".join("".join(map(str.ljust, row, widths)) + row[-1] for row in cells)


def _arg(arg: OutlineArg) -> dict[str, Any]:
    members = {"description": arg.description, "value": arg.value}
    return {"name": arg.name, **_filled(members), "location": _location(arg.where)}


def _mount(mount: OutlineMount) -> dict[str, Any]:
    required = {"required": True} if mount.required else {}
    return {"name": mount.id, **required, "location": _location(mount.where)}


def _filled(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value}


def _error(error: PybuildError) -> dict[str, Any]:
    location = {} if error.where is None else _location(error.where)
    return {"message": error.message, "location": location}


def _location(where: SourceRange) -> dict[str, Any]:
    """A range for each line."""
    numbers = range(where.start_line, where.end_line + 1)
    return {"ranges": [{"start": {"line": n}, "end": {"line": n}} for n in numbers]}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
