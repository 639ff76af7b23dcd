from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pybuild.sandbox import modes
from pybuild.sandbox.client import SandboxFailed
from pybuild.sandbox.mapping import IdRange, Kind, Mapping
from pybuild.sandbox.modes import Attempt, explain, mapped_from_zero, range_mapping, subordinate_ids


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("", None),
        ("ann:100000:65536\n", 100000),
        ("bob:1:65536\nann:200000:65536", 200000),
        ("1000:300000:70000\n", 300000),
        ("ann:100000:65535\n", None),
        ("ann:100000:1000\nann:500000:65536\n", 500000),
        ("annabel:100000:65536\n", None),
        ("ann\nann:\nann:x:y\nann:1:-65536\n", None),
    ],
)
def test_the_first_range_large_enough_is_taken(text: str, first: int | None) -> None:
    assert subordinate_ids(text, {"ann", "1000"}) == first


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("         0          0 4294967295\n", 4294967295),
        ("0 1000 1\n1 100000 65536\n", 65537),
        ("1 100000 65536\n0 1000 1\n", 65537),
        ("0 1000 1\n5 100000 65536\n", 1),
        ("1000 1000 1\n", 0),
        ("", 0),
    ],
)
def test_ids_are_counted_from_zero_without_gaps(text: str, count: int) -> None:
    assert mapped_from_zero(text) == count


def _on_machine(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], *, tools: bool) -> None:
    monkeypatch.setattr(modes, "_read", lambda path: files.get(path, ""))
    found = (lambda tool, path: f"/usr/bin/{tool}") if tools else (lambda tool, path: None)
    monkeypatch.setattr("shutil.which", found)


def test_a_user_with_ranges_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/etc/subuid": "ann:100000:65536\n", "/etc/subgid": "ann:200000:65536\n"}
    _on_machine(monkeypatch, files, tools=True)
    assert range_mapping(1000, 1001, "ann") == Mapping(
        Kind.RANGE,
        (IdRange(0, 1000, 1), IdRange(1, 100000, 65536)),
        (IdRange(0, 1001, 1), IdRange(1, 200000, 65536)),
        "/usr/bin/newuidmap",
        "/usr/bin/newgidmap",
    )


@pytest.mark.parametrize(
    ("files", "tools", "reason", "hint"),
    [
        ({}, False, "newuidmap and newgidmap aren't installed", "package uidmap"),
        (
            {},
            True,
            "/etc/subuid and /etc/subgid give ann no 65536 ids in a row",
            "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 ann",
        ),
        (
            {"/etc/subgid": "ann:1:65536"},
            True,
            "/etc/subuid gives ann no 65536 ids in a row",
            "usermod --add-subuids 100000-165535 ann",
        ),
        (
            {"/etc/subuid": "ann:1:65536"},
            True,
            "/etc/subgid gives ann no 65536 ids in a row",
            "usermod --add-subgids",
        ),
    ],
)
def test_what_a_user_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], tools: bool, reason: str, hint: str
) -> None:
    _on_machine(monkeypatch, files, tools=tools)
    attempt = range_mapping(1000, 1000, "ann")
    assert isinstance(attempt, Attempt)
    assert attempt.reason == reason
    assert hint in (attempt.hint or "")


@pytest.mark.parametrize(
    ("name", "bad", "good", "step", "number"),
    [
        ("kernel.unprivileged_userns_clone", "0", "1", "unshare user", errno.EPERM),
        (
            "kernel.apparmor_restrict_unprivileged_userns",
            "1",
            "0",
            "make private",
            errno.EACCES,
        ),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0", "map ids", errno.EPERM),
        ("user.max_user_namespaces", "0", "15000", "unshare user", errno.ENOSPC),
    ],
)
def test_a_sysctl_that_forbids_is_named(
    monkeypatch: pytest.MonkeyPatch, *, name: str, bad: str, good: str, step: str, number: int
) -> None:
    files = {f"/proc/sys/{name.replace('.', '/')}": f"{bad}\n"}
    _on_machine(monkeypatch, files, tools=True)
    attempt = explain(Kind.SINGLE, SandboxFailed(step, number, ""), Path("/layers"))
    assert attempt.reason == f"user namespaces are forbidden: the sysctl {name} is {bad}"
    assert attempt.hint == f"sysctl -w {name}={good} as root, or use the containerd backend"


@pytest.mark.parametrize(
    ("step", "number", "hint"),
    [
        ("unshare user", errno.EPERM, "allow user namespaces"),
        ("mount overlay", errno.EINVAL, "another file system than /layers's"),
        ("mount proc", errno.EPERM, "hides parts of /proc"),
        ("clone3", errno.ENOSYS, "Linux 5.12"),
        ("map ids", 0, "setuid root"),
        ("attach", errno.EINVAL, "use the containerd backend"),
    ],
)
def test_other_failures_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, step: str, number: int, hint: str
) -> None:
    _on_machine(monkeypatch, {}, tools=True)
    attempt = explain(Kind.SINGLE, SandboxFailed(step, number, ""), Path("/layers"))
    assert hint in (attempt.hint or "")
    assert step in attempt.reason


def test_a_machine_other_than_linux_has_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pybuild.sandbox.modes.sys.platform", "darwin")
    found = modes.probe(Path())
    assert found.mapping is None
    assert "Linux" in found.reason
