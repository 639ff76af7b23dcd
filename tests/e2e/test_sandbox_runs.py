"""The sandbox at work: as this user, and as root again as users with and without other ids."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from promptness import AT_ONCE
from pybuild.errors import BackendFailed, UsageError
from pybuild.sandbox.client import SandboxFailed
from pybuild.sandbox.mapping import IdRange, Kind
from pybuild.sandbox.modes import probe
from pybuild.sandbox.spec import (
    Bind,
    OverlayBind,
    Plain,
    RunSpec,
    SmallFile,
    Socket,
    Tmpfs,
)
from sandboxing import (
    WAYS,
    Steps,
    alive,
    best_mapping,
    busybox_root,
    empty,
    executed_inside,
    holding,
    run_tests_as_user,
    state_of_runtimes,
    steps_in,
)

ROOT = Path(__file__).resolve().parents[2]


in_every_way = pytest.mark.parametrize("steps", WAYS, indirect=True, scope="module")


@pytest.fixture(scope="module")
def steps(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Steps]:
    """Steps on the kernel's overlay, or as `in_every_way` says."""
    folder = tmp_path_factory.mktemp("sandbox")
    with steps_in(folder, way=getattr(request, "param", "overlay")) as made:
        yield made


@pytest.fixture
def single(steps: Steps) -> bool:
    return steps.sandbox.mapping.kind is Kind.SINGLE


def skip_without_users(steps: Steps) -> None:
    if steps.sandbox.runtime is not None and steps.sandbox.mapping.kind is Kind.SINGLE:
        pytest.skip("inherent: with one id, a runtime runs steps as root only")


@in_every_way
def test_output_and_exit_code_come_back(steps: Steps) -> None:
    ran = steps.run("echo out; echo err >&2; exit 7")
    assert (ran.code, ran.out, ran.err) == (7, "out\n", "err\n")


@in_every_way
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_signal_gives_128_and_its_number(steps: Steps, number: int) -> None:
    # a process namespace shields its first process from its own signals
    assert steps.run(f"sh -c 'kill -{int(number)} $$' ; exit $?").code == 128 + number


@in_every_way
def test_an_insecure_step_may_mount_and_sees_the_system_whole(steps: Steps) -> None:
    script = (
        "mkdir /tmp/m && mount -t tmpfs none /tmp/m && echo mounted; unshare -m true && echo made;"
        "grep -cE ' (/proc/kcore|/proc/sys|/sys/firmware) ' /proc/mounts;"
        "grep -E '^[a-z]+ /sys ' /proc/mounts"
    )
    secure, insecure = steps.run(script), steps.run(script, insecure=True)
    assert insecure.lines[:3] == ["mounted", "made", "0"]
    assert insecure.lines[3].split()[3].startswith("rw")
    assert "mounted" not in secure.lines
    assert "made" not in secure.lines
    assert secure.lines[-1].split()[3].startswith("ro")


@in_every_way
def test_an_insecure_step_has_every_capability_of_its_namespace(steps: Steps) -> None:
    bits = int(steps.run("grep CapEff /proc/self/status", insecure=True).out.split()[1], 16)
    assert bits & bits + 1 == 0  # all that there are
    assert bits >> 21 & 1
    skip_without_users(steps)
    assert (
        steps.run("grep CapEff /proc/self/status", uid=7, insecure=True).out.split()[1] == "0" * 16
    )


@in_every_way
def test_an_insecure_step_still_owns_files_only_as_its_ids_allow(steps: Steps) -> None:
    ran = steps.run("touch /tmp/f && chown 33:33 /tmp/f && echo done", insecure=True)
    assert ran.out == "done\n"


def test_a_part_of_a_bind_is_found_without_following_links(steps: Steps, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a/b").mkdir(parents=True)
    (source / "a/b/f").write_text("inner")
    (source / "l").symlink_to("/etc")
    (source / "a/up").symlink_to("../..")
    tmp_path.chmod(0o755)
    place = os.fsencode(source)
    ran = steps.run("cat /m/f", mounts=(Bind("/m", place, inside=b"a/b"),))
    assert ran.out == "inner"
    for inside in (b"l", b"a/up", b"..", b"a/../..", b"/etc", b"nothing", b"a/b/f"):
        with pytest.raises(SandboxFailed) as caught:
            steps.run("ls /m", mounts=(Bind("/m", place, inside=inside),))
        assert caught.value.step == "mount source"


@in_every_way
def test_a_socket_is_given_its_owner_and_mode(steps: Steps, single: bool) -> None:
    # the path of a socket may have 107 bytes
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "s"))
            mount = Socket("/run/agent", os.fsencode(folder / "s"), 0o640, 77, 78)
            ran = steps.run("stat -c '%u %g %a' /run/agent", mounts=(mount,))
    finally:
        shutil.rmtree(folder)
    assert ran.out == ("0 0 640\n" if single else "77 78 640\n")
    assert ran.changed() == []


@in_every_way
def test_much_output_comes_back_whole(steps: Steps) -> None:
    ran = steps.run("yes 0123456789abcde | head -c 20000000; echo done >&2")
    assert (len(ran.out), ran.err) == (20_000_000, "done\n")


@in_every_way
@pytest.mark.parametrize(
    ("program", "code", "text"),
    [
        ("nothing", 127, "exec: nothing: no such file or directory\n"),
        ("/tmp", 126, "exec: /tmp: permission denied\n"),
        ("/bin", 126, "exec: /bin: permission denied\n"),
    ],
)
def test_what_can_not_be_executed_is_told_as_a_shell_does(
    steps: Steps, program: str, code: int, text: str
) -> None:
    ran = steps.run_spec(steps.spec(program))
    assert (ran.code, ran.err) == (code, text)


@in_every_way
def test_arguments_variables_and_names_are_exact(steps: Steps) -> None:
    # a runtime is told by JSON
    odd = os.fsdecode(b"\xff'\"$x\n ") if steps.sandbox.runtime is None else "\x01\u00fc'\"$x\n "
    seen: list[bytes] = []
    script = 'printf %s "$0" "$ODD"; pwd; hostname; umask'
    spec = steps.spec(
        "sh", "-c", script, odd, env=(("ODD", odd), ("PATH", "/bin")), cwd="/new/f", hostname="h"
    )
    code = steps.sandbox.run(spec, lambda _stream, piece: seen.append(piece))
    assert code == 0
    assert b"".join(seen) == os.fsencode(odd) * 2 + b"/new/f\nh\n0022\n"


def test_changes_land_in_the_upper_folder_alone(steps: Steps) -> None:
    ran = steps.run("echo x >/tmp/made; rm /bin/yes; mkdir -p /a/b")
    assert ran.changed() == ["a", "a/b", "bin", "bin/yes", "tmp", "tmp/made"]
    assert stat.S_ISCHR((ran.upper / "bin/yes").lstat().st_mode)  # a whiteout
    assert (steps.base / "bin/yes").exists()


@in_every_way
def test_mount_points_that_lack_leave_no_trace(steps: Steps, tmp_path: Path) -> None:
    (tmp_path / "source").write_text("bound\n")
    ran = steps.run(
        "cat /etc/resolv.conf /deep/down/file; ls -d /proc/self /sys/kernel /dev/null; echo x >/far/off/x",
        mounts=(
            SmallFile("/etc/resolv.conf", b"nameserver 192.0.2.1\n"),
            Bind("/deep/down/file", os.fsencode(tmp_path / "source")),
            Tmpfs("/far/off"),
        ),
    )
    assert ran.code == 0, ran.err
    assert ran.lines[:2] == ["nameserver 192.0.2.1", "bound"]
    assert ran.changed() == []


@in_every_way
def test_a_mount_point_that_a_layer_deleted_leaves_no_trace(steps: Steps) -> None:
    """A whiteout hides what lies below all layers, and folders above keep their attributes."""
    kept = steps.layer("kept")
    (kept / "etc/sub").mkdir(parents=True)
    (kept / "etc").chmod(0o751)
    (kept / "etc/sub/hosts").write_text("image's\n")
    os.utime(kept / "etc", (1_000_000, 1_000_000))
    deleted = steps.run("rm -rf /etc/sub", lowers=[kept, steps.base]).upper
    (deleted / "etc").chmod(0o751)
    os.utime(deleted / "etc", (2_000_000, 2_000_000))
    ran = steps.run(
        "cat /etc/sub/hosts; stat -c '%a %Y' /etc; echo x >/etc/y; ls /etc",
        lowers=[deleted, kept, steps.base],
        mounts=(SmallFile("/etc/sub/hosts", b"ours\n"),),
    )
    assert ran.lines == ["ours", "751 2000000", "sub", "y"]
    assert ran.changed() == ["etc", "etc/y"]
    assert stat.S_IMODE((ran.upper / "etc").stat().st_mode) == 0o751


@in_every_way
def test_a_mount_on_a_link_lands_where_the_link_leads(steps: Steps) -> None:
    links = steps.layer("links")
    (links / "etc").mkdir()
    (links / "etc/resolv.conf").symlink_to("../run/systemd/stub")
    (links / "usr/data").mkdir(parents=True)
    (links / "data").symlink_to("/usr/data")
    ran = steps.run(
        "cat /etc/resolv.conf /run/systemd/stub; readlink /etc/resolv.conf; echo y >/usr/data/y; cat /data/y",
        lowers=[links, steps.base],
        mounts=(SmallFile("/etc/resolv.conf", b"x\n"), Tmpfs("/data", 1 << 20)),
    )
    assert ran.lines == ["x", "x", "../run/systemd/stub", "y"]
    assert ran.changed() == []


@in_every_way
def test_mounts_nest_in_their_order(steps: Steps, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/file").write_text("inner\n")
    ran = steps.run(
        "cat /out/in/file; ls /out; cat /dev/secret",
        mounts=(
            Tmpfs("/out"),
            Bind("/out/in", os.fsencode(tmp_path / "inner")),
            SmallFile("/dev/secret", b"s\n", mode=0o400),
        ),
    )
    assert ran.lines == ["inner", "in", "s"]


@in_every_way
def test_a_bind_is_read_only_unless_asked_otherwise(steps: Steps, tmp_path: Path) -> None:
    for name in ("ro", "rw"):
        (tmp_path / name).mkdir()
    fd = os.open(tmp_path / "rw", os.O_PATH)
    try:
        ran = steps.run(
            "echo x >/ro/x; echo x >/rw/x",
            mounts=(
                Bind("/ro", os.fsencode(tmp_path / "ro")),
                Bind("/rw", fd, readonly=False),
            ),
        )
    finally:
        os.close(fd)
    assert "Read-only" in ran.err
    assert [path.name for path in tmp_path.glob("*/*")] == ["x"]
    assert (tmp_path / "rw/x").read_text() == "x\n"


def test_a_descriptor_that_leads_elsewhere_by_now_is_refused(steps: Steps, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    fd = os.open(tmp_path / "a", os.O_PATH)
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").rename(tmp_path / "c")
    try:
        assert steps.run("true", mounts=(Bind("/m", fd),)).code == 0  # the kernel knows its name
        (tmp_path / "c").rmdir()
        with pytest.raises(SandboxFailed, match=r"bind|set up"):
            steps.run("true", mounts=(Bind("/m", fd),))
    finally:
        os.close(fd)


def test_layers_are_mounted_as_one_read_only_and_in_part(steps: Steps) -> None:
    low, high = steps.layer("view-low"), steps.layer("view-high")
    (low / "d").mkdir()
    (low / "d/f").write_text("low\n")
    (low / "d/g").write_text("kept\n")
    (high / "d").mkdir()
    (high / "d/f").write_text("high\n")
    (high / "d/link").symlink_to("f")
    layers = (os.fsencode(high), os.fsencode(low))
    ran = steps.run(
        "cat /v/d/f /v/d/g /part/f /file; ls /one; echo x >/v/x; echo x >/file",
        mounts=(
            OverlayBind("/v", layers),
            OverlayBind("/part", layers, path=b"d"),
            OverlayBind("/file", layers, path=b"d/g"),
            OverlayBind("/one", layers[1:]),
        ),
    )
    assert ran.lines == ["high", "kept", "high", "kept", "d"]
    assert ran.err.count("Read-only file system") == 2
    assert ran.changed() == []
    for path in (b"d/link", b"d/none", b"../d", b"/d"):
        with pytest.raises(SandboxFailed, match="mount source"):
            steps.run("true", mounts=(OverlayBind("/v", layers, path=path),))


@in_every_way
def test_writes_into_mounted_layers_land_in_their_own_upper_folder(steps: Steps) -> None:
    layer, place = steps.layer("view-rw"), steps.layer("view-ends")
    (layer / "f").write_text("old\n")
    for name in ("upper", "work"):
        (place / name).mkdir()
    ends = os.fsencode(place / "upper"), os.fsencode(place / "work")
    mount = OverlayBind("/v", (os.fsencode(layer),), *ends, readonly=False)
    ran = steps.run("echo new >/v/f; echo x >/v/x; cat /v/f", mounts=(mount,))
    assert (ran.code, ran.out) == (0, "new\n")
    assert ran.changed() == []
    assert (layer / "f").read_text() == "old\n"
    assert sorted(path.name for path in (place / "upper").iterdir()) == ["f", "x"]


@in_every_way
def test_a_tmpfs_holds_what_it_may(steps: Steps) -> None:
    ran = steps.run(
        "dd if=/dev/zero of=/m/f bs=1024 count=200; stat -c %a /m; stat -f -c '%b %S' /dev/shm",
        mounts=(Tmpfs("/m", 65536, mode=0o750),),
        shm_size=1 << 20,
    )
    assert "No space" in ran.err
    assert ran.lines == ["750", f"{(1 << 20) // os.sysconf('SC_PAGESIZE')} 4096"]


@in_every_way
def test_a_network_of_ones_own_has_loopback_alone(steps: Steps) -> None:
    script = "grep -c : /proc/net/dev; ifconfig lo | grep -c UP; ls /sys/class/net"
    ran = steps.run(script, own_network=True)
    assert ran.lines == ["1", "1", "lo"]
    theirs = steps.run("cat /proc/net/dev").lines
    assert len(theirs) == len(Path("/proc/net/dev").read_text().splitlines())


@in_every_way
def test_limits_are_set(steps: Steps) -> None:
    ran = steps.run("grep -E 'open files|core' /proc/self/limits", ulimits=(("nofile", 50, 60),))
    assert any(line.split()[3:5] == ["50", "60"] for line in ran.lines)
    with pytest.raises(SandboxFailed, match="ulimit"):
        steps.run("true", ulimits=(("nofile", 60, 50),))


@in_every_way
def test_a_user_has_its_ids(steps: Steps, single: bool) -> None:
    skip_without_users(steps)
    ran = steps.run("id -u; id -g; id -G; echo x >/dev/stdout", uid=33, gid=34, groups=(34, 44))
    groups = {"34"} if single else {"34", "44"}
    assert (ran.lines[0], ran.lines[1], ran.lines[3]) == ("33", "34", "x")
    assert set(ran.lines[2].split()) - {"65534"} == groups


@in_every_way
def test_owners_are_kept_or_politely_ignored(steps: Steps, single: bool) -> None:
    ran = steps.run("touch /tmp/f && chown 33:34 /tmp/f && stat -c '%u %g' /tmp/f")
    assert (ran.code, ran.out) == (0, "0 0\n" if single else "33 34\n")


def test_400_layers_are_shown_as_one(steps: Steps) -> None:
    layers = []
    for number in range(400):
        layer = steps.folder / f"many-{number}"
        layer.mkdir()
        (layer / f"f{number}").touch()
        (layer / "top").write_text(f"{number}\n")
        layers.append(layer)
    ran = steps.run("ls -d /f* | wc -l; cat /top", lowers=[*layers, steps.base])
    assert ran.lines == ["400", "0"]


def test_a_plain_folder_is_used_as_it_is(steps: Steps, tmp_path: Path) -> None:
    root = busybox_root(tmp_path / "root")
    plain = Plain(os.fsencode(root))
    with pytest.raises(SandboxFailed, match="/proc of the image"):
        steps.run("true", root=plain)
    for name in ("proc", "sys", "dev"):
        (root / name).mkdir()
    assert steps.run("echo x >/made", root=plain).code == 0
    assert (root / "made").read_text() == "x\n"
    with pytest.raises(SandboxFailed, match="mount point: /lacks"):
        steps.run("true", root=plain, mounts=(Tmpfs("/lacks"),))


def test_eight_steps_run_at_once(steps: Steps) -> None:
    with ThreadPoolExecutor(8) as pool:
        started = time.monotonic()
        ran = list(pool.map(lambda n: steps.run(f"sleep 1; echo {n}; exit {n}"), range(8)))
    assert [each.code for each in ran] == list(range(8))
    assert [each.out for each in ran] == [f"{n}\n" for n in range(8)]
    assert time.monotonic() - started < 6


def test_200_steps_leak_no_descriptor(steps: Steps) -> None:
    def counts() -> tuple[int, ...]:
        return tuple(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in ("self", steps.server))

    assert steps.run("true").code == 0
    time.sleep(0.3)  # the server closes what a step had after telling of its end
    before = counts()
    for _ in range(200):
        assert steps.run("true").code == 0
    until = time.monotonic() + 10
    while counts() != before and time.monotonic() < until:
        time.sleep(0.05)
    assert counts() == before


@in_every_way
def test_a_cancel_kills_everything_in_the_step(steps: Steps) -> None:
    mark = f"7{os.getpid()}"

    class At:
        kill: Callable[[], None]

        def __call__(self, kill: Callable[[], None]) -> AbstractContextManager[None]:
            self.kill = kill
            return nullcontext()

    at = At()
    began: list[float] = []

    def cancel() -> None:
        while len(alive(mark)) < 3:
            time.sleep(0.01)
        began.append(time.monotonic())
        at.kill()

    thread = threading.Thread(target=cancel)
    thread.start()
    ran = steps.run(f"sleep {mark} & (trap '' TERM; sleep {mark}) & sleep {mark}", on_cancel=at)
    took = time.monotonic() - began[0]
    thread.join()
    assert ran.code == 137
    assert took < AT_ONCE
    assert alive(mark) == []
    assert holding(steps.folder) == []


@in_every_way
def test_background_processes_end_with_the_step(steps: Steps) -> None:
    mark = f"8{os.getpid()}"
    assert steps.run(f"sleep {mark} & sleep {mark} >/dev/null 2>&1 & exit 3").code == 3
    assert alive(mark) == []


def test_closing_ends_what_runs(tmp_path: Path) -> None:
    mark = f"9{os.getpid()}"
    with steps_in(tmp_path) as own:
        failed: list[BaseException] = []

        def run() -> None:
            try:
                own.run(f"sleep {mark}")
            except BackendFailed as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        while not alive(mark):
            time.sleep(0.01)
        own.sandbox.close()
        assert alive(mark) == []
        thread.join(5)
        assert len(failed) == 1
        with pytest.raises(BackendFailed, match="closed"):
            own.run("true")


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_client_leaves_nothing(tmp_path: Path, way: str) -> None:
    with steps_in(tmp_path, way=way):  # or it can't be tried
        before = state_of_runtimes()
    mark = f"6{os.getpid()}"
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from sandboxing import steps_in
with steps_in(Path({os.fspath(tmp_path)!r}), way={way!r}) as steps:
    steps.run("sleep {mark} & (sleep {mark} &) ; exec sleep {mark}")
"""
    client = subprocess.Popen([sys.executable, "-c", script])
    try:
        while len(alive(mark)) < 3:
            assert client.poll() is None
            time.sleep(0.01)
    finally:
        client.send_signal(signal.SIGKILL)
        client.wait()
    deadline = time.monotonic() + 5
    while (alive(mark) or holding(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert alive(mark) == []
    assert holding(tmp_path) == []
    assert state_of_runtimes() == before
    empty(best_mapping(tmp_path), tmp_path)


@pytest.mark.parametrize("victim", ["zygote", "server"])
def test_a_killed_zygote_leaves_no_process_and_a_clear_error(tmp_path: Path, victim: str) -> None:
    mark = f"5{os.getpid()}"
    with steps_in(tmp_path) as own:
        zygote = own.sandbox._zygote
        assert zygote is not None
        pid = zygote.pid if victim == "zygote" else own.server

        def kill() -> None:
            while not alive(mark):
                time.sleep(0.01)
            os.kill(pid, signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(BackendFailed, match="ended before"):
            own.run(f"sleep {mark}")
        thread.join()
        deadline = time.monotonic() + 1
        while alive(mark) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert alive(mark) == []


def test_a_worker_inside_owns_all_mapped_ids(steps: Steps, tmp_path: Path, single: bool) -> None:
    ran = steps.run("touch /tmp/f; chown 33:33 /tmp/f; mkdir -m 700 /tmp/d; chown 33 /tmp/d")
    read, write = os.pipe()
    script = b"stat -c '%u %g' tmp/f; ls tmp/d; rm -rf tmp; cat /proc/self/status | grep CapEff"
    command = [b"/bin/sh", b"-c", b"cd '" + os.fsencode(ran.upper) + b"'; " + script]
    with executed_inside(steps.sandbox, command, (0, write, write)) as worker:
        os.close(write)
        with os.fdopen(read, "r") as file:
            lines = file.read().splitlines()
        assert worker.wait() == 0
    assert lines[0] == ("0 0" if single else "33 33")
    assert int(lines[1].split()[1], 16) & 0x200000  # CAP_SYS_ADMIN
    assert ran.changed() == []


def test_a_worker_can_be_killed_and_gives_its_code(steps: Steps) -> None:
    with executed_inside(steps.sandbox, [b"/bin/sh", b"-c", b"exit 5"]) as worker:
        assert worker.wait() == 5
    with executed_inside(steps.sandbox, [b"/bin/sleep", b"100"]) as worker:
        worker.kill()
        assert worker.wait() == 137
    with executed_inside(steps.sandbox, [b"/nothing"]) as worker, pytest.raises(SandboxFailed):
        worker.wait()


@in_every_way
def test_ids_that_are_not_mapped_are_refused(steps: Steps, single: bool) -> None:
    if single:
        pytest.skip("inherent: with one id, each user is mapped to it")
    if steps.sandbox.mapping.kind is Kind.INIT:
        pytest.skip("inherent: without a user namespace, all ids exist")
    with pytest.raises(SandboxFailed, match="user: 99999:0"):
        steps.run("true", uid=99999)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["range", "single"])
def test_the_same_holds_for_other_users(tmp_path: Path, kind: str) -> None:
    """This file and the threats, as an ordinary user."""
    threats = ROOT / "tests/security/test_sandbox_threats.py"
    run_tests_as_user(tmp_path, [__file__, str(threats)], subordinate=kind == "range")


@pytest.mark.root
def test_root_may_do_without_a_user_namespace(tmp_path: Path) -> None:
    mapping = best_mapping(tmp_path, namespace_for_root=False)
    assert mapping.kind is Kind.INIT
    with steps_in(tmp_path, mapping) as own:
        ran = own.run(
            "mknod /tmp/disk b 8 0; head -c 1 /tmp/disk; id -u; mount -t tmpfs x /tmp; "
            "grep -E 'Cap(Eff|Inh)|NoNew' /proc/self/status"
        )
        assert ran.lines[0] == "0"
        assert ran.lines[1:] == [
            "CapInh:\t0000000000000000",
            "CapEff:\t00000000a80425fb",
            "NoNewPrivs:\t0",
        ]
        assert ran.err.count("ermission denied") == 2
        assert "tmp/disk" in ran.changed()


def test_the_probe_explains_itself_and_leaves_nothing(tmp_path: Path) -> None:
    found = probe(tmp_path)
    assert found.mapping is not None
    assert found.reason
    assert list(tmp_path.iterdir()) == []
    if found.mapping.kind is Kind.RANGE:
        assert found.mapping.uids[0] == IdRange(0, os.getuid(), 1)
    if found.mapping.kind is Kind.SINGLE:
        assert found.refused
        assert found.hint


@pytest.mark.root
def test_the_probe_names_the_sysctl_that_forbids(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from pybuild.sandbox.modes import probe
found = probe(Path({os.fspath(tmp_path)!r}))
print(found.mapping, found.reason, found.hint, sep="\\n")
"""
    limited = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    command = ["unshare", "-Ur", "sh", "-c", limited, "sh", sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    mapping, reason, hint = done.stdout.splitlines()
    assert mapping == "None"
    assert "user.max_user_namespaces is 0" in reason
    assert "sysctl -w user.max_user_namespaces=" in hint
    assert "containerd" in hint


@in_every_way
def test_a_scratch_image_runs_its_program(steps: Steps) -> None:
    """No layer at all but what a COPY put into the upper folder."""
    spec = steps.spec("/busybox", "echo", "hello", lowers=[])
    assert not isinstance(spec.root, Plain)
    shutil.copy(steps.base / "bin/busybox", Path(os.fsdecode(spec.root.upper)))
    ran = steps.run_spec(spec)
    assert (ran.code, ran.out) == (0, "hello\n")
    assert ran.changed() == ["busybox"]


def test_a_nul_is_refused(steps: Steps) -> None:
    with pytest.raises(UsageError, match="NUL"):
        steps.run("true\0")


@in_every_way
def test_a_specification_may_be_large(steps: Steps) -> None:
    words = tuple(f"word-{number}" for number in range(10_000))
    ran = steps.run_spec(
        RunSpec(
            steps.spec().root,
            ("sh", "-c", "echo $#; stat -c %s /big", *words),
            env=(("PATH", "/bin"),),
            mounts=(SmallFile("/big", b"x" * 2_000_000),),
        )
    )
    assert ran.lines == ["9999", "2000000"]
