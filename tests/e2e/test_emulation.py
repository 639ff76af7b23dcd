"""The kernel's own list of emulators, in a user namespace that has one for itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-ec")
_MOUNT = "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc"
_REGISTER = r"""
from pathlib import Path
magic = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
mask = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
register = Path("/proc/sys/fs/binfmt_misc/register")
register.write_text(f":pybuild-test:M::{magic}:{mask}:/bin/true:FLAGS")
"""
_ASK = """
from pathlib import Path
from pybuild.sandbox.emulation import executes
print([executes(name, Path(where)) for where in WHERE for name in ("arm64", "riscv64")])
"""


def _answers(flags: str, *where: str) -> str:
    """What is found with the kernel's list, or at another place, once arm64 is registered."""
    script = _REGISTER.replace("FLAGS", flags) + _ASK.replace("WHERE", repr(where))
    command = [*_NAMESPACE, f'{_MOUNT}; exec "$0" -c "$1"', sys.executable, script]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.fixture(autouse=True)
def own_list() -> None:
    """Skip where user namespaces have no emulators of their own (before Linux 6.7)."""
    ended = subprocess.run([*_NAMESPACE, _MOUNT], check=False, capture_output=True, text=True)
    if ended.returncode != 0:
        pytest.skip(f"inherent: binfmt_misc can't be mounted here: {ended.stderr.strip()}")


def test_an_emulator_that_the_kernel_has_is_found_in_its_list_and_by_trying() -> None:
    found = _answers("F", "/proc/sys/fs/binfmt_misc", "/nowhere")
    assert found == "[True, False, True, False]"


def test_an_emulator_that_containers_would_need_in_themselves_is_uncertain() -> None:
    assert _answers("", "/proc/sys/fs/binfmt_misc") == "[None, False]"
