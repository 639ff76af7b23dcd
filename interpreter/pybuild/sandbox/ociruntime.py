"""A step whose program is started by an OCI runtime of the machine, crun or runc.

Everything else is as in any step: namespaces, root file system and mounts are made by us, so
that all of it ends with the step. The runtime makes a process and a mount namespace below
ours and is told to leave control groups alone. It isn't seen by the program.

Before, a rehearsal: a child goes all the way to the program as a step without a runtime does,
and is killed when the kernel has accepted to execute it. So what the image or the Dockerfile
has wrong is found by the same code and told by the same words, and a runtime's own failure is
another one.
"""

from __future__ import annotations

import json
import os
import resource
import signal

from pybuild.sandbox import kernel, program
from pybuild.sandbox.kernel import FOLDER, HIDDEN, RDONLY, Failed, attach
from pybuild.sandbox.program import Spec
from pybuild.sandbox.step import go_in
from pybuild.sandbox.system import STEP

TYPE_CHECKING = False  # typing is slow to load
if TYPE_CHECKING:
    from typing import Any, NoReturn

_PTRACE_TRACEME = 0
_BUNDLE, _LOG, _PID = STEP + b"/bundle", STEP + b"/log", STEP + b"/pid"
_STATE, _ROOT = STEP + b"/state", STEP + b"/root"
_CGROUP = b"/sys/fs/cgroup"
_MAX_LOG, _MAX_TEXT = 1 << 16, 2000
_FAILED = 125
_INFINITY = (1 << 64) - 1
_NOFILE = resource.RLIMIT_NOFILE
_HIDDEN = ["nosuid", "noexec", "nodev"]


def run(spec: Spec, config: Spec) -> NoReturn:
    """Rehearse, have the runtime execute the program, and end as that does."""
    name = os.fsdecode(config[b"runtime"])
    _rehearse(name, spec, config)
    if not spec[b"args"]:
        os._exit(0)
    # the one of our process namespace: the program gets one of its own, and we look at ours
    kernel.unmount(_ROOT + b"/proc", kernel.MNT_DETACH)
    attach(kernel.new_mount(b"proc", {}, HIDDEN), os.open("/proc", FOLDER))
    _show_control_groups(name)
    os.mkdir(_BUNDLE, 0o700)  # noqa: PTH102 - pathlib is slow to load
    with open(_BUNDLE + b"/config.json", "xb") as file:  # noqa: PTH123 - as above
        file.write(_document(spec, config))
    ended: dict[int, int] = {}
    code = _wait(_start(config), ended)
    if code:
        raise Failed(name, 0, _complaint() or f"it ended with {code}")
    try:
        with open(_PID, "rb") as file:  # noqa: PTH123 - as above
            code = _wait(int(file.read()), ended)
    except (OSError, ValueError):
        raise Failed(name, 0, "it tells of no process that it has started") from None
    os._exit(code if code >= 0 else 128 - code)


def _rehearse(name: str, spec: Spec, config: Spec) -> None:
    """Go to the program in a child, which tells itself what didn't work."""
    child = kernel.clone(kernel.NEWNS)
    if child == 0:
        go_in(os.open(_ROOT, FOLDER), spec, config)
        if not spec[b"args"]:
            os._exit(0)
        kernel.call(name, "ptrace", _PTRACE_TRACEME, 0, None, None)
        program.execute(spec)
    _, status = os.waitpid(child, 0)
    if os.WIFSTOPPED(status):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    elif os.WIFSIGNALED(status):  # it was accepted, and then didn't fit its limits
        os._exit(128 + os.WTERMSIG(status))
    elif status or spec[b"args"]:
        os._exit(_FAILED)


def _show_control_groups(name: str) -> None:
    """Runtimes want to see where control groups are, even if they are to make none."""
    os.makedirs(_CGROUP, 0o755, exist_ok=True)  # noqa: PTH103 - as above
    try:
        groups = kernel.new_mount(b"cgroup2", {}, HIDDEN | RDONLY)
    except Failed as failure:
        text = "it needs the unified control groups, cgroup2, of the kernel"
        raise Failed(name, failure.number, text) from None
    attach(groups, os.open(_CGROUP, FOLDER))


def _start(config: Spec) -> int:
    """The process id of the runtime, which ends with 0 once the program is executed."""
    path: bytes = config[b"runtime_path"]
    own = [b"--cgroup-manager=disabled"] if config[b"runtime"] == b"crun" else [b"--rootless=true"]
    args = [b"--root", _STATE, b"--log", _LOG, b"--log-format=json", *own]
    args += [b"run", b"--detach", b"--no-subreaper", b"--no-new-keyring", b"--bundle", _BUNDLE]
    runtime = kernel.clone(0)
    if runtime == 0:
        try:
            os.chdir("/")
            os.dup2(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), 0)
            program.restore(config)
            os.execve(path, [path, *args, b"--pid-file", _PID, b"pybuild-step"], {})  # noqa: S606 - what it is for
        finally:
            os._exit(_FAILED)
    return runtime


def _wait(pid: int, ended: dict[int, int]) -> int:
    """The exit code of a process, negative for a signal.

    `ended` are those that have ended meanwhile: as the first process we inherit them all.
    """
    while pid not in ended:
        found, status = os.waitpid(-1, 0)
        ended[found] = os.waitstatus_to_exitcode(status)
    return ended[pid]


def _complaint() -> str:
    """What the runtime has told, a JSON object a line, as its last error."""
    try:
        with open(_LOG, "rb") as file:  # noqa: PTH123 - as above
            text = file.read(_MAX_LOG).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    try:
        return str(json.loads(text.rpartition("\n")[2])["msg"])[:_MAX_TEXT]
    except (ValueError, LookupError, TypeError):
        return text[:_MAX_TEXT]


def _document(spec: Spec, config: Spec) -> bytes:
    """The configuration of the runtime specification, as JSON."""
    insecure = bool(spec[b"insecure"])
    linux: dict[str, Any] = {"namespaces": [{"type": "pid"}, {"type": "mount"}]}
    if not insecure:
        linux["maskedPaths"] = _below_proc(config[b"masked"])
        linux["readonlyPaths"] = _below_proc(config[b"readonly"])
    seccomp = config[b"runtime_insecure_seccomp" if insecure else b"runtime_seccomp"]
    if seccomp:
        linux["seccomp"] = json.loads(seccomp)
    document = {
        "ociVersion": "1.0.2",
        "process": _process(spec, config),
        "root": {"path": os.fsdecode(_ROOT)},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": _HIDDEN},
            # as it is: the runtime makes no device files if something is bound there
            {
                "destination": "/dev",
                "type": "bind",
                "source": os.fsdecode(_ROOT + b"/dev"),
                "options": ["rbind", "nosuid", "nodev"],
            },
        ],
        "linux": linux,
    }
    return json.dumps(document).encode()


def _below_proc(paths: list[bytes]) -> list[str]:
    return [os.fsdecode(path) for path in paths if path.startswith(b"/proc/")]


def _process(spec: Spec, config: Spec) -> dict[str, Any]:
    kept = config[
        b"runtime_insecure_capabilities" if spec[b"insecure"] else b"runtime_capabilities"
    ]
    names = [name.decode() for name in kept]
    limits = [[_NOFILE, *config[b"nofile"]], *spec[b"ulimits"]]
    user = {"uid": spec[b"uid"], "gid": spec[b"gid"], "umask": 0o022}
    if not config[b"single"]:
        user["additionalGids"] = spec[b"groups"]
    return {
        "terminal": False,
        "user": user,
        "args": [word.decode() for word in spec[b"args"]],
        "env": [(name + b"=" + value).decode() for name, value in spec[b"env"]],
        "cwd": spec[b"cwd"].decode(),
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), names),
        "rlimits": [
            {
                "type": f"RLIMIT_{config[b'limits'][number].decode().upper()}",
                "soft": soft if soft >= 0 else _INFINITY,
                "hard": hard if hard >= 0 else _INFINITY,
            }
            for number, soft, hard in {limit[0]: limit for limit in limits}.values()
        ],
        # sudo in a step has to work
        "noNewPrivileges": False,
    }
