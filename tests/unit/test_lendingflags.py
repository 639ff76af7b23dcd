"""--ssh and --allow as words."""

import pytest

from pybuild.errors import UsageError
from pybuild.lendingflags import (
    SshOption,
    parse_entitlements,
    parse_ssh,
)


def test_an_agent_is_the_usual_one_a_socket_or_keys() -> None:
    assert parse_ssh("default") == SshOption("default")
    assert parse_ssh("a=/run/x") == SshOption("a", ("/run/x",))
    assert parse_ssh("a=k1,k2") == SshOption("a", ("k1", "k2"))


@pytest.mark.parametrize("text", ["", "=x", "a=", "a=,"])
def test_other_agents_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_ssh(text)


def test_entitlements_are_those_that_there_are() -> None:
    assert parse_entitlements([]) == frozenset()
    found = parse_entitlements(["network.host,security.insecure", "device=a.com/b=c"])
    assert found == {"network.host", "security.insecure", "device=a.com/b=c"}
    for text in ("", "network", "security.insecure,", "all", "network.host=true"):
        with pytest.raises(UsageError, match="no such entitlement"):
            parse_entitlements([text])
