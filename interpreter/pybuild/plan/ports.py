"""The ports of EXPOSE: ``port[-port][/proto]``, with ``[ip:]host:`` before it tolerated."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from pybuild.errors import DockerfileError
from pybuild.plan.state import Allowance

_PROTOCOLS = frozenset({"tcp", "udp", "sctp"})
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


def exposed_ports(words: Iterable[str], allowance: Allowance) -> list[str]:
    """``80/tcp`` for each port that the words name, in order. Raises DockerfileError."""
    found: list[str] = []
    for word in words:
        ports = _ports(word)
        allowance.spend(10 * len(ports))
        found += ports
    return found


def _ports(word: str) -> list[str]:
    *outer, container = word.split(":")
    ip, host = ":".join(outer[:-1]), outer[-1] if outer else ""
    container, _, protocol = container.partition("/")
    if not container:
        raise DockerfileError(f'invalid port: "{word}": no port specified')
    if protocol and protocol.lower() not in _PROTOCOLS:
        raise DockerfileError(f'invalid port: "{word}": invalid proto: {protocol}')
    if ip and not _is_address(ip):
        raise DockerfileError(f"invalid IP address: {ip}")
    ports = _range(container)
    if ports is None:
        raise DockerfileError(f"invalid containerPort: {container}")
    if host:
        hosts = _range(host)
        if hosts is None:
            raise DockerfileError(f"invalid hostPort: {host}")
        if len(hosts) != len(ports) != 1:
            raise DockerfileError(
                f"invalid ranges specified for container and host Ports: {container} and {host}"
            )
    return [f"{port}/{protocol.lower() or 'tcp'}" for port in ports]


def _range(text: str) -> range | None:
    start, dash, end = text.partition("-")
    first, last = _number(start), _number(end) if dash else _number(start)
    if first is None or last is None or last < first:
        return None
    return range(first, last + 1)


def _number(text: str) -> int | None:
    if not _NUMBER.fullmatch(text):
        return None
    return int(text) if 0 <= int(text) <= 65535 else None


def _is_address(text: str) -> bool:
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
