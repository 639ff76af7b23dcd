"""A step whose root file system is shown by fuse-overlayfs, where the kernel's overlay can't.

The child of the server is here the first process of a process namespace that holds both the
program and the step: if it is killed, the kernel ends them. The file system is mounted by us,
on a descriptor that the program is given, and in the step's mount namespace alone: when that
ends the program has nothing left to serve, writes what it has and ends too.
"""

from __future__ import annotations

import errno
import os
import select

from pybuild.sandbox import kernel
from pybuild.sandbox.kernel import FOLDER, NODEV, Failed
from pybuild.sandbox.program import Spec
from pybuild.sandbox.rootfs import Root
from pybuild.sandbox.step import STEP_NAMESPACES, close_all, open_mounts, run_in
from pybuild.sandbox.system import STEP, System, step_folders

TYPE_CHECKING = False  # typing is slow to load
if TYPE_CHECKING:
    from typing import Any

_STEP = "fuse-overlayfs"
_DEVICE, _DEVICE_NUMBER = "/dev/fuse", (10, 229)
_MAX_TEXT = 1000
_END_MILLISECONDS = 20_000


def run_step(spec: Spec, config: Spec) -> None:
    """Start the program and the step on what it shows, and end as the step does."""
    kernel.make_all(kernel.MS_PRIVATE)
    folders = step_folders()
    mounts = open_mounts(folders, spec, config)
    root = Root(folders)
    layers = FuseLayers(config[b"fuse_overlayfs"], spec[b"overlay"])
    root.overlay(layers, mounts)
    step = kernel.clone(STEP_NAMESPACES | (kernel.NEWNET if spec[b"own_network"] else 0))
    if step == 0:
        kernel.make_all(kernel.MS_PRIVATE)
        # `folders` is in the other mount namespace
        system = System(os.open(STEP, FOLDER), config, insecure=bool(spec[b"insecure"]))
        root.attach()
        run_in(root, system, mounts, spec, config)
    close_all()  # the file system ends with the step's descriptors
    code = os.waitstatus_to_exitcode(os.waitpid(step, 0)[1])
    layers.wait()
    os._exit(code if code >= 0 else 128 - code)


class FuseLayers:
    """Layers that fuse-overlayfs shows as the root of a step."""

    def __init__(self, program: bytes, spec: list[Any]) -> None:
        if not program:
            raise Failed(_STEP, errno.ENOENT, "the program isn't installed")
        lowers, upper, work, _ = spec
        self._program = program
        self._lowers = [os.open(path, FOLDER) for path in lowers]
        self._ends = [os.open(upper, FOLDER), os.open(work, FOLDER)]
        self._pid = 0

    def mount(self, above: list[int], below: list[int]) -> int:
        """A mount in no namespace yet, with further layers above and below."""
        try:
            device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise Failed(_STEP, error.errno or 0, _DEVICE) from None
        if os.fstat(device).st_rdev != os.makedev(*_DEVICE_NUMBER):
            raise Failed(_STEP, errno.ENODEV, _DEVICE)
        options = {
            b"source": b"fuse-overlayfs",
            b"fd": b"%d" % device,
            b"rootmode": b"40000",
            b"user_id": b"0",
            b"group_id": b"0",
            b"allow_other": b"",
            b"default_permissions": b"",
        }
        root = kernel.new_mount(b"fuse", options, NODEV)
        complaints = os.memfd_create("complaints")
        self._pid = self._start(device, [*above, *self._lowers, *below], complaints, root)
        os.close(device)
        try:
            os.close(kernel.openat2(root, b".", FOLDER, 0))
            os.stat(b"/proc/self/fd/%d" % root)  # noqa: PTH116 - pathlib is slow to load
        except OSError as error:
            text = os.pread(complaints, _MAX_TEXT, 0).decode("utf-8", "replace").strip()
            raise Failed(_STEP, error.errno or 0, text) from None
        os.close(complaints)
        return root

    def unmount(self, root: int) -> None:
        """Undo `mount`; `root` is closed."""
        os.close(root)
        self.wait()

    def wait(self) -> None:
        """Wait until the program has ended by itself, or end it after a while."""
        process = os.pidfd_open(self._pid)
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if not poll.poll(_END_MILLISECONDS):
            os.kill(self._pid, kernel.SIGKILL)
        os.close(process)
        os.waitpid(self._pid, 0)

    def _start(self, device: int, lowers: list[int], complaints: int, root: int) -> int:
        pid = kernel.clone(0)
        if pid:
            return pid
        try:
            os.close(root)  # or it would wait for itself
            os.dup2(complaints, 1)
            os.dup2(complaints, 2)
            for fd in (device, *lowers, *self._ends):
                os.set_inheritable(fd, True)
            shown = b":".join(b"/proc/self/fd/%d" % fd for fd in lowers)
            ends = b",upperdir=/proc/self/fd/%d,workdir=/proc/self/fd/%d" % tuple(self._ends)
            options = b"lowerdir=" + shown + ends
            place = b"/dev/fd/%d" % device
            os.execve(self._program, [self._program, b"-f", b"-o", options, place], {})  # noqa: S606 - what it is for
        finally:
            os._exit(127)
