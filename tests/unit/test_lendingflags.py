"""--secret, --ssh and --allow as words."""

import pytest

from pybuild.errors import UsageError
from pybuild.lendingflags import (
    SecretOption,
    SshOption,
    parse_entitlements,
    parse_secret,
    parse_ssh,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id=a", SecretOption("a")),
        ("id=a,src=b c", SecretOption("a", file="b c")),
        ("source=b,id=a", SecretOption("a", file="b")),
        ("type=file,id=a", SecretOption("a", file="a")),
        ("id=a,env=B", SecretOption("a", variable="B")),
        ("id=a,type=env", SecretOption("a", variable="a")),
        ("id=a,type=env,src=B", SecretOption("a", variable="B")),
        ("ID=a,SRC=b=c", SecretOption("a", file="b=c")),
    ],
)
def test_a_secret_comes_from_a_file_or_a_variable(text: str, expected: SecretOption) -> None:
    assert parse_secret(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "a", "id=", "src=a", "id=a,b=c", "id=a,src=b,env=C", "id=a,type=vault", "id=a,required"],
)
def test_other_secrets_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_secret(text)


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
