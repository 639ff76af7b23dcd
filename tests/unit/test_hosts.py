from __future__ import annotations

from pathlib import Path

import pytest

from pybuild.errors import UsageError
from pybuild.oci.hosts import Endpoint, HostCapability, default_endpoint, load_hosts, parse_hosts

FOLDER = Path("certs.d")


def parse(text: str, registry: str = "example.com") -> tuple[Endpoint, ...]:
    return parse_hosts(text, registry, FOLDER, "hosts.toml")


@pytest.mark.parametrize(
    ("registry", "url", "plain_fallback"),
    [
        ("docker.io", "https://registry-1.docker.io/v2", False),
        ("example.com", "https://example.com/v2", False),
        ("example.com:5000", "https://example.com:5000/v2", False),
        ("localhost:5000", "https://localhost:5000/v2", True),
        ("127.0.0.1:5000", "https://127.0.0.1:5000/v2", True),
        ("127.9.9.9:1", "https://127.9.9.9:1/v2", True),
        ("[::1]:5000", "https://[::1]:5000/v2", True),
        ("localhost:443", "https://localhost:443/v2", False),
        ("localhost:80", "http://localhost:80/v2", False),
        ("localhost.example.com:5000", "https://localhost.example.com:5000/v2", False),
        ("128.0.0.1:5000", "https://128.0.0.1:5000/v2", False),
    ],
)
def test_only_this_machine_may_fall_back_to_plain_http(
    registry: str, url: str, plain_fallback: bool
) -> None:
    endpoint = default_endpoint(registry)
    assert (endpoint.url, endpoint.plain_fallback) == (url, plain_fallback)
    assert not endpoint.tls.skip_verify


def test_docker_hub_is_called_by_its_common_name() -> None:
    assert default_endpoint("docker.io").host == "docker.io"
    assert default_endpoint("example.com:5000").host == "example.com:5000"


def test_mirrors_come_in_order_and_the_server_last() -> None:
    endpoints = parse(
        """
        server = "https://upstream.example"
        [host."https://second.example"]
        [host."http://first.example:5000/sub"]
        capabilities = ["pull"]
        """
    )
    assert [endpoint.url for endpoint in endpoints] == [
        "https://second.example/v2",
        "http://first.example:5000/sub/v2",
        "https://upstream.example/v2",
    ]
    assert endpoints[0].capabilities == frozenset(HostCapability)
    assert endpoints[1].capabilities == {HostCapability.PULL}
    assert [endpoint.namespace for endpoint in endpoints] == ["example.com"] * 3


def test_without_a_server_the_registry_itself_is_last() -> None:
    endpoints = parse('[host."https://mirror.example"]', "localhost:5000")
    assert endpoints[-1] == default_endpoint("localhost:5000")


def test_the_registry_itself_gets_no_namespace() -> None:
    endpoints = parse('server = "https://registry-1.docker.io"', "docker.io")
    assert [endpoint.namespace for endpoint in endpoints] == [None]


def test_every_member_is_read() -> None:
    (endpoint, _) = parse(
        """
        [host."https://mirror.example/v2/"]
        ca = ["a.pem", "/b.pem"]
        client = [["c.pem", "c.key"], ["d.pem", ""], "e.pem"]
        skip_verify = true
        override_path = true
        dial_timeout = "1500ms"
        [host."https://mirror.example/v2/".header]
        x-one = "1"
        x-two = ["2", "3"]
        """
    )
    assert endpoint.url == "https://mirror.example/v2"
    assert endpoint.tls.ca_files == (FOLDER / "a.pem", Path("/b.pem"))
    assert endpoint.tls.client_pairs == (
        (FOLDER / "c.pem", FOLDER / "c.key"),
        (FOLDER / "d.pem", None),
        (FOLDER / "e.pem", None),
    )
    assert endpoint.tls.skip_verify
    assert endpoint.headers == {"x-one": "1", "x-two": "2, 3"}
    assert endpoint.connect_timeout == 1.5


def test_a_path_overrides_the_apis_root() -> None:
    (endpoint, _) = parse('[host."https://m.example/api"]\noverride_path = true')
    assert endpoint.url == "https://m.example/api"


@pytest.mark.parametrize(
    "text",
    [
        "server = ",
        "server = 1",
        'server = "ftp://x"',
        'server = "https://user:secret@x"',
        'server = "https://x/?q"',
        'server = "https://x:99999"',
        "host = 1",
        '[host."https://x"]\nunknown = 1',
        '[host."https://x"]\ncapabilities = ["fly"]',
        '[host."https://x"]\ncapabilities = 7',
        '[host."https://x"]\nca = 1',
        '[host."https://x"]\nclient = [["a", "b", "c"]]',
        '[host."https://x"]\nclient = 1',
        '[host."https://x"]\nskip_verify = "yes"',
        '[host."https://x"]\nheader = 1',
        '[host."https://x".header]\nx = "a\\r\\nAuthorization: b"',
        '[host."https://x".header]\n"a b" = "c"',
        '[host."https://x"]\ndial_timeout = "soon"',
        '[host."https://x"]\ndial_timeout = "0s"',
        'host."https://x" = 1',
    ],
)
def test_a_malformed_file_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match=r"hosts\.toml") as caught:
        parse(text)
    assert "secret" not in caught.value.message


def test_files_are_found_by_host_port_and_default(tmp_path: Path) -> None:
    def put(name: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "hosts.toml").write_text(f'server = "https://{len(name)}.example"')

    hosts = load_hosts(tmp_path)
    assert hosts.endpoints("example.com:5000") == (default_endpoint("example.com:5000"),)
    put("_default")
    assert hosts.endpoints("example.com:5000")[0].url == "https://8.example/v2"
    put("example.com:5000")
    assert hosts.endpoints("example.com:5000")[0].url == "https://16.example/v2"
    put("example.com_5000_")
    assert hosts.endpoints("example.com:5000")[0].url == "https://17.example/v2"
    assert hosts.endpoints("other.example")[0].url == "https://8.example/v2"


def test_a_missing_folder_means_the_defaults(tmp_path: Path) -> None:
    for directory in (None, tmp_path / "missing"):
        assert load_hosts(directory).endpoints("a.example") == (default_endpoint("a.example"),)


def test_headers_stay_out_of_the_repr() -> None:
    (endpoint, _) = parse('[host."https://x".header]\nx-token = "canary"')
    assert "canary" not in repr(endpoint)
