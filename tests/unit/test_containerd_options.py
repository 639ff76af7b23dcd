"""The options of the containerd backend, and the small pure parts of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pybuild.errors import BackendFailed, UsageError
from pybuild.oci.descriptor import Descriptor, LayerDiff, chain_id
from pybuild_containerd.errors_table import CallFailed
from pybuild_containerd.layers import with_lowest
from pybuild_containerd.moby import container_config, dangling_name
from pybuild_containerd.options import Options, parse_options
from pybuild_containerd.snapshots import Mount
from pybuild_containerd.tasks import _code_of_unstarted
from pybuild_containerd.unpack import chain_ids


def test_without_options_everything_has_its_default() -> None:
    assert parse_options({}) == Options()
    assert parse_options(dict.fromkeys(("address", "namespace", "unpack", "proxies"))) == Options()


def test_options_are_taken_as_given() -> None:
    options = parse_options(
        {
            "address": "/run/x.sock",
            "cache_dir": "/c",
            "hosts_dir": Path("/h"),
            "proxies": {"http": "http://p"},
            "moby_labels": True,
            "unpack": "false",
            "pull": "own",
        }
    )
    assert options.pull == "own"
    assert options.cache_dir == Path("/c")
    assert options.hosts_dir == Path("/h")
    assert (options.moby_labels, options.unpack) == (True, False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("adress", "/run/x"),
        ("address", 7),
        ("address", ""),
        ("cache_dir", ["/c"]),
        ("unpack", "maybe"),
        ("unpack", 1),
        ("pull", "never"),
        ("pull", True),
        ("proxies", "http://p"),
        ("proxies", {"http": 1}),
    ],
)
def test_an_unknown_or_unfit_option_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        parse_options({name: value})


@pytest.mark.parametrize(
    ("details", "code"),
    [
        ('runc create failed: x: exec: "nope": executable file not found in $PATH: unknown', 127),
        ('x: exec: "/nope": stat /nope: no such file or directory: unknown', 127),
        ('x: exec: "/etc/passwd": permission denied: unknown', 126),
        ('x: exec: "/": is a directory: unknown', 126),
        ("x: exec /script: no such file or directory: unknown", 127),
        ("x: exec /script: exec format error: unknown", 126),
        ('x: chdir to cwd ("/root") set in config.json failed: permission denied: unknown', 126),
    ],
)
def test_a_program_that_cant_be_executed_ends_as_in_a_shell(details: str, code: int) -> None:
    assert _code_of_unstarted(CallFailed("m", call="Tasks.Create", details=details)) == code


def test_any_other_failure_to_start_is_the_backends() -> None:
    failure = CallFailed("m", call="Tasks.Create", details="cgroups: no space left: unknown")
    with pytest.raises(BackendFailed, match="no space left"):
        _code_of_unstarted(failure)


def test_chain_ids_are_those_of_the_specification() -> None:
    blob = Descriptor("t", "sha256:" + "0" * 64, 1)
    diff_ids = tuple(f"sha256:{n:064x}" for n in range(4))
    layers = tuple(LayerDiff(diff_id, blob) for diff_id in diff_ids)
    assert chain_ids(layers) == [chain_id(diff_ids[:count]) for count in range(1, 5)]
    assert chain_ids(()) == []


def test_a_skeleton_is_the_lowest_layer() -> None:
    mount = Mount(
        "overlay", "overlay", ("index=off", "workdir=/w", "upperdir=/u", "lowerdir=/b:/a")
    )
    (changed,) = with_lowest((mount,), "/s")
    assert changed.options == ("index=off", "workdir=/w", "upperdir=/u", "lowerdir=/b:/a:/s")


def test_the_container_config_is_the_images_own() -> None:
    config = json.dumps({"os": "linux", "config": {"Cmd": ["sh"]}}).encode()
    assert json.loads(container_config(config)) == {"Cmd": ["sh"]}
    assert container_config(b"{}") == b"{}"


def test_an_image_without_a_name_gets_one_from_its_digest() -> None:
    assert dangling_name("sha256:1", moby=True) == "moby-dangling@sha256:1"
    assert dangling_name("sha256:1", moby=False) == "pybuild-dangling@sha256:1"
