"""What a RUN may and may not do to the machine that it runs on."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from threatening import Builds

from pybuild.testkit.workbench import file

pytestmark = pytest.mark.root

CANARY = "canary-5c1f8e"
# as moby masks them, where the kernel has them
MASKED = [
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
]
READ_ONLY = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/sys",
    "/sys/fs/cgroup",
]


@pytest.fixture(scope="module", params=["task", "sandbox", "embedded"])
def runner(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def ran(builds: Builds, script: str, *, base: str = "busybox", before: str = "") -> str:
    """What a RUN of the script wrote."""
    builds.build(f"FROM {base}\n{before}\nRUN <<EOF\n{script}\nEOF\n")
    return builds.log


def status(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs}


def test_a_process_has_dockers_capabilities_and_inherits_none(builds: Builds) -> None:
    """moby CVE-2022-24769; sudo in a RUN must work, so there may be new privileges."""
    found = status(ran(builds, "cat /proc/self/status"))
    assert found["CapInh"] == found["CapAmb"] == "0" * 16
    assert found["CapEff"] == found["CapPrm"] == found["CapBnd"] == "00000000a80425fb"
    assert found["NoNewPrivs"] == "0"
    assert found["Seccomp"] == "2"
    assert found["Groups"] == "0 10"  # busybox has root in wheel


def test_another_user_has_no_capability_left(builds: Builds) -> None:
    found = status(ran(builds, "cat /proc/self/status", before="USER nobody"))
    assert found["CapInh"] == found["CapAmb"] == found["CapEff"] == found["CapPrm"] == "0" * 16
    assert set(found["Uid"].split()) == set(found["Gid"].split()) == {"65534"}
    assert found["Groups"] == "65534"


def test_the_groups_are_those_of_the_image_and_the_primary_one(builds: Builds) -> None:
    """moby CVE-2022-36109, buildah CVE-2022-2989."""
    builds.image(
        "groups",
        file(b"etc/passwd", b"root:x:0:0::/:/bin/sh\nweb:x:101:102::/:/bin/sh\n"),
        file(b"etc/group", b"root:x:0:\nweb:x:102:\na:x:103:web\nb:x:104:root,web\nc:x:105:root\n"),
    )
    for user, numbers in (
        ("web", "101 102 102 103 104"),
        ("101", "101 102 102 103 104"),
        ("web:a", "101 103 103"),
        ("root", "0 0 0 104 105"),
        ("4242", "4242 0 0"),
        ("4242:77", "4242 77 77"),
    ):
        written = ran(
            builds, "echo $(id -u) $(id -g) $(id -G)", base="groups", before=f"USER {user}"
        )
        uid, gid, *groups = written.split()
        assert [uid, gid, *sorted(set(groups), key=int)] == numbers.split(), user


def test_a_setuid_program_gives_its_owners_rights(builds: Builds, tmp_path: Path) -> None:
    """Of busybox's own programs each gives them up at once."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("needs gcc")
    program = "#include <stdio.h>\n#include <unistd.h>\n"
    program += 'int main(void) { printf("%d %d\\n", getuid(), geteuid()); }\n'
    command = [gcc, "-static", "-x", "c", "-", "-o", tmp_path / "ids"]
    subprocess.run(command, input=program.encode(), check=True)
    text = "FROM busybox\nCOPY --chmod=4755 ids /ids\nUSER nobody\nRUN /ids\n"
    builds.build(text, tmp_path)
    assert builds.log.split() == ["65534", "0"]


def test_what_tells_of_the_machine_is_masked(builds: Builds) -> None:
    """GHSA-7ww5-4wqc-m92c (energy readings), GHSA-6fw5-f8r9-fgfm (interrupts)."""
    script = "\n".join(
        f'if [ -d {path} ]; then echo "{path} $(ls -A {path} | wc -l)"; '
        f'elif [ -e {path} ]; then echo "{path} $(head -c 1 {path} 2>/dev/null | wc -c)"; fi'
        for path in MASKED
    )
    found = dict(line.split() for line in ran(builds, script).splitlines())
    assert set(found) == {path for path in MASKED if Path(path).exists()}
    assert set(found.values()) == {"0"}


def test_the_kernels_files_can_not_be_written(builds: Builds) -> None:
    """runc CVE-2025-31133, CVE-2023-25809."""
    mounts = "cat /proc/self/mounts"
    # the log has both streams: a complaint could cut a line that is counted
    script = f"""\
exec 2>/dev/null
{mounts}
echo x > /proc/sys/kernel/core_pattern || echo refused
echo x > /proc/sysrq-trigger || echo refused
echo x > /sys/kernel/uevent_helper || echo refused
echo x > /sys/kernel/mm/ksm/run || echo refused
mkdir /sys/fs/cgroup/mine || echo refused
mount -o remount,rw /sys || echo refused
mount -t tmpfs x /mnt || echo refused
mknod /tmp/disk b 8 0 && head -c 1 /tmp/disk || echo refused
mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem || echo refused
unshare -U true || echo refused
"""
    lines = ran(builds, script).splitlines()
    assert lines.count("refused") == 10
    table = {
        line.split()[1]: line.split()[3].split(",")
        for line in lines
        if " / " in line or line.count(" ") >= 5
    }
    for path in READ_ONLY:
        if path in table:
            assert "ro" in table[path], path
    below_sys = [path for path in table if path.startswith("/sys")]
    assert below_sys
    assert all("ro" in table[path] for path in below_sys)


def test_no_variable_of_the_host_is_seen(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    """buildah CVE-2021-3602."""
    for name in ("SECRET_TOKEN", "LD_PRELOAD_CANARY", "AWS_SECRET_ACCESS_KEY", "LC_CANARY"):
        monkeypatch.setenv(name, CANARY)
    written = ran(
        builds, "cat /proc/self/environ | tr '\\0' '\\n'; cat /proc/1/environ | tr '\\0' '\\n'"
    )
    names = {line.partition("=")[0] for line in written.splitlines()}
    assert CANARY not in written
    assert names <= {"PATH", "HOME", "PWD", "SHLVL", "HOSTNAME", "OLDPWD"}


def test_the_streams_are_pipes_and_nothing_else_is_open(builds: Builds) -> None:
    """A step whose output is a file of the host could empty it."""
    script = """\
echo before
for n in 0 1 2; do readlink /proc/self/fd/$n; done
echo written >/proc/self/fd/1
echo again >/dev/stdout
ls /proc/1/fd
"""
    lines = ran(builds, script).splitlines()
    assert lines[0] == "before"
    assert lines[1] == "/dev/null" or lines[1].startswith("pipe:")
    assert all(line.startswith("pipe:") for line in lines[2:4])
    assert lines[4:6] == ["written", "again"]
    # the shell itself may have the script open, under a number of its own
    assert {int(number) for number in lines[6:]} <= {0, 1, 2, 10}


def test_processes_and_messages_of_the_host_are_not_seen(builds: Builds) -> None:
    written = ran(
        builds, f"kill -0 {os.getpid()} 2>/dev/null && echo seen; ls -d /proc/[0-9]*; hostname"
    )
    assert "seen" not in written
    lines = written.splitlines()
    assert len([line for line in lines if line.startswith("/proc/")]) <= 3
    assert lines[-1] == "buildkitsandbox"


def test_a_device_of_the_image_opens_nothing(builds: Builds, runner: str) -> None:
    """A layer may hold device nodes; the control group or the mount keeps them shut.

    In a user namespace none is made at all.
    """
    script = "mknod /sda b 8 0; mknod /kmsg c 1 11; mknod /tty c 4 0; mknod /null c 1 3"
    probe = "for n in sda kmsg tty; do head -c 1 /$n >/dev/null 2>&1 && echo opened $n; done; (test -c /null && echo x >/null) 2>/dev/null && echo null; true"
    written = ran(builds, probe, before=f"RUN ({script}) 2>/dev/null; true")
    assert written.split() == (["null"] if runner == "task" else [])
