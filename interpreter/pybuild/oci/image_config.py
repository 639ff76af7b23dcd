"""The image config: a value, and its JSON form (OCI `config.md` with Docker's extensions)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pybuild.errors import InvalidImage
from pybuild.oci.descriptor import is_digest
from pybuild.oci.platform import Platform
from pybuild.values import dataclass, field

# The OCI specification sets no limit; containerd and Docker refuse larger ones in practice.
MAX_CONFIG_SIZE = 8 * 1024 * 1024
MAX_LAYERS = 4096
_MAX_DEPTH = 64
# a layer has one line, and a build may add some without one; images have at most 4096 layers
_MAX_HISTORY = 100_000


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


_TOP_LEVEL = frozenset(
    [
        "architecture",
        "author",
        "config",
        "created",
        "history",
        "os",
        "os.version",
        "rootfs",
        "variant",
    ]
)
_CONFIG_MEMBERS = frozenset(
    [
        "User",
        "ExposedPorts",
        "Env",
        "Entrypoint",
        "Cmd",
        "Volumes",
        "WorkingDir",
        "Labels",
        "StopSignal",
        "ArgsEscaped",
        "Healthcheck",
        "OnBuild",
        "Shell",
    ]
)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# What encoding/json escapes by default, so that the text can stand in HTML and JavaScript.
_ESCAPED = {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
_TO_ESCAPE = re.compile("[<>&\u2028\u2029]")


def parse_config(data: bytes) -> ImageConfig:
    """The image config in `data`, JSON of either config media type.

    A member that is null counts as absent. Raises InvalidImage where a member has the wrong
    type, the platform is missing, or the config is too large.
    """
    if len(data) > MAX_CONFIG_SIZE:
        raise InvalidImage(f"the image config is larger than {MAX_CONFIG_SIZE} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidImage("the image config is not JSON") from error
    top = _Reader(value, "the image config")
    config = top.object("config")
    rootfs = top.object("rootfs")
    diff_ids = rootfs.strings("diff_ids") or ()
    if len(diff_ids) > MAX_LAYERS:
        raise InvalidImage(f"the image has more than {MAX_LAYERS} layers")
    for diff_id in diff_ids:
        if not is_digest(diff_id):
            raise InvalidImage(f"the image config has a diff id {diff_id[:80]!r} that is no digest")
    history = top.objects("history", at_most=_MAX_HISTORY)
    system, architecture = top.text("os"), top.text("architecture")
    if not system or not architecture:
        missing = "architecture" if system else "os"
        raise InvalidImage(f"the image config lacks {missing}")
    return ImageConfig(
        platform=Platform(system, architecture, top.text("variant"), top.text("os.version")),
        env=tuple(_variable(entry) for entry in config.strings("Env") or ()),
        entrypoint=config.strings("Entrypoint"),
        cmd=config.strings("Cmd"),
        args_escaped=config.flag("ArgsEscaped"),
        user=config.text("User"),
        working_dir=config.text("WorkingDir"),
        exposed_ports=config.keys("ExposedPorts"),
        volumes=config.keys("Volumes"),
        labels=config.texts("Labels"),
        stop_signal=config.text("StopSignal"),
        shell=config.strings("Shell"),
        healthcheck=_healthcheck(config.optional_object("Healthcheck")),
        onbuild=config.strings("OnBuild") or (),
        author=top.text("author"),
        created=top.text("created") or None,
        history=tuple(map(_history_entry, history)),
        diff_ids=diff_ids,
        extra=top.others(_TOP_LEVEL),
        config_extra=config.others(_CONFIG_MEMBERS),
    )


def serialize_config(config: ImageConfig) -> bytes:
    """The config as BuildKit writes it: the same value gives the same bytes.

    The outer object is sorted by name, the inner ones have the order of Go's types, empty
    members are left out, and ``<``, ``>`` and ``&`` are escaped.
    """
    platform = config.platform
    outer: dict[str, Any] = {
        "architecture": platform.architecture,
        "author": config.author,
        "config": _config_object(config),
        "created": config.created,
        "history": [_history_object(entry) for entry in config.history],
        "os": platform.os,
        "os.version": platform.os_version,
        "rootfs": {"type": "layers", "diff_ids": list(config.diff_ids)},
        "variant": platform.variant,
        **{name: value for name, value in config.extra.items() if name not in _TOP_LEVEL},
    }
    always = {"architecture", "config", "os", "rootfs"}
    kept = {name: outer[name] for name in sorted(outer) if outer[name] or name in always}
    text = json.dumps(_clean(kept), ensure_ascii=False, separators=(",", ":"))
    return _TO_ESCAPE.sub(lambda match: _ESCAPED[match[0]], text).encode()


def _config_object(config: ImageConfig) -> dict[str, Any]:
    members: dict[str, Any] = {
        "User": config.user,
        "ExposedPorts": {port: {} for port in sorted(config.exposed_ports)},
        "Env": [f"{name}={value}" for name, value in config.env],
        "Entrypoint": config.entrypoint,
        "Cmd": config.cmd,
        "Volumes": {path: {} for path in sorted(config.volumes)},
        "WorkingDir": config.working_dir,
        "Labels": {name: config.labels[name] for name in sorted(config.labels)},
        "StopSignal": config.stop_signal,
        "ArgsEscaped": config.args_escaped,
        "Healthcheck": _healthcheck_object(config.healthcheck),
        "OnBuild": config.onbuild,
        "Shell": config.shell,
    }
    found = {name: value for name, value in members.items() if value}
    if config.healthcheck is not None:  # a pointer in Go: kept even where all of it is empty
        found["Healthcheck"] = members["Healthcheck"]
        found = {name: found[name] for name in members if name in found}
    others = {n: config.config_extra[n] for n in sorted(config.config_extra) if n not in members}
    return found | others


def _healthcheck_object(check: Healthcheck | None) -> dict[str, Any]:
    if check is None:
        return {}
    members = {
        "Test": check.test,
        "Interval": check.interval,
        "Timeout": check.timeout,
        "StartPeriod": check.start_period,
        "StartInterval": check.start_interval,
        "Retries": check.retries,
    }
    return {name: value for name, value in members.items() if value}


def _history_object(entry: HistoryEntry) -> dict[str, Any]:
    members = {
        "created": entry.created,
        "created_by": entry.created_by,
        "author": entry.author,
        "comment": entry.comment,
        "empty_layer": entry.empty_layer,
    }
    return {name: value for name, value in members.items() if value}


def _clean(value: Any) -> Any:
    """`value` with what UTF-8 can't hold replaced, as encoding/json does."""
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {_clean(name): _clean(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    return value


def _is_deeper(value: object, limit: int) -> bool:
    level: list[object] = [value]
    for _ in range(limit):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
        level = below
    return bool(level)


def _variable(entry: str) -> tuple[str, str]:
    name, _, value = entry.partition("=")
    return name, value


def _healthcheck(check: _Reader | None) -> Healthcheck | None:
    if check is None:
        return None
    return Healthcheck(
        test=check.strings("Test") or (),
        interval=check.number("Interval"),
        timeout=check.number("Timeout"),
        start_period=check.number("StartPeriod"),
        start_interval=check.number("StartInterval"),
        retries=check.number("Retries"),
    )


def _history_entry(entry: _Reader) -> HistoryEntry:
    return HistoryEntry(
        created_by=entry.text("created_by"),
        empty_layer=entry.flag("empty_layer"),
        comment=entry.text("comment"),
        author=entry.text("author"),
        created=entry.text("created") or None,
    )


class _Reader:
    """A JSON object whose members are read with their type checked."""

    def __init__(self, value: object, place: str) -> None:
        if not isinstance(value, dict):
            raise InvalidImage(f"{place} is not a JSON object")
        self._members = value
        self._place = place

    def text(self, name: str) -> str:
        value = self._members.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._wrong(name, "a string")
        return value

    def flag(self, name: str) -> bool:
        value = self._members.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def number(self, name: str) -> int:
        value = self._members.get(name)
        if value is None:
            return 0
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 63:
            raise self._wrong(name, "a 64-bit integer")
        return value

    def strings(self, name: str) -> tuple[str, ...] | None:
        value = self._members.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, "a list of strings")
        return tuple(value)

    def keys(self, name: str) -> frozenset[str]:
        value = self._members.get(name)
        if value is None:
            return frozenset()
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return frozenset(value)

    def texts(self, name: str) -> dict[str, str]:
        value = self._members.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise self._wrong(name, "an object of strings")
        return dict(value)

    def object(self, name: str) -> _Reader:
        """The object `name`; an empty one where it is missing."""
        return self.optional_object(name) or _Reader({}, name)

    def optional_object(self, name: str) -> _Reader | None:
        value = self._members.get(name)
        return None if value is None else _Reader(value, f"member {name} of {self._place}")

    def objects(self, name: str, *, at_most: int) -> list[_Reader]:
        value = self._members.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > at_most:
            raise self._wrong(name, f"a list of at most {at_most} items")
        return [_Reader(item, f"an item of member {name} of {self._place}") for item in value]

    def others(self, known: frozenset[str]) -> dict[str, Any]:
        found = {name: value for name, value in self._members.items() if name not in known}
        if _is_deeper(found, _MAX_DEPTH):
            raise InvalidImage(f"{self._place} is nested too deeply")
        return found

    def _wrong(self, name: str, wanted: str) -> InvalidImage:
        return InvalidImage(f"member {name} of {self._place} is not {wanted}")
