"""The filter, run by a small interpreter of classic BPF."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pybuild.sandbox import profile
from pybuild.sandbox.seccomp import compile_profile
from pybuild.sandbox.syscall_names import ALLOWED, OF_ARCHITECTURE
from pybuild.sandbox.syscall_numbers import NEWEST, numbers

AUDIT = {"x86_64": 0xC000003E, "i386": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028}
ON = [("x86_64", "x86_64"), ("x86_64", "i386"), ("aarch64", "aarch64"), ("aarch64", "arm")]
ALLOW, EPERM, ENOSYS, SUCCESS = 0x7FFF0000, 0x00050001, 0x00050026, 0x00050000


def answer(program: bytes, architecture: int, number: int, argument: int = 0) -> int:
    seen = struct.pack("<IIQQ", number, architecture, 0, argument) + bytes(40)
    at = accumulator = 0
    while True:
        code, then, otherwise, value = struct.unpack_from("=HBBI", program, at * 8)
        at += 1
        match code:
            case 0x20:
                accumulator = struct.unpack_from("<I", seen, value)[0]
            case 0x54:
                accumulator &= value
            case 0x05:
                at += value
            case 0x15:
                at += then if accumulator == value else otherwise
            case 0x35:
                at += then if accumulator >= value else otherwise
            case 0x06:
                return int(value)
            case _:
                pytest.fail(f"an instruction {code:#x}")


@pytest.mark.parametrize(("machine", "architecture"), ON)
def test_each_call_gets_the_answer_of_the_profile(machine: str, architecture: str) -> None:
    program = compile_profile(machine)
    table = numbers(architecture)
    allowed = {table[n] for n in (*ALLOWED, *OF_ARCHITECTURE[architecture]) if n in table}
    by_argument = {table[n] for n in ("socket", "personality", "clone", "clone3")}
    for number in [*range(NEWEST + 1), *allowed]:
        if number not in by_argument:
            expected = ALLOW if number in allowed else EPERM
            assert answer(program, AUDIT[architecture], number) == expected, number
    assert answer(program, AUDIT[architecture], NEWEST + 1) == ENOSYS
    assert len(program) // 8 < 4096  # the kernel's limit


@pytest.mark.parametrize(("machine", "architecture"), ON)
@pytest.mark.parametrize(
    ("name", "argument", "expected"),
    [
        ("socket", 1, ALLOW),
        ("socket", 38, EPERM),
        ("socket", 39, ALLOW),
        ("socket", 40, EPERM),
        ("socket", (1 << 32) + 38, EPERM),  # the kernel looks at an int
        ("clone", 0x1200011, ALLOW),
        ("clone", 0x10000011, EPERM),
        ("clone", 0x20000, EPERM),
        ("clone3", 0, ENOSYS),
        ("personality", 0, ALLOW),
        ("personality", 0x20008, ALLOW),
        ("personality", 0x40000, EPERM),
        ("personality", 0xFFFFFFFF, ALLOW),
    ],
)
def test_some_calls_depend_on_their_arguments(
    machine: str, architecture: str, name: str, argument: int, expected: int
) -> None:
    program = compile_profile(machine)
    number = numbers(architecture)[name]
    assert answer(program, AUDIT[architecture], number, argument) == expected


@pytest.mark.parametrize(("machine", "architecture"), ON)
def test_changes_of_owner_can_be_answered_with_success(machine: str, architecture: str) -> None:
    program = compile_profile(machine, keep_owners=True)
    table = numbers(architecture)
    there = [name for name in profile.OWNERSHIP if name in table]
    assert {"fchownat", "setgroups", "setresuid"} <= set(there)
    for name in there:
        assert answer(program, AUDIT[architecture], table[name]) == SUCCESS
    assert answer(program, AUDIT[architecture], table["read"]) == ALLOW


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_another_architecture_may_call_nothing(machine: str) -> None:
    program = compile_profile(machine)
    for audit in {*AUDIT.values(), 0xC00000F3} - {AUDIT[a] for m, a in ON if m == machine}:
        assert answer(program, audit, 0) == ENOSYS


def test_calls_of_x32_do_not_exist() -> None:
    assert answer(compile_profile("x86_64"), AUDIT["x86_64"], 0x40000000) == ENOSYS


def test_a_machine_without_tables_is_told_apart() -> None:
    with pytest.raises(KeyError):
        compile_profile("sparc64")


@pytest.mark.parametrize("architecture", AUDIT)
def test_no_number_stands_for_two_calls(architecture: str) -> None:
    table = numbers(architecture)
    same = {"arm_sync_file_range", "sync_file_range2"}  # the same call by two names
    found = [number for name, number in table.items() if name not in same]
    assert len(found) == len(set(found))


def test_the_numbers_are_those_of_this_machines_headers() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("inherent: no headers of the kernel for x86_64 here")
    lines = (line.split() for line in header.read_text().splitlines())
    known = {
        words[1].removeprefix("__NR_"): int(words[2])
        for words in lines
        if len(words) == 3 and words[1].startswith("__NR_")
    }
    table = numbers("x86_64")
    assert {name: table[name] for name in table if name in known} == {
        name: known[name] for name in table if name in known
    }
    assert not [name for name in ALLOWED if name in known and name not in table]


def test_the_capabilities_are_dockers() -> None:
    assert profile.capability_mask() == 0xA80425FB
