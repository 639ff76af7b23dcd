"""The files by which a process finds names: /etc/hosts and /etc/resolv.conf."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path

from pybuild.errors import UsageError


def hosts_file(hostname: str, extra: Iterable[tuple[str, str]]) -> bytes:
    """The /etc/hosts that BuildKit gives, with `extra` names and addresses.

    Raises UsageError for what isn't a name or address.
    """
    _check_name(hostname)
    lines = [f"127.0.0.1\tlocalhost {hostname}", "::1\tlocalhost ip6-localhost ip6-loopback"]
    for name, text in extra:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise UsageError(f"{text} for host {name} is no IP address") from None
        _check_name(name)
        lines.append(f"{address}\t{name}")
    return "\n".join((*lines, "")).encode()


def _check_name(name: str) -> None:
    if not name or any(c.isspace() or not c.isprintable() for c in name):
        raise UsageError(f"{name!r} is no host name")


def host_resolv_conf() -> bytes:
    """The resolv.conf of this machine as it is, for a process in the same network."""
    try:
        return Path("/etc/resolv.conf").read_bytes()
    except OSError:
        return b""
