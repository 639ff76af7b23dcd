"""A child of the zygote's server: a step in its sandbox, or a worker of the client's.

It begins with a copy of the server's memory and descriptors and ends by executing the
program, or by telling on the socket for replies what didn't work.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import signal
import socket
import stat
import struct
from collections.abc import Callable

from pybuild.sandbox import kernel, rootfs, wire
from pybuild.sandbox.kernel import Failed

TYPE_CHECKING = False  # typing is slow to load
if TYPE_CHECKING:
    from typing import Any, NoReturn

REPLY = 100  # where a child has its socket for replies; the other descriptors follow
_SPECIFICATION, _PASSED, _STDOUT, _STDERR = 101, 102, 102, 103
_MAX_PASSED = 64

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT = 1, 22, 24, 47
_SECCOMP_MODE_FILTER, _CAP_AMBIENT_CLEAR_ALL = 2, 4
_EVERY_CAPABILITY = (1 << 64) - 1
_CAPABILITY_VERSION = 0x20080522
_IFF_UP, _SIOCSIFFLAGS = 0x1, 0x8914
_MAX_PASSWD = 1 << 20
_DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

STEP_NAMESPACES = kernel.NEWPID | kernel.NEWNS | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWCGROUP
Spec = dict[bytes, "Any"]


def become(program: Callable[[Spec, Spec], None], fds: list[int], config: Spec) -> NoReturn:
    """Be the child: run `program`, which executes another or fails."""
    try:
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, REPLY + _MAX_PASSED) for fd in fds]
        for place, fd in enumerate(high, REPLY):
            os.dup2(fd, place, inheritable=False)
        _close_others(3, len(fds))
        os.setsid()
        specification = b""
        while piece := os.pread(_SPECIFICATION, 1 << 20, len(specification)):
            specification += piece
        program(wire.decode(specification), config)
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
    _restore(config)
    _execute(spec)


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


def run_in(root: rootfs.Root, mounts: list[rootfs.Mount], spec: Spec, config: Spec) -> None:
    """Complete the root, go there, give up rights, execute."""
    _enter_root(root, mounts, spec, config)
    socket.sethostname(spec[b"hostname"])
    if spec[b"own_network"]:
        _raise_loopback()
    os.dup2(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), 0)
    os.dup2(_STDOUT, 1)
    os.dup2(_STDERR, 2)
    _close_others(3, 1)
    # no descriptor leads out any more
    os.umask(0o022)
    _set_home(spec)
    _enter(spec[b"cwd"])
    _restore(config)
    _limit(spec[b"ulimits"])
    _become_user(spec, config)
    if not spec[b"args"]:
        os._exit(0)  # a probe: all of this was possible
    _execute(spec)


def _enter_root(root: rootfs.Root, mounts: list[rootfs.Mount], spec: Spec, config: Spec) -> None:
    unified = bool(config[b"unified"])
    if spec[b"insecure"]:
        rootfs.mount_whole_system(root, unified=unified)
    else:
        rootfs.mount_system(root, config[b"masked"], config[b"readonly"], unified=unified)
    rootfs.mount_devices(root, shm=spec[b"shm"], tty_group=not config[b"single"])
    for mount in mounts:
        kernel.attach(mount.fd, root.target(mount))
    os.fchdir(root.fd)
    kernel.call("pivot_root", "pivot_root", b".", b".")
    kernel.unmount(b".", kernel.MNT_DETACH)
    os.chdir("/")


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def _enter(cwd: bytes) -> None:
    """Go to the working directory, made if it is missing, and see that it lies in the root."""
    try:
        os.chdir(cwd)
    except FileNotFoundError:
        try:
            os.makedirs(cwd, 0o755, exist_ok=True)  # noqa: PTH103 - pathlib is slow to load
            os.chdir(cwd)
        except OSError as error:
            raise Failed("working directory", error.errno or 0, os.fsdecode(cwd)) from None
    except OSError as error:
        raise Failed("working directory", error.errno or 0, os.fsdecode(cwd)) from None
    try:
        os.getcwdb()  # noqa: PTH109 - as above
    except OSError as error:
        raise Failed("working directory", error.errno or 0, os.fsdecode(cwd)) from None


def _set_home(spec: Spec) -> None:
    """Give the process a HOME if it has none. What the image has there may be anything."""
    if dict(spec[b"env"]).get(b"HOME"):
        return
    home = b"/"
    try:
        fd = os.open("/etc/passwd", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        lines = []
    else:
        is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        lines = os.read(fd, _MAX_PASSWD).split(b"\n") if is_file else []
        os.close(fd)
    for line in lines:
        fields = line.split(b":")
        if len(fields) > 5 and fields[2] == b"%d" % spec[b"uid"]:
            home = fields[5] or home
            break
    spec[b"env"] = [*(pair for pair in spec[b"env"] if pair[0] != b"HOME"), [b"HOME", home]]


def _restore(config: Spec) -> None:
    """Give the program the signals and limits that the zygote was started with."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_NOFILE, tuple(config[b"nofile"]))


def _limit(ulimits: list[list[Any]]) -> None:
    for number, soft, hard in ulimits:
        limits = [resource.RLIM_INFINITY if limit < 0 else limit for limit in (soft, hard)]
        try:
            resource.setrlimit(number, (limits[0], limits[1]))
        except (OSError, ValueError) as error:
            text = f"{soft}:{hard} for limit {number}: {error}"
            raise Failed("ulimit", 0, text) from None


def _become_user(spec: Spec, config: Spec) -> None:
    """Take on the user and the rights of the process. The order is what the kernel allows."""
    uid, gid = spec[b"uid"], spec[b"gid"]
    for stream in (1, 2):
        _own_stream(stream, uid, gid)
    single = config[b"single"]
    try:
        if not single:
            os.setgroups(spec[b"groups"])
            os.setresgid(gid, gid, gid)
        elif uid or gid:
            _map_single(uid, gid)
    except OSError as error:
        raise Failed("user", error.errno or 0, f"{uid}:{gid}") from None
    if spec[b"insecure"]:
        _drop_capabilities(_EVERY_CAPABILITY)
        _filter_calls(config[b"insecure_seccomp"])
    else:
        _drop_capabilities(config[b"capabilities"])
        _filter_calls(config[b"seccomp"])
    if not single:
        try:
            os.setresuid(uid, uid, uid)
        except OSError as error:
            raise Failed("user", error.errno or 0, f"{uid}:{gid}") from None
    # changes of identity forget this
    kernel.prctl("death signal", _PR_SET_PDEATHSIG, signal.SIGKILL)


def _own_stream(stream: int, uid: int, gid: int) -> None:
    """Let the user open /dev/stdout again, as Docker does."""
    try:
        os.fchown(stream, uid, gid)
    except OSError:
        return  # with one id, all streams are the user's anyway


def _map_single(uid: int, gid: int) -> None:
    """Be the user in a further user namespace: outside there is but one id."""
    kernel.call("unshare user", "unshare", kernel.NEWUSER)
    for name, line in (
        ("uid_map", b"%d 0 1\n" % uid),
        ("gid_map", b"%d 0 1\n" % gid),
    ):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, line)
        os.close(fd)


def _drop_capabilities(kept: int) -> None:
    kernel.prctl("ambient capabilities", _PR_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL)
    for number in range(64):
        if kept >> number & 1:
            continue
        try:
            kernel.prctl("bounding set", _PR_CAPBSET_DROP, number)
        except Failed as failure:
            if failure.number == errno.EINVAL:
                break  # the kernel has no more
            raise
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    sets = ctypes.create_string_buffer(24)
    kernel.call("capget", "capget", header, ctypes.addressof(sets))
    words = list(struct.unpack("=6I", sets.raw))
    words[2] = words[5] = 0  # the inheritable ones
    kernel.call("capset", "capset", header, struct.pack("=6I", *words))


def _filter_calls(program: bytes) -> None:
    """Load the filter without "no new privileges", so that setuid programs work."""
    if not program:
        return
    instructions = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    pointer = ctypes.create_string_buffer(head, len(head))
    kernel.prctl("seccomp", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(pointer))


def _execute(spec: Spec) -> NoReturn:
    args: list[bytes] = spec[b"args"]
    env: dict[bytes, bytes] = dict(spec[b"env"])
    program = args[0]
    if b"/" in program:
        candidates = [program]
    else:
        path = env.get(b"PATH", _DEFAULT_PATH)
        candidates = [(folder or b".") + b"/" + program for folder in path.split(b":")]
    number = errno.ENOENT
    for candidate in candidates:
        try:
            os.execve(candidate, args, env)  # noqa: S606 - what it is for
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                number = error.errno or number
                if number != errno.EACCES:
                    break
    raise Failed("execute", number, os.fsdecode(program))
