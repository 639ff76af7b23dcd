"""The findings of the build checks as lines of text, as BuildKit's client shows them."""

from __future__ import annotations

from pybuild.dockerfile.lint import LintWarning
from pybuild.run.events import LintReported
from pybuild.run.excerpt import excerpt
from pybuild.run.output import without_escapes


def lint_lines(event: LintReported) -> list[str]:
    """Each finding with what its rule says and the lines that it is about."""
    count = len(event.warnings)
    lines = [f" {count} warning{'s' if count > 1 else ''} found:"]
    for warning in event.warnings:
        lines.append(f" - {short_text(warning)}")
        lines.append(warning.description)
        lines += excerpt(warning.where, event.source)
        lines.append("")
    return lines


def short_text(warning: LintWarning) -> str:
    """``Rule: message (line 3)``"""
    return without_escapes(f"{warning.rule}: {warning.message} (line {warning.where.start_line})")
