"""Image references, normalised as Docker does (distribution/reference)."""

from __future__ import annotations

from dataclasses import dataclass


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
