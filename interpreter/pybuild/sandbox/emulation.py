"""Whether this kernel runs programs of a foreign architecture, by an emulator in binfmt_misc.

After the kernel's admin-guide/binfmt-misc: a handler names an interpreter for files whose
first bytes, masked, are its magic. Only with the flag F is the interpreter opened when it is
registered; without it, it would have to be in each container.
"""

from __future__ import annotations

import errno
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pybuild.values import dataclass

BINFMT_MISC = Path("/proc/sys/fs/binfmt_misc")
INSTALL_HINT = (
    "install emulators that register themselves in binfmt_misc with the flag F: on Debian and "
    "Ubuntu, apt-get install qemu-user-static binfmt-support; or cross-compile in a stage "
    "FROM --platform=$BUILDPLATFORM"
)

_PATIENCE = 10  # seconds for an emulator to say that an empty program is none
# Go's name of an architecture -> bits, byte order, and e_machine of its programs
_MACHINES = {
    "386": (32, "<", 3),
    "amd64": (64, "<", 62),
    "arm": (32, "<", 40),
    "arm64": (64, "<", 183),
    "loong64": (64, "<", 258),
    "mips": (32, ">", 8),
    "mipsle": (32, "<", 8),
    "mips64": (64, ">", 8),
    "mips64le": (64, "<", 8),
    "ppc64": (64, ">", 21),
    "ppc64le": (64, "<", 21),
    "riscv64": (64, "<", 243),
    "s390x": (64, ">", 22),
}
_EXECUTABLE = 2


@dataclass(frozen=True, slots=True)
class _Handler:
    opens_interpreter: bool
    offset: int
    magic: bytes
    mask: bytes

    def takes(self, program: bytes) -> bool:
        found = program[self.offset : self.offset + len(self.magic)]
        return len(found) == len(self.magic) and not any(
            (byte ^ magic) & mask
            for byte, magic, mask in zip(found, self.magic, self.mask, strict=False)
        )


def executes(architecture: str, handlers: Path = BINFMT_MISC) -> bool | None:
    """Whether a container here runs programs of `architecture`, in Go's names.

    None if only a container can tell, or nothing could be found out. `handlers` is where
    binfmt_misc is mounted; where it isn't, as in most containers, it is tried.
    """
    if architecture not in _MACHINES:
        return None
    program = _empty_program(architecture)
    try:
        enabled = (handlers / "status").read_text() == "enabled\n"
    except OSError:
        return _try(program)
    taking = [handler for handler in _handlers(handlers) if handler.takes(program)]
    if not enabled or not taking:
        return False
    return any(handler.opens_interpreter for handler in taking) or None


def _empty_program(architecture: str) -> bytes:
    """The header of a program without any code."""
    bits, order, machine = _MACHINES[architecture]
    little = 1 if order == "<" else 2
    start = bytes((0x7F, *b"ELF", bits // 32, little, 1)).ljust(16, b"\0")
    size = 64 if bits == 64 else 52
    addresses = "QQQ" if bits == 64 else "III"
    no_sections = (0,) * 5
    return start + struct.pack(
        f"{order}HHI{addresses}IHHHHHH", _EXECUTABLE, machine, 1, 0, 0, 0, 0, size, *no_sections
    )


def _handlers(folder: Path) -> Iterator[_Handler]:
    """The enabled handlers that go by magic."""
    for path in sorted(folder.iterdir()):
        with suppress(OSError, ValueError, KeyError):  # removed meanwhile, or goes by extension
            state, *lines = path.read_text().splitlines()
            members = dict(line.split(" ", 1) for line in lines)
            magic = bytes.fromhex(members["magic"])
            mask = bytes.fromhex(members.get("mask", "ff" * len(magic)))
            if state == "enabled":
                fixed = "F" in members["flags:"]
                yield _Handler(fixed, int(members["offset"]), magic, mask)


def _try(program: bytes) -> bool | None:
    with tempfile.TemporaryDirectory(prefix="pybuild-") as folder:
        path = Path(folder, "program")
        path.write_bytes(program)
        path.chmod(0o700)
        try:
            subprocess.run(
                [path],
                check=False,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=_PATIENCE,
            )
        except OSError as error:
            return False if error.errno == errno.ENOEXEC else None
        except subprocess.TimeoutExpired:
            return None
    return True
