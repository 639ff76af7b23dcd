"""`explain`: the last build of a project in which a step missed, with all that differed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pybuild.backend import Backend
from pybuild.backends import DEFAULT_BACKEND, open_backend
from pybuild.errors import UsageError
from pybuild.export.images import image_name
from pybuild.oci.platform import Platform
from pybuild.options import asked_platforms
from pybuild.run.explaining.projects import Origin, project_of
from pybuild.run.explaining.recorded import RecordedBuild, RecordedStep
from pybuild.run.explaining.records import Records
from pybuild.run.inputs import DEFAULT_NAMES
from pybuild.run.miss import miss_as_json


def explain(
    context: str | Path,
    *,
    dockerfile: str | Path | bytes | None = None,
    backend: str | Backend | None = None,
    backend_options: Mapping[str, object] | None = None,
    target: str | None = None,
    platform: str | Platform | Sequence[str | Platform] | None = None,
    tags: Sequence[str] = (),
) -> RecordedBuild:
    """The last recorded build of `context`, for `platform`, and for `target` if it is given.

    The arguments are those of the build. A build is recorded when one of its steps misses.
    Raises UsageError where no such build is remembered.
    """
    with ExitStack() as stack:
        if not isinstance(backend, Backend):
            backend = stack.enter_context(open_backend(backend or DEFAULT_BACKEND, backend_options))
        platforms = asked_platforms(platform) or backend.platforms[:1]
        name = next((n for n in DEFAULT_NAMES if Path(context, n).exists()), DEFAULT_NAMES[0])
        origin = Origin(context, dockerfile, name, tuple(map(image_name, tags)), ())
        project = project_of(backend.notes_folder(), origin, platforms, target)
    for build in Records.of(project.folder, project.identity).newest():
        if target is None or build.target == target:
            return build
    raise UsageError(
        f'no build of "{context}" is remembered in which a step was not in the cache',
        hint="give the --file, --platform, --target and --backend of the build; "
        "one with --no-cache is not remembered",
    )


def build_as_json(build: RecordedBuild) -> dict[str, Any]:
    """The build in JSON's types: stages with their steps, of those that missed all causes."""
    return {
        "began": build.began.isoformat(),
        "outcome": build.outcome,
        "target": build.target or None,
        "platforms": build.platforms.split(","),
        "stages": [
            {
                "name": stage.label,
                "steps": [_step_as_json(step) for step in stage.steps],
                "not_begun": len(stage.titles) - len(stage.steps),
            }
            for stage in build.stages
        ],
    }


def _step_as_json(step: RecordedStep) -> dict[str, Any]:
    return {
        "title": step.title.partition("\0")[0],
        "line": step.line,
        "state": step.state.value,
        "miss": None if step.miss is None else miss_as_json(step.miss),
    }
