"""The values of ``RUN --mount`` and ``RUN --device``: fields as in a line of CSV.

Keys, types and their combinations are those of the Dockerfile reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pybuild.dockerfile.arguments import Word, suggestion
from pybuild.errors import DockerfileSyntaxError, SourceRange, located
from pybuild.values import dataclass, replace

TYPES = ("bind", "cache", "tmpfs", "secret", "ssh")
SHARING = ("shared", "private", "locked")
_ALIASES = {"src": "source", "dst": "target", "destination": "target"}
_ALIASES |= {"ro": "readonly", "rw": "readwrite"}
_KEYS = (
    *("type", "from", "source", "target", "readonly", "readwrite", "id", "sharing", "required"),
    *("size", "mode", "uid", "gid", "env"),
)
_SWITCHES = ("readonly", "readwrite", "required")
_ALLOWED_TYPES = {
    "required": ("secret", "ssh"),
    "size": ("tmpfs",),
    "sharing": ("cache",),
    "mode": ("secret", "ssh", "cache"),
    "uid": ("secret", "ssh", "cache"),
    "gid": ("secret", "ssh", "cache"),
}
_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
_SIZE = r"(?a)([0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20}) ?(b|[kmgtp](?:i?b)?)?"
_MAX_SIZE = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class MountOptions:
    """A ``--mount``. Paths are as written; None is what wasn't given.

    ``readonly`` is worked out: bind, secret and ssh are unless they say ``rw``.
    """

    type: str = "bind"
    from_: str | None = None
    source: str | None = None
    target: str | None = None
    readonly: bool = True
    id: str | None = None
    sharing: str | None = None
    required: bool = False
    size: int | None = None
    """Bytes."""
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    env: str | None = None
    """The variable that a secret is given in; empty for one named as the secret."""


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """A ``--device``."""

    name: str | None = None
    required: bool = False


@dataclass(frozen=True, slots=True)
class _Field:
    key: str
    value: str | None
    where: SourceRange
    written: str


def parse_mount(
    raw: str, where: SourceRange, expand: Callable[[str], str] | None = None
) -> MountOptions:
    """The options in the value of a ``--mount``, which stands at `where`.

    `expand` replaces the variables of every value but that of ``from``. Without it a value
    with ``$`` is kept if it is text, else left at its default, and not checked either way.
    Raises DockerfileSyntaxError, and whatever `expand` raises.
    """
    fields = _fields(raw, where)
    values: dict[str, str | None] = {}
    places: dict[str, SourceRange] = {}
    for field in fields:
        key = _ALIASES.get(field.key, field.key)
        if key not in _KEYS:
            raise DockerfileSyntaxError(
                f"a mount has no option {field.key[:60]!r}",
                where=field.where,
                hint=suggestion(field.key, (*_KEYS, *_ALIASES)),
            )
        value = field.value
        if value is None and key not in _SWITCHES:
            raise DockerfileSyntaxError(
                f"the mount option {field.written[:60]} has no value", where=field.where
            )
        if key == "from":
            _check_from(value or "", field.where)
        elif value is not None and expand is not None:
            with located(field.where):
                value = expand(value)
        if key == "readwrite":
            key, value = "readonly", _opposite(value)
        values[key] = value
        places[key] = field.where
    return _options(values, places, where, expanded=expand is not None)


def parse_device(raw: str, where: SourceRange) -> DeviceOptions:
    """The options in the value of a ``--device``. Raises DockerfileSyntaxError."""
    device = DeviceOptions()
    for field in _fields(raw, where):
        if field.key == "required":
            device = replace(device, required=_switch("required", field.value, field.where))
        elif field.key == "name" and field.value is not None and device.name is None:
            device = replace(device, name=field.value)
        elif device.name is None:
            device = replace(device, name=field.written)
        else:
            raise DockerfileSyntaxError(
                f"a device has no option {field.written[:60]!r}",
                where=field.where,
                hint=suggestion(field.key, ("name", "required")),
            )
    return device


def _options(
    values: dict[str, str | None],
    places: dict[str, SourceRange],
    where: SourceRange,
    *,
    expanded: bool,
) -> MountOptions:
    unknown = {k for k, v in values.items() if not expanded and k != "from" and v and "$" in v}
    kind = values.get("type") or "bind"
    if "type" not in unknown:
        kind = _choice("type", values.get("type", "bind"), TYPES, places.get("type", where))
        _check_combination(kind, values, places, where)
    numbers = {
        key: _number(key, values.get(key), base, places[key])
        for key, base in (("mode", 8), ("uid", 10), ("gid", 10))
        if key in values and key not in unknown
    }
    sharing = values.get("sharing")
    if "sharing" in values and "sharing" not in unknown:
        sharing = _choice("sharing", sharing, SHARING, places["sharing"])
    readonly = kind not in ("cache", "tmpfs")
    if "readonly" in values and "readonly" not in unknown:
        readonly = _switch("readonly", values["readonly"], places["readonly"])
    required = False
    if "required" in values and "required" not in unknown:
        required = _switch("required", values["required"], places["required"])
    size = None
    if "size" in values and "size" not in unknown:
        size = _size(values["size"] or "", places["size"])
    return MountOptions(
        type=kind,
        from_=values.get("from") or None,
        source=values.get("source") or None,
        target=values.get("target") or None,
        readonly=readonly,
        id=values.get("id") or None,
        sharing=sharing,
        required=required,
        size=size,
        mode=numbers.get("mode"),
        uid=numbers.get("uid"),
        gid=numbers.get("gid"),
        env=values.get("env"),
    )


def _check_combination(
    kind: str, values: dict[str, str | None], places: dict[str, SourceRange], where: SourceRange
) -> None:
    for key, types in _ALLOWED_TYPES.items():
        if key in values and kind not in types:
            raise DockerfileSyntaxError(
                f"a mount of type {kind} can't have {key}",
                where=places[key],
                hint=f"{key} is for {' and '.join(types)}",
            )
    if kind == "secret":
        if values.get("from"):
            raise DockerfileSyntaxError(
                "a mount of type secret can't have from", where=places["from"]
            )
        if not (values.get("id") or values.get("source") or values.get("target")):
            raise DockerfileSyntaxError(
                "a mount of type secret has neither id nor target", where=where
            )
        if values.get("id") and values.get("source"):
            raise DockerfileSyntaxError(
                "a mount of type secret can't have both id and source", where=places["source"]
            )
    if kind == "ssh" and values.get("source"):
        raise DockerfileSyntaxError("a mount of type ssh can't have source", where=places["source"])


def _check_from(value: str, where: SourceRange) -> None:
    # a last $ is an ordinary character
    if "$" in value[:-1]:
        raise DockerfileSyntaxError(
            "from can't have variables",
            where=where,
            hint="give the image a name: FROM ${image} AS name, with an ARG before the first FROM",
        )


def _opposite(value: str | None) -> str:
    """The value of readonly that a value of readwrite stands for."""
    if value is None or value in _TRUE:
        return "false"
    return "true" if value in _FALSE else value


def _switch(key: str, value: str | None, where: SourceRange) -> bool:
    if value is None or value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise DockerfileSyntaxError(
        f"{key} can't be {value[:60]!r}", where=where, hint="it is true or false"
    )


def _choice(key: str, value: str | None, options: Sequence[str], where: SourceRange) -> str:
    chosen = (value or "").lower()
    if chosen not in options:
        raise DockerfileSyntaxError(
            f"the {key} of a mount can't be {chosen[:60]!r}",
            where=where,
            hint=suggestion(chosen, options) or f"it is {', '.join(options)}",
        )
    return chosen


def _number(key: str, value: str | None, base: int, where: SourceRange) -> int:
    pattern = r"[0-7]{1,40}" if base == 8 else r"[0-9]{1,40}"
    if value is None or not re.fullmatch(pattern, value) or int(value, base) >= 1 << 32:
        raise DockerfileSyntaxError(
            f"{key} can't be {(value or '')[:60]!r}",
            where=where,
            hint="it is an octal number such as 0755" if base == 8 else "it is a number",
        )
    return int(value, base)


def _size(value: str, where: SourceRange) -> int:
    match = re.fullmatch(_SIZE, value.lower())
    if match is not None:
        unit = (match[2] or "b")[0]
        whole, _, fraction = match[1].partition(".")
        factor = 1 << 10 * "bkmgtp".index(unit)
        scale: int = 10 ** len(fraction)
        size = int(whole or "0") * factor + int(fraction or "0") * factor // scale
        if size <= _MAX_SIZE:
            return size
    raise DockerfileSyntaxError(
        f"size can't be {value[:60]!r}",
        where=where,
        hint="write a number of bytes, or one with k, m or g behind it",
    )


def _fields(raw: str, where: SourceRange) -> list[_Field]:
    fields: list[_Field] = []
    for word in _split_csv(raw, where):
        key, equals, value = word.text.partition("=")
        place = _part(where, raw, word.start, word.end)
        fields.append(_Field(key.lower(), value if equals else None, place, word.text))
    return fields


def _split_csv(raw: str, where: SourceRange) -> list[Word]:
    """The fields of a line of CSV: a field in double quotes may hold commas and ``""``."""
    if not raw:
        raise DockerfileSyntaxError("the value is empty", where=where)
    words: list[Word] = []
    position = 0
    while True:
        start = position
        if raw.startswith('"', start):
            match = re.compile(r'"((?:[^"]|"")*+)"').match(raw, start)
            end = match.end() if match else len(raw)
            if match is None or raw[end : end + 1] not in ("", ","):
                raise DockerfileSyntaxError(
                    "a double quote is never closed, or closed inside a field",
                    where=_part(where, raw, start, end),
                )
            text = match[1].replace('""', '"')
        else:
            end = raw.find(",", start)
            end = len(raw) if end < 0 else end
            text = raw[start:end]
            if '"' in text:
                raise DockerfileSyntaxError(
                    "a double quote stands inside a field",
                    where=_part(where, raw, start, end),
                    hint='put the whole field in double quotes: "target=/a,b"',
                )
        words.append(Word(text, start, end))
        position = end + 1
        if position > len(raw):
            return words


def _part(where: SourceRange, raw: str, start: int, end: int) -> SourceRange:
    """The place of ``raw[start:end]``, if `where` is that of `raw` alone and on one line."""
    column = where.start_column
    if (
        column is None
        or where.start_line != where.end_line
        or where.end_column != column + len(raw)
    ):
        return where
    line = where.start_line
    return SourceRange(where.file, line, line, column + start, column + end)
