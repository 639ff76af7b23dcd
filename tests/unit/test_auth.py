from __future__ import annotations

import base64
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pybuild.errors import RegistryError, UsageError
from pybuild.oci.auth import Credential, DockerCredentials
from pybuild.oci.tokens import (
    Challenge,
    basic,
    parse_challenges,
    parse_token,
    token_request,
)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def found(config: dict[str, Any], host: str = "r.example") -> Credential | None:
    return DockerCredentials(config).for_host(host)


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("r.example", "r.example"),
        ("https://r.example", "r.example"),
        ("https://r.example/", "r.example"),
        ("http://r.example/v1/", "r.example"),
        ("https://r.example/v2/", "r.example"),
        ("r.example:5000", "r.example:5000"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("https://index.docker.io/v1/", "registry-1.docker.io"),
        ("index.docker.io", "docker.io"),
        ("docker.io", "index.docker.io"),
    ],
)
def test_a_login_is_found_under_every_name_that_docker_gives_it(key: str, host: str) -> None:
    assert found({"auths": {key: {"auth": encoded("me:pass:word")}}}, host) == Credential(
        "me", "pass:word"
    )


@pytest.mark.parametrize(
    "key", ["other.example", "r.example:5000", "r.example.evil", "x.r.example"]
)
def test_a_login_isnt_given_to_another_host(key: str) -> None:
    assert found({"auths": {key: {"auth": encoded("me:pw")}}}) is None


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"username": "me", "password": "pw"}, Credential("me", "pw")),
        ({"auth": encoded("me:pw\0\0")}, Credential("me", "pw")),
        ({"auth": encoded("me:"), "identitytoken": "t"}, Credential("me", identity_token="t")),
        ({"identitytoken": "t"}, Credential(identity_token="t")),
        ({}, None),
    ],
)
def test_every_form_of_entry_is_read(entry: dict[str, str], expected: Credential | None) -> None:
    assert found({"auths": {"r.example": entry}}) == expected


@pytest.mark.parametrize(
    "config",
    [
        {"auths": []},
        {"auths": {"r.example": "canary"}},
        {"auths": {"r.example": {"auth": "canary!"}}},
        {"auths": {"r.example": {"auth": encoded("canary")}}},
        {"auths": {"r.example": {"password": 1}}},
        {"credsStore": "../canary"},
        {"credsStore": "a;b"},
        {"credHelpers": {"r.example": "a b"}},
    ],
)
def test_a_malformed_entry_is_refused_without_its_content(config: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        found(config)
    assert "canary" not in str(caught.value).replace("../canary", "")


def test_the_file_may_be_missing_but_not_malformed(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    assert DockerCredentials(path).for_host("r.example") is None
    assert DockerCredentials(None).for_host("r.example") is None
    for text in ('{"auths": canary', "[]", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"config\.json") as caught:
            DockerCredentials(path)
        assert "canary" not in str(caught.value)
    path.write_text(json.dumps({"auths": {"r.example": {"auth": encoded("me:pw")}}}))
    assert DockerCredentials(path).for_host("r.example") == Credential("me", "pw")


def test_secrets_stay_out_of_reprs() -> None:
    credentials = DockerCredentials({"auths": {"r.example": {"auth": encoded("me:canary")}}})
    credential = credentials.for_host("r.example")
    assert "canary" not in repr((credentials, credential, vars(credentials)["_known"]))
    request = token_request(
        Challenge("bearer", "https://auth.example/token"), credential, "s", "https://r.example/v2"
    )
    assert encoded("me:canary") not in repr(request)


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A credential helper `docker-credential-toy` whose body the test writes."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "docker-credential-toy"


def write_helper(path: Path, body: str) -> None:
    path.write_text(f"#!{sys.executable} -S\nimport json, sys, time\n{body}\n")
    path.chmod(0o755)


def test_a_helper_is_asked_once_by_dockers_protocol(helper: Path, tmp_path: Path) -> None:
    write_helper(
        helper,
        f"open({str(tmp_path / 'asked')!r}, 'a').write(sys.argv[1] + ' ' + sys.stdin.read() + '|')\n"
        "json.dump({'ServerURL': 'x', 'Username': 'me', 'Secret': 'pw'}, sys.stdout)",
    )
    credentials = DockerCredentials({"credsStore": "toy"})
    assert credentials.for_host("docker.io") == Credential("me", "pw")
    assert credentials.for_host("registry-1.docker.io") == Credential("me", "pw")
    assert credentials.for_host("r.example:5000") == Credential("me", "pw")
    asked = (tmp_path / "asked").read_text()
    assert asked == "get https://index.docker.io/v1/|get r.example:5000|"


def test_a_hosts_own_helper_counts_before_the_store(helper: Path) -> None:
    write_helper(helper, "json.dump({'Username': '<token>', 'Secret': 't'}, sys.stdout)")
    config = {"credHelpers": {"r.example": "toy"}, "credsStore": "missing"}
    assert found(config) == Credential(identity_token="t")


def test_a_helper_that_knows_nothing_leaves_the_files_entry(helper: Path) -> None:
    write_helper(helper, "print('credentials not found in native keychain'); sys.exit(1)")
    config = {"credsStore": "toy", "auths": {"r.example": {"auth": encoded("me:pw")}}}
    assert found(config) == Credential("me", "pw")
    assert found({"credsStore": "toy"}) is None


@pytest.mark.parametrize(
    "body",
    [
        "print('canary'); sys.exit(3)",
        "print('canary')",
        "print('[]')",
        "json.dump({'Username': 1, 'Secret': 'canary'}, sys.stdout)",
        "sys.stdout.write('canary' * 100000)",
        "sys.stdin.close(); sys.exit(1)",
    ],
)
def test_a_helper_that_misbehaves_is_named(helper: Path, body: str) -> None:
    write_helper(helper, body)
    with pytest.raises(RegistryError, match="docker-credential-toy") as caught:
        found({"credsStore": "toy"})
    assert "canary" not in str(caught.value)
    assert caught.value.hint


def test_a_helper_that_hangs_is_ended(helper: Path) -> None:
    write_helper(helper, "time.sleep(60)")
    began = time.monotonic()
    with pytest.raises(RegistryError, match="no short answer"):
        DockerCredentials({"credsStore": "toy"}, helper_timeout=0.5).for_host("r.example")
    assert time.monotonic() - began < 5


def test_a_helper_that_is_missing_is_named() -> None:
    with pytest.raises(RegistryError, match="docker-credential-no-such-helper can't be run"):
        found({"credsStore": "no-such-helper"})


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", ()),
        ("Negotiate", ()),
        ('Basic realm="x"', (Challenge("basic", "x"),)),
        ("basic", (Challenge("basic"),)),
        (
            'Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"',
            (Challenge("bearer", "https://a/t", "s", "repository:a/b:pull,push"),),
        ),
        (
            'Basic realm="x", bearer realm=https://a/t , service = s',
            (Challenge("bearer", "https://a/t", "s"), Challenge("basic", "x")),
        ),
        (
            'Negotiate, Bearer realm="a \\"quoted\\" one",error="insufficient_scope"',
            (Challenge("bearer", 'a "quoted" one'),),
        ),
        ('Bearer realm="unclosed', (Challenge("bearer"),)),
    ],
)
def test_challenges_are_read(header: str, expected: tuple[Challenge, ...]) -> None:
    assert parse_challenges(header) == expected


def test_a_hostile_challenge_takes_no_time() -> None:
    began = time.process_time()
    for text in ("a " * 50_000, 'Bearer realm="' + "\\" * 50_000, "Bearer " + "a=," * 50_000):
        parse_challenges(text)
    assert time.process_time() - began < 0.5


CHALLENGE = Challenge("bearer", "https://auth.example/token?x=1", "svc", "")


def test_a_token_is_asked_for_with_the_login_or_without() -> None:
    request = token_request(CHALLENGE, None, "repository:a:pull", "https://r.example/v2")
    assert request.method == "GET"
    assert request.url == ("https://auth.example/token?x=1&service=svc&scope=repository%3Aa%3Apull")
    assert "Authorization" not in request.headers
    request = token_request(CHALLENGE, Credential("me", "pw"), "s", "https://r.example/v2")
    assert "account=me" in request.url
    assert request.headers["Authorization"] == basic(Credential("me", "pw"))


def test_an_identity_token_is_traded_by_post() -> None:
    credential = Credential(identity_token="secret")
    request = token_request(CHALLENGE, credential, "s", "https://r.example/v2")
    assert request.method == "POST"
    assert b"grant_type=refresh_token" in (request.body or b"")
    assert b"refresh_token=secret" in (request.body or b"")
    assert "secret" not in request.url


@pytest.mark.parametrize(
    ("realm", "registry", "allowed"),
    [
        ("https://auth.example/t", "https://r.example/v2", True),
        ("https://auth.example/t", "http://r.example/v2", True),
        ("http://auth.example/t", "https://r.example/v2", False),
        ("http://r.example/t", "https://r.example/v2", False),
        ("http://127.0.0.1/t", "https://r.example/v2", False),
        ("http://r.example:81/t", "http://r.example/v2", True),
        ("http://127.0.0.1:81/t", "http://localhost:5000/v2", True),
        ("http://evil.example/t", "http://r.example/v2", False),
        ("file:///etc/passwd", "https://r.example/v2", False),
        ("//r.example/t", "https://r.example/v2", False),
        ("https://me:pw@auth.example/t", "https://r.example/v2", False),
        ("https://auth.example/t\r\nx: y", "https://r.example/v2", False),
        ("", "https://r.example/v2", False),
    ],
)
def test_a_login_goes_only_to_an_encrypted_realm(realm: str, registry: str, allowed: bool) -> None:
    challenge = Challenge("bearer", realm)
    if allowed:
        request = token_request(challenge, Credential("me", "pw"), "s", registry)
        assert request.url.startswith(realm)
        return
    with pytest.raises(RegistryError):
        token_request(challenge, Credential("me", "pw"), "s", registry)


def test_a_token_is_read_from_either_member() -> None:
    assert parse_token(b'{"token":"abc"}', "https://a") == "Bearer abc"
    assert parse_token(b'{"access_token":"abc"}', "https://a") == "Bearer abc"


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b'{"token":1}', b'{"token":"a\\r\\nb"}', b'{"token":"a b"}', b"\xff"],
)
def test_what_is_no_token_is_refused(body: bytes) -> None:
    with pytest.raises(RegistryError, match="gave no token"):
        parse_token(body, "https://auth.example/token?secret=1")
