"""Docker's seccomp profile as a classic BPF program, made without libseccomp.

The numbers allowed lie in runs, each from a boundary up to the next; a program finds the
run of a number by halving. Calls newer than our tables get ENOSYS,
which C libraries take as "not in this kernel"; others that aren't allowed get EPERM.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable

from pybuild.sandbox import profile
from pybuild.sandbox.syscall_names import ALLOWED, OF_ARCHITECTURE
from pybuild.sandbox.syscall_numbers import NEWEST, numbers

_LOAD, _JUMP, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW = 0x7FFF0000
_ERROR = 0x00050000
_EPERM = _ERROR | errno.EPERM
_ENOSYS = _ERROR | errno.ENOSYS

# machine as uname has it -> its tables with their AUDIT_ARCH
_ARCHITECTURES = {
    "x86_64": (("x86_64", 0xC000003E), ("i386", 0x40000003)),
    "aarch64": (("aarch64", 0xC00000B7), ("arm", 0x40000028)),
}

_FARTHEST = 255
"""How many instructions a condition skips at most; a plain jump isn't bound."""

Program = list[tuple[int, int, int, int]]


def compile_profile(machine: str, *, keep_owners: bool = False) -> bytes:
    """The program for a machine as uname names it: ``struct sock_filter`` after each other.

    With `keep_owners`, changes of owner and identity are answered with success and not
    made. Both of our machines' byte orders are little. Raises KeyError for a machine that
    there are no tables for.
    """
    return _compiled(machine, lambda name: _of_architecture(name, keep_owners=keep_owners), _ENOSYS)


def compile_ownership(machine: str) -> bytes:
    """A program that allows all but changes of owner and identity, which succeed unmade.

    Raises KeyError as `compile_profile` does.
    """
    return _compiled(machine, _all_but_ownership, _ALLOW)


def _compiled(machine: str, body_of: Callable[[str], Program], otherwise: int) -> bytes:
    """The bodies of the machine's tables, one after the other; `otherwise` for calls of none."""
    program: Program = [(_LOAD, 0, 0, _ARCHITECTURE)]
    for architecture, audit in _ARCHITECTURES[machine]:
        body = body_of(architecture)
        program += [(_EQUAL, 1, 0, audit), (_JUMP, 0, 0, len(body)), *body]
    program.append((_RETURN, 0, 0, otherwise))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _all_but_ownership(architecture: str) -> Program:
    table = numbers(architecture)
    program: Program = [(_LOAD, 0, 0, _NUMBER)]
    for name in profile.OWNERSHIP:
        if name in table:
            program += [(_EQUAL, 0, 1, table[name]), *_returning(_ERROR)]
    return [*program, *_returning(_ALLOW)]


def _of_architecture(architecture: str, *, keep_owners: bool) -> Program:
    table = numbers(architecture)
    actions: dict[int, Program] = {
        table[name]: _returning(_ALLOW)
        for name in (*ALLOWED, *OF_ARCHITECTURE[architecture])
        if name in table
    }
    # arguments are compared by their low halves, which are all that the kernel looks at
    actions[table["socket"]] = _by_argument(profile.DENIED_SOCKETS, _EPERM, _ALLOW)
    actions[table["personality"]] = _by_argument(profile.PERSONALITIES, _ALLOW, _EPERM)
    actions[table["clone"]] = _by_argument((0,), _ALLOW, _EPERM, mask=profile.CLONE_NAMESPACES)
    # its flags can't be looked at; C libraries fall back to clone
    actions[table["clone3"]] = _returning(_ENOSYS)
    if keep_owners:
        actions |= {table[name]: _returning(_ERROR) for name in profile.OWNERSHIP if name in table}
    return [(_LOAD, 0, 0, _NUMBER), *_search(_boundaries(actions))]


def _search(boundaries: list[tuple[int, Program]]) -> Program:
    """The action of the last boundary that is no more than the number."""
    if len(boundaries) == 1:
        return boundaries[0][1]
    half = len(boundaries) // 2
    low, high = _search(boundaries[:half]), _search(boundaries[half:])
    first = boundaries[half][0]
    if len(high) <= _FARTHEST:
        return [(_AT_LEAST, 0, len(high), first), *high, *low]
    return [(_AT_LEAST, 1, 0, first), (_JUMP, 0, 0, len(high)), *high, *low]


def _boundaries(actions: dict[int, Program]) -> list[tuple[int, Program]]:
    """(first number, action) of each run of equal actions, lowest first, from 0 on."""
    found: list[tuple[int, Program]] = []
    points = {0, NEWEST + 1, *actions, *(number + 1 for number in actions)}
    for number in sorted(points):
        otherwise = _returning(_ENOSYS if number > NEWEST else _EPERM)
        action = actions.get(number, otherwise)
        if not found or found[-1][1] != action:
            found.append((number, action))
    return found


def _returning(value: int) -> Program:
    return [(_RETURN, 0, 0, value)]


def _by_argument(values: Iterable[int], then: int, otherwise: int, mask: int = 0) -> Program:
    """One answer if the first argument, masked, is among `values`, and the other if not."""
    program: Program = [(_LOAD, 0, 0, _ARGUMENT)]
    if mask:
        program.append((_AND, 0, 0, mask))
    for value in values:
        program += [(_EQUAL, 0, 1, value), *_returning(then)]
    return program + _returning(otherwise)
