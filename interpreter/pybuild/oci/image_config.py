"""The image config: a value, and its JSON form (OCI `config.md` with Docker's extensions)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pybuild.oci.platform import Platform


@dataclass(frozen=True, slots=True)
class Healthcheck:
    """Docker's health check. Durations are nanoseconds; 0 means inherited or default."""

    test: tuple[str, ...]
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One line of an image's history. ``created`` is RFC 3339."""

    created_by: str = ""
    empty_layer: bool = False
    comment: str = ""
    author: str = ""
    created: str | None = None


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """An image's config. Immutable: use :func:`dataclasses.replace`.

    ``cmd``, ``entrypoint``, ``shell`` are None where unset, which differs from empty.
    ``extra`` and ``config_extra`` keep unknown members of the two JSON objects, so that
    what another builder wrote isn't lost.
    """

    platform: Platform
    env: tuple[tuple[str, str], ...] = ()
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    args_escaped: bool = False
    user: str = ""
    working_dir: str = ""
    exposed_ports: frozenset[str] = frozenset()
    volumes: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    shell: tuple[str, ...] | None = None
    healthcheck: Healthcheck | None = None
    onbuild: tuple[str, ...] = ()
    author: str = ""
    created: str | None = None
    history: tuple[HistoryEntry, ...] = ()
    diff_ids: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    config_extra: Mapping[str, Any] = field(default_factory=dict)
