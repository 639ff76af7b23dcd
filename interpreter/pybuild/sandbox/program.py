"""What turns a step into its program: working directory, limits, user, rights, execution.

Called in this order, in the root of the step, by a process that is to be nothing else.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import stat
import struct

from pybuild.sandbox import kernel
from pybuild.sandbox.kernel import Failed

TYPE_CHECKING = False  # typing is slow to load
if TYPE_CHECKING:
    from typing import Any, NoReturn

Spec = dict[bytes, "Any"]

_CapabilitySets = ctypes.c_char * 24

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT = 1, 22, 24, 47
_SECCOMP_MODE_FILTER, _CAP_AMBIENT_CLEAR_ALL = 2, 4
_EVERY_CAPABILITY = (1 << 64) - 1
_CAPABILITY_VERSION = 0x20080522
_MAX_PASSWD = 1 << 20
_DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def enter(cwd: bytes) -> None:
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


def set_home(spec: Spec, root: int) -> None:
    """Give the process a HOME if it has none. What the image has in `root` may be anything."""
    if dict(spec[b"env"]).get(b"HOME"):
        return
    home = b"/"
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
    try:
        fd = kernel.openat2(root, b"etc/passwd", flags, kernel.IN_ROOT | kernel.NO_MAGIC_LINKS)
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


def restore(config: Spec) -> None:
    """Give the program the signals and limits that the zygote was started with."""
    kernel.default_signals()
    resource.setrlimit(resource.RLIMIT_NOFILE, tuple(config[b"nofile"]))


def limit(ulimits: list[list[Any]]) -> None:
    for number, soft, hard in ulimits:
        limits = [resource.RLIM_INFINITY if limit < 0 else limit for limit in (soft, hard)]
        try:
            resource.setrlimit(number, (limits[0], limits[1]))
        except (OSError, ValueError) as error:
            text = f"{soft}:{hard} for limit {number}: {error}"
            raise Failed("ulimit", 0, text) from None


def become_user(spec: Spec, config: Spec) -> None:
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
        config[b"insecure_seccomp"].load()
    else:
        _drop_capabilities(config[b"capabilities"])
        config[b"seccomp"].load()
    if not single:
        try:
            os.setresuid(uid, uid, uid)
        except OSError as error:
            raise Failed("user", error.errno or 0, f"{uid}:{gid}") from None
    # changes of identity forget this
    kernel.prctl("death signal", _PR_SET_PDEATHSIG, kernel.SIGKILL)


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
    sets = _CapabilitySets()
    kernel.call("capget", "capget", header, ctypes.addressof(sets))
    words = list(struct.unpack("=6I", sets.raw))
    words[2] = words[5] = 0  # the inheritable ones
    kernel.call("capset", "capset", header, struct.pack("=6I", *words))


class Filter:
    """A seccomp filter as the kernel takes it, made once for all steps."""

    def __init__(self, program: bytes) -> None:
        """`program` is one ``struct sock_filter`` after the other; without any all is allowed."""
        self._instructions = ctypes.create_string_buffer(program, len(program))
        head = struct.pack("@HP", len(program) // 8, ctypes.addressof(self._instructions))
        self._head = ctypes.create_string_buffer(head, len(head))
        self._address = ctypes.addressof(self._head) if program else 0

    def load(self) -> None:
        """Filter this process, without "no new privileges", so that setuid programs work."""
        if self._address:
            kernel.prctl("seccomp", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, self._address)


def execute(spec: Spec) -> NoReturn:
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
