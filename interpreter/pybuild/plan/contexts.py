"""Named build contexts: what a name stands for in place of an image or a stage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress

from pybuild.errors import UsageError
from pybuild.oci.descriptor import is_digest
from pybuild.oci.platform import Platform, parse_platform
from pybuild.oci.reference import familiar, parse_reference
from pybuild.values import dataclass

_IMAGE = "docker-image://"
_LAYOUT = "oci-layout://"
_STAGE = "target:"
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_UNREPLACEABLE = frozenset({"scratch", "context"})


@dataclass(frozen=True, slots=True)
class FilesContext:
    """Files. ``location`` is a folder, a git repository or a web address, for the run to open."""

    location: str


@dataclass(frozen=True, slots=True)
class ImageContext:
    """Another image, by its name as written; ``scratch`` is the empty one."""

    image: str


@dataclass(frozen=True, slots=True)
class LayoutContext:
    """An image in an OCI image layout: a folder or tar at `path`. Without tag and digest, the only one."""

    path: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        tag, digest = self.tag and f":{self.tag}", self.digest and f"@{self.digest}"
        return f"{_LAYOUT}{self.path}{tag or ''}{digest or ''}"


@dataclass(frozen=True, slots=True)
class StageContext:
    """Another stage of the same Dockerfile."""

    stage: str


NamedContext = FilesContext | ImageContext | LayoutContext | StageContext


def parse_context(value: str) -> NamedContext:
    """What the value of ``--build-context NAME=value`` says. Raises UsageError."""
    if not value:
        raise UsageError("a named context has no value", hint="give it as NAME=folder, say")
    if value.startswith(_IMAGE):
        image = value.removeprefix(_IMAGE)
        if image != "scratch":
            parse_reference(image)
        return ImageContext(image)
    if value.startswith(_LAYOUT):
        return _parse_layout(value.removeprefix(_LAYOUT))
    if value.startswith(_STAGE):
        return StageContext(value.removeprefix(_STAGE))
    return FilesContext(value)


def context_key(name: str) -> str:
    """Contexts are named as images are: ``x``, ``x:latest``, ``docker.io/library/x`` agree.

    ``x::linux/arm64`` is the context `x` for that platform alone.
    """
    name, separator, platform = name.partition("::")
    with suppress(UsageError):  # no image has such a name, a context may
        name = familiar(parse_reference(name)).removesuffix(":latest")
    return f"{name}::{parse_platform(platform)}" if separator else name


def find_context(name: str, keys: Mapping[str, str], platform: Platform) -> str | None:
    """The name of the context that `name` means; `keys` are all names by :func:`context_key`.

    One for `platform` goes before one for all (BuildKit's `dockerui`).
    """
    if not keys or name.lower() in _UNREPLACEABLE:
        return None
    key = context_key(name)
    return keys.get(f"{key}::{platform}") or keys.get(key)


def _parse_layout(text: str) -> LayoutContext:
    path, at, digest = text.rpartition("@")
    if not at or not is_digest(digest):
        path, digest = text, ""
    before, colon, tag = path.rpartition(":")
    if colon and before and _TAG.fullmatch(tag):
        path = before
    else:
        tag = ""
    if not path:
        raise UsageError(
            f'"{_LAYOUT}{text}" names no layout', hint="write oci-layout://path[:tag][@digest]"
        )
    return LayoutContext(path, tag or None, digest or None)
