from __future__ import annotations

import gc
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from pybuild_containerd import _proto, rpcs
from pybuild_containerd.client import encode

REPOSITORY = Path(__file__).resolve().parents[2]
METHODS = [method for method in vars(rpcs).values() if isinstance(method, rpcs.Method)]


def test_the_compiled_schema_is_that_of_the_source(tmp_path: Path) -> None:
    if find_spec("grpc_tools") is None:
        message = "grpcio-tools isn't installed, which compiles containerd.proto"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    made = tmp_path / "made.desc"
    subprocess.run(
        [REPOSITORY / "scripts/make_proto", made],
        check=True,
        env={**os.environ, "PYTHON": sys.executable},
    )
    packaged = Path(_proto.__file__).with_name("containerd.desc")
    assert packaged.read_bytes() == made.read_bytes(), "run scripts/make_proto"


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_each_call_has_its_messages(method: rpcs.Method) -> None:
    assert _proto.message_class(method.request)().SerializeToString() == b""
    assert _proto.message_class(method.response)().SerializeToString() == b""


def test_no_two_calls_have_one_path() -> None:
    assert len({method.path for method in METHODS}) == len(METHODS)


def test_a_call_is_named_by_service_and_method_in_messages() -> None:
    assert str(rpcs.SNAPSHOT_PREPARE) == "Snapshots.Prepare"


def test_a_wait_has_no_deadline_and_every_other_plain_call_has_one() -> None:
    unbounded = {str(method) for method in METHODS if method.deadline is None}
    assert unbounded == {"Tasks.Wait", "Content.Write", "Streaming.Stream", "Transfer.Transfer"}


def test_our_messages_are_in_no_shared_pool() -> None:
    program = (
        "from pybuild_containerd import _proto; from google.protobuf import descriptor_pool\n"
        "assert _proto.message_class('Mount').DESCRIPTOR.full_name == 'pybuild.containerd.v1.Mount'\n"
        "try: descriptor_pool.Default().FindMessageTypeByName('pybuild.containerd.v1.Mount')\n"
        "except KeyError: print('private')"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert told.stdout.strip() == b"private"


@pytest.mark.parametrize(
    ("message", "fields", "wire"),
    [
        # bytes by the protobuf encoding: (field number << 3 | wire type), then the value
        ("RuncOptions", {"binary_name": "crun"}, b"\x32\x04crun"),
        ("RuncOptions", {"systemd_cgroup": True}, b"\x48\x01"),
        ("DiffResponse", {"diff": {"digest": "d"}}, b"\x1a\x03\x12\x01d"),
        ("CreateLeaseRequest", {"labels": {"a": "b"}}, b"\x1a\x06\x0a\x01a\x12\x01b"),
        ("Image", {"created_at": {"seconds": 1}}, b"\x3a\x02\x08\x01"),
        ("CreateTaskRequest", {"rootfs": [{"type": "t"}]}, b"\x1a\x03\x0a\x01t"),
    ],
)
def test_messages_have_containerds_numbers(
    message: str, fields: dict[str, object], wire: bytes
) -> None:
    assert encode(message, **fields) == wire


def test_messages_survive_a_garbage_collection() -> None:
    for _ in range(3):
        gc.collect()
        assert encode("CreateTaskRequest", rootfs=[{"type": "t"}]) == b"\x1a\x03\x0a\x01t"
        assert encode("Image", labels={"a": "b"}) == b"\x12\x06\x0a\x01a\x12\x01b"
