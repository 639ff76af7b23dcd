"""The backend suite's part on RUN: what a process sees, what it says, what it leaves."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pybuild.backend import Capability, HostEntry, Network, Process, Ulimit, User
from pybuild.errors import BuildCancelled
from pybuild.files.trees import walk
from pybuild.oci.layerindex import Kind
from pybuild.testkit.pseudoterminals import read_until
from pybuild.testkit.suite_base import SuiteBase, needs
from pybuild.testkit.validate import layer_names, validate
from pybuild.testkit.workbench import (
    PATH,
    Ran,
    RecordingActivity,
    Workbench,
    content,
    file,
    folder,
)

running = pytest.mark.usefixtures("running")
kernel = pytest.mark.usefixtures("kernel")


class RunSuite(SuiteBase):
    """A process behaves as in ``docker build``."""

    @running
    @pytest.mark.parametrize("code", [0, 1, 7, 255])
    def test_the_exit_code_is_returned(self, bench: Workbench, code: int) -> None:
        assert bench.run(bench.base(), f"exit {code}").code == code

    @running
    def test_a_command_that_isnt_there_fails_with_127(self, bench: Workbench) -> None:
        assert bench.run(bench.base(), "/nowhere/to/be/found").code == 127

    @running
    def test_both_streams_are_logged_apart(self, bench: Workbench) -> None:
        ran = bench.run(bench.base(), "echo out; echo err >&2; echo -n unended")
        assert (ran.out, ran.err) == ("out\nunended", "err\n")

    @running
    def test_a_process_writes_to_the_terminal_that_it_is_given(self, bench: Workbench) -> None:
        needs(bench.backend, Capability.DEBUG)
        ours, theirs = os.openpty()
        try:
            ran = bench.run(bench.base(), "echo shown; echo too >&2", terminal=theirs)
            shown = read_until(ours, b"too\r\n")
        finally:
            os.close(ours)
            os.close(theirs)
        assert (ran.code, ran.out, ran.err, ran.layer.diff) == (0, "", "", None)
        assert shown == b"shown\r\ntoo\r\n"

    @kernel
    def test_a_terminal_is_the_input_and_controls_the_process(self, bench: Workbench) -> None:
        needs(bench.backend, Capability.DEBUG)
        ours, theirs = os.openpty()
        script = "trap 'exit 5' INT; read line; echo got $line >/dev/tty; sleep 60; true"
        try:
            os.write(ours, b"typed\r")
            with ThreadPoolExecutor(1) as pool:
                ran = pool.submit(bench.run, bench.base(), script, terminal=theirs)
                shown = read_until(ours, b"got typed")
                time.sleep(0.2)
                os.write(ours, b"\x03")  # Ctrl-C
                assert ran.result().code == 5
        finally:
            os.close(ours)
            os.close(theirs)
        assert b"got typed" in shown

    @kernel
    def test_output_is_logged_byte_by_byte(self, bench: Workbench) -> None:
        ran = bench.run(bench.base(), r"printf 'a\0b\377\r\n'")
        assert ran.out.encode("utf-8", "surrogateescape") == b"a\0b\xff\r\n"

    @kernel
    def test_large_output_comes_whole(self, bench: Workbench) -> None:
        ran = bench.run(bench.base(), "seq 1 400000; echo end >&2")
        assert ran.code == 0
        lines = ran.out.split()
        assert (len(lines), lines[-1], ran.err) == (400_000, "400000", "end\n")

    @kernel
    def test_output_comes_while_the_process_runs(self, bench: Workbench) -> None:
        activity = _Impatient(b"early")
        with pytest.raises(BuildCancelled):
            bench.run(bench.base(), "echo early; sleep 30", activity=activity)

    @running
    def test_an_argument_list_is_run_as_it_is(self, bench: Workbench) -> None:
        ran = bench.run(bench.base(), ("echo", "a b", "$HOME", "", "'"))
        assert ran.out == "a b $HOME  '\n"

    @running
    def test_the_environment_is_exactly_what_was_given(self, bench: Workbench) -> None:
        env = (("PATH", PATH), ("A", "1 2"), ("EMPTY", ""), ("Q", "'\"$x"))
        ran = bench.run(bench.base(), ("/bin/env",), env=env)
        own = [line for line in ran.out.splitlines() if not line.startswith(("HOME=", "HOSTNAME="))]
        assert own == [f"{name}={value}" for name, value in env]

    @running
    def test_the_working_directory_is_the_given_one(self, bench: Workbench) -> None:
        layer = bench.put(bench.base(), folder(b"work dir", 0o755))
        assert bench.run(layer, "pwd", cwd="/work dir").out == "/work dir\n"

    @running
    def test_the_user_is_the_given_one(self, bench: Workbench) -> None:
        ran = bench.run(bench.base(), "id -u; id -g", user=User(1234, 2345))
        assert ran.out.split() == ["1234", "2345"]

    @running
    def test_the_user_has_its_groups_and_owns_what_it_makes(self, bench: Workbench) -> None:
        needs(bench.backend, Capability.FILE_OWNERS)
        user = User(1234, 2345, (2345, 7, 8))
        ran = bench.run(bench.base(), "id -G; touch /tmp/mine", user=user)
        assert set(ran.out.split()) == {"2345", "7", "8"}
        mine = ran.layer.tree().get(b"tmp/mine")
        assert mine is not None
        assert (mine.uid, mine.gid) == (1234, 2345)

    @running
    def test_a_user_without_groups_has_its_own_alone(self, bench: Workbench) -> None:
        assert bench.run(bench.base(), "id -G", user=User(5, 6)).out == "6\n"

    @running
    def test_the_hostname_is_the_given_one(self, bench: Workbench) -> None:
        assert bench.run(bench.base(), "hostname", hostname="some-host").out == "some-host\n"

    @running
    def test_standard_input_is_empty(self, bench: Workbench) -> None:
        ran = bench.run(bench.base(), "cat && echo ended")
        assert (ran.code, ran.out) == (0, "ended\n")

    @running
    def test_extra_hosts_are_seen_and_leave_no_trace(self, bench: Workbench) -> None:
        base = bench.base()
        ran = bench.run(base, "cat /etc/hosts", extra_hosts=(HostEntry("db.example", "10.1.2.3"),))
        pairs = {(line.split()[0], name) for line in _text(ran) for name in line.split()[1:]}
        assert ("10.1.2.3", "db.example") in pairs
        assert ("127.0.0.1", "localhost") in pairs
        assert ran.layer.diff is None
        assert (ran.layer.tree().get(b"etc/hosts") is None) == (
            base.tree().get(b"etc/hosts") is None
        )

    @kernel
    def test_network_none_has_the_loopback_alone(self, bench: Workbench) -> None:
        needs(bench.backend, Capability.NETWORK_NONE)
        ran = bench.run(bench.base(), "ls /sys/class/net", network=Network.NONE)
        assert ran.out.split() == ["lo"]

    @kernel
    @pytest.mark.parametrize(("size", "kilobytes"), [(None, 65536), (8 << 20, 8192)])
    def test_shared_memory_has_the_given_size(
        self, bench: Workbench, size: int | None, kilobytes: int
    ) -> None:
        ran = bench.run(bench.base(), "df -k /dev/shm", shm_size=size)
        assert ran.out.splitlines()[-1].split()[1] == str(kilobytes)

    @kernel
    def test_limits_are_the_given_ones(self, bench: Workbench) -> None:
        limits = (Ulimit("nofile", 123, 456), Ulimit("core", 0, 0))
        ran = bench.run(bench.base(), "ulimit -Sn; ulimit -Hn; ulimit -c", ulimits=limits)
        assert ran.out.split() == ["123", "456", "0"]

    @kernel
    def test_the_process_has_no_power_over_the_machine(self, bench: Workbench) -> None:
        ran = bench.run(bench.base(), "mount -t tmpfs none /mnt && echo mounted")
        assert ran.code != 0
        assert "mounted" not in ran.out

    @kernel
    def test_the_usual_devices_work_and_leave_no_trace(self, bench: Workbench) -> None:
        script = "echo x > /dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c"
        ran = bench.run(bench.base(), script + "; test -d /proc/self && test -d /sys/class")
        assert (ran.code, ran.out.split()) == (0, ["4", "4"])
        assert ran.layer.diff is None

    @running
    def test_a_process_that_changes_nothing_makes_no_layer(self, bench: Workbench) -> None:
        base = bench.base()
        ran = bench.run(base, "true")
        assert ran.layer.diff is None
        assert ran.layer.diffs == base.diffs

    @running
    def test_what_a_process_makes_is_in_its_layer(self, bench: Workbench) -> None:
        script = "mkdir -p /made/deep && echo text > /made/deep/file && chmod 4750 /made/deep/file"
        ran = bench.run(bench.base(), f"{script} && ln -s deep/file /made/link")
        assert ran.code == 0
        tree = ran.layer.tree()
        made, link = tree.get(b"made/deep/file"), tree.get(b"made/link")
        assert made is not None
        assert link is not None
        assert (made.kind, made.mode, made.size) == (Kind.FILE, 0o4750, 5)
        assert (link.kind, link.link) == (Kind.SYMLINK, b"deep/file")
        assert content(ran.layer, b"made/deep/file") == b"text\n"
        names = {name.rstrip("/") for name in layer_names(bench.backend, ran.layer)}
        assert names - {"."} == {"made", "made/deep", "made/deep/file", "made/link"}

    @running
    def test_a_process_sees_what_was_put_before(self, bench: Workbench) -> None:
        put = bench.put(
            bench.base(), folder(b"in"), file(b"in/x", b"from put", 0o600, uid=9, gid=9)
        )
        ran = bench.run(put, "cat /in/x", user=User(9, 9))
        assert (ran.code, ran.out) == (0, "from put")

    @running
    def test_a_process_sees_what_one_before_it_made(self, bench: Workbench) -> None:
        first = bench.run(bench.base(), "echo one > /one")
        second = bench.run(first.layer, "cat /one && echo two > /two")
        assert second.out == "one\n"
        assert content(second.layer, b"two") == b"two\n"
        image = bench.create(second.layer, "localhost/ran:1", base=bench.image())
        validate(bench.backend, image, base_layers=len(bench.image().layers))

    @running
    def test_put_after_run_sees_its_files(self, bench: Workbench) -> None:
        ran = bench.run(bench.base(), "mkdir /made && echo run > /made/run")
        layer = bench.put(ran.layer, file(b"made/put", b"put"))
        assert list(layer.tree().children(b"made")) == [b"put", b"run"]

    @running
    def test_a_changed_file_keeps_its_owner_and_mode(self, bench: Workbench) -> None:
        put = bench.put(bench.base(), file(b"f", b"one\n", 0o640, uid=5, gid=6))
        layer = bench.run(put, "echo two >> /f").layer
        found = layer.tree().get(b"f")
        assert found is not None
        assert (found.mode, found.uid, found.gid) == (0o640, 5, 6)
        assert content(layer, b"f") == b"one\ntwo\n"
        assert content(put, b"f") == b"one\n"

    @running
    def test_deleting_leaves_whiteouts(self, bench: Workbench) -> None:
        put = bench.put(
            bench.base(),
            folder(b"d"),
            file(b"d/a", b"1"),
            file(b"d/b", b"2"),
            folder(b"e"),
            file(b"e/c", b""),
        )
        ran = bench.run(put, "rm /d/a && rm -r /e")
        tree = ran.layer.tree()
        assert list(tree.children(b"d")) == [b"b"]
        assert tree.get(b"e") is None
        assert {"d/.wh.a", ".wh.e"} <= set(layer_names(bench.backend, ran.layer))

    @running
    def test_a_folder_deleted_and_made_again_is_empty(self, bench: Workbench) -> None:
        put = bench.put(bench.base(), folder(b"d"), file(b"d/old", b"1"))
        ran = bench.run(put, "rm -r /d && mkdir /d && echo 2 > /d/new")
        assert list(ran.layer.tree().children(b"d")) == [b"new"]
        again = bench.run(ran.layer, "ls /d")
        assert again.out == "new\n"

    @running
    def test_what_is_made_and_deleted_in_one_run_leaves_no_trace(self, bench: Workbench) -> None:
        ran = bench.run(bench.base(), "mkdir /opt-x && touch /opt-x/f && rm -r /opt-x")
        assert ran.layer.tree().get(b"opt-x") is None
        if ran.layer.diff is not None:  # the root's time may have changed
            assert not [name for name in layer_names(bench.backend, ran.layer) if "opt-x" in name]

    @running
    def test_hard_links_made_in_a_run_stay_one_file(self, bench: Workbench) -> None:
        ran = bench.run(bench.base(), "mkdir /l && echo x > /l/b && ln /l/b /l/a && ln /l/b /l/c")
        tree = ran.layer.tree()
        linked = [tree.get(path) for path in (b"l/a", b"l/b", b"l/c")]
        assert {entry.link or entry.path for entry in linked if entry} == {b"l/a"}
        assert [content(ran.layer, b"l/" + name) for name in (b"a", b"b", b"c")] == [b"x\n"] * 3

    @kernel
    def test_odd_names_made_in_a_run_come_back(self, bench: Workbench) -> None:
        script = (
            r"""mkdir /odd; cd /odd; touch "$(printf '\377\376')" 'a b' "$(printf 'n\nl')" -- -x"""
        )
        ran = bench.run(bench.base(), script)
        assert list(ran.layer.tree().children(b"odd")) == [b"-x", b"a b", b"n\nl", b"\xff\xfe"]

    @kernel
    def test_fifos_and_links_to_nowhere_come_back(self, bench: Workbench) -> None:
        ran = bench.run(bench.base(), "mkdir /k; mkfifo -m 640 /k/fifo; ln -s /nowhere /k/link")
        kinds = {entry.path: (entry.kind, entry.link) for entry in walk(ran.layer.tree(), b"k")}
        assert kinds[b"k/fifo"] == (Kind.FIFO, b"")
        assert kinds[b"k/link"] == (Kind.SYMLINK, b"/nowhere")

    @kernel
    def test_file_capabilities_survive_a_run_above_them(self, bench: Workbench) -> None:
        value = bytes.fromhex("0100000200040000000000000000000000000000")
        capable = file(b"tool", b"x", 0o755, xattrs=(("security.capability", value),))
        ran = bench.run(bench.put(bench.base(), capable), "chmod 700 /tool")
        found = ran.layer.tree().get(b"tool")
        assert found is not None
        assert found.mode == 0o700
        assert found.xattrs == (("security.capability", value),)

    @running
    def test_a_failed_run_that_is_released_leaves_nothing(self, bench: Workbench) -> None:
        base = bench.base()
        process = Process(("/bin/sh", "-c", "echo x > /left; exit 3"), (("PATH", PATH),), "/")
        with base.begin(runs=True) as rw:
            assert rw.run(process, (), bench.activity) == 3
        assert base.tree().get(b"left") is None
        assert bench.run(base, "test -e /left").code == 1

    @running
    def test_processes_run_in_parallel_on_one_parent(self, bench: Workbench) -> None:
        base = bench.base()

        def make(number: int) -> Ran:
            return bench.run(base, f"echo {number} > /number; cat /number")

        with ThreadPoolExecutor(3) as pool:
            results = list(pool.map(make, range(6)))
        assert [ran.out for ran in results] == [f"{number}\n" for number in range(6)]
        assert [content(ran.layer, b"number") for ran in results] == [b"%d\n" % n for n in range(6)]

    @running
    def test_cancel_ends_the_process_within_two_seconds(self, bench: Workbench) -> None:
        base = bench.base()
        bench.run(base, "true")
        assert _seconds_to_cancel(bench, "sleep 60") < 2

    @kernel
    def test_cancel_ends_what_the_process_started_too(self, bench: Workbench) -> None:
        script = (
            "trap '' TERM INT; (trap '' TERM; sleep 61 & sleep 62) & echo up; sleep 63; sleep 64"
        )
        assert _seconds_to_cancel(bench, script) < 2
        # nothing keeps the layer's files busy: the parent can be used and released
        assert bench.run(bench.base(), "true").code == 0

    @running
    def test_a_cancelled_build_runs_nothing(self, bench: Workbench) -> None:
        base = bench.base()
        activity = RecordingActivity()
        activity.cancel()
        with pytest.raises(BuildCancelled):
            bench.run(base, "echo ran", activity=activity)
        assert activity.stdout == b""

    @kernel
    def test_a_process_left_in_the_background_ends_with_the_step(self, bench: Workbench) -> None:
        started = time.monotonic()
        ran = bench.run(bench.base(), "sleep 65 & echo done")
        assert (ran.code, ran.out) == (0, "done\n")
        assert time.monotonic() - started < 20

    @kernel
    def test_what_a_process_makes_gets_no_time_later_than_the_newest_allowed(
        self, bench: Workbench
    ) -> None:
        ran = bench.run(bench.base(), "mkdir /d && echo x > /d/f && touch /etc", newest=1_000_000)
        assert ran.layer.diff is not None
        tree = ran.layer.tree()
        times = [entry.mtime for name in (b"d", b"d/f") if (entry := tree.get(name))]
        assert times == [1_000_000, 1_000_000]


class _Impatient(RecordingActivity):
    """Cancels as soon as some text was logged."""

    def __init__(self, text: bytes) -> None:
        super().__init__()
        self._text = text

    def log(self, stream: int, data: bytes) -> None:
        super().log(stream, data)
        if self._text in self.stdout:
            threading.Thread(target=self.cancel).start()


def _seconds_to_cancel(bench: Workbench, script: str) -> float:
    """How long a running script goes on after the cancel."""
    base = bench.base()
    activity = RecordingActivity()
    cancelled: list[float] = []

    def cancel() -> None:
        cancelled.append(time.monotonic())
        activity.cancel()

    timer = threading.Timer(1.0, cancel)
    timer.start()
    with pytest.raises(BuildCancelled):
        bench.run(base, script, activity=activity)
    ended = time.monotonic()
    timer.join()
    return ended - cancelled[0]


def _text(ran: Ran) -> list[str]:
    return [line for line in ran.out.splitlines() if line and not line.startswith("#")]
