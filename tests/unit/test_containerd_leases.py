from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pybuild_containerd.leases import Owner, _expired

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containerd's hosts are Linux")


def test_a_running_process_is_not_dead() -> None:
    assert not Owner.of_process(os.getpid()).is_dead()


def test_a_process_that_ended_is_dead_even_before_it_is_waited_for() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        owner = Owner.of_process(process.pid)
        assert not owner.is_dead()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert owner.is_dead()
    assert owner.is_dead()


def test_a_reused_process_id_is_not_taken_for_its_former_owner() -> None:
    owner = replace(Owner.of_process(os.getpid()), started="1")
    assert owner.is_dead()


@pytest.mark.parametrize("field", ["boot", "pid_namespace"])
def test_a_process_of_elsewhere_is_never_known_to_be_dead(field: str) -> None:
    owner = replace(Owner.of_process(os.getpid()), started="1", **{field: "other"})
    assert not owner.is_dead()


@pytest.mark.parametrize("pid", ["", "self", "../1", "-1"])
def test_a_strange_process_id_is_never_looked_up(pid: str) -> None:
    assert not replace(Owner.of_process(os.getpid()), pid=pid, started="1").is_dead()


def test_labels_carry_the_owner_both_ways() -> None:
    owner = Owner.of_process(os.getpid())
    assert Owner.from_labels(owner.labels()) == owner
    assert not Owner.from_labels({}).is_dead()


@pytest.mark.parametrize(
    ("expires", "expired"),
    [
        ("2001-01-01T00:00:00Z", True),
        ("2001-01-01T00:00:00.123456789Z", True),
        ("2001-01-01T00:00:00+02:00", True),
        ("2999-01-01T00:00:00Z", False),
        ("2001-01-01T00:00:00", False),  # no time of this world without its offset
        ("soon", False),
        ("", False),
    ],
)
def test_only_a_lease_with_a_past_and_valid_expiry_has_expired(expires: str, expired: bool) -> None:
    lease = SimpleNamespace(labels={"containerd.io/gc.expire": expires})
    assert _expired(lease) is expired
