"""A shell where a RUN failed: the image's own, or one that is lent for the time."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

from pybuild.backend import Activity, BindMount, Mount
from pybuild.errors import BuildCancelled, CopyFailed, PybuildError, UsageError
from pybuild.files.trees import Tree, resolve
from pybuild.oci.layerindex import Kind
from pybuild.run.failedruns import FailedRun, OpenShell
from pybuild.run.keptruns import file_tree
from pybuild.terminal import Terminal
from pybuild.values import dataclass

LENT_SHELL = "/run/pybuild/busybox"
"""Where a process sees the shell that isn't the image's."""

_SHELL = b"bin/sh"
_MOST_BYTES = 64 << 20
_INTERPRETER = 3  # PT_INTERP: the program needs a loader, and libraries


@dataclass(frozen=True, slots=True)
class StepShell:
    """Opens shells on ``terminal``. ``busybox`` is this machine's, for images without a shell."""

    terminal: Terminal
    busybox: Path | None

    def open(self, run: FailedRun, activity: Activity) -> int:
        """Let the user work there until the shell ends; its exit code.

        Raises UsageError, with what to do, if there is no shell; else as `FailedRun.run`.
        """
        args, mounts = self._shell(run.layer.tree())
        with self.terminal.lent() as terminal:
            return run.run(args, activity, mounts=mounts, terminal=terminal)

    def _shell(self, tree: Tree) -> tuple[tuple[str, ...], tuple[Mount, ...]]:
        if _has_shell(tree):
            return ("/bin/sh",), ()
        program = None if self.busybox is None else _read_static(self.busybox)
        if program is None:
            found = (
                "there is none here" if self.busybox is None else f"{self.busybox} is not static"
            )
            raise UsageError(
                f"the image has no /bin/sh, and a static busybox to lend it: {found}",
                hint="install busybox-static (Debian, Ubuntu, Alpine) or put one on the PATH",
            )
        tree = file_tree(program)
        [name] = tree.children(b"")
        return (LENT_SHELL, "sh"), (BindMount(LENT_SHELL, tree, name),)


def shell_on_failure(
    shell: StepShell | None, before: Callable[[], object], tell: Callable[[str], object]
) -> OpenShell:
    """For `FailedRuns`: calls `before`, has the user work in `shell`, and goes on.

    `tell` gets what the user is to know, also if no shell can be had. Raises UsageError if
    there is no terminal for a `shell`.
    """
    if shell is None:
        raise UsageError(
            "--on-error=shell needs a terminal as standard input and standard error",
            hint="where there is none, build, and then run pybuild debug -- COMMAND",
        )

    def open_shell(run: FailedRun, activity: Activity) -> None:
        before()
        tell("the step failed; this is a shell on its files, and what it changes is thrown away")
        try:
            shell.open(run, activity)
        except BuildCancelled:
            raise
        except PybuildError as error:
            tell("\n".join(filter(None, (f"no shell: {error.message}", error.hint))))

    return open_shell


def find_busybox(path: str | None) -> Path | None:
    """The first busybox in the folders of `path`, which is as in PATH."""
    found = shutil.which("busybox", path=path or "")
    return None if found is None else Path(found)


def _has_shell(tree: Tree) -> bool:
    try:
        entry = tree.get(resolve(tree, _SHELL))
    except CopyFailed:
        return False
    return entry is not None and entry.kind is Kind.FILE and bool(entry.mode & 0o111)


def _read_static(path: Path) -> bytes | None:
    """The program, if it is one that runs without any other file; else None."""
    try:
        with path.open("rb") as file:
            program = file.read(_MOST_BYTES + 1)
    except OSError:
        return None
    if len(program) > _MOST_BYTES or not _is_static(program):
        return None
    return program


def _is_static(program: bytes) -> bool:
    """Whether it is an ELF file whose segments name no loader (elf(5))."""
    if program[:4] != b"\x7fELF":
        return False
    order = "<" if program[5] == 1 else ">"
    wide = program[4] == 2
    try:
        start = struct.unpack_from(
            f"{order}Q" if wide else f"{order}I", program, 32 if wide else 28
        )
        size, count = struct.unpack_from(f"{order}2H", program, 54 if wide else 42)
        kinds = [
            struct.unpack_from(f"{order}I", program, start[0] + number * size)[0]
            for number in range(count)
        ]
    except struct.error:
        return False
    return _INTERPRETER not in kinds
