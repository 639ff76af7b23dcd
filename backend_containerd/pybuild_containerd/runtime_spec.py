"""The OCI runtime specification of a RUN: what BuildKit gives a process, as JSON for runc."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pybuild.backend import Network, Process, Ulimit
from pybuild.errors import UsageError
from pybuild.sandbox.oci_seccomp import default_profile
from pybuild.sandbox.profile import (
    ALL_CAPABILITIES,
    CAPABILITIES,
    CPUS,
    DEFAULT_SHM,
    LIMITS,
    MASKED,
    READ_ONLY,
)
from pybuild.values import dataclass, replace

_MOST_CPUS = 256
_RLIM_INFINITY = 2**64 - 1

# runc leaves the folder of the old control groups writable
_READ_ONLY = (*READ_ONLY, "/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class SpecMount:
    """A mount that the runtime makes. ``destination`` is absolute and resolved in the root.

    ``inside`` is the part of a bind's source that is shown: a sandbox can do that, runc can't
    without following links.
    """

    destination: str
    type: str
    source: str
    options: tuple[str, ...] = ()
    inside: bytes = b""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the specification depends on besides the process.

    ``masked`` are further paths that the process must not see; ``cgroup_namespace`` says
    that the machine has the unified cgroup hierarchy. ``rootless``: containerd is in a user
    namespace, where it can't make control groups. ``capabilities`` are those that it can give.
    """

    architecture: str
    masked: tuple[str, ...] = ()
    cgroup_namespace: bool = False
    rootless: bool = False
    capabilities: tuple[str, ...] = ALL_CAPABILITIES


def any_machine(machine: Machine) -> Machine:
    """`machine` as one of which nothing is known but its architecture."""
    # a runtime passes over paths that aren't there
    masked = (f"{CPUS}/cpu{number}/thermal_throttle" for number in range(_MOST_CPUS))
    return replace(
        machine,
        masked=tuple(masked),
        cgroup_namespace=True,
        capabilities=ALL_CAPABILITIES,
    )


def runtime_spec(
    process: Process, container_id: str, mounts: Sequence[SpecMount], machine: Machine
) -> bytes:
    """The specification as JSON. `mounts` follow the system's own (/proc, /dev, /sys).

    Raises UsageError for a resource limit that Linux doesn't have.
    """
    spec = {
        "ociVersion": "1.0.2",
        "process": _process(process, machine),
        "root": {"path": "rootfs"},
        "hostname": process.hostname,
        "mounts": [_mount(m) for m in (*_system_mounts(process, machine), *mounts)],
        "linux": {
            "namespaces": [{"type": kind} for kind in _namespaces(process, machine)],
            **({} if process.insecure else _confinement(machine)),
            **_control_group(process, container_id, machine),
        },
    }
    return json.dumps(spec, ensure_ascii=False).encode("utf-8", "surrogateescape")


def _confinement(machine: Machine) -> dict[str, Any]:
    return {
        "maskedPaths": [*MASKED, *machine.masked],
        "readonlyPaths": list(_READ_ONLY),
        "seccomp": default_profile(machine.architecture),
    }


def _process(process: Process, machine: Machine) -> dict[str, Any]:
    body: dict[str, Any] = {
        "terminal": False,
        "user": {
            "uid": process.user.uid,
            "gid": process.user.gid,
            "umask": 0o022,
            "additionalGids": list(process.user.groups),
        },
        "args": list(process.args),
        "env": [f"{name}={value}" for name, value in process.env],
        "cwd": process.cwd,
        "capabilities": {
            kind: list(machine.capabilities if process.insecure else CAPABILITIES)
            for kind in ("bounding", "effective", "permitted")
        },
        # sudo in a RUN has to work
        "noNewPrivileges": False,
    }
    if process.ulimits:
        body["rlimits"] = [_rlimit(limit) for limit in process.ulimits]
    return body


def _control_group(process: Process, container_id: str, machine: Machine) -> dict[str, Any]:
    if machine.rootless:
        # runc goes on without a group only if none is named; devices can't be made there
        return {}
    return {
        # outside the folder of the daemon's own containers
        "cgroupsPath": f"{process.cgroup_parent or '/pybuild'}/{container_id}",
        "resources": {"devices": [{"allow": process.insecure, "access": "rwm"}]},
    }


def _rlimit(limit: Ulimit) -> dict[str, Any]:
    if limit.name not in LIMITS:
        raise UsageError(
            f"unknown resource limit {limit.name}", hint=f"known are {', '.join(sorted(LIMITS))}"
        )
    return {
        "type": f"RLIMIT_{limit.name.upper()}",
        "soft": _RLIM_INFINITY if limit.soft < 0 else limit.soft,
        "hard": _RLIM_INFINITY if limit.hard < 0 else limit.hard,
    }


def _namespaces(process: Process, machine: Machine) -> list[str]:
    kinds = ["pid", "ipc", "uts", "mount"]
    match process.network:
        case Network.NONE:
            kinds.append("network")  # a new one, with nothing but loopback
        case Network.DEFAULT | Network.HOST:
            pass  # none named: the process stays in the daemon's
    if machine.cgroup_namespace:
        kinds.append("cgroup")
    return kinds


def _system_mounts(process: Process, machine: Machine) -> list[SpecMount]:
    shm = DEFAULT_SHM if process.shm_size is None else process.shm_size
    hidden = ("nosuid", "noexec", "nodev")
    mode = "rw" if process.insecure else "ro"
    return [
        SpecMount("/proc", "proc", "proc", hidden),
        SpecMount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
        SpecMount(
            "/dev/pts",
            "devpts",
            "devpts",
            ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        ),
        SpecMount("/dev/shm", "tmpfs", "shm", (*hidden, "mode=1777", f"size={shm}")),  # noqa: S108 - a mount point
        SpecMount("/dev/mqueue", "mqueue", "mqueue", hidden),
        _sysfs(process, machine, (*hidden, mode)),
        SpecMount("/sys/fs/cgroup", "cgroup", "cgroup", (mode, *hidden)),
    ]


def _sysfs(process: Process, machine: Machine, options: tuple[str, ...]) -> SpecMount:
    if machine.rootless and process.network is not Network.NONE:
        # only the owner of the network namespace may mount one
        return SpecMount("/sys", "bind", "/sys", ("rbind", *options))
    return SpecMount("/sys", "sysfs", "sysfs", options)


def _mount(mount: SpecMount) -> dict[str, Any]:
    return {
        "destination": mount.destination,
        "type": mount.type,
        "source": mount.source,
        "options": list(mount.options),
    }
