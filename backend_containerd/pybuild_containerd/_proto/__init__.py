"""containerd's messages, in a descriptor pool of our own.

``containerd.proto`` is the source, ``containerd.desc`` its compiled FileDescriptorSet. A
private pool needs no generated Python, so it neither clashes with other packages' copies of
these messages nor depends on the version of protobuf's code generator.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "pybuild.containerd.v1"


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    compiled = resources.files(__name__).joinpath("containerd.desc").read_bytes()
    pool = descriptor_pool.DescriptorPool()  # type: ignore[no-untyped-call]  # the stubs' gap
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled).file:
        pool.AddSerializedFile(file.SerializeToString())  # type: ignore[no-untyped-call]  # as above
    return pool


@functools.cache
def message_class(name: str) -> Any:
    """The class of the message `name` of containerd.proto, e.g. ``Mount``."""
    descriptor = _pool().FindMessageTypeByName(f"{PACKAGE}.{name}")  # type: ignore[no-untyped-call]  # as above
    return message_factory.GetMessageClass(descriptor)


@functools.cache
def enum_value(enum: str, name: str) -> int:
    """The number of a value of an enum of containerd.proto."""
    descriptor = _pool().FindEnumTypeByName(f"{PACKAGE}.{enum}")  # type: ignore[no-untyped-call]  # as above
    number: int = descriptor.values_by_name[name].number
    return number
