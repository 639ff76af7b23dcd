"""Bytes, whole numbers, lists and dictionaries as bytes, for the client and the zygote.

The form is that of bencode: ``i5e``, ``3:abc``, ``l...e``, ``d...e``. It is exact for any
bytes, and both directions are a few lines that import nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is slow to load
if TYPE_CHECKING:
    from typing import Any

Value = bytes | int | list["Value"] | dict[bytes, "Value"]


def encode(value: object) -> bytes:
    """A value of the four types, tuples and booleans included. Raises TypeError for others."""
    pieces: list[bytes] = []
    _encode(value, pieces)
    return b"".join(pieces)


def _encode(value: object, pieces: list[bytes]) -> None:
    match value:
        case bytes():
            pieces += (b"%d:" % len(value), value)
        case int():
            pieces.append(b"i%de" % value)
        case list() | tuple():
            pieces.append(b"l")
            for item in value:
                _encode(item, pieces)
            pieces.append(b"e")
        case dict():
            pieces.append(b"d")
            for key, item in value.items():
                _encode(key, pieces)
                _encode(item, pieces)
            pieces.append(b"e")
        case _:
            raise TypeError(f"{type(value).__name__} can't be sent")


def decode(data: bytes) -> Any:
    """The `Value` that `encode` was given, whose shape the receiver knows. Raises ValueError if anything else is there."""
    value, end = _decode(data, 0)
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes too many")
    return value


def _decode(data: bytes, at: int) -> tuple[Value, int]:
    kind = data[at : at + 1]
    if kind == b"i":
        end = data.index(b"e", at)
        return int(data[at + 1 : end]), end + 1
    if kind in (b"l", b"d"):
        items: list[Value] = []
        at += 1
        while data[at : at + 1] != b"e":
            item, at = _decode(data, at)
            items.append(item)
        if kind == b"l":
            return items, at + 1
        pairs: dict[bytes, Value] = {}
        for key, item in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, bytes):
                raise ValueError("a key that isn't bytes")  # noqa: TRY004 - the input is wrong
            pairs[key] = item
        return pairs, at + 1
    colon = data.index(b":", at)
    end = colon + 1 + int(data[at:colon])
    if end > len(data):
        raise ValueError("cut off")
    return data[colon + 1 : end], end
