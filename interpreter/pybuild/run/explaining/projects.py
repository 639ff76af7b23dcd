"""Which builds are of one project, so that the misses of one are explained by the others."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from pybuild.dockerfile.instructions import Dockerfile
from pybuild.oci.platform import Platform
from pybuild.oci.reference import Reference
from pybuild.remotes.locations import parse_context_location
from pybuild.run.inputs import Context, DockerfileSource
from pybuild.values import dataclass


@dataclass(frozen=True, slots=True)
class Origin:
    """What a build was given: its context and Dockerfile as by the caller, the latter's name.

    ``tags`` and ``stages``, the names of all stages, tell builds apart that have neither a
    folder nor an address.
    """

    context: Context
    dockerfile: DockerfileSource
    name: str
    tags: Sequence[Reference]
    stages: Sequence[str | None]


@dataclass(frozen=True, slots=True)
class Project:
    """Builds of the same context, Dockerfile and platforms.

    ``folder`` is where records are kept, None for nowhere; ``identity`` any text that tells the
    project from others; ``platforms`` have commas between; ``target`` is empty for the last stage.
    """

    folder: Path | None
    identity: str
    platforms: str
    target: str


def project_of(
    folder: Path | None, origin: Origin, platforms: Sequence[Platform], target: str | None
) -> Project:
    """The project of a build whose records are kept in `folder`."""
    asked = ",".join(map(str, platforms))
    identity = [*_context(origin), _dockerfile(origin), asked]
    return Project(folder, json.dumps(identity), asked, target or "")


def _context(origin: Origin) -> tuple[str, list[str]]:
    context = origin.context
    if isinstance(context, Path) or (isinstance(context, str) and os.path.lexists(context)):
        return os.path.realpath(context), []
    location = parse_context_location(context) if isinstance(context, str) else None
    if location is not None:
        return str(location), []  # without its login
    # what came as a stream or a value is known by what is made of it
    return "", [str(tag) for tag in origin.tags] or [name or "" for name in origin.stages]


def _dockerfile(origin: Origin) -> str:
    given = origin.dockerfile
    if isinstance(given, bytes | Dockerfile):
        return ""
    if given is not None and os.path.lexists(given):
        return os.path.realpath(given)
    folder = origin.context
    if isinstance(folder, str | Path) and os.path.lexists(folder):
        return os.path.realpath(Path(folder, origin.name))
    return origin.name
