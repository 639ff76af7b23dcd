"""What the command line's ``--secret``, ``--ssh`` and ``--ca`` stand for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pybuild.errors import UsageError
from pybuild.lendingflags import SecretOption, SshOption
from pybuild.secrets import Secret

_CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_LARGEST_LENT = 16 << 20


def read_secrets(options: Sequence[SecretOption], environ: Mapping[str, str]) -> dict[str, Secret]:
    """The values; an id alone is a variable's name, or a file's if there is no such variable.

    Raises UsageError.
    """
    found: dict[str, Secret] = {}
    for option in options:
        variable, file = option.variable, option.file
        if variable is None and file is None:
            variable, file = (option.id, None) if option.id in environ else (None, option.id)
        if variable is not None and variable not in environ:
            raise UsageError(f"--secret {option.id}: there is no variable {variable}")
        value = os.fsencode(environ[variable]) if variable else _read(file or "", "--secret")
        found[option.id] = Secret(value)
    return found


def find_agents(
    options: Sequence[SshOption], environ: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """The paths for each id; without any, the agent of the environment. Raises UsageError."""
    found = {option.id: option.paths for option in options}
    for ident, paths in found.items():
        if not paths and not environ.get("SSH_AUTH_SOCK"):
            raise UsageError(
                f"--ssh {ident}: no SSH agent is running (SSH_AUTH_SOCK is not set)",
                hint=f"start one, or give a private key: --ssh {ident}=FILE",
            )
    return {ident: paths or (environ["SSH_AUTH_SOCK"],) for ident, paths in found.items()}


def read_certificates(paths: Sequence[str]) -> bytes | None:
    """All certificates, one after the other; ``host`` stands for this machine's bundle.

    Raises UsageError.
    """
    bundle = next((path for path in _CA_BUNDLES if Path(path).is_file()), None)
    if "host" in paths and bundle is None:
        raise UsageError("--ca host: this machine has no bundle of certificates")
    named = [bundle if path == "host" and bundle else path for path in paths]
    texts = [_read(path, "--ca").rstrip(b"\n") + b"\n" for path in named]
    for path, text in zip(named, texts, strict=True):
        if b"-----BEGIN CERTIFICATE-----" not in text:
            raise UsageError(f'--ca: there is no certificate in "{path}"', hint="it must be PEM")
    return b"".join(texts) if texts else None


def _read(path: str, flag: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_LARGEST_LENT + 1)
    except OSError as error:
        raise UsageError(f'{flag}: can\'t read "{path}": {error.strerror or error}') from error
    if len(data) > _LARGEST_LENT:
        raise UsageError(f'{flag}: "{path}" is larger than {_LARGEST_LENT} bytes')
    return data
