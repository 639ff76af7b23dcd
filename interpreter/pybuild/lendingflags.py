"""The values of ``--secret``, ``--ssh`` and ``--allow``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pybuild.errors import UsageError

_ENTITLEMENTS = ("network.host", "security.insecure", "device")


@dataclass(frozen=True, slots=True)
class SecretOption:
    """A ``--secret``: its id, and either a file or a variable of the environment."""

    id: str
    file: str | None = None
    variable: str | None = None


@dataclass(frozen=True, slots=True)
class SshOption:
    """An ``--ssh``: its id and the paths of a socket or of keys; none for the usual agent."""

    id: str
    paths: tuple[str, ...] = ()


def parse_secret(text: str) -> SecretOption:
    """``id=NAME[,src=FILE|,env=VARIABLE][,type=file|env]``, as Docker has it. Raises UsageError.

    With the id alone, ``file`` and ``variable`` are both None.
    """
    values: dict[str, str] = {"id": "", "type": ""}
    for field in text.split(","):
        key, equals, value = field.partition("=")
        name = {"source": "src"}.get(key.strip().lower(), key.strip().lower())
        if not equals or name not in {"id", "src", "env", "type"}:
            raise UsageError(
                f'--secret: "{field}" is not id=, src=, env= or type=',
                hint="for example --secret id=token,src=token.txt",
            )
        values[name] = value
    ident, kind = values["id"], values["type"]
    if not ident:
        raise UsageError("--secret has no id", hint="for example --secret id=token,src=token.txt")
    if kind not in {"", "file", "env"}:
        raise UsageError(f'--secret {ident}: the type "{kind}" is not file or env')
    file, variable = values.get("src") or None, values.get("env") or None
    if kind == "env" and variable is None:
        variable, file = file or ident, None
    if kind == "file" and file is None:
        file = ident
    if file is not None and variable is not None:
        raise UsageError(f"--secret {ident} has both src and env")
    return SecretOption(ident, file, variable)


def parse_ssh(text: str) -> SshOption:
    """``ID[=SOCKET|=KEY[,KEY]]``. Raises UsageError."""
    ident, equals, rest = text.partition("=")
    paths = tuple(path for path in rest.split(",") if path)
    if not ident or (equals and not paths):
        raise UsageError(f'--ssh "{text}" is not default, ID=SOCKET or ID=KEY[,KEY]')
    return SshOption(ident, paths)


def parse_entitlements(texts: Sequence[str]) -> frozenset[str]:
    """The entitlements of ``--allow``, each alone or several with commas. Raises UsageError."""
    names = [name.strip() for text in texts for name in text.split(",")]
    for name in names:
        if name not in _ENTITLEMENTS and not name.startswith("device="):
            raise UsageError(
                f'--allow "{name}": there is no such entitlement',
                hint=f"there are {', '.join(_ENTITLEMENTS)} and device=NAME",
            )
    return frozenset(names)
