"""The backend suite's part on what is kept for RUNs or lent to them: caches, secrets, agents."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from secrets import token_hex

import pytest

from pybuild.backend import CacheMount, Capability, SecretMount, Sharing, SshMount, User
from pybuild.errors import BuildCancelled, StepFailed
from pybuild.files.trees import MemoryTree
from pybuild.testkit.suite_base import SuiteBase, needs
from pybuild.testkit.workbench import (
    Ran,
    RecordingActivity,
    Workbench,
    content,
    file,
    folder,
    symlink,
)


class LendingSuite(SuiteBase):
    """Caches stay, secrets and agents don't."""

    # Caches

    @pytest.fixture
    def cache(self, running: None, bench: Workbench) -> CacheMount:  # noqa: ARG002  (running is its effect)
        """An empty cache that no other test has."""
        needs(bench.backend, Capability.CACHE_MOUNT)
        return CacheMount("/c", token_hex(8))

    def test_a_cache_is_kept_and_leaves_no_trace(self, bench: Workbench, cache: CacheMount) -> None:
        ran = bench.run(bench.base(), "ls /c; echo one > /c/f; mkdir /c/d", [cache])
        assert (ran.code, ran.out) == (0, "")
        _no_trace(ran)
        again = bench.run(
            bench.base(), "cat /elsewhere/f; ls /elsewhere", [_at(cache, "/elsewhere")]
        )
        assert (again.code, again.out.split()) == (0, ["one", "d", "f"])
        _no_trace(again)

    def test_what_is_deleted_from_a_cache_is_gone(
        self, bench: Workbench, cache: CacheMount
    ) -> None:
        bench.run(bench.base(), "echo one > /c/f; echo two > /c/g", [cache])
        bench.run(bench.base(), "rm /c/f", [cache])
        assert bench.run(bench.base(), "ls /c", [cache]).out == "g\n"

    def test_another_id_is_another_cache(self, bench: Workbench, cache: CacheMount) -> None:
        bench.run(bench.base(), "echo one > /c/f", [cache])
        other = replace(cache, ident=f"../../{cache.ident}")
        assert bench.run(bench.base(), "ls /c", [other]).out == ""

    def test_a_failed_step_leaves_what_it_has_put_into_a_cache(
        self, bench: Workbench, cache: CacheMount
    ) -> None:
        assert bench.run(bench.base(), "echo one > /c/f; exit 3", [cache]).code == 3
        assert bench.run(bench.base(), "cat /c/f", [cache]).out == "one\n"

    def test_a_read_only_cache_refuses_writes(self, bench: Workbench, cache: CacheMount) -> None:
        bench.run(bench.base(), "echo one > /c/f", [cache])
        readonly = replace(cache, readonly=True)
        ran = bench.run(bench.base(), "cat /c/f && echo x > /c/g", [readonly])
        assert (ran.code != 0, ran.out) == (True, "one\n")

    def test_one_step_can_show_a_cache_twice(self, bench: Workbench, cache: CacheMount) -> None:
        locked = replace(cache, sharing=Sharing.LOCKED)
        ran = bench.run(bench.base(), "ls /c /d", [locked, _at(locked, "/d")])
        assert ran.code == 0

    def test_a_cache_can_begin_with_files(self, bench: Workbench, cache: CacheMount) -> None:
        files = MemoryTree([folder(b"src"), file(b"src/a", b"begun\n"), symlink(b"src/l", b"a")])
        begun = replace(cache, tree=files, path=b"src")
        first = bench.run(bench.base(), "cat /c/a /c/l; echo changed > /c/a", [begun])
        assert first.out == "begun\nbegun\n"
        assert bench.run(bench.base(), "cat /c/l", [begun]).out == "changed\n"

    def test_a_part_of_a_cache_is_shown_or_refused(
        self, bench: Workbench, cache: CacheMount
    ) -> None:
        bench.run(bench.base(), "mkdir /c/d; echo in > /c/d/f", [cache])
        try:
            ran = bench.run(bench.base(), "cat /c/f", [replace(cache, inside=b"d")])
        except StepFailed as error:
            assert "/c" in error.message  # noqa: PT017 - either will do
        else:
            assert (ran.code, ran.out) == (0, "in\n")

    @pytest.mark.usefixtures("kernel")
    def test_a_cache_has_the_given_owner_and_mode(
        self, bench: Workbench, cache: CacheMount
    ) -> None:
        needs(bench.backend, Capability.FILE_OWNERS)
        owned = replace(cache, mode=0o750, uid=77, gid=78)
        ran = bench.run(
            bench.base(), "stat -c '%u %g %a' /c; touch /c/x", [owned], user=User(77, 78)
        )
        assert (ran.code, ran.out) == (0, "77 78 750\n")
        assert bench.run(bench.base(), "stat -c '%u %g %a' /c", [cache]).out.split()[2] == "750"

    def test_a_shared_cache_is_used_at_the_same_time(
        self, bench: Workbench, cache: CacheMount
    ) -> None:
        with _Held(bench, cache):
            assert bench.run(bench.base(), "true", [cache]).code == 0

    def test_a_locked_cache_is_used_by_one_step_at_a_time(
        self, bench: Workbench, cache: CacheMount
    ) -> None:
        locked = replace(cache, sharing=Sharing.LOCKED)
        first = _Held(bench, locked)
        with ThreadPoolExecutor(1) as pool, first:
            second = pool.submit(bench.run, bench.base(), "echo two", [locked])
            time.sleep(0.5)
            assert not second.done()
            first.release()
            assert second.result().out == "two\n"

    def test_a_private_cache_in_use_is_another_one(
        self, bench: Workbench, cache: CacheMount
    ) -> None:
        private = replace(cache, sharing=Sharing.PRIVATE)
        bench.run(bench.base(), "echo one > /c/f", [private])
        with _Held(bench, private):
            assert bench.run(bench.base(), "ls /c", [private]).out == ""
        assert bench.run(bench.base(), "ls /c", [private]).out == "f\n"

    def test_a_cancelled_build_waits_for_no_cache(
        self, bench: Workbench, cache: CacheMount
    ) -> None:
        locked = replace(cache, sharing=Sharing.LOCKED)
        base = bench.base()
        with _Held(bench, locked):
            activity = RecordingActivity()
            timer = threading.Timer(0.3, activity.cancel)
            timer.start()
            with pytest.raises(BuildCancelled):
                bench.run(base, "echo ran", [locked], activity=activity)
            timer.join()
        assert activity.stdout == b""

    # Secrets

    @pytest.fixture
    def secret(self, running: None, bench: Workbench) -> SecretMount:  # noqa: ARG002  (as above)
        needs(bench.backend, Capability.SECRET_MOUNT)
        return SecretMount("/run/secrets/s", b"canary-file\n\xff")

    def test_a_secret_is_read_and_leaves_no_trace(
        self, bench: Workbench, secret: SecretMount
    ) -> None:
        ran = bench.run(bench.base(), "cat /run/secrets/s", [secret])
        assert ran.out.encode("utf-8", "surrogateescape") == secret.content
        _no_trace(ran)
        assert bench.run(bench.base(), "test -e /run/secrets/s").code == 1

    def test_a_secret_cant_be_changed(self, bench: Workbench, secret: SecretMount) -> None:
        assert bench.run(bench.base(), "echo x > /run/secrets/s", [secret]).code != 0

    @pytest.mark.usefixtures("kernel")
    def test_a_secret_is_in_memory_with_the_given_owner_and_mode(
        self, bench: Workbench, secret: SecretMount
    ) -> None:
        needs(bench.backend, Capability.FILE_OWNERS)
        owned = replace(secret, target="/s", mode=0o440, uid=77, gid=78)
        script = "stat -c '%u %g %a' /s; grep ' /s ' /proc/mounts"
        stat, mount = bench.run(bench.base(), script, [owned]).out.splitlines()
        assert stat == "77 78 440"
        assert mount.split()[2] == "tmpfs"
        assert bench.run(bench.base(), "cat /s", [owned], user=User(1, 78)).code == 0
        assert bench.run(bench.base(), "cat /s", [owned], user=User(1, 2)).code != 0

    @pytest.mark.usefixtures("secret")
    def test_a_secret_variable_is_seen_with_the_others(self, bench: Workbench) -> None:
        value = 'it\'s "a" $secret `x`\\\nof two lines'
        ran = bench.run(
            bench.base(), "env; echo > /made", secret_env=(("TOKEN", value), ("EMPTY", ""))
        )
        assert f"TOKEN={value}\n" in ran.out
        assert "EMPTY=\n" in ran.out
        assert content(ran.layer, b"made") == b"\n"
        assert [name for name in ran.layer.tree().children(b"dev") if b"pybuild" in name] == []

    @pytest.mark.usefixtures("secret", "kernel")
    def test_a_secret_variable_is_seen_by_any_user_and_program(self, bench: Workbench) -> None:
        env = (("TOKEN", "value"),)
        ran = bench.run(bench.base(), ("/bin/env",), secret_env=env, user=User(77, 78))
        assert "TOKEN=value\n" in ran.out
        ran = bench.run(bench.base(), ("/no/such/program",), secret_env=env)
        assert ran.code == 127

    # Agents

    @pytest.fixture
    def agent(self, running: None, bench: Workbench) -> Iterator[Path]:  # noqa: ARG002  (as above)
        """A socket that says hello to whoever comes."""
        needs(bench.backend, Capability.SSH_MOUNT)
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            path = Path(folder) / "agent"
            listener.bind(str(path))
            listener.listen()

            def greet() -> None:
                while True:
                    try:
                        client, _ = listener.accept()
                    except OSError:
                        return
                    with client:
                        client.sendall(b"hello\n")

            thread = threading.Thread(target=greet)
            thread.start()
            yield path
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()

    def test_an_agents_socket_is_shown_and_leaves_no_trace(
        self, bench: Workbench, agent: Path
    ) -> None:
        ran = bench.run(bench.base(), "test -S /run/a.0", [SshMount("/run/a.0", agent)])
        assert ran.code == 0
        _no_trace(ran)

    @pytest.mark.usefixtures("kernel")
    def test_an_agents_socket_has_the_given_owner_and_mode(
        self, bench: Workbench, agent: Path
    ) -> None:
        needs(bench.backend, Capability.FILE_OWNERS)
        mount = SshMount("/a", agent, 0o620, 77, 78)
        ran = bench.run(bench.base(), "stat -c '%u %g %a' /a", [mount])
        assert ran.out == "77 78 620\n"

    # Privileges

    @pytest.mark.usefixtures("kernel")
    def test_an_insecure_process_may_mount_and_sees_what_is_masked(self, bench: Workbench) -> None:
        needs(bench.backend, Capability.INSECURE)
        script = (
            "mount -t tmpfs none /mnt && echo mounted; mkdir -p /mnt/x; "
            "grep -c ' /proc/kcore ' /proc/mounts; grep -c '/sys/firmware' /proc/mounts"
        )
        below = bench.put(bench.base(), folder(b"mnt"))
        ran = bench.run(below, script, insecure=True)
        assert ran.out.split() == ["mounted", "0", "0"]
        _no_trace(ran)
        ran = bench.run(below, "grep CapBnd /proc/self/status", insecure=True)
        bits = int(ran.out.split()[1], 16)
        assert bits >> 21 & 1, "CAP_SYS_ADMIN is missing"

    @pytest.mark.usefixtures("kernel")
    def test_a_process_is_in_the_given_control_group(self, bench: Workbench) -> None:
        needs(bench.backend, Capability.CGROUP_PARENT)
        ran = bench.run(bench.base(), "cat /proc/1/cgroup", cgroup_parent="/pybuild-suite/builds")
        assert ran.code == 0


class _Held:
    """A step that uses a cache until it is released."""

    def __init__(self, bench: Workbench, mount: CacheMount) -> None:
        self._activity = _Noticing()
        self._pool = ThreadPoolExecutor(1)
        self._ended = self._pool.submit(self._run, bench, mount)
        assert self._activity.began.wait(60)

    def _run(self, bench: Workbench, mount: CacheMount) -> None:
        with pytest.raises(BuildCancelled):
            bench.run(bench.base(), "echo began; sleep 60", [mount], activity=self._activity)

    def release(self) -> None:
        self._activity.cancel()
        self._ended.result()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc: object) -> None:
        self.release()
        self._pool.shutdown()


class _Noticing(RecordingActivity):
    """Tells when the process has said something."""

    def __init__(self) -> None:
        super().__init__()
        self.began = threading.Event()

    def log(self, stream: int, data: bytes) -> None:
        super().log(stream, data)
        self.began.set()


def _at(mount: CacheMount, target: str) -> CacheMount:
    return replace(mount, target=target)


def _no_trace(ran: Ran) -> None:
    assert ran.layer.diff is None, "the mount left something in the layer"
