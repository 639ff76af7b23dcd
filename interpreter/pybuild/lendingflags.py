"""The values of ``--ssh`` and ``--allow``."""

from __future__ import annotations

from collections.abc import Sequence

from pybuild.errors import UsageError
from pybuild.values import dataclass

_ENTITLEMENTS = ("network.host", "security.insecure", "device")


@dataclass(frozen=True, slots=True)
class SshOption:
    """An ``--ssh``: its id and the paths of a socket or of keys; none for the usual agent."""

    id: str
    paths: tuple[str, ...] = ()


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
