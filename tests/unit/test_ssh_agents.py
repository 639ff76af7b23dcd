"""Agents of the caller, agents of our own, and the sockets that lead to them."""

import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from leftthreads import no_thread_left
from pybuild.errors import UsageError
from pybuild.run.agentproxy import agent_proxy
from pybuild.run.sshkeys import open_agents

IDENTITIES = b"\0\0\0\1\x0b"  # SSH_AGENTC_REQUEST_IDENTITIES


def receive(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(1 << 16):
        data += piece
    return data


@pytest.fixture
def echo(short_path: Path) -> Iterator[Path]:
    """An agent that answers each request by itself."""
    path = short_path / "echo"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer(client: socket.socket) -> None:
            with client:
                while piece := client.recv(1 << 16):
                    client.sendall(piece)

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(client,), daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        yield path
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def short_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The path of a socket may have 107 bytes."""
    folder = Path(tmp_path_factory.mktemp("s"))
    yield folder
    shutil.rmtree(folder)


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(str(path))
    return connection


def message(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def test_requests_are_answered_by_the_agent(echo: Path) -> None:
    with agent_proxy(echo) as path, connected(path) as one, connected(path) as other:
        for connection, body in ((one, b"a"), (other, b"b" * 200_000), (one, b"c"), (one, b"d")):
            connection.sendall(message(body))
            received = b""
            while len(received) < len(body) + 4:
                received += connection.recv(1 << 16)
            assert received == message(body)


@pytest.mark.parametrize("head", [b"\xff\xff\xff\xff", b"\0\4\0\1", b"\0\0\0\0"])
def test_a_message_that_is_too_long_ends_the_connection(echo: Path, head: bytes) -> None:
    with agent_proxy(echo) as path:
        with connected(path) as connection:
            connection.sendall(head)
            assert receive(connection) == b""
        with connected(path) as connection:
            connection.sendall(message(b"still"))
            assert connection.recv(9) == message(b"still")


def test_an_agent_that_is_gone_ends_the_connection(short_path: Path) -> None:
    with agent_proxy(short_path / "gone") as path, connected(path) as connection:
        assert receive(connection) == b""


def test_the_socket_is_private_and_gone_afterwards(echo: Path) -> None:
    with agent_proxy(echo) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        connection = connected(path)
    with connection:
        assert receive(connection) == b""
    assert not path.parent.exists()


def test_a_client_that_says_nothing_holds_nobody_up(echo: Path) -> None:
    with (
        no_thread_left(),
        agent_proxy(echo) as path,
        connected(path) as silent,
        connected(path) as connection,
    ):
        silent.sendall(b"\0")
        connection.sendall(message(b"x"))
        assert connection.recv(5) == message(b"x")


# Agents


@pytest.fixture
def key(tmp_path: Path) -> Path:
    for program in ("ssh-keygen", "ssh-agent", "ssh-add"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    path = tmp_path / "key"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "a test's", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def test_a_socket_is_the_agent(echo: Path) -> None:
    with open_agents({"default": [echo]}) as agents:
        assert agents == {"default": echo}


def test_keys_get_an_agent_that_ends_with_the_build(key: Path) -> None:
    with open_agents({"a": [key], "b": [key]}) as agents:
        assert agents["a"] != agents["b"]
        for path in agents.values():
            with agent_proxy(path) as proxy, connected(proxy) as connection:
                connection.sendall(IDENTITIES)
                answer = connection.recv(1 << 16)
                assert answer[4:9] == b"\x0c\0\0\0\1"  # SSH_AGENT_IDENTITIES_ANSWER, one key
                assert b"a test's" in answer
    for path in agents.values():
        assert not path.parent.exists()


def test_a_key_with_a_passphrase_is_refused_without_asking(key: Path) -> None:
    command = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "long phrase", "-f", str(key)]
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    with pytest.raises(UsageError) as caught, open_agents({"a": [key]}):
        pass
    assert "--ssh a" in caught.value.message
    assert caught.value.hint is not None
    assert "passphrase" in caught.value.hint


@pytest.mark.parametrize("paths", [["missing"], ["."], ["nokey"], ["agent", "nokey"], []])
def test_what_is_neither_an_agent_nor_keys_is_refused(
    paths: list[str], echo: Path, tmp_path: Path, key: Path
) -> None:
    (tmp_path / "nokey").write_text("no key\n")
    (tmp_path / "nokey").chmod(0o600)
    named = [echo if path == "agent" else tmp_path / path for path in paths]
    with pytest.raises(UsageError, match="--ssh a"), open_agents({"a": named}):
        pass


def test_a_machine_without_the_programs_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(UsageError, match="ssh-agent is missing"),
        open_agents({"a": [tmp_path / "key"]}),
    ):
        pass
