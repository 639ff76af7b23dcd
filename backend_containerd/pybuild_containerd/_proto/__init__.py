"""containerd's messages, in a descriptor pool of our own.

``containerd.proto`` is the source, ``containerd.desc`` its compiled FileDescriptorSet. A
private pool needs no generated Python, so it neither clashes with other packages' copies of
these messages nor depends on the version of protobuf's code generator.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor

PACKAGE = "pybuild.containerd.v1"


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    # importlib.resources would take milliseconds to load
    compiled = Path(__file__).with_name("containerd.desc").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


@functools.cache
def _classes() -> dict[str, Any]:
    """All message classes by name.

    None may be collected: protobuf before 4.25 crashes when a message is made whose inner
    message's class was.
    """
    found = _all_messages(_pool().FindFileByName("containerd.proto").message_types_by_name.values())
    prefix = f"{PACKAGE}."
    return {
        message.full_name.removeprefix(prefix): message_factory.GetMessageClass(message)
        for message in found
    }


def _all_messages(messages: Iterable[Descriptor]) -> Iterator[Descriptor]:
    """The messages and those inside them, which maps are made of."""
    for message in messages:
        yield message
        yield from _all_messages(message.nested_types)


def message_class(name: str) -> Any:
    """The class of the message `name` of containerd.proto, e.g. ``Mount``."""
    return _classes()[name]


@functools.cache
def enum_value(enum: str, name: str) -> int:
    """The number of a value of an enum of containerd.proto."""
    number: int = _pool().FindEnumTypeByName(f"{PACKAGE}.{enum}").values_by_name[name].number
    return number
