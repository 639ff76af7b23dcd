"""What a process in the sandbox may and may not do to the machine that it runs on."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pybuild.sandbox import profile
from pybuild.sandbox.client import SandboxFailed
from pybuild.sandbox.mapping import Kind
from pybuild.sandbox.spec import Bind, SmallFile, Tmpfs
from sandboxing import Steps, alive, steps_in

CANARY = "canary-7e2b90"


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steps]:
    with steps_in(tmp_path_factory.mktemp("threats")) as made:
        yield made


def status(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs}


def test_a_process_has_dockers_capabilities_and_inherits_none(steps: Steps) -> None:
    """moby CVE-2022-24769; sudo in a RUN must work, so there may be new privileges."""
    found = status(steps.run("cat /proc/self/status").out)
    assert found["CapInh"] == found["CapAmb"] == "0" * 16
    assert found["CapEff"] == found["CapPrm"] == found["CapBnd"] == "00000000a80425fb"
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("0", "2")


def test_another_user_has_no_capability_left(steps: Steps) -> None:
    found = status(steps.run("cat /proc/self/status", uid=33, gid=33, groups=(33, 44)).out)
    assert {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert found["CapBnd"] == "00000000a80425fb"
    assert set(found["Uid"].split()) == set(found["Gid"].split()) == {"33"}
    assert found["NoNewPrivs"] == "0"
    if steps.sandbox.mapping.kind is not Kind.SINGLE:
        assert found["Groups"] == "33 44"


def test_a_setuid_program_gives_its_owners_rights(steps: Steps, tmp_path: Path) -> None:
    if steps.sandbox.mapping.kind is Kind.SINGLE:
        pytest.skip("inherent: with one id, every file is the user's own")
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("needs gcc")
    program = "#include <stdio.h>\n#include <unistd.h>\n"
    program += 'int main(void) { printf("%d %d\\n", getuid(), geteuid()); }\n'
    command = [gcc, "-static", "-x", "c", "-", "-o", os.fspath(tmp_path / "ids")]
    subprocess.run(command, input=program.encode(), check=True)
    layer = steps.layer("setuid")
    shutil.copy(tmp_path / "ids", layer / "ids")
    (layer / "ids").chmod(0o4755)
    ran = steps.run("/ids", lowers=[layer, steps.base], uid=33, gid=33)
    assert ran.lines == ["33 0"]


def test_what_tells_of_the_machine_is_masked(steps: Steps) -> None:
    """GHSA-7ww5-4wqc-m92c (energy readings), GHSA-6fw5-f8r9-fgfm (interrupts)."""
    paths = profile.masked_paths()
    script = "\n".join(
        f'if [ -d {path} ]; then echo "{path} $(ls -A {path} | wc -l)"; '
        f'elif [ -e {path} ]; then echo "{path} $(head -c 1 {path} 2>/dev/null | wc -c) '
        f'$(stat -c %t:%T {path})"; fi'
        for path in paths
    )
    found = {line.split()[0]: line.split()[1:] for line in steps.run(script).lines}
    assert set(found) == {path for path in paths if Path(path).exists()}
    assert {words[0] for words in found.values()} == {"0"}
    devices = {words[1] for words in found.values() if len(words) > 1}
    assert devices == {"1:3"}  # runc CVE-2025-31133: it is the null device for sure


def test_the_kernels_files_can_not_be_written(steps: Steps) -> None:
    """runc CVE-2025-31133, CVE-2023-25809."""
    script = """\
cat /proc/self/mounts
echo x > /proc/sys/kernel/core_pattern || echo refused
echo x > /proc/sysrq-trigger || echo refused
echo x > /sys/kernel/uevent_helper || echo refused
echo x > /sys/kernel/mm/ksm/run || echo refused
mkdir /sys/fs/cgroup/mine || echo refused
mount -o remount,rw /sys || echo refused
mount -t tmpfs x /tmp || echo refused
unshare -U true || echo refused
unshare -m true || echo refused
(mknod /tmp/disk b 8 0 && head -c 1 /tmp/disk) || echo refused
(mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem) || echo refused
"""
    ran = steps.run(script)
    assert ran.lines.count("refused") == 11, ran.err
    table = {
        line.split()[1]: line.split()[3].split(",") for line in ran.lines if line.count(" ") == 5
    }
    for path in (*profile.READ_ONLY, "/sys", "/sys/fs/cgroup"):
        if path in table:
            assert "ro" in table[path], path
    assert all("ro" in table[path] for path in table if path.startswith("/sys"))
    assert "nodev" in table["/"]
    assert {"nosuid", "nodev", "noexec"} <= set(table["/proc"])


def test_nothing_of_the_host_is_left_in_the_mount_table(steps: Steps) -> None:
    lines = steps.run("cat /proc/self/mountinfo").lines
    assert {line.split()[4].split("/")[1] for line in lines} <= {"", "proc", "sys", "dev"}
    assert str(steps.folder) not in "\n".join(lines)


def test_no_variable_of_the_host_is_seen(
    steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """buildah CVE-2021-3602; nor in the zygote, where ps would show it."""
    for name in ("SECRET_TOKEN", "LD_PRELOAD_CANARY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, CANARY)
    with steps_in(tmp_path, steps.sandbox.mapping) as own:
        ran = own.run("cat /proc/self/environ /proc/1/environ | sed 's/\\0/\\n/g' ; env")
        zygote = own.sandbox._zygote
        assert zygote is not None
        environment = Path(f"/proc/{zygote.pid}/environ").read_bytes()
    assert CANARY not in ran.out
    assert CANARY.encode() not in environment
    assert {line.partition("=")[0] for line in ran.lines if "=" in line} <= {
        "PATH", "PWD", "SHLVL", "OLDPWD", "HOME",
    }  # fmt: skip


def test_a_secret_is_in_memory_alone(steps: Steps) -> None:
    """Not on a command line, not in the upper folder, with the mode and owner asked for."""
    secret = SmallFile("/run/secrets/token", CANARY.encode(), mode=0o400, uid=33, gid=34)
    ran = steps.run(
        "cat /run/secrets/token; stat -c '%a %u %g' /run/secrets/token; stat -f -c %T /run/secrets/token; "
        "echo; cat /proc/[0-9]*/cmdline; echo x >/run/secrets/token",
        mounts=(secret,),
    )
    owner = "0 0" if steps.sandbox.mapping.kind is Kind.SINGLE else "33 34"
    assert ran.lines[0] == f"{CANARY}400 {owner}"
    assert ran.lines[1] == "tmpfs"
    assert ran.out.count(CANARY) == 1
    assert "Read-only" in ran.err or "denied" in ran.err
    assert ran.changed() == []
    assert alive(CANARY) == []


def test_the_streams_are_pipes_and_nothing_else_is_open(steps: Steps) -> None:
    """A step whose output is a file of the host could empty it."""
    script = """\
for n in 0 1 2; do readlink /proc/self/fd/$n; done
echo written >/proc/self/fd/1
ls /proc/1/fd
cat /dev/stdin | wc -c
"""
    lines = steps.run(script).lines
    assert lines[0] == "/dev/null"
    assert all(line.startswith("pipe:") for line in lines[1:3])
    assert lines[3:] == ["written", "0", "1", "2", "0"]


@pytest.mark.parametrize("number", [*range(3, 31), 100, 101, 102, 103, 104])
def test_no_descriptor_leads_out_as_a_working_directory(steps: Steps, number: int) -> None:
    """runc CVE-2024-21626, podman CVE-2026-55686."""
    with pytest.raises(SandboxFailed, match="working directory"):
        steps.run("pwd", cwd=f"/proc/self/fd/{number}")


def test_a_working_directory_behind_a_link_lies_in_the_root(steps: Steps, tmp_path: Path) -> None:
    layer = steps.layer("cwd")
    (tmp_path / "outside").mkdir()
    (layer / "out").symlink_to(tmp_path / "outside")
    (layer / "up").symlink_to("../../../../../../tmp")
    ran = steps.run("pwd; echo x >x", lowers=[layer, steps.base], cwd="/up")
    assert ran.lines == ["/tmp"]
    with pytest.raises(SandboxFailed, match="working directory"):
        steps.run("echo x >x", lowers=[layer, steps.base], cwd="/out")
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
@pytest.mark.parametrize("target", ["/etc", "../../../etc", "/proc/self/cwd", "/proc/self/root"])
def test_a_link_in_place_of_a_system_folder_is_refused(
    steps: Steps, name: str, target: str
) -> None:
    """runc CVE-2019-16884, CVE-2023-28642."""
    layer = steps.folder / f"link-{steps.count}"
    layer.mkdir()
    (layer / name).symlink_to(target)
    with pytest.raises(SandboxFailed, match=f"/{name} of the image is not a folder"):
        steps.run("true", lowers=[layer, steps.base])


def test_a_file_in_place_of_a_system_folder_is_refused(steps: Steps) -> None:
    layer = steps.layer("file")
    (layer / "proc").write_text("x")
    with pytest.raises(SandboxFailed, match="/proc of the image is not a folder"):
        steps.run("true", lowers=[layer, steps.base])


@pytest.mark.parametrize(
    ("path", "link", "refused"),
    [
        ("etc", "{outside}", False),
        ("etc", "../../../../../../../../{outside}", False),
        ("etc/resolv.conf", "{outside}/resolv.conf", False),
        ("etc/resolv.conf", "/proc/self/root/{outside}/resolv.conf", True),
        ("etc/resolv.conf", "/proc/1/cwd/../resolv.conf", True),
        ("etc/resolv.conf", "/proc/sys/kernel/core_pattern", True),
    ],
)
def test_a_link_of_the_image_can_not_lead_a_mount_out(
    steps: Steps, tmp_path: Path, path: str, link: str, refused: bool
) -> None:
    """BuildKit CVE-2024-23652: nothing outside is mounted on, made or removed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    layer = steps.folder / f"etc-{steps.count}"
    (layer / path).parent.mkdir(parents=True)
    (layer / path).symlink_to(link.format(outside=outside))
    ours = (SmallFile("/etc/resolv.conf", b"ours\n"),)
    if refused:
        with pytest.raises(SandboxFailed, match=r"mount point: /etc/resolv\.conf"):
            steps.run("true", lowers=[layer, steps.base], mounts=ours)
    else:
        # it is made where the link leads in the root
        ran = steps.run("cat /etc/resolv.conf", lowers=[layer, steps.base], mounts=ours)
        assert ran.out == "ours\n"
    assert list(outside.iterdir()) == []


def test_a_loop_of_links_ends(steps: Steps) -> None:
    layer = steps.layer("loop")
    (layer / "a").symlink_to("b")
    (layer / "b").symlink_to("a")
    with pytest.raises(SandboxFailed, match="mount point: /a/x"):
        steps.run("true", lowers=[layer, steps.base], mounts=(Tmpfs("/a/x"),))


@pytest.mark.parametrize("target", ["/", "/..", "/tmp/../.."])
def test_nothing_is_mounted_on_the_root(steps: Steps, target: str) -> None:
    with pytest.raises(SandboxFailed, match="mount point"):
        steps.run("true", mounts=(Tmpfs(target),))


def test_a_mount_of_the_wrong_kind_is_refused(steps: Steps, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SandboxFailed, match="mount point: /tmp: Is a directory"):
        steps.run("true", mounts=(Bind("/tmp", os.fsencode(tmp_path / "file")),))
    with pytest.raises(SandboxFailed, match="mount point: /bin/sh: Not a directory"):
        steps.run("true", mounts=(Tmpfs("/bin/sh"),))


def test_processes_and_names_of_the_host_are_not_seen(steps: Steps) -> None:
    ran = steps.run("kill -0 $0 2>/dev/null && echo seen; ls -d /proc/[0-9]*; hostname; uname -n")
    assert "seen" not in ran.out
    assert len([line for line in ran.lines if line.startswith("/proc/")]) <= 2
    assert ran.lines[-2:] == ["buildkitsandbox"] * 2


def test_devices_of_a_layer_open_nothing(steps: Steps) -> None:
    if os.geteuid() != 0:
        pytest.skip("inherent: only root can make device files")
    layer = steps.layer("devices")
    for name, kind, number in (("sda", stat.S_IFBLK, (8, 0)), ("mem", stat.S_IFCHR, (1, 1))):
        os.mknod(layer / name, kind | 0o666, os.makedev(*number))
    ran = steps.run(
        "for n in sda mem; do head -c 1 /$n && echo opened; done", lowers=[layer, steps.base]
    )
    assert "opened" not in ran.out
    assert ran.err.count("ermission denied") == 2


def test_calls_outside_the_profile_are_refused(steps: Steps, tmp_path: Path) -> None:
    """keyctl, bpf, a socket of AF_VSOCK, clone3, and a call that no kernel has yet."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("needs gcc")
    program = """
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#define SHOW(call) errno = 0; call; printf("%d ", errno);
int main(void) {
    SHOW(syscall(SYS_keyctl, 0, 0)) SHOW(syscall(SYS_bpf, 0, 0, 0)) SHOW(socket(40, 1, 0))
    SHOW(socket(38, 5, 0)) SHOW(syscall(435, 0, 0)) SHOW(syscall(2000))
    SHOW(syscall(SYS_clone, 0x10000011, 0, 0, 0, 0)) SHOW(syscall(SYS_personality, 0x40000))
    SHOW(syscall(SYS_getpid)) SHOW(socket(1, 1, 0)) SHOW(syscall(SYS_personality, 0xffffffff))
}
"""
    command = [gcc, "-static", "-x", "c", "-", "-o", os.fspath(tmp_path / "calls")]
    subprocess.run(command, input=program.encode(), check=True)
    layer = steps.layer("calls")
    shutil.copy(tmp_path / "calls", layer / "calls")
    ran = steps.run("/calls", lowers=[layer, steps.base])
    assert [int(number) for number in ran.out.split()] == [1, 1, 1, 1, 38, 38, 1, 1, 0, 0, 0]


def test_what_is_asked_is_on_no_command_line(steps: Steps) -> None:
    zygote = steps.sandbox._zygote
    assert zygote is not None
    words = Path(f"/proc/{zygote.pid}/cmdline").read_bytes().split(b"\0")
    assert words[:3] == [os.fsencode(sys.executable), b"-I", b"-S"]
    assert len(words) == 8
    assert words[6].isdigit()


def test_a_part_of_a_folder_that_another_step_swaps_is_never_the_hosts(
    steps: Steps, tmp_path: Path
) -> None:
    """BuildKit CVE-2024-23651: a cache's folder becomes a link while it is mounted."""
    outside, cache = tmp_path / "outside", tmp_path / "cache"
    for place, word in ((outside, "host"), (cache / "sub", "cache")):
        place.mkdir(parents=True)
        (place / "f").write_text(word)
    (cache / "link").symlink_to(outside)
    tmp_path.chmod(0o755)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            for source, target in (
                ("sub", "kept"),
                ("link", "sub"),
                ("sub", "link"),
                ("kept", "sub"),
            ):
                (cache / source).rename(cache / target)

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen = set()
    try:
        for _ in range(60):
            bind = Bind("/m", os.fsencode(cache), inside=b"sub")
            with suppress(SandboxFailed):
                seen.add(steps.run("cat /m/f", mounts=(bind,)).out)
    finally:
        over.set()
        swapper.join()
    assert seen <= {"cache", ""}
    bind = Bind("/m", os.fsencode(cache), inside=b"sub")
    assert steps.run("cat /m/f", mounts=(bind,)).out == "cache"
