"""The SSH agents of a build: those that run already, and our own for keys in files."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pybuild.errors import UsageError

_SOCKET = "agent"
_SECONDS = 20
# the agent ends with this program, which ends when we do
_UNTIL_CLOSED = 'echo "$SSH_AGENT_PID" && exec cat'


@contextmanager
def open_agents(given: Mapping[str, Sequence[Path]]) -> Iterator[dict[str, Path]]:
    """The socket of an agent for each id: one socket, or the files of private keys.

    Raises UsageError for a path that is neither, or a key that the agent doesn't take.
    """
    with ExitStack() as stack:
        agents: dict[str, Path] = {}
        for ident, paths in given.items():
            kinds = [_is_socket(ident, path) for path in paths]
            if kinds == [True]:
                agents[ident] = paths[0]
            elif not kinds or any(kinds):
                raise UsageError(
                    f"--ssh {ident} is neither one agent's socket nor files of private keys"
                )
            else:
                agents[ident] = stack.enter_context(_own_agent(ident, paths))
        yield agents


def _is_socket(ident: str, path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(f'--ssh {ident}: "{path}": {error.strerror}') from error
    if not stat.S_ISSOCK(mode) and not stat.S_ISREG(mode):
        raise UsageError(f'--ssh {ident}: "{path}" is neither a socket nor a file')
    return stat.S_ISSOCK(mode)


@contextmanager
def _own_agent(ident: str, keys: Sequence[Path]) -> Iterator[Path]:
    """A new agent that knows these keys, on a socket that only this user may use."""
    for program in ("ssh-agent", "ssh-add"):
        if shutil.which(program) is None:
            raise UsageError(
                f"--ssh {ident}: the program {program} is missing, which keys in files need",
                hint="install openssh-client, or give the socket of an agent",
            )
    with tempfile.TemporaryDirectory(prefix="pybuild-agent-") as folder:
        path = Path(folder) / _SOCKET
        process = subprocess.Popen(
            ["ssh-agent", "-a", str(path), "sh", "-c", _UNTIL_CLOSED],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdin is not None  # noqa: S101 - both were asked for
        assert process.stdout is not None  # noqa: S101 - as above
        agent = 0
        try:
            line = process.stdout.readline()
            if not line.strip().isdigit():
                raise UsageError(f"--ssh {ident}: ssh-agent doesn't start")
            agent = int(line)
            for key in keys:
                _add_key(ident, key, path)
            yield path
        finally:
            if agent:  # alive, since its program is: the number is nobody else's
                with suppress(ProcessLookupError):
                    os.kill(agent, signal.SIGTERM)
            process.stdin.close()
            process.stdout.close()
            process.wait()


def _add_key(ident: str, key: Path, agent: Path) -> None:
    try:
        ended = subprocess.run(
            ["ssh-add", "-q", "--", str(key)],
            env={"SSH_AUTH_SOCK": str(agent), "SSH_ASKPASS_REQUIRE": "never", "PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            start_new_session=True,  # without a terminal it can't ask for a passphrase
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f'--ssh {ident}: ssh-add doesn\'t take "{key}": {error}') from error
    if ended.returncode:
        reason = ended.stderr.strip().splitlines()[-1:] or ["it needs a passphrase"]
        raise UsageError(
            f'--ssh {ident}: ssh-add doesn\'t take "{key}": {reason[0]}',
            hint="add a key with a passphrase to an agent, and give that agent's socket",
        )
