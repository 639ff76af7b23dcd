"""Image references, normalised as Docker does (distribution/reference)."""

from __future__ import annotations

import re

from pybuild.errors import UsageError
from pybuild.oci.descriptor import is_digest
from pybuild.values import dataclass, replace

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
_LEGACY_DEFAULT_REGISTRY = "index.docker.io"
_OFFICIAL = "library/"

_MAX_NAME = 255  # distribution/reference: RepositoryNameTotalLengthMax
_MAX_TEXT = 1024  # a host, a repository, a tag and a digest at their longest fit in this

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::([0-9]{{1,5}}))?")
# Possessive quantifiers keep hostile input linear.
_REPOSITORY = re.compile(
    r"[a-z0-9]++(?:(?:[._]|__|-++)[a-z0-9]++)*+(?:/[a-z0-9]++(?:(?:[._]|__|-++)[a-z0-9]++)*+)*+"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_IMAGE_ID = re.compile(r"[a-f0-9]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised image name: ``docker.io/library/busybox:latest``.

    ``registry`` is a host with an optional port; ``tag`` and ``digest`` may both be set,
    then the digest counts.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        text = f"{self.registry}/{self.repository}"
        if self.tag:
            text += f":{self.tag}"
        if self.digest:
            text += f"@{self.digest}"
        return text


def parse_reference(text: str) -> Reference:
    """The reference that `text` names, normalised; no tag is added (:func:`with_default_tag`).

    Raises UsageError for what distribution/reference refuses, and for digests other than
    sha256.
    """
    if not text:
        raise UsageError("an image name is empty")
    if len(text) > _MAX_TEXT:
        raise UsageError(f"an image name is longer than {_MAX_TEXT} characters")
    if _IMAGE_ID.fullmatch(text):
        raise _invalid(text, "64 hexadecimal digits are an image id, not a name")
    registry, rest = _split_registry(text)
    rest, digest = _split_digest(text, rest)
    repository, colon, tag = rest.partition(":")
    if repository != repository.lower():
        written = repository.removeprefix(_OFFICIAL)
        raise _invalid(
            text,
            "the repository name must be in lower case",
            f"write it as {text.replace(written, written.lower())}",
        )
    if not _REPOSITORY.fullmatch(repository):
        raise _invalid(text, "a name is made of a-z, 0-9, single separators . _ - and slashes")
    if len(repository) > _MAX_NAME:
        raise _invalid(text, f"the repository name has more than {_MAX_NAME} characters")
    if colon and not _TAG.fullmatch(tag):
        raise _invalid(text, "a tag is made of letters, digits, _ . and -, at most 128 of them")
    _check_registry(text, registry)
    return Reference(registry, repository, tag if colon else None, digest)


def with_default_tag(reference: Reference) -> Reference:
    """`reference` with the tag ``latest`` if it has neither tag nor digest."""
    if reference.tag or reference.digest:
        return reference
    return replace(reference, tag=DEFAULT_TAG)


def familiar(reference: Reference) -> str:
    """The short form for messages: ``busybox:1`` for ``docker.io/library/busybox:1``."""
    text = str(reference)
    if reference.registry != DEFAULT_REGISTRY:
        return text
    text = text.removeprefix(f"{DEFAULT_REGISTRY}/")
    official = reference.repository.removeprefix(_OFFICIAL)
    return text if "/" in official else text.removeprefix(_OFFICIAL)


def version(reference: Reference) -> str:
    """What to ask a registry for: the digest if there is one, else the tag, else ``latest``."""
    return reference.digest or reference.tag or DEFAULT_TAG


def _split_registry(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    is_host = slash and (
        first == "localhost" or "." in first or ":" in first or first != first.lower()
    )
    if not is_host:
        registry, rest = DEFAULT_REGISTRY, text
    elif first == _LEGACY_DEFAULT_REGISTRY:
        registry = DEFAULT_REGISTRY
    else:
        registry = first
    if registry == DEFAULT_REGISTRY and "/" not in rest.partition("@")[0]:
        rest = _OFFICIAL + rest
    return registry, rest


def _split_digest(text: str, rest: str) -> tuple[str, str | None]:
    name, at, digest = rest.partition("@")
    if not at:
        return rest, None
    if not is_digest(digest):
        raise _invalid(text, "a digest is sha256: and 64 hexadecimal digits in lower case")
    return name, digest


def _check_registry(text: str, registry: str) -> None:
    match = _REGISTRY.fullmatch(registry)
    if match is None or len(registry) > _MAX_NAME:
        raise _invalid(text, f"{registry!r} is no host name")
    if match[1] and not 0 < int(match[1]) < 65536:
        raise _invalid(text, f"{match[1]} is no port")


def _invalid(text: str, reason: str, hint: str | None = None) -> UsageError:
    return UsageError(
        f"invalid image name {text!r}: {reason}",
        hint=hint or "names look like busybox, busybox:1.36 or registry.example:5000/team/app:1",
    )
