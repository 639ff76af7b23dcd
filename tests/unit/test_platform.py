from __future__ import annotations

import pytest

from pybuild.errors import UsageError
from pybuild.oci.platform import (
    Platform,
    best,
    host_platform,
    matches,
    normalise,
    parse_platform,
    rank,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("linux/x86_64", Platform("linux", "amd64")),
        ("Linux/X86-64", Platform("linux", "amd64")),
        ("linux/amd64/v1", Platform("linux", "amd64")),
        ("linux/amd64/v3", Platform("linux", "amd64", "v3")),
        ("linux/i386", Platform("linux", "386")),
        ("linux/aarch64", Platform("linux", "arm64")),
        ("linux/arm64/v8", Platform("linux", "arm64")),
        ("linux/arm64/8", Platform("linux", "arm64")),
        ("linux/arm64/9.0", Platform("linux", "arm64", "v9")),
        ("linux/arm", Platform("linux", "arm", "v7")),
        ("linux/armhf", Platform("linux", "arm", "v7")),
        ("linux/armel", Platform("linux", "arm", "v6")),
        ("linux/arm/6", Platform("linux", "arm", "v6")),
        ("macos/arm64", Platform("darwin", "arm64")),
        ("windows(10.0.17763)/amd64", Platform("windows", "amd64", "", "10.0.17763")),
        ("linux/riscv64", Platform("linux", "riscv64")),
        ("plan10/quantum", Platform("plan10", "quantum")),
    ],
)
def test_platforms_are_normalised_as_containerd_does(text: str, expected: Platform) -> None:
    assert parse_platform(text) == expected
    assert parse_platform(str(expected)).architecture == expected.architecture


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("x86_64", "linux/amd64"),
        ("AMD64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("arm64", "linux/arm64"),
        ("armv7l", "linux/arm/v7"),
        ("armv6l", "linux/arm/v6"),
        ("i686", "linux/386"),
        ("loongarch64", "linux/loong64"),
        ("ppc64le", "linux/ppc64le"),
        ("s390x", "linux/s390x"),
    ],
)
def test_the_host_is_known_by_its_machine(
    machine: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pybuild.oci.platform._machine", lambda: machine)
    assert str(host_platform()) == expected


def test_what_a_platform_lacks_is_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pybuild.oci.platform._machine", lambda: "armv6l")
    assert str(parse_platform("linux")) == "linux/arm/v6"
    assert str(parse_platform("windows")) == "windows/arm/v6"
    assert str(parse_platform("arm64")) == "linux/arm64"
    assert str(parse_platform("x86_64")) == "linux/amd64"


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "linux/", "/amd64", "linux/arm/v7/x", "linux/*", "a b/c", "linux/\n", "*"],
)
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="unknown platform") as caught:
        parse_platform(text)
    assert "linux/amd64" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("wanted", "candidates"),
    [
        ("linux/amd64", ["linux/amd64", "linux/386"]),
        ("linux/amd64/v3", ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"]),
        ("linux/arm64", ["linux/arm64", "linux/arm/v8", "linux/arm/v7", "linux/arm/v5"]),
        ("linux/arm64/v8.2", ["linux/arm64/v8.2", "linux/arm64/v8.1", "linux/arm64/v8"]),
        ("linux/arm64/v9", ["linux/arm64/v9", "linux/arm64/v8.5", "linux/arm64", "linux/arm/v7"]),
        ("linux/arm/v7", ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
        ("linux/s390x", ["linux/s390x"]),
    ],
)
def test_better_variants_rank_first(wanted: str, candidates: list[str]) -> None:
    asked = parse_platform(wanted)
    ranks = [rank(asked, parse_platform(text)) for text in candidates]
    assert ranks[0] == 0
    assert None not in ranks
    assert ranks == sorted(set(ranks), key=lambda place: place or 0)
    reversed_order = [parse_platform(text) for text in reversed(candidates)]
    assert best(asked, reversed_order) == parse_platform(candidates[0])


@pytest.mark.parametrize(
    ("wanted", "candidate"),
    [
        ("linux/amd64", "linux/arm64"),
        ("linux/amd64", "linux/amd64/v2"),
        ("linux/386", "linux/amd64"),
        ("linux/arm/v6", "linux/arm/v7"),
        ("linux/arm64", "linux/arm64/v9"),
        ("linux/arm64/v8.1", "linux/arm64/v8.2"),
        ("linux/amd64", "windows/amd64"),
        ("linux/arm64/v8.77", "linux/arm64"),
        ("windows(10.0.17763)/amd64", "windows(10.0.20348)/amd64"),
    ],
)
def test_newer_or_other_platforms_dont_match(wanted: str, candidate: str) -> None:
    assert not matches(parse_platform(wanted), parse_platform(candidate))


def test_a_windows_build_matches_its_revisions() -> None:
    wanted = normalise("windows", "amd64", "", "10.0.17763")
    assert matches(wanted, normalise("windows", "amd64", "", "10.0.17763.5"))
    assert matches(wanted, normalise("windows", "amd64"))


def test_nothing_is_best_of_what_doesnt_run() -> None:
    assert best(parse_platform("linux/amd64"), [parse_platform("linux/arm64")]) is None
