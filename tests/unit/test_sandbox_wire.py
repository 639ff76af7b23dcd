from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybuild.errors import UsageError
from pybuild.sandbox.spec import Bind, Overlay, Plain, RunSpec, SmallFile, Socket, Tmpfs, as_value
from pybuild.sandbox.wire import decode, encode

VALUES = st.recursive(
    st.binary() | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.binary(), inner),
)


@given(VALUES)
def test_what_is_encoded_comes_back(value: object) -> None:
    assert decode(encode(value)) == value


@pytest.mark.parametrize("value", ["text", None, 1.5, {"key": 1}, [object()]])
def test_other_types_can_not_be_sent(value: object) -> None:
    with pytest.raises(TypeError):
        encode(value)


@pytest.mark.parametrize("packet", [b"", b"5:abc", b"i5", b"l", b"x", b"3:abcd", b"di1e1:ae"])
def test_anything_else_is_refused(packet: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(packet)


def test_a_specification_keeps_every_byte_and_the_order_of_descriptors() -> None:
    spec = RunSpec(
        Overlay((b"/\xff", b"/b"), b"/u", b"/w", volatile=False),
        ("a", "\udcff"),
        env=(("A", "1"),),
        mounts=(
            Bind("/one", 7),
            SmallFile("/f", b"\0", uid=3),
            Tmpfs("/t", 10),
            Bind("/two", b"/src", inside=b"a/b"),
            Bind("/three", 5, readonly=False),
            Socket("/s", b"/here", 0o620, 7, 8),
        ),
    )
    value = decode(encode(as_value(spec)))
    assert value[b"overlay"] == [[b"/\xff", b"/b"], b"/u", b"/w", 0]
    assert value[b"args"] == [b"a", b"\xff"]
    assert value[b"mounts"] == [
        [b"bind", b"/one", 0, 1, b""],
        [b"file", b"/f", b"\0", 0o644, 3, 0],
        [b"tmpfs", b"/t", b"10", 0o1777],
        [b"bind", b"/two", b"/src", 1, b"a/b"],
        [b"bind", b"/three", 1, 0, b""],
        [b"socket", b"/s", b"/here", 0o620, 7, 8],
    ]


def test_a_nul_in_text_is_refused() -> None:
    with pytest.raises(UsageError, match="NUL"):
        as_value(RunSpec(Plain(b"/r"), ("a\0b",)))


def test_limits_are_sent_by_number_and_unknown_ones_refused() -> None:
    known = RunSpec(Plain(b"/r"), (), ulimits=(("nofile", 1, 2), ("rttime", -1, -1)))
    assert as_value(known)[b"ulimits"] == [[7, 1, 2], [15, -1, -1]]
    with pytest.raises(UsageError, match="unknown resource limit memory"):
        as_value(RunSpec(Plain(b"/r"), (), ulimits=(("memory", 1, 2),)))
