import json
from dataclasses import replace

import pytest

from pybuild.errors import InvalidImage
from pybuild.oci.image_config import (
    MAX_CONFIG_SIZE,
    Healthcheck,
    HistoryEntry,
    ImageConfig,
    parse_config,
    serialize_config,
)
from pybuild.oci.platform import Platform

AMD64 = Platform("linux", "amd64")
DIFF_ID = "sha256:" + "1" * 64

FULL = ImageConfig(  # noqa: S604  (no process is started)
    platform=Platform("linux", "arm", "v7", "1.2"),
    env=(("PATH", "/bin"), ("EMPTY", ""), ("A", "b=c")),
    entrypoint=("/init",),
    cmd=("sh", "-c", "echo <&>"),
    args_escaped=True,
    user="web:www",
    working_dir="/srv/",
    exposed_ports=frozenset({"80/tcp", "53/udp"}),
    volumes=frozenset({"/b", "/a"}),
    labels={"z": "1", "a": "2"},
    stop_signal="SIGTERM",
    shell=("/bin/bash", "-c"),
    healthcheck=Healthcheck(("CMD", "true"), 1, 2, 3, 4, 5),
    onbuild=("RUN make",),
    author="me",
    created="2020-01-01T00:00:00Z",
    history=(
        HistoryEntry("RUN make", comment="c", author="a", created="2020-01-01T00:00:00Z"),
        HistoryEntry("ENV A=b", empty_layer=True),
    ),
    diff_ids=(DIFF_ID,),
    extra={"os.features": ["x"]},
    config_extra={"Hostname": "h"},
)


def test_what_was_serialised_parses_to_the_same_value() -> None:
    assert parse_config(serialize_config(FULL)) == FULL


def test_the_outer_object_is_sorted_and_the_config_has_the_order_of_go_types() -> None:
    outer = json.loads(serialize_config(FULL))
    assert list(outer) == sorted(outer)
    assert list(outer["config"]) == [
        "User",
        "ExposedPorts",
        "Env",
        "Entrypoint",
        "Cmd",
        "Volumes",
        "WorkingDir",
        "Labels",
        "StopSignal",
        "ArgsEscaped",
        "Healthcheck",
        "OnBuild",
        "Shell",
        "Hostname",
    ]
    assert list(outer["config"]["ExposedPorts"]) == ["53/udp", "80/tcp"]
    assert list(outer["history"][0]) == ["created", "created_by", "author", "comment"]
    assert outer["history"][1] == {"created_by": "ENV A=b", "empty_layer": True}


def test_empty_members_are_left_out() -> None:
    assert serialize_config(ImageConfig(AMD64)) == (
        b'{"architecture":"amd64","config":{},"os":"linux",'
        b'"rootfs":{"type":"layers","diff_ids":[]}}'
    )


def test_angle_brackets_ampersands_and_line_separators_are_escaped_as_go_does() -> None:
    text = serialize_config(ImageConfig(AMD64, user="<&>\u2028é\n"))
    assert rb'"User":"\u003c\u0026\u003e\u2028' + "é".encode() + rb'\n"' in text


def test_what_utf8_cannot_hold_is_replaced() -> None:
    config = ImageConfig(AMD64, user="a\udcffb", labels={"\ud800": "x"})
    read = parse_config(serialize_config(config))
    assert (read.user, read.labels) == ("a\ufffdb", {"\ufffd": "x"})


def test_an_empty_healthcheck_stays_in_its_place() -> None:
    config = replace(ImageConfig(AMD64), shell=("sh",), stop_signal="9")  # noqa: S604  (no process)
    config = replace(config, healthcheck=Healthcheck(()))
    assert list(json.loads(serialize_config(config))["config"]) == [
        "StopSignal",
        "Healthcheck",
        "Shell",
    ]
    assert parse_config(serialize_config(config)).healthcheck == Healthcheck(())


def test_members_that_are_null_count_as_absent() -> None:
    data = {
        "os": "linux",
        "architecture": "amd64",
        "config": {
            "Env": None,
            "Cmd": None,
            "ExposedPorts": None,
            "Labels": None,
            "Healthcheck": None,
            "ArgsEscaped": None,
        },
        "history": None,
        "rootfs": None,
        "created": None,
    }
    assert parse_config(json.dumps(data).encode()) == ImageConfig(AMD64)


def test_an_empty_command_differs_from_none() -> None:
    data = b'{"os":"linux","architecture":"amd64","config":{"Cmd":[]}}'
    assert parse_config(data).cmd == ()


def test_unknown_members_are_kept() -> None:
    config = replace(ImageConfig(AMD64), extra={"x.y": [1, {"a": None}]}, config_extra={"Q": 1})
    assert parse_config(serialize_config(config)) == config


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"os":"linux"}', "lacks architecture"),
        (b'{"architecture":"amd64"}', "lacks os"),
        (b'{"os":1,"architecture":"amd64"}', "os of the image config is not a string"),
        (b'{"config":{"Env":["A",1]}}', "Env of member config"),
        (b'{"config":{"Env":"A"}}', "not a list of strings"),
        (b'{"config":{"Labels":{"a":1}}}', "not an object of strings"),
        (b'{"config":{"Volumes":[]}}', "not an object"),
        (b'{"config":{"ArgsEscaped":1}}', "not true or false"),
        (b'{"config":{"Healthcheck":{"Interval":1e3}}}', "not a 64-bit integer"),
        (b'{"config":{"Healthcheck":{"Retries":%s}}}' % (b"9" * 30), "not a 64-bit integer"),
        (b'{"config":[]}', "member config of the image config is not a JSON object"),
        (b'{"history":{}}', "not a list"),
        (b'{"history":[1]}', "an item of member history"),
        (b'{"rootfs":{"diff_ids":["sha256:../../x"]}}', "no digest"),
        (b'{"rootfs":{"diff_ids":%s}}' % json.dumps([DIFF_ID] * 5000).encode(), "4096 layers"),
        (b'{"a":%s}' % (b"[" * 200 + b"]" * 200), "nested too deeply"),
        (b'{"config":{"a":%s}}' % (b"[" * 200 + b"]" * 200), "nested too deeply"),
        (b" " * (MAX_CONFIG_SIZE + 1), "larger than"),
    ],
)
def test_a_broken_config_is_refused(data: bytes, message: str) -> None:
    if data.startswith(b'{"') and b'"os"' not in data and b'"architecture"' not in data:
        data = b'{"os":"linux","architecture":"amd64",' + data[1:]
    with pytest.raises(InvalidImage, match=message):
        parse_config(data)
