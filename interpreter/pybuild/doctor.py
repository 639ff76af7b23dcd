"""``pybuild doctor``: what was found on this machine, and what to do."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping

from pybuild.backend import Backend
from pybuild.backends import backend_names, open_backend
from pybuild.errors import PybuildError
from pybuild.oci.platform import host_platform
from pybuild.values import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``hint`` says what to do if ``good`` is False."""

    subject: str
    result: str
    good: bool = True
    hint: str | None = None


def examine(name: str, options: Mapping[str, object], version: str) -> tuple[Finding, ...]:
    """Look at this machine and try to open every backend; `options` are those of `name`."""
    findings = [
        Finding("pybuild", version),
        Finding("python", f"{platform.python_version()} ({sys.executable})"),
        Finding("machine", str(host_platform())),
    ]
    known = backend_names()
    for other in sorted({*known, name}, key=lambda each: (each != name, each)):
        chosen = other == name
        findings += _examine_backend(other, options if chosen else {}, chosen=chosen)
    return tuple(findings)


def describe_findings(findings: tuple[Finding, ...]) -> str:
    """The findings as text, one a line, each hint below its own."""
    longest = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        mark = "ok  " if finding.good else "FAIL"
        lines.append(f"{mark}  {finding.subject:<{longest}}  {finding.result}")
        if finding.hint:
            lines.append(f"      {'':<{longest}}  -> {finding.hint}")
    return "\n".join(lines)


def _examine_backend(name: str, options: Mapping[str, object], *, chosen: bool) -> list[Finding]:
    subject = f"backend {name}"
    used = " (chosen)" if chosen else ""
    try:
        with open_backend(name, options) as backend:
            return [_readiness(subject, used, backend), *_details(subject, backend)]
    except PybuildError as error:
        return [Finding(subject, error.message + used, good=False, hint=error.hint)]


def _readiness(subject: str, used: str, backend: Backend) -> Finding:
    """Whether the backend can do here all that it can do in general."""
    try:
        backend.require(backend.capabilities)
    except PybuildError as error:
        return Finding(subject, error.message + used, good=False, hint=error.hint)
    return Finding(subject, f"available{used}")


def _details(subject: str, backend: Backend) -> list[Finding]:
    """A backend's platforms and abilities, and what it says of itself."""
    return [
        Finding(f"{subject}: builds for", ", ".join(map(str, backend.platforms))),
        Finding(f"{subject}: can", ", ".join(sorted(backend.capabilities)) or "COPY only"),
        *(Finding(f"{subject}: {label}", value) for label, value in backend.describe()),
    ]
