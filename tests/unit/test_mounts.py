from __future__ import annotations

from typing import Any

import pytest

from pybuild.dockerfile.mounts import (
    DeviceOptions,
    MountOptions,
    parse_device,
    parse_mount,
)
from pybuild.errors import DockerfileSyntaxError, ExpansionError, SourceRange

WHERE = SourceRange("Dockerfile", 3, 4)


def fault(raw: str, where: SourceRange = WHERE) -> DockerfileSyntaxError:
    with pytest.raises(DockerfileSyntaxError) as caught:
        parse_mount(raw, where)
    assert caught.value.where is not None
    assert not caught.value.message.endswith(".")
    return caught.value


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("target=/a", {"target": "/a"}),
        ("type=bind,dst=/a,src=b,from=c", {"target": "/a", "source": "b", "from_": "c"}),
        ("destination=/a,rw", {"target": "/a", "readonly": False}),
        ("target=/a,readwrite=true", {"target": "/a", "readonly": False}),
        ("target=/a,rw=F", {"target": "/a", "readonly": True}),
        ("target=/a,ro=0", {"target": "/a", "readonly": False}),
        ("target=/a,target=/b", {"target": "/b"}),
        ("TYPE=Cache,Target=/a", {"type": "cache", "target": "/a", "readonly": False}),
        (
            "type=cache,id=i,target=/a,ro,sharing=Locked,mode=1777,uid=1,gid=2,from=f,source=s",
            {
                "type": "cache",
                "id": "i",
                "target": "/a",
                "readonly": True,
                "sharing": "locked",
                "mode": 0o1777,
                "uid": 1,
                "gid": 2,
                "from_": "f",
                "source": "s",
            },
        ),
        (
            "type=tmpfs,target=/a,size=1.5g",
            {"type": "tmpfs", "target": "/a", "readonly": False, "size": 3 << 29},
        ),
        (
            "required,type=secret,id=i,env=,mode=0400",
            {"type": "secret", "id": "i", "env": "", "mode": 0o400, "required": True},
        ),
        ("type=secret,target=/a,required=false", {"type": "secret", "target": "/a"}),
        ("type=secret,source=s", {"type": "secret", "source": "s"}),
        ("type=ssh,id=i,uid=4294967295", {"type": "ssh", "id": "i", "uid": (1 << 32) - 1}),
        ('"target=/a,b","source=c""d"', {"target": "/a,b", "source": 'c"d'}),
        ("target=/a,source=,from=", {"target": "/a"}),
        ("target=/a,from=b$", {"target": "/a", "from_": "b$"}),
        ("target=/a=b", {"target": "/a=b"}),
    ],
)
def test_a_mount_has_options(raw: str, expected: dict[str, Any]) -> None:
    assert parse_mount(raw, WHERE) == MountOptions(**expected)


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("0", 0),
        ("10", 10),
        ("10b", 10),
        ("1k", 1024),
        ("1 KiB", 1024),
        ("2Mb", 2 << 20),
        ("3G", 3 << 30),
        ("1t", 1 << 40),
        ("1p", 1 << 50),
        (".5k", 512),
    ],
)
def test_sizes_are_binary(size: str, count: int) -> None:
    assert parse_mount(f"type=tmpfs,target=/a,size={size}", WHERE).size == count


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "target=/a,",
        "target",
        "type",
        "typ=bind",
        "type=",
        "type=volume",
        "target=/a,ro=maybe",
        "target=/a,rw=",
        "target=/a,mode=0755",
        "target=/a,uid=0",
        "type=tmpfs,target=/a,gid=0",
        "target=/a,sharing=shared",
        "type=cache,target=/a,sharing=none",
        "type=cache,target=/a,size=1",
        "type=cache,target=/a,required",
        "type=cache,target=/a,mode=8",
        "type=cache,target=/a,mode=0o755",
        "type=cache,target=/a,mode=-1",
        "type=cache,target=/a,uid=4294967296",
        "type=cache,target=/a,uid=+1",
        "type=cache,target=/a,uid=" + "9" * 5000,
        "type=tmpfs,target=/a,size=",
        "type=tmpfs,target=/a,size=-1",
        "type=tmpfs,target=/a,size=1x",
        "type=tmpfs,target=/a,size=1kk",
        "type=tmpfs,target=/a,size=9999999999p",
        "type=secret",
        "type=secret,id=a,source=b",
        "type=secret,id=a,from=b",
        "type=secret,id=a,sharing=shared",
        "type=ssh,source=a",
        "target=/a,from=$b",
        "target=/a,from=${b}",
        "target=/a,bind-propagation=shared",
        'target="/a"',
        '"target=/a',
        '"target=/a"b',
    ],
)
def test_a_wrong_mount_is_refused(raw: str) -> None:
    fault(raw)


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        ("typ=bind", "did you mean type?"),
        ("type=bnd", "did you mean bind?"),
        ("tgt=/a", "did you mean dst?"),
        ("type=cache,sharing=lockd", "did you mean locked?"),
        ("target=/a,size=1", "size is for tmpfs"),
    ],
)
def test_a_hint_says_what_was_meant(raw: str, hint: str) -> None:
    assert fault(raw).hint == hint


def test_an_error_points_at_the_field_where_its_column_is_known() -> None:
    raw = "target=/a,form=b,rw"
    where = SourceRange("Dockerfile", 2, 2, 13, 13 + len(raw))
    assert fault(raw, where).where == SourceRange("Dockerfile", 2, 2, 23, 29)
    assert fault(raw).where == WHERE


def test_variables_are_expanded_in_every_value_but_from() -> None:
    asked: list[str] = []

    def expand(value: str) -> str:
        asked.append(value)
        return {"$t": "cache", "$m": "0700", "$s": "private", "$r": "true"}.get(value, value)

    found = parse_mount("type=$t,target=/a,mode=$m,sharing=$s,ro=$r,from=f", WHERE, expand)
    assert found == MountOptions(
        type="cache", target="/a", mode=0o700, sharing="private", readonly=True, from_="f"
    )
    assert asked == ["$t", "/a", "$m", "$s", "$r"]


def test_an_expanded_value_is_checked() -> None:
    with pytest.raises(DockerfileSyntaxError):
        parse_mount("type=$t,target=/a", WHERE, lambda _: "nothing")
    with pytest.raises(DockerfileSyntaxError):
        parse_mount("target=/a,rw=$r", WHERE, lambda value: value.replace("$r", "perhaps"))


def test_a_failing_expansion_gets_the_place_of_the_mount() -> None:
    def expand(value: str) -> str:
        raise ExpansionError(f"can't expand {value}")

    with pytest.raises(ExpansionError) as caught:
        parse_mount("target=$a", WHERE, expand)
    assert caught.value.where == WHERE


@pytest.mark.parametrize(
    "raw",
    [
        "type=$t,target=/a,sharing=locked,size=1",
        "type=cache,target=/a,mode=$m,uid=$u,sharing=$s",
        "type=tmpfs,target=/a,size=$s",
        "target=$a,rw=$b",
        "type=secret,id=$i,required=$r",
    ],
)
def test_without_an_expansion_variables_are_not_judged(raw: str) -> None:
    found = parse_mount(raw, WHERE)
    assert (found.mode, found.uid, found.size) == (None, None, None) or "$t" in raw


def test_what_has_no_variables_is_judged_without_an_expansion_too() -> None:
    fault("type=$t,mode=9")
    fault("target=$a,nonsense=$b")
    assert parse_mount("target=$a,from=b", WHERE).target == "$a"


@pytest.mark.parametrize(
    ("raw", "device"),
    [
        ("vendor.com/gpu=all", DeviceOptions("vendor.com/gpu=all")),
        ("name=a,required", DeviceOptions("a", required=True)),
        ("a,required=false", DeviceOptions("a")),
        ("required", DeviceOptions(required=True)),
    ],
)
def test_a_device_has_options(raw: str, device: DeviceOptions) -> None:
    assert parse_device(raw, WHERE) == device


@pytest.mark.parametrize("raw", ["", "a,b", "a,name=b", "a,requird=true", "a,required=x"])
def test_a_wrong_device_is_refused(raw: str) -> None:
    with pytest.raises(DockerfileSyntaxError):
        parse_device(raw, WHERE)
