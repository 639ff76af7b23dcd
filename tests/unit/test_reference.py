from __future__ import annotations

import time

import pytest

from pybuild.errors import UsageError
from pybuild.oci.reference import (
    Reference,
    familiar,
    parse_reference,
    version,
    with_default_tag,
)

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "normalised", "short"),
    [
        ("busybox", "docker.io/library/busybox", "busybox"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("library/busybox", "docker.io/library/busybox", "busybox"),
        ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("index.docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("index.docker.io/team/app", "docker.io/team/app", "team/app"),
        ("team/app:V1", "docker.io/team/app:V1", "team/app:V1"),
        ("library/team/app", "docker.io/library/team/app", "library/team/app"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}", f"busybox@{DIGEST}"),
        (f"b:1@{DIGEST}", f"docker.io/library/b:1@{DIGEST}", f"b:1@{DIGEST}"),
        ("localhost/app", "localhost/app", "localhost/app"),
        ("localhost:5000/a/b:c", "localhost:5000/a/b:c", "localhost:5000/a/b:c"),
        ("127.0.0.1:5000/app", "127.0.0.1:5000/app", "127.0.0.1:5000/app"),
        ("[::1]:5000/app:1", "[::1]:5000/app:1", "[::1]:5000/app:1"),
        ("example.com/app", "example.com/app", "example.com/app"),
        ("UPPER/app", "UPPER/app", "UPPER/app"),
        ("host:80/x", "host:80/x", "host:80/x"),
        ("name:5000", "docker.io/library/name:5000", "name:5000"),
        ("x/a--b__c.d_e", "docker.io/x/a--b__c.d_e", "x/a--b__c.d_e"),
    ],
)
def test_names_are_normalised_as_docker_does(text: str, normalised: str, short: str) -> None:
    reference = parse_reference(text)
    assert str(reference) == normalised
    assert familiar(reference) == short
    assert parse_reference(normalised) == reference
    assert parse_reference(short) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Busybox",
        "team/App",
        "a..b",
        "a___b",
        "-a",
        "a-",
        "a/",
        "/a",
        "a//b",
        "a:",
        "a:-tag",
        "a:" + "t" * 129,
        "a@",
        "a@sha256:abc",
        f"a@{DIGEST.upper()}",
        "a@sha512:" + "0" * 128,
        "a@md5:" + "0" * 32,
        "0" * 64,
        "host:99999/a",
        "host:0/a",
        "ho st/a",
        "-host.x/a",
        "user@host.x/a",
        "[::1/a",
        "a--b__c.d_e/f",
        "a b",
        "a\n",
        "a\0",
        "bücher",
        "../a",
        "a/../b",
        "https://example.com/a",
        "a" * 256,
        "x" * 100_000,
    ],
)
def test_what_is_no_name_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference(text)
    assert text == "" or len(text) > 1024 or caught.value.hint
    assert len(str(caught.value)) < 2000


def test_an_upper_case_name_gets_the_corrected_name_as_hint() -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference("Team/App:Tag".replace("Team", "team"))
    assert caught.value.hint == "write it as team/app:Tag"


def test_hostile_names_take_linear_time() -> None:
    began = time.process_time()
    for text in ("a-" * 500, "a." * 500 + "!", "a_" * 500 + "/", "[" * 900, "a/" * 500):
        with pytest.raises(UsageError):
            parse_reference(text)
    assert time.process_time() - began < 0.2


def test_latest_is_added_only_where_neither_tag_nor_digest_is_given() -> None:
    assert with_default_tag(parse_reference("a")).tag == "latest"
    assert with_default_tag(parse_reference("a:1")).tag == "1"
    assert with_default_tag(parse_reference(f"a@{DIGEST}")).tag is None


def test_a_digest_counts_more_than_a_tag() -> None:
    assert version(Reference("r.x", "a", "1", DIGEST)) == DIGEST
    assert version(Reference("r.x", "a", "1")) == "1"
    assert version(Reference("r.x", "a")) == "latest"
