"""/etc/hosts as a process in a build sees it."""

from __future__ import annotations

import pytest

from pybuild.errors import UsageError
from pybuild.files.namefiles import hosts_file


def test_the_hosts_file_is_buildkits() -> None:
    text = hosts_file("worker", [("db", "10.0.0.1"), ("six", "2001:DB8::1")])
    assert text.decode().splitlines() == [
        "127.0.0.1\tlocalhost worker",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "10.0.0.1\tdb",
        "2001:db8::1\tsix",
    ]


@pytest.mark.parametrize("entry", [("db", "nowhere"), ("a b", "::1")])
def test_a_host_that_would_break_the_file_is_refused(entry: tuple[str, str]) -> None:
    with pytest.raises(UsageError):
        hosts_file("worker", [entry])
    with pytest.raises(UsageError):
        hosts_file("worker\n10.0.0.1 evil", [])
