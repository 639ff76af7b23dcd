"""Platforms: parsing, formatting, matching, after the OCI image index and containerd's rules."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system, CPU architecture and variant, in Go's names, normalised.

    ``variant`` is empty where the architecture has none or only its default one
    (arm64's v8, amd64's v1).
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""

    def __str__(self) -> str:
        parts = [self.os, self.architecture]
        if self.variant:
            parts.append(self.variant)
        return "/".join(parts)
