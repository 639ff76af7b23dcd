"""What URLs of files and repositories mean, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest

from pybuild.errors import UsageError
from pybuild.remotes.locations import (
    GitLocation,
    WebLocation,
    is_git,
    masked,
    parse_context_location,
    parse_git,
    parse_web,
    redacted,
    with_checksum,
)

SHA = "0123456789abcdef0123456789abcdef01234567"
GIT = "https://h.example/a/b.git"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GIT, {}),
        (f"{GIT}#main", {"ref": "main"}),
        (f"{GIT}#:sub/dir", {"subdir": "sub/dir"}),
        (f"{GIT}#v1.0:/sub//x/", {"ref": "v1.0", "subdir": "sub/x"}),
        (f"{GIT}#main:../../etc", {"ref": "main", "subdir": "etc"}),
        (f"{GIT}#{SHA}", {"ref": SHA}),
        (f"{GIT}?ref=main&subdir=a/../../b", {"ref": "main", "subdir": "b"}),
        (f"{GIT}?tag=v1", {"ref": "refs/tags/v1"}),
        (f"{GIT}?tag=refs/tags/v1", {"ref": "refs/tags/v1"}),
        (f"{GIT}?branch=x/y", {"ref": "refs/heads/x/y"}),
        (f"{GIT}?ref=main#main", {"ref": "main"}),
        (f"{GIT}?checksum=ABCD12", {"checksum": "abcd12"}),
        (f"{GIT}?commit={SHA}", {"checksum": SHA}),
        (f"{GIT}?keep-git-dir", {"keep_git_dir": True}),
        (f"{GIT}?keep-git-dir=false&submodules=0", {"submodules": False}),
        (f"{GIT}?fetch-by-commit&commit={SHA}", {"fetch_by_commit": True, "checksum": SHA}),
        (f"{GIT}?mtime=commit", {"commit_times": True}),
        (f"{GIT}?mtime=checkout", {}),
    ],
)
def test_the_parts_of_a_git_url(text: str, expected: dict[str, Any]) -> None:
    assert parse_git(text) == GitLocation(GIT, **expected)


@pytest.mark.parametrize(
    ("text", "remote"),
    [
        ("git@h.example:a/b.git#x", "git@h.example:a/b.git"),
        ("ssh://git@h.example:22/a", "ssh://git@h.example:22/a"),
        ("git://h.example/a", "git://h.example/a"),
        ("http://[::1]:8080/a.git", "http://[::1]:8080/a.git"),
    ],
)
def test_every_transport_has_its_form(text: str, remote: str) -> None:
    assert is_git(text)
    assert parse_git(text).remote == remote


def test_a_login_is_taken_out_of_the_url() -> None:
    found = parse_git("https://me:p%40ss@h.example/a.git#x")
    assert (found.remote, found.login) == ("https://h.example/a.git", "me:p@ss")
    assert "p@ss" not in repr(found) + str(found)
    web = parse_web("https://token@h.example/x?y=1#z")
    assert (web.url, web.login) == ("https://h.example/x?y=1", "token:")
    assert "token" not in repr(web) + str(web)


@pytest.mark.parametrize(
    "text",
    [
        f"{GIT}#--upload-pack=touch /tmp/x",
        f"{GIT}#-x",
        f"{GIT}#a..b",
        f"{GIT}#a b",
        f"{GIT}#a\nb",
        f"{GIT}\n#a",
        f"{GIT}#+refs/*",
        f"{GIT}?ref=a:b",
        f"{GIT}#@{{upstream}}",
        f"{GIT}#a\\b",
        f"{GIT}#/a",
        f"{GIT}#a/",
        f"{GIT}?ref=",
        f"{GIT}?ref=a&ref=b",
        f"{GIT}?ref=a#b",
        f"{GIT}?tag=a&branch=b",
        f"{GIT}?mtime=now",
        f"{GIT}?submodules=maybe",
        f"{GIT}?upload-pack=x",
        f"{GIT}?checksum=xyz",
        f"{GIT}?fetch-by-commit",
        f"{GIT}?fetch-by-commit&commit=abcdef1",
        f"{GIT}?subdir=a#:b",
        "git@h.example:--upload-pack=x",
        "-oProxyCommand=x@h.example:a",
        "a@-h.example:b",
        "ssh://-oProxyCommand=x/a.git",
        "ssh://-x@h.example/a.git",
        "ssh://me:secret@h.example/a.git",
        "git://h.example:0/a",
        "git://h.example:99999/a",
        "git:///a",
        "git://h.example",
        "ext::sh -c true",
        "file:///etc/x.git",
        "git@h.example:",
        f"https://h.example/{'a' * 5000}.git",
    ],
)
def test_what_could_mislead_git_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_git(text)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://h.example/a/b.tar.gz?x=y", "b.tar.gz"),
        ("http://h.example/a%20b", "a b"),
        ("http://h.example/a/", "a"),
        ("http://h.example", "__unnamed__"),
        ("http://h.example/", "__unnamed__"),
        ("http://h.example/..", "__unnamed__"),
        ("http://h.example/%2e%2e", "__unnamed__"),
        ("http://h.example/a%2fb", "b"),
        ("http://h.example/a%0ab", "__unnamed__"),
    ],
)
def test_the_name_of_a_file_is_the_end_of_its_path(url: str, name: str) -> None:
    assert parse_web(url).name == name


@pytest.mark.parametrize(
    "text",
    [
        "http://",
        "http:///x",
        "http://a b/",
        "http://h.example:0/",
        "https://[x/",
        "http://h.example/\n",
    ],
)
def test_a_broken_url_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_web(text)


@pytest.mark.parametrize(
    "checksum", ["sha256:1", f"md5:{'1' * 32}", "x" * 64, f"sha512:{'1' * 64}"]
)
def test_a_checksum_of_a_file_is_a_digest(checksum: str) -> None:
    with pytest.raises(UsageError):
        parse_web("http://h.example/x", checksum)


def test_a_checksum_beside_the_url_must_agree_with_the_one_in_it() -> None:
    assert with_checksum(parse_git(GIT), "ABCD").checksum == "abcd"
    assert with_checksum(parse_git(f"{GIT}?checksum=abcd"), "abcd").checksum == "abcd"
    for wrong in ("abce", "xyz", "-", f"sha256:{'1' * 64}"):
        with pytest.raises(UsageError):
            with_checksum(parse_git(f"{GIT}?checksum=abcd"), wrong)


def test_a_context_is_a_repository_a_file_or_a_path() -> None:
    assert parse_context_location("github.com/a/b#x") == GitLocation(
        "https://github.com/a/b", ref="x"
    )
    assert isinstance(parse_context_location(GIT), GitLocation)
    assert isinstance(parse_context_location("https://h.example/x.tar"), WebLocation)
    for path in (".", "/a/b", "./git@h.example:a", "c:\\a", "dir", "ftp://h.example/x"):
        assert parse_context_location(path) is None


def test_logins_in_a_text_are_replaced() -> None:
    text = "ADD https://a:b@h.example/x http://t@h.example/y ssh://git@h.example/z a@b /"
    assert redacted(text) == (
        "ADD https://xxxxx:xxxxx@h.example/x http://xxxxx:xxxxx@h.example/y "
        "ssh://git@h.example/z a@b /"
    )
    assert masked("ADD https://a:b@h.example/x /") == "ADD https://xxx@h.example/x /"
