from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pybuild.sandbox.emulation import executes

# as qemu-user-static registers them
ARM64 = "7f454c460201010000000000000000000200b700"
MASK = "ffffffffffffff00fffffffffffffffffeffffff"
S390X = "7f454c4602020100000000000000000000020016"
S390X_MASK = "ffffffffffffff00fffffffffffffffffffeffff"


def handler(folder: Path, name: str, *, state: str = "enabled", **members: str) -> None:
    found = {"flags:": "OCF", "offset": "0", "magic": ARM64, "mask": MASK} | {
        "flags:" if key == "flags" else key: value for key, value in members.items()
    }
    lines = [state, "interpreter /usr/bin/emulator", *(f"{k} {v}" for k, v in found.items() if k)]
    (folder / name).write_text("\n".join([*lines, ""]))


@pytest.fixture
def binfmt_misc(tmp_path: Path) -> Path:
    (tmp_path / "register").touch()
    (tmp_path / "status").write_text("enabled\n")
    return tmp_path


def test_an_architecture_with_an_enabled_handler_is_executed(binfmt_misc: Path) -> None:
    assert executes("arm64", binfmt_misc) is False
    handler(binfmt_misc, "qemu-aarch64")
    assert executes("arm64", binfmt_misc) is True
    handler(binfmt_misc, "qemu-s390x", magic=S390X, mask=S390X_MASK)
    assert executes("s390x", binfmt_misc) is True
    assert executes("riscv64", binfmt_misc) is False


def test_a_disabled_handler_does_not_count(binfmt_misc: Path) -> None:
    handler(binfmt_misc, "qemu-aarch64", state="disabled")
    assert executes("arm64", binfmt_misc) is False
    handler(binfmt_misc, "qemu-aarch64")
    (binfmt_misc / "status").write_text("disabled\n")
    assert executes("arm64", binfmt_misc) is False


def test_whether_an_emulator_is_in_the_image_cannot_be_told(binfmt_misc: Path) -> None:
    handler(binfmt_misc, "qemu-aarch64", flags="OC")
    assert executes("arm64", binfmt_misc) is None
    handler(binfmt_misc, "another", flags="F")
    assert executes("arm64", binfmt_misc) is True


def test_bits_outside_of_the_mask_do_not_count(binfmt_misc: Path) -> None:
    handler(binfmt_misc, "odd", magic=ARM64[:-2] + "77", mask=MASK[:-2] + "00")
    assert executes("arm64", binfmt_misc) is True


def test_a_handler_may_look_behind_the_start(binfmt_misc: Path) -> None:
    handler(binfmt_misc, "machine", offset="18", magic="b700", mask="ffff")
    assert executes("arm64", binfmt_misc) is True
    handler(binfmt_misc, "machine", offset="100", magic="00", mask="ff")
    assert executes("arm64", binfmt_misc) is False


@pytest.mark.parametrize(
    "text",
    [
        "enabled\ninterpreter /usr/bin/wine\nflags: \nextension .exe\n",
        "enabled\ninterpreter /x\nflags: \noffset much\nmagic 7f\n",
        "enabled\ninterpreter /x\nflags: \noffset 0\nmagic zz\n",
        "enabled\nflags:\n",
        "",
    ],
)
def test_handlers_of_other_kinds_are_passed_over(binfmt_misc: Path, text: str) -> None:
    (binfmt_misc / "a").write_text(text)
    handler(binfmt_misc, "qemu-aarch64")
    assert executes("arm64", binfmt_misc) is True
    assert executes("riscv64", binfmt_misc) is False


def test_of_an_unknown_architecture_nothing_can_be_told(binfmt_misc: Path) -> None:
    assert executes("pdp11", binfmt_misc) is None


@pytest.mark.parametrize(
    ("outcome", "answer"),
    [
        (OSError(errno.ENOEXEC, "Exec format error"), False),
        (OSError(errno.EACCES, "Permission denied"), None),
        (subprocess.TimeoutExpired("program", 1), None),
        (subprocess.CompletedProcess([], 1), True),
    ],
)
def test_without_a_list_of_handlers_it_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Any, answer: bool | None
) -> None:
    tried = []

    def run(command: list[Path], **_: Any) -> Any:
        tried.append(command[0].read_bytes())
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(subprocess, "run", run)
    assert executes("arm64", tmp_path / "none") is answer
    assert tried[0].startswith(bytes.fromhex(ARM64))
