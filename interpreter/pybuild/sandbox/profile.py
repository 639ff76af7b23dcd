"""What a RUN may do and see, as Docker has it: capabilities, masked paths, system calls.

The one list for every way to run a process.
"""

from __future__ import annotations

from pathlib import Path

# Docker's default set; the effective mask is a80425fb
CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_RAW": 13,
    "CAP_SYS_CHROOT": 18,
    "CAP_MKNOD": 27,
    "CAP_AUDIT_WRITE": 29,
    "CAP_SETFCAP": 31,
}

ALL_CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
        "PERFMON",
        "BPF",
        "CHECKPOINT_RESTORE",
    ]
)
"""By number, as capability(7) has them."""

# as moby masks them; /proc/interrupts and powercap leak timing of other processes
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

LIMITS = (
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
)
"""The resource limits by number, as on every architecture that there is a profile for."""

DEFAULT_SHM = 64 * 1024 * 1024

CPUS = "/sys/devices/system/cpu"

# clone's flags for NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
CLONE_NAMESPACES = 0x7E020000
# AF_ALG and AF_VSOCK
DENIED_SOCKETS = (38, 40)
# PER_LINUX, PER_LINUX32, UNAME26, PER_LINUX32 | UNAME26, and the query
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

# answered with success where a user has no other ids to give files or processes to
OWNERSHIP = """
    chown chown32 lchown lchown32 fchown fchown32 fchownat setuid setuid32 setgid setgid32
    setreuid setreuid32 setregid setregid32 setresuid setresuid32 setresgid setresgid32
    setfsuid setfsuid32 setfsgid setfsgid32 setgroups setgroups32
""".split()  # noqa: SIM905 - a name a line would hide the list


def capability_mask() -> int:
    """The bits of the capabilities that a RUN has."""
    return sum(1 << number for number in CAPABILITIES.values())


def possible_capabilities() -> tuple[str, ...]:
    """Those that a process of this machine can have at most, as far as this one can tell."""
    status = Path("/proc/self/status")
    if not status.exists():  # it isn't Linux, and nothing is known
        return ALL_CAPABILITIES
    mask = int(status.read_bytes().partition(b"CapBnd:")[2].split()[0], 16)
    return tuple(name for number, name in enumerate(ALL_CAPABILITIES) if mask >> number & 1)


def thermal_counters() -> tuple[str, ...]:
    """Each processor's counters on this machine: timing of others (GHSA-6fw5-f8r9-fgfm)."""
    return tuple(sorted(map(str, Path(CPUS).glob("cpu[0-9]*/thermal_throttle"))))


def masked_paths() -> tuple[str, ...]:
    """What is hidden on this machine: the list, and each processor's thermal counters."""
    return (*MASKED, *thermal_counters())
