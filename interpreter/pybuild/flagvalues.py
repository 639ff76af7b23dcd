"""The values of single flags: their texts in, values out. All raise UsageError."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pybuild.backend import HostEntry, Ulimit
from pybuild.errors import UsageError
from pybuild.values import dataclass

_CALLS = {"check": "check", "lint": "check", "outline": "outline", "targets": "targets"}
_ANNOTATED = frozenset({"manifest", "index", "manifest-descriptor", "index-descriptor"})
_ULIMITS = frozenset(
    [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ]
)
_SIZE = r"(?i)(\d{1,15}(?:\.\d{1,6})?)\s*([kmgtp]?)i?b?"


@dataclass(frozen=True, slots=True)
class SecretArgument:
    """Where a secret is: in the file `path`, or in the variable `env` of the environment."""

    id: str
    path: str | None = None
    env: str | None = None


@dataclass(frozen=True, slots=True)
class CallArguments:
    """``--call``: ``name`` is check, outline or targets. ``ignore_status`` ends with 0 where
    a check found something.
    """

    name: str
    as_json: bool = False
    ignore_status: bool = False


def parse_build_args(texts: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """``NAME=value``, or ``NAME`` for the environment's value; unset there, it is left out."""
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name:
            raise UsageError(f'--build-arg "{text}" has no name')
        if equals:
            values[name] = value
        elif name in environ:
            values[name] = environ[name]
    return values


def with_epoch(
    build_args: dict[str, str], flag: str | None, environ: Mapping[str, str]
) -> dict[str, str]:
    """The build args with SOURCE_DATE_EPOCH: the flag's, else one given, else the environment's."""
    found = flag or build_args.get("SOURCE_DATE_EPOCH") or environ.get("SOURCE_DATE_EPOCH")
    return build_args | ({"SOURCE_DATE_EPOCH": found} if found else {})


def parse_build_arg_file(text: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Lines as :func:`parse_build_args` takes them; empty ones and those from ``#`` on don't count."""
    lines = [line.strip("\r") for line in text.split("\n")]
    return parse_build_args([x for x in lines if x.strip() and not x.startswith("#")], environ)


def parse_secret(text: str, environ: Mapping[str, str]) -> SecretArgument:
    """``[type=file|env,]id=NAME[,src=PATH|,env=VARIABLE]``; NAME alone is a variable or a file."""
    fields: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        name = {"source": "src"}.get(name.lower(), name.lower())
        if not equals or name not in {"type", "id", "src", "env"} or name in fields:
            raise UsageError(
                f'--secret "{name}" isn\'t understood',
                hint="write id=NAME,src=PATH or id=NAME,env=VARIABLE",
            )
        fields[name] = value
    ident, kind = fields.get("id", ""), fields.get("type", "")
    path, variable = fields.get("src"), fields.get("env")
    if not ident or kind not in {"", "file", "env"} or (path and variable):
        raise UsageError("--secret needs an id, and either src or env")
    if kind == "env" and not variable:
        return SecretArgument(ident, env=path or ident)
    if path or variable:
        return SecretArgument(ident, path or None, variable or None)
    return SecretArgument(ident, env=ident) if ident in environ else SecretArgument(ident, ident)


def parse_host(text: str) -> HostEntry:
    """``name:address`` or ``name=address``; an IPv6 address may stand in brackets."""
    from ipaddress import ip_address  # noqa: PLC0415  (seldom needed)

    name, separator, address = text.partition("=")
    if not separator:
        name, separator, address = text.partition(":")
    if not name or not address or any(c.isspace() for c in name):
        raise UsageError(f'--add-host "{text}" is not NAME:ADDRESS')
    if address == "host-gateway":
        raise UsageError("--add-host with host-gateway is not supported yet")
    try:
        return HostEntry(name, str(ip_address(address.removeprefix("[").removesuffix("]"))))
    except ValueError:
        raise UsageError(f'--add-host "{text}": "{address}" is no IP address') from None


def parse_size(text: str) -> int:
    """A size with an optional unit, in bytes: ``64m``, ``1.5g``, ``65536``; units are binary."""
    found = re.fullmatch(_SIZE, text.strip())
    if found is None:
        raise UsageError(f'"{text}" is no size', hint="write it like 64m or 1g")
    power = " kmgtp".index(found[2].lower() or " ")
    return int(float(found[1]) * 1024**power)


def parse_ulimit(text: str) -> Ulimit:
    """``name=soft[:hard]``; -1 is no limit."""
    name, _, value = text.partition("=")
    if name not in _ULIMITS:
        from difflib import get_close_matches  # noqa: PLC0415  (for a wrong name only)

        near = get_close_matches(name, _ULIMITS, n=1)
        raise UsageError(
            f'--ulimit "{text}": there is no limit "{name}"',
            hint=f"did you mean {near[0]}?"
            if near
            else f"there are: {', '.join(sorted(_ULIMITS))}",
        )
    soft_text, _, hard_text = value.partition(":")
    try:
        soft, hard = int(soft_text), int(hard_text or soft_text)
    except ValueError:
        raise UsageError(
            f'--ulimit "{text}" is not NAME=SOFT[:HARD]', hint="for example nofile=1024:2048"
        ) from None
    if soft < -1 or hard < -1:
        raise UsageError(f'--ulimit "{text}": a limit is -1 or more')
    if hard != -1 and (soft == -1 or soft > hard):
        raise UsageError(f'--ulimit "{text}": the soft limit is above the hard one')
    return Ulimit(name, soft, hard)


def parse_call(text: str, *, check: bool) -> CallArguments | None:
    """``NAME[,format=json][,ignorestatus=true]``; None for a build."""
    names: list[str] = []
    settings: dict[str, str] = {}
    for field in text.split(","):
        key, equals, value = field.partition("=")
        if equals:
            settings[key] = value
        else:
            names.append(field)
    wrong = settings.keys() - {"format", "ignorestatus"}
    if len(names) != 1 or names[0] not in {*_CALLS, "build"} or wrong:
        raise UsageError(
            f'--call "{text}" is not known',
            hint="it is build, check, outline or targets, and format=json may follow a comma",
        )
    as_json = settings.get("format", "text")
    if as_json not in {"text", "json"}:
        raise UsageError(f'--call "{text}": the format is text or json')
    ignore = parse_boolean("--call ignorestatus", settings.get("ignorestatus", "false"))
    name = names[0] if names[0] != "build" else "check" if check else ""
    return CallArguments(_CALLS[name], as_json == "json", ignore) if name else None


def parse_pull_policy(text: str) -> str:
    """``missing``, ``always`` or ``never``; true is always, false missing."""
    known = {"true": "always", "false": "missing", "1": "always", "0": "missing"}
    policy = known.get(text.lower(), text.lower())
    if policy not in {"missing", "always", "never"}:
        raise UsageError(f'--pull "{text}" is not missing, always or never')
    return policy


def parse_boolean(flag: str, text: str) -> bool:
    """True or false, as a word or a digit."""
    if text.lower() not in {"true", "false", "1", "0"}:
        raise UsageError(f'{flag} "{text}" is not true or false')
    return text.lower() in {"true", "1"}


def parse_pair(flag: str, text: str) -> tuple[str, str]:
    """``NAME=value``, or ``NAME`` for an empty value."""
    name, _, value = text.partition("=")
    if not name:
        raise UsageError(f'{flag} "{text}" has no name')
    return name, value


def parse_annotations(texts: Sequence[str], wanted: str) -> dict[str, str]:
    """Those of ``[KIND[,KIND]:]key=value`` that are for `wanted`; KIND is manifest or index."""
    found: dict[str, str] = {}
    for text in texts:
        if "=" not in text:
            raise UsageError(f'--annotation "{text}" is not KEY=VALUE')
        name, value = parse_pair("--annotation", text)
        before, colon, rest = name.partition(":")
        kinds = set(before.split(",")) if colon else set()
        if not kinds or not kinds <= _ANNOTATED:  # the colon is one of the name's
            kinds, rest = {"manifest"}, name
        if later := kinds & {"manifest-descriptor", "index-descriptor"}:
            raise UsageError(
                f'--annotation "{text}": annotations of a {later.pop()} are not supported yet'
            )
        if wanted in kinds:
            found[rest] = value
    return found


def parse_named_context(text: str) -> tuple[str, str]:
    """``NAME=VALUE``, both of them not empty."""
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise UsageError(
            f'--build-context "{text}" is not NAME=VALUE', hint="the value is a folder, say"
        )
    return name, value
