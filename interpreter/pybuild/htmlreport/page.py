"""The page as a whole: the outcome, and a section for each way to look at a build."""

from __future__ import annotations

from pybuild.htmlreport.graph import graph
from pybuild.htmlreport.layers import layers
from pybuild.htmlreport.markup import count, duration, lines, place, text
from pybuild.htmlreport.recording import Recording
from pybuild.htmlreport.source import source, warnings
from pybuild.htmlreport.style import STYLE
from pybuild.htmlreport.timeline import timeline

# nothing of a page is fetched or run, whatever a build brings into it
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(recording: Recording) -> str:
    """HTML for a build that has ended. Needs no other file."""
    name = _name(recording)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{name} - pybuild</title><style>{STYLE}</style></head><body>"
        f"{_head(recording, name)}{_error(recording)}{_facts(recording)}{warnings(recording)}"
        f'<h2 id="stages">Stages</h2>{graph(recording)}'
        f'<h2 id="timeline">Timeline</h2>{timeline(recording)}'
        f'<h2 id="layers">Layers</h2>{layers(recording)}'
        f"{source(recording)}</body></html>\n"
    )


def _name(recording: Recording) -> str:
    if recording.result is not None and recording.result.names:
        return text(recording.result.names[0])
    return text(recording.dockerfile[0] or "Build")


def _head(recording: Recording, name: str) -> str:
    failed = recording.error is not None
    badge = (
        f'<span class="badge{" failed" if failed else ""}">{"failed" if failed else "built"}</span>'
    )
    return f"<header><h1>{name} {badge}</h1></header>"


def _error(recording: Recording) -> str:
    error = recording.error
    if error is None:
        return ""
    hint = f"<br>{text(error.hint)}" if error.hint else ""
    step = f"<pre>{lines(error.step.splitlines())}</pre>" if error.step else ""
    where = place(error.where, recording.dockerfile[0])
    return f'<div class="banner">{text(error.message)} {where}{hint}{step}</div>'


def _facts(recording: Recording) -> str:
    states = [unit.state for unit in recording.units.values()]
    steps = 0 if recording.plan is None else sum(one.steps for one in recording.plan.stages)
    facts = [
        ("Began", recording.time.strftime("%Y-%m-%d %H:%M:%S UTC")),
        ("Took", duration(recording.seconds)),
        ("Steps", f"{steps}, {states.count('cached')} cached"),
    ]
    found = len(recording.warnings) + len(recording.lint)
    if found:
        facts.append(("Warnings", f'<a href="#warnings">{count(found, "warning")}</a>'))
    result = recording.result
    if result is not None:
        facts.append(("Digest", f"<code>{text(result.digest)}</code>"))
        facts.append(("Platforms", ", ".join(text(str(each)) for each in result.images)))
        if result.names:
            facts.append(("Names", "<br>".join(map(text, result.names))))
        facts += [("Output", text(f"{each.kind} {each.place}")) for each in result.outputs]
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{value}</dd>' for name, value in facts)}</dl>"
