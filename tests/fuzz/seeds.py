"""Good inputs of each reader, from which a fuzzer departs."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from pybuild.files.trees import NewEntry
from pybuild.oci.compression import Compression
from pybuild.oci.layerindex import Entry, Kind, LayerIndex
from pybuild.oci.layerwriter import write_layer

_TESTS = Path(__file__).resolve().parents[1]
_HEAD = struct.calcsize("<QQI")

_ENTRIES = [
    Entry(b"bin", Kind.DIRECTORY, 0o755),
    Entry(b"bin/sh", Kind.SYMLINK, 0o777, link=b"busybox"),
    Entry(b"dev", Kind.OPAQUE),
    Entry(b"dev/null", Kind.CHARACTER, 0o666, device=(1, 3)),
    Entry(b"empty", Kind.FILE, 0o644, 1000, 1000, xattrs=(("user.a", b"\0b"),)),
    Entry(b"etc/gone", Kind.WHITEOUT),
    Entry(b"n" * 120, Kind.FIFO, 0o600, 1 << 22, 1 << 22, mtime=1 << 34),
]
_WORDS = ["$a", "${a:-b}", "${a:+${b}}", "${a#*x}", "${a%%?}", "${a/x/y}", "'$a'\"$b\"", "\\$a `x`"]
_MOUNTS = [
    "type=cache,target=/a,id=b,sharing=locked,mode=0755,uid=1,gid=1",
    'type=bind,from=a,source=/b,"target=/c",rw=true',
    "type=secret,id=a,env=B,required",
    "type=tmpfs,target=/a,size=1g",
    "type=ssh,id=default,mode=0600",
]
_DEVICES = ["vendor.com/class=name", "vendor.com/class,required", "required=false,name=a.b/c"]
_TRIGGERS = ["RUN --mount=type=cache,target=/a make", 'COPY ["a b", "/c/"]', "ENV a=b c=$d"]


def seeds(reader: str) -> Iterator[bytes]:
    """Some inputs that this reader of `readers.READERS` takes."""
    match reader:
        case "dockerfile":
            for path in sorted(_TESTS.glob("differential/cases/*")):
                yield path.read_bytes()
        case "words":
            yield from map(str.encode, _WORDS)
        case "trigger":
            yield from map(str.encode, _TRIGGERS)
        case "ignore":
            yield b"# x\n*.py\n!a/**/b\n[a-c]?\n\\[\0a/b\0x.py\0a/c/b"
        case "mounts":
            yield from map(str.encode, _MOUNTS)
        case "device":
            yield from map(str.encode, _DEVICES)
        case "index":
            stored = LayerIndex(_ENTRIES).to_bytes()
            start = stored.index(b"\n") + 1 + _HEAD
            yield bytes([len(_ENTRIES)]) + zlib.decompressobj().decompress(stored[start:])
        case "layer":
            tar = bytearray()
            write_layer(map(NewEntry, _ENTRIES), tar.extend, Compression.NONE)
            yield bytes(tar)


def found() -> list[tuple[str, bytes]]:
    """What once went wrong, by reader: see found.json."""
    rows = json.loads(Path(__file__).with_name("found.json").read_text())
    return [(reader, bytes.fromhex(data)) for reader, data in rows]
