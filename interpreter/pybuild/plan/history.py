"""The texts of history lines, formatted as BuildKit's frontend does (Go's %v, %q, %+v)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pybuild.oci.image_config import Healthcheck

_GO_ESCAPES = {
    "\a": r"\a",
    "\b": r"\b",
    "\f": r"\f",
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
    "\v": r"\v",
    '"': r"\"",
    "\\": r"\\",
}
_UNITS = ((3_600_000_000_000, "h"), (60_000_000_000, "m"))


def listed(words: Iterable[str]) -> str:
    """``[a b]``: Go's %v of a list of strings."""
    return f"[{' '.join(words)}]"


def quoted(words: Iterable[str]) -> str:
    """``["a" "b"]``: Go's %q of a list of strings."""
    return f"[{' '.join(map(_quote, words))}]"


def run_text(
    args: Sequence[str],
    declared: Iterable[tuple[str, str | None]],
    variables: Mapping[str, str],
) -> str:
    """The history line of a RUN: ``|n name=value …`` for the ARGs in effect, then the words."""
    in_effect = {name: variables.get(name, value or "") for name, value in declared}
    words = [f"{name}={value}" for name, value in in_effect.items()]
    if words:
        words.insert(0, f"|{len(words)}")
    return f"RUN {' '.join([*words, *args])} # buildkit"


def healthcheck_text(check: Healthcheck) -> str:
    """The history line of a HEALTHCHECK."""
    return (
        f"HEALTHCHECK {{Test:{listed(check.test)} Interval:{duration(check.interval)} "
        f"Timeout:{duration(check.timeout)} StartPeriod:{duration(check.start_period)} "
        f"StartInterval:{duration(check.start_interval)} Retries:{check.retries}}}"
    )


def duration(nanoseconds: int) -> str:
    """A duration as Go prints it: ``1m30s``, ``1.5s``, ``100ms``, ``0s``."""
    if nanoseconds == 0:
        return "0s"
    sign = "-" if nanoseconds < 0 else ""
    rest = abs(nanoseconds)
    for size, unit in ((1, "ns"), (1000, "µs"), (1_000_000, "ms")):
        if rest < size * 1000:
            return f"{sign}{_decimal(rest, size)}{unit}"
    text = ""
    for size, unit in _UNITS:
        count, rest = divmod(rest, size)
        if count or text:
            text += f"{count}{unit}"
    return f"{sign}{text}{_decimal(rest, 1_000_000_000)}s"


def _decimal(value: int, unit: int) -> str:
    whole, part = divmod(value, unit)
    digits = f"{part:0{len(str(unit)) - 1}d}".rstrip("0") if part else ""
    return f"{whole}.{digits}" if digits else str(whole)


def _quote(text: str) -> str:
    return f'"{"".join(map(_escape, text))}"'


def _escape(char: str) -> str:
    if char in _GO_ESCAPES:
        return _GO_ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8, see PEP 383
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
