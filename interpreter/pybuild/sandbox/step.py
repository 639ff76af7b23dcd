"""A child of the zygote's server: a step in its sandbox, or a worker of the client's.

It begins with a copy of the server's memory and descriptors and ends by executing the
program, or by telling on the socket for replies what didn't work. The child for a step may be
there before the step is: it prepares what all steps have, and waits.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import struct
import sys
import termios

from pybuild.sandbox import kernel, packets, program, rootfs, wire
from pybuild.sandbox.kernel import Failed
from pybuild.sandbox.program import Spec
from pybuild.sandbox.system import System, step_folders

TYPE_CHECKING = False  # typing is slow to load
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

REPLY = 100  # where a child has its socket for replies; the other descriptors follow
_SPECIFICATION, _PASSED, _STDOUT, _STDERR = 101, 102, 102, 103
_CHANNEL = REPLY + 2 * packets.MOST_FDS

_MAX_WORD = 16
_IFF_UP, _SIOCSIFFLAGS = 0x1, 0x8914

STEP_NAMESPACES = kernel.NEWPID | kernel.NEWNS | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWCGROUP


def become(work: Callable[[Spec, Spec], None], fds: list[int], config: Spec) -> NoReturn:
    """Be the child: do `work`, which executes a program or fails."""
    try:
        _take_places(fds)
        _close_others(3, len(fds))
        os.setsid()
        work(_specification(), config)
    except Exception as error:  # noqa: BLE001 - the client is told whatever it is
        reply(REPLY, told(error))
    finally:
        os._exit(125)


def become_step(channel: int, config: Spec, *, insecure: bool) -> NoReturn:
    """Be the child for a step whose descriptors come over the socket `channel`, now or later.

    If it can't be prepared, a step that is there already is told so; later ones can't be sent.
    """
    try:
        os.dup2(channel, _CHANNEL, inheritable=False)
        kernel.close_range(3, _CHANNEL - 1)
        kernel.close_range(_CHANNEL + 1, 0xFFFFFFFF)
        os.setsid()
        failure: Exception | None = None
        system = None
        steps = _socket.socket(fileno=_CHANNEL)
        try:
            system = System(step_folders(), config, insecure=insecure)
        except Exception as error:  # noqa: BLE001 - as above
            failure = error
            steps.shutdown(_socket.SHUT_RD)
        _, fds = packets.receive(steps, _MAX_WORD)
        steps.close()
        if not fds:
            os._exit(125)
        _take_places(fds)
        if failure is not None:
            raise failure
        assert system is not None  # noqa: S101 - else it failed
        run_step(system, _specification(), config)
    except Exception as error:  # noqa: BLE001 - as above
        reply(REPLY, told(error))
    finally:
        os._exit(125)


def _take_places(fds: list[int]) -> None:
    """Have `fds` from REPLY on, and not where they are."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, REPLY + packets.MOST_FDS) for fd in fds]
    for place, fd in enumerate(high, REPLY):
        os.dup2(fd, place, inheritable=False)
    for fd in (*fds, *high):
        if not REPLY <= fd < REPLY + len(fds):
            os.close(fd)


def _specification() -> Spec:
    content = b""
    while piece := os.pread(_SPECIFICATION, 1 << 20, len(content)):
        content += piece
    specification: Spec = wire.decode(content)
    return specification


def told(error: Exception) -> bytes:
    """The packet that tells of an error."""
    match error:
        case Failed():
            return error.packet
        case OSError():
            return Failed("set up", error.errno or 0, str(error)).packet
        case _:
            return Failed("set up", 0, f"{type(error).__name__}: {error}").packet


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


def run_inside(spec: Spec, config: Spec) -> None:  # noqa: ARG001 - as all that `become` does
    """Do what a module of the client's does, with all rights in the user namespace."""
    count = spec[b"fds"]
    for place in range(count):
        os.dup2(_PASSED + place, place)
    _close_others(count, 1)
    os.chdir("/")
    sys.path.append(os.fsdecode(spec[b"folder"]))
    __import__(spec[b"module"].decode(), fromlist=["main"]).main()
    os._exit(0)


def run_step(system: System, spec: Spec, config: Spec) -> NoReturn:
    """Make the root file system, go there, give up rights, execute."""
    # until now, what was mounted or unmounted on the machine came here too
    kernel.make_all(kernel.MS_PRIVATE)
    mounts = open_mounts(system.folders, spec, config)
    root = rootfs.Root(system.folders)
    if spec[b"plain"]:
        root.bind(spec[b"plain"])
    else:
        layers = rootfs.KernelLayers(spec[b"overlay"], system.folders, config[b"overlay_options"])
        root.overlay(layers, mounts)
    run_in(root, system, mounts, spec, config)


def open_mounts(folders: int, spec: Spec, config: Spec) -> list[rootfs.Mount]:
    """What goes into the root besides the system's."""
    # descriptors that the client passed have their places behind ours
    single, options = bool(config[b"single"]), config[b"overlay_options"]
    return rootfs.open_mounts(spec[b"mounts"], folders, _STDERR + 1, options, single=single)


def run_in(
    root: rootfs.Root, system: System, mounts: list[rootfs.Mount], spec: Spec, config: Spec
) -> NoReturn:
    """Complete the root, go there, give up rights, execute; or have a runtime do so."""
    for name, mounted in system.mounts:
        kernel.attach(mounted, root.system_folder(name))
    system.mount_memory(spec[b"shm"])
    for mount in mounts:
        kernel.attach(mount.fd, root.target(mount))
    _socket.sethostname(spec[b"hostname"])
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


def _raise_loopback() -> None:
    any_socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    fcntl.ioctl(any_socket.fileno(), _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    any_socket.close()
