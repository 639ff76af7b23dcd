"""What reads hostile bytes, each as a function that accepts any of them.

A reader may answer or raise an error of pybuild's own. Anything else that comes out is a fault.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from io import BytesIO

from pybuild.dockerfile.mounts import parse_device, parse_mount
from pybuild.dockerfile.parse import parse, parse_trigger
from pybuild.dockerfile.words import expand_text, expand_word, expand_words
from pybuild.errors import PybuildError, SourceRange
from pybuild.files.ignore import IgnoreMatcher, read_patterns
from pybuild.oci.layerindex import LayerIndex
from pybuild.oci.layertar import index_tar
from pybuild.oci.tarformat import BLOCK, Limits, TarReader

_WHERE = SourceRange("Dockerfile", 1, 1)
_ENV = {"a": "x y", "b": "", "c": "*?\\/", "HOME": "/root"}
_MAGIC = LayerIndex().to_bytes().partition(b"\n")[0] + b"\n"
_LIMITS = Limits(entries=1000, metadata=1 << 20, total=1 << 24)


def read_dockerfile(data: bytes) -> None:
    """Whole Dockerfiles."""
    parse(data)


def read_words(data: bytes) -> None:
    """Text with variables, in every kind of expansion."""
    text = data.decode("utf-8", "surrogateescape")
    for escape in "\\`":
        for expand in (expand_word, expand_words, expand_text):
            _tolerant(partial(expand, text, _ENV, escape))


def read_trigger(data: bytes) -> None:
    """An instruction that a base image brings along: ONBUILD."""
    parse_trigger(data.decode("utf-8", "surrogateescape"), _WHERE)


def read_ignore_file(data: bytes) -> None:
    """A .dockerignore, and after a zero byte the paths that it is asked about."""
    rules, _, paths = data.partition(b"\0")
    matcher = IgnoreMatcher(read_patterns(rules))
    for raw in paths.split(b"\0")[:20]:
        path = raw.decode("utf-8", "surrogateescape")
        if matcher.excludes_all_below(path):
            assert matcher.excludes(f"{path.rstrip('/')}/below")
        matcher.excludes(path)


def read_mount_options(data: bytes) -> None:
    """The value of RUN --mount."""
    parse_mount(data.decode("utf-8", "surrogateescape"), _WHERE)


def read_device_options(data: bytes) -> None:
    """The value of RUN --device."""
    parse_device(data.decode("utf-8", "surrogateescape"), _WHERE)


def read_stored_index(data: bytes) -> None:
    """The stored index of a layer, its checksums made right: the first byte is the count."""
    count = data[0] if data else 0
    packed = zlib.compress(data[1:], 1)
    digests = bytes(32 * count)
    head = struct.pack("<QQI", count, len(packed), zlib.crc32(digests))
    index = LayerIndex.from_bytes(_MAGIC + head + packed + digests)
    list(index)


def read_layer(data: bytes) -> None:
    """The tar of a layer, the checksums of what looks like headers made right."""
    tar = bytearray(data)
    for at in range(0, len(tar) - BLOCK + 1, BLOCK):
        block = tar[at : at + BLOCK]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            tar[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    index = index_tar(TarReader(BytesIO(bytes(tar)), _LIMITS))
    assert LayerIndex.from_bytes(index.to_bytes()) == index
    index_tar(TarReader(BytesIO(bytes(tar)), _LIMITS), whiteouts=False)


READERS: Mapping[str, Callable[[bytes], None]] = {
    "dockerfile": read_dockerfile,
    "words": read_words,
    "trigger": read_trigger,
    "ignore": read_ignore_file,
    "mounts": read_mount_options,
    "device": read_device_options,
    "index": read_stored_index,
    "layer": read_layer,
}


def check(reader: str, data: bytes) -> None:
    """Give `data` to a reader; raises what is no error of pybuild's."""
    _tolerant(partial(READERS[reader], data))


def _tolerant(call: Callable[[], object]) -> None:
    with suppress(PybuildError):
        call()
