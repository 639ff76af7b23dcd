"""The system calls that a RUN may make, in the form of the OCI runtime specification.

Docker's default profile for its default capabilities.

It allows what :mod:`pybuild.sandbox.syscall_names` lists and answers anything else with
EPERM; ``clone3`` gets ENOSYS, so that C libraries fall back to ``clone``, whose flags can be
looked at. Runtimes skip names that their libseccomp doesn't know.
"""

from __future__ import annotations

from typing import Any

from pybuild.sandbox.profile import CLONE_NAMESPACES, DENIED_SOCKETS, OWNERSHIP, PERSONALITIES
from pybuild.sandbox.syscall_names import ALLOWED, OF_ARCHITECTURE

_ENOSYS = 38
_EPERM = 1

_ARCHITECTURES: dict[str, list[str]] = {
    "amd64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "arm64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
    "s390x": ["SCMP_ARCH_S390X", "SCMP_ARCH_S390"],
    "riscv64": ["SCMP_ARCH_RISCV64"],
    "loong64": ["SCMP_ARCH_LOONGARCH64"],
}
_OF_ARCHITECTURE: dict[str, list[str]] = {
    "amd64": OF_ARCHITECTURE["x86_64"],
    "386": OF_ARCHITECTURE["i386"],
    "arm": OF_ARCHITECTURE["arm"],
    "arm64": OF_ARCHITECTURE["aarch64"],
    "ppc64le": ["swapcontext", "sync_file_range2"],
    "riscv64": ["riscv_flush_icache"],
    "s390x": ["s390_pci_mmio_read", "s390_pci_mmio_write", "s390_runtime_instr"],
}


def default_profile(architecture: str, *, keep_owners: bool = False) -> dict[str, Any]:
    """``linux.seccomp`` of the runtime specification for a machine of this GOARCH.

    With `keep_owners`, changes of owner and identity are answered with success and not made.
    """
    unmade = OWNERSHIP if keep_owners else []
    algorithms, machines = DENIED_SOCKETS  # 39, between them, is allowed
    profile: dict[str, Any] = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "syscalls": [
            _allow(
                [
                    name
                    for name in (*ALLOWED, *_OF_ARCHITECTURE.get(architecture, []))
                    if name not in unmade
                ]
            ),
            *([_answer(unmade, 0)] if unmade else []),
            _allow(["socket"], _compare(0, "SCMP_CMP_LT", algorithms)),
            _allow(["socket"], _compare(0, "SCMP_CMP_EQ", algorithms + 1)),
            _allow(["socket"], _compare(0, "SCMP_CMP_GT", machines)),
            *(
                _allow(["personality"], _compare(0, "SCMP_CMP_EQ", value))
                for value in PERSONALITIES
            ),
            # s390's clone takes the stack first
            _allow(
                ["clone"],
                _compare(
                    1 if architecture == "s390x" else 0, "SCMP_CMP_MASKED_EQ", CLONE_NAMESPACES
                ),
            ),
            _answer(["clone3"], _ENOSYS),
        ],
    }
    return profile | _architectures(architecture)


def ownership_profile(architecture: str) -> dict[str, Any]:
    """One that allows all but changes of owner and identity, which succeed unmade."""
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [_answer(OWNERSHIP, 0)]}
    return profile | _architectures(architecture)


def _architectures(architecture: str) -> dict[str, Any]:
    known = _ARCHITECTURES.get(architecture)
    return {} if known is None else {"architectures": known}


def _answer(names: list[str], number: int) -> dict[str, Any]:
    """Not making the calls but returning this errno; 0 is success."""
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": number}


def _allow(names: list[str], *conditions: dict[str, Any]) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": "SCMP_ACT_ALLOW"}
    if conditions:
        rule["args"] = list(conditions)
    return rule


def _compare(index: int, operator: str, value: int) -> dict[str, Any]:
    """Argument `index` compared with `value`; a masked comparison is with 0."""
    return {"index": index, "value": value, "op": operator}
