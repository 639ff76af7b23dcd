"""``pybuild explain``: the words of the command line as values, and a recorded build as text."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from pybuild.arguments import (
    BackendArguments,
    add_backend_options,
    add_other_options,
    backend_values,
    new_parser,
    parse_words,
)
from pybuild.explanations import build_as_json, explain
from pybuild.run.explaining.recorded import (
    RecordedBuild,
    RecordedStage,
    RecordedStep,
    StepState,
)
from pybuild.run.miss import Cause, CauseKind
from pybuild.run.output import cut, without_escapes
from pybuild.values import dataclass

_LONGEST_TITLE = 100
_VERDICTS = {
    StepState.CACHED: "hit ",
    StepState.MADE: "miss",
    StepState.EMPTY: "none",
    StepState.FAILED: "miss",
    StepState.CANCELLED: "miss",
    StepState.REFUSED: "miss",
}
_ENDS = {
    StepState.FAILED: "the step failed",
    StepState.CANCELLED: "the step was cancelled",
    StepState.REFUSED: "the step did not run",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainArguments(BackendArguments):
    """``pybuild explain [CONTEXT]``; ``format`` is text or json."""

    context: str
    file: str | bytes | None
    target: str | None
    platforms: tuple[str, ...]
    tags: tuple[str, ...]
    format: str


def parse_explain_arguments(words: Sequence[str], version: str) -> ExplainArguments:
    """What the words behind ``explain`` ask for. Raises UsageError."""
    found = parse_words(explain_parser(version), list(words), {})
    return ExplainArguments(
        **backend_values(found),
        context=found.context,
        file=b"" if found.file == "-" else found.file,
        target=found.target,
        platforms=tuple(found.platform),
        tags=tuple(found.tag),
        format=found.format,
    )


def explain_parser(version: str) -> argparse.ArgumentParser:
    """The grammar of ``pybuild explain``."""
    parser = new_parser(
        "pybuild explain",
        "pybuild explain [options] [CONTEXT]",
        "Show the last build of CONTEXT, by default of this folder, in which a step was not in "
        "the cache: of each step whether it was, and all that differed from the nearest earlier "
        "build. Nothing is built.",
    )
    parser.add_argument(
        "context", nargs="?", default=".", metavar="CONTEXT", help=argparse.SUPPRESS
    )
    add = parser.add_argument_group("which build").add_argument
    add("-f", "--file", metavar="PATH", help="its Dockerfile; - if that came on standard input")
    add("--target", metavar="STAGE", help="the last build of this target")
    add("--platform", action="append", default=[], metavar="OS/ARCH", help="its platforms")
    add(
        "-t",
        "--tag",
        action="append",
        default=[],
        metavar="NAME",
        help="its names, where the context came on standard input",
    )
    add("--format", choices=("text", "json"), default="text", metavar="FORMAT", help="text or json")
    add_backend_options(parser)
    add_other_options(parser, version)
    return parser


def explained(
    arguments: ExplainArguments, backend: str, backend_options: Mapping[str, object]
) -> str:
    """What the command prints. Raises UsageError."""
    build = explain(
        arguments.context,
        dockerfile=arguments.file,
        backend=backend,
        backend_options=backend_options,
        target=arguments.target,
        platform=arguments.platforms,
        tags=arguments.tags,
    )
    if arguments.format == "json":
        return json.dumps(build_as_json(build), indent=2)
    return describe_build(build)


def describe_build(build: RecordedBuild) -> str:
    """The build step by step, without a newline at the end."""
    target = f", target {build.target}" if build.target else ""
    lines = [f"build of {_when(build.began)} for {build.platforms}{target}: {build.outcome}"]
    for stage in build.stages:
        lines += ["", f"stage {stage.label}", *_stage_lines(stage)]
    return "\n".join(without_escapes(line) for line in lines)


def _stage_lines(stage: RecordedStage) -> Iterator[str]:
    count = len(stage.titles)
    for number, step in enumerate(stage.steps, 1):
        yield f"  {_verdict(step)}  {number:>{len(str(count))}}/{count} {_title(step.title)}"
        if step.miss is not None:
            yield from (f"          {_cause_text(cause)}" for cause in step.miss.causes)
            if step.miss.more:
                yield f"          and {step.miss.more} more"
            if step.miss.against is not None:
                yield f"          compared with the build of {_when(step.miss.against)}"
        if step.state in _ENDS:
            yield f"          {_ENDS[step.state]}"
    if left := count - len(stage.steps):
        yield f"  {left} of {count} steps {'was' if left == 1 else 'were'} not begun"


def _verdict(step: RecordedStep) -> str:
    if step.state is StepState.MADE and step.miss is None:
        return "same"  # another stage has the same step, and did it
    return _VERDICTS[step.state]


def _cause_text(cause: Cause) -> str:
    """The cause in one line, and of a changed instruction what it was before."""
    text = " ".join(str(cause).split())
    if cause.kind is CauseKind.INSTRUCTION and cause.before is not None and not cause.name:
        return f"{text}; it was {_title(cause.before)}"
    return text


def _title(text: str) -> str:
    return cut(" ".join(text.partition("\0")[0].split()), _LONGEST_TITLE)


def _when(time: datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
