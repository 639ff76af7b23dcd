"""The program that makes sandboxes: one process a build, and below it one process a step.

Started as ``python -I -S zygote.py FD`` and spoken to over that socket alone; it imports
only what loads quickly. It enters the user namespace, then its child, the server, becomes
the first process of a process namespace: when the server ends, for whatever reason, the
kernel ends every step at once. The server ends when its parent does, or when the client's
end of the socket closes. A step is a child of the server with namespaces of its own, and
the first process of another process namespace.

Of the usual kind of step, and of each other that there was, a child for the next one waits: half
of the way to a program is the same for all.

Requests are one packet: an operation, flags, and descriptors by SCM_RIGHTS, of which the
first is the socket for replies (closing it kills the step) and the second a memory file
with the specification, in the form of `wire`. Replies: ``exit NUL code`` and ``failed NUL
step NUL errno NUL text``.
"""

from __future__ import annotations

import _socket
import os
import resource
import select
import sys

if not __package__:
    # the package without its __init__, which loads all of the interpreter
    _package = type(sys)("pybuild")
    _package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]  # noqa: PTH100, PTH120 - pathlib is slow to load
    sys.modules["pybuild"] = _package

from pybuild.sandbox import fuse, kernel, packets, system, wire
from pybuild.sandbox.kernel import FOLDER, Failed, attach
from pybuild.sandbox.program import Filter, Spec
from pybuild.sandbox.step import (
    STEP_NAMESPACES,
    become,
    become_step,
    reply,
    run_inside,
    told,
)

TYPE_CHECKING = False  # typing is slow to load
if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_PACKET = 1 << 17
_MAX_TEXT = 1000
_PR_SET_PDEATHSIG = 1
_CGROUP2 = b"/sys/fs/cgroup/cgroup.controllers"

StepKind = tuple[bool, bool]
"""Whether a step has a network of its own, and whether it is insecure."""

_USUAL: StepKind = False, False

Child = tuple[int, int, int]
"""A child's process id, the descriptor of the process, and its socket for replies."""


def main() -> None:
    control = _socket.socket(fileno=int(sys.argv[1]))
    config = wire.decode(control.recv(_MAX_PACKET))
    if config[b"runtime"]:
        from pybuild.sandbox import ociruntime  # noqa: F401, PLC0415 - once for all steps
    try:
        if config[b"by"] != b"none":
            enter_user_namespace(config)
        config[b"nofile"] = _raise_limit()
        for name in (b"seccomp", b"insecure_seccomp"):
            config[name] = Filter(config[name])
        server = kernel.clone(kernel.NEWPID | kernel.NEWNS)
        if server == 0:
            kernel.prctl("death signal", _PR_SET_PDEATHSIG, kernel.SIGKILL)
            config[b"unified"] = int(os.path.exists(_CGROUP2))  # noqa: PTH110 - as above
            prepare_mounts(config)
            control.send(b"ready")
            serve(control, config)
        control.close()
        os.waitpid(server, 0)
    except Failed as failure:
        control.send(failure.packet)
    except OSError as error:
        control.send(Failed("start", error.errno or 0, str(error)).packet)
    os._exit(0)


def _raise_limit() -> list[wire.Value]:
    """Allow as many descriptors as the machine does; the limits as they were."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return [soft, hard]


# --- the user namespace


def enter_user_namespace(config: Spec) -> None:
    """Become root of a user namespace with the ids of the client's choice."""
    if config[b"by"] == b"self":
        kernel.call("unshare user", "unshare", kernel.NEWUSER)
        _write("/proc/self/setgroups", b"deny")
        _write_maps("/proc/self", config)
        return
    ask_read, ask = os.pipe()
    answer, answer_write = os.pipe()
    mapper = kernel.clone(0)
    if mapper == 0:
        os.close(ask)
        if os.read(ask_read, 1):
            os.write(answer_write, _map_parent(config))
        os._exit(0)
    os.close(answer_write)
    kernel.call("unshare user", "unshare", kernel.NEWUSER)
    os.write(ask, b"x")
    text = os.read(answer, _MAX_TEXT)
    os.waitpid(mapper, 0)
    if text != b"ok":
        raise Failed("map ids", 0, os.fsdecode(text or b"the process that maps has ended"))
    for fd in (ask, ask_read, answer):
        os.close(fd)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _map_parent(config: Spec) -> bytes:
    """Map the ids of the parent process; "ok", or what went wrong."""
    pid = os.getppid()
    try:
        if config[b"by"] == b"tools":
            return _run_tool(config[b"newuidmap"], pid, config[b"uids"]) or (
                _run_tool(config[b"newgidmap"], pid, config[b"gids"]) or b"ok"
            )
        _write_maps(f"/proc/{pid}", config)
    except OSError as error:
        return os.fsencode(str(error))
    return b"ok"


def _run_tool(tool: bytes, pid: int, ranges: list[list[int]]) -> bytes:
    """What a tool complained of; nothing if it did its work."""
    words = [b"%d" % number for line in ranges for number in line]
    read, write = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, write, 2)]
    child = os.posix_spawn(tool, [tool, b"%d" % pid, *words], {}, file_actions=actions)
    os.close(write)
    if os.waitpid(child, 0)[1]:
        return os.read(read, _MAX_TEXT).strip() or tool + b" failed"
    return b""


def _write_maps(folder: str, config: Spec) -> None:
    for name, ranges in (("uid_map", config[b"uids"]), ("gid_map", config[b"gids"])):
        _write(f"{folder}/{name}", b"".join(b"%d %d %d\n" % tuple(line) for line in ranges))


def _write(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, content)
    except OSError as error:
        raise Failed("map ids", error.errno or 0, path) from None
    finally:
        os.close(fd)


# --- the server


def prepare_mounts(config: Spec) -> None:
    """Put our folders over the server's /sys, and the kernel's sysfs, masked, into them."""
    kernel.make_all(kernel.MS_SLAVE)
    # a sysfs belongs to a network namespace: one of its own, which shows no interface of the host
    ours, theirs = packets.pair()
    helper = kernel.clone(kernel.NEWNET)
    if helper == 0:
        try:
            sysfs = kernel.new_mount(b"sysfs", {}, kernel.HIDDEN | kernel.RDONLY)
            _attach_folders()
            attach(sysfs, os.open(system.SYSFS, FOLDER))
            network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            packets.send(theirs, b"n", [network])
            os._exit(0)
        except (Failed, OSError):
            os._exit(1)
    if os.waitpid(helper, 0)[1]:
        _attach_folders()  # without, /sys is an empty folder
        return
    # kept open as long as this process is there, so that the namespace has its loopback
    packets.receive(ours, 1)
    ours.close()
    theirs.close()
    whole = kernel.copy_mount(system.SYSFS)
    attach(whole, os.open(system.WHOLE_SYSFS, FOLDER))
    folder = os.open(system.SYSFS, FOLDER)
    os.close(system.step_folders())
    system.mask(folder, b"/sys/", config[b"masked"])
    os.close(folder)
    kernel.unmount(system.STEP, kernel.MNT_DETACH)


def _attach_folders() -> None:
    folders = kernel.new_mount(b"tmpfs", {b"mode": b"755"}, kernel.HIDDEN)
    for path in (system.SYSFS, system.WHOLE_SYSFS, system.STEP):
        os.mkdir(path.removeprefix(b"/sys/"), 0o755, dir_fd=folders)
    attach(folders, os.open("/sys", FOLDER))


def serve(control: _socket.socket, config: Spec) -> None:
    """Start what is asked for and tell how it ended, until the client is gone."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    children: dict[int, Child] = {}  # by process descriptor, and by socket until it is closed
    spares: dict[StepKind, StepChild] = {}
    begin_spare(spares, config, _USUAL)
    while True:
        for fd, _ in poll.poll():
            if fd == control.fileno():
                packet, fds = packets.receive(control, _MAX_PACKET)
                if not packet:
                    os._exit(0)
                for child in start(packet, fds, config, spares):
                    for each in child[1:]:
                        children[each] = child
                        poll.register(each, select.POLLIN)
            elif fd in children:
                pid, process, answers = children.pop(fd)
                poll.unregister(fd)
                if fd == answers:  # the client has nothing to say: it has closed its end
                    os.kill(pid, kernel.SIGKILL)
                    continue
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                reply(answers, b"exit\0%d" % (code if code >= 0 else 128 - code))
                if children.pop(answers, None):
                    poll.unregister(answers)
                os.close(process)
                os.close(answers)


def start(
    packet: bytes, fds: list[int], config: Spec, spares: dict[StepKind, StepChild]
) -> list[Child]:
    """Begin what a request asks for; no child if even that fails."""
    operation, own_network, insecure = wire.decode(packet)
    children: list[Child] = []
    try:
        match operation:
            case b"run":
                pid = start_step(fds, config, spares, (bool(own_network), bool(insecure)))
            case b"fuse":
                pid = kernel.clone(kernel.NEWPID | kernel.NEWNS)
                if pid == 0:
                    become(fuse.run_step, fds, config)
            case _:
                pid = kernel.clone(kernel.NEWPID)
                if pid == 0:
                    become(run_inside, fds, config)
        children.append((pid, os.pidfd_open(pid), fds[0]))
    except (Failed, OSError) as error:
        reply(fds[0], told(error))
        os.close(fds[0])
    for fd in fds[1:]:
        os.close(fd)
    return children


# --- steps


class StepChild:
    """A child for a step of one kind, which may come later."""

    def __init__(self, config: Spec, kind: StepKind, fds: Sequence[int] = ()) -> None:
        """Begin one, with a step of these descriptors if there are any. Raises Failed, OSError."""
        own_network, insecure = kind
        self._steps, theirs = packets.pair()
        try:
            if fds:
                packets.send(self._steps, b"step", fds)
            self.pid = kernel.clone(STEP_NAMESPACES | (kernel.NEWNET if own_network else 0))
            if self.pid == 0:
                become_step(theirs.fileno(), config, insecure=insecure)
            if fds:
                self._steps.close()
        except BaseException:
            self._steps.close()
            raise
        finally:
            theirs.close()

    def give(self, fds: Sequence[int]) -> bool:
        """Have it do the step of these descriptors; False if it couldn't be prepared."""
        try:
            packets.send(self._steps, b"step", fds)
        except OSError:
            return False
        finally:
            self._steps.close()
        return True


def start_step(
    fds: list[int], config: Spec, spares: dict[StepKind, StepChild], kind: StepKind
) -> int:
    """The process id of a step. Another child is begun for the next one of its kind."""
    child = spares.pop(kind, None)
    if child is not None and not child.give(fds):
        os.waitpid(child.pid, 0)
        child = None
    if child is None:
        child = StepChild(config, kind, fds)
    begin_spare(spares, config, kind)
    return child.pid


def begin_spare(spares: dict[StepKind, StepChild], config: Spec, kind: StepKind) -> None:
    """Begin the child for the next step of a kind."""
    try:  # noqa: SIM105 - contextlib is slow to load
        spares[kind] = StepChild(config, kind)
    except (Failed, OSError):
        pass  # the step tells why


if __name__ == "__main__":
    main()
