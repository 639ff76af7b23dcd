"""A child of the zygote's server: a step in its sandbox, or a worker of the client's.

It begins with a copy of the server's memory and descriptors and ends by executing the
program, or by telling on the socket for replies what didn't work.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable

from pybuild.sandbox import kernel, program, rootfs, wire
from pybuild.sandbox.kernel import Failed
from pybuild.sandbox.program import Spec

TYPE_CHECKING = False  # typing is slow to load
if TYPE_CHECKING:
    from typing import NoReturn

REPLY = 100  # where a child has its socket for replies; the other descriptors follow
_SPECIFICATION, _PASSED, _STDOUT, _STDERR = 101, 102, 102, 103
_MAX_PASSED = 64

_IFF_UP, _SIOCSIFFLAGS = 0x1, 0x8914

STEP_NAMESPACES = kernel.NEWPID | kernel.NEWNS | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWCGROUP


def become(work: Callable[[Spec, Spec], None], fds: list[int], config: Spec) -> NoReturn:
    """Be the child: do `work`, which executes a program or fails."""
    try:
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, REPLY + _MAX_PASSED) for fd in fds]
        for place, fd in enumerate(high, REPLY):
            os.dup2(fd, place, inheritable=False)
        _close_others(3, len(fds))
        os.setsid()
        specification = b""
        while piece := os.pread(_SPECIFICATION, 1 << 20, len(specification)):
            specification += piece
        work(wire.decode(specification), config)
    except Failed as failure:
        reply(REPLY, failure.packet)
    except OSError as error:
        reply(REPLY, Failed("set up", error.errno or 0, str(error)).packet)
    except Exception as error:  # noqa: BLE001 - the client is told whatever it is
        reply(REPLY, Failed("set up", 0, f"{type(error).__name__}: {error}").packet)
    finally:
        os._exit(125)


def reply(fd: int, packet: bytes) -> None:
    try:
        os.write(fd, packet)
    except OSError:
        return  # the client has gone


def _close_others(first: int, kept: int) -> None:
    """Close all descriptors from `first` on but the socket for replies and `kept` in all."""
    kernel.close_range(first, REPLY - 1)
    kernel.close_range(REPLY + kept, 0xFFFFFFFF)


def close_all() -> None:
    """Close every descriptor but the standard streams."""
    kernel.close_range(3, 0xFFFFFFFF)


def run_inside(spec: Spec, config: Spec) -> None:
    """Execute a program of the client's with all rights in the user namespace."""
    count = spec[b"fds"]
    for place in range(count):
        os.dup2(_PASSED + place, place)
    _close_others(count, 1)
    os.chdir("/")
    program.restore(config)
    program.execute(spec)


def run_step(spec: Spec, config: Spec) -> None:
    """Make the root file system, go there, give up rights, execute."""
    root, mounts, folders = begin_root(spec, config)
    if spec[b"plain"]:
        root.bind(spec[b"plain"])
    else:
        layers = rootfs.KernelLayers(spec[b"overlay"], folders, config[b"overlay_options"])
        root.overlay(layers, mounts)
    run_in(root, mounts, spec, config)


def begin_root(spec: Spec, config: Spec) -> tuple[rootfs.Root, list[rootfs.Mount], int]:
    """An empty root in a mount namespace of our own, what goes into it, and our folders."""
    kernel.make_all(kernel.MS_PRIVATE)
    folders = rootfs.step_folders()
    # descriptors that the client passed have their places behind ours
    single, options = bool(config[b"single"]), config[b"overlay_options"]
    mounts = rootfs.open_mounts(spec[b"mounts"], folders, _STDERR + 1, options, single=single)
    return rootfs.Root(folders), mounts, folders


def run_in(root: rootfs.Root, mounts: list[rootfs.Mount], spec: Spec, config: Spec) -> NoReturn:
    """Complete the root, go there, give up rights, execute; or have a runtime do so."""
    _fill_root(root, mounts, spec, config)
    socket.sethostname(spec[b"hostname"])
    if spec[b"own_network"]:
        _raise_loopback()
    os.umask(0o022)
    program.set_home(spec, root.fd)
    os.dup2(_STDOUT, 1)
    os.dup2(_STDERR, 2)
    if config[b"runtime"]:
        from pybuild.sandbox import ociruntime  # noqa: PLC0415 - seldom asked for

        ociruntime.run(spec, config)
    go_in(root.fd, spec, config)
    if not spec[b"args"]:
        os._exit(0)  # a probe: all of this was possible
    program.execute(spec)


def go_in(root: int, spec: Spec, config: Spec) -> None:
    """Leave everything but the root, and become what the program is to be."""
    os.fchdir(root)
    kernel.call("pivot_root", "pivot_root", b".", b".")
    kernel.unmount(b".", kernel.MNT_DETACH)
    os.chdir("/")
    if spec[b"terminal"]:
        _control_terminal()
    else:
        os.dup2(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), 0)
    _close_others(3, 1)
    # no descriptor leads out any more
    program.enter(spec[b"cwd"])
    program.restore(config)
    program.limit(spec[b"ulimits"])
    program.become_user(spec, config)


def _control_terminal() -> None:
    """Make the terminal on standard output the input, and the one of a session of our own."""
    if os.getsid(0) != os.getpid():  # below fuse-overlayfs's process
        os.setsid()
    os.dup2(1, 0)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _fill_root(root: rootfs.Root, mounts: list[rootfs.Mount], spec: Spec, config: Spec) -> None:
    unified = bool(config[b"unified"])
    if spec[b"insecure"]:
        rootfs.mount_whole_system(root, unified=unified)
    else:
        rootfs.mount_system(root, config[b"masked"], config[b"readonly"], unified=unified)
    rootfs.mount_devices(root, shm=spec[b"shm"], tty_group=not config[b"single"])
    for mount in mounts:
        kernel.attach(mount.fd, root.target(mount))


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
