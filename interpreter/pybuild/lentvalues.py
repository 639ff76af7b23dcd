"""What the command line's ``--ssh`` and ``--ca`` stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pybuild.errors import UsageError
from pybuild.lendingflags import SshOption

_CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_LARGEST_BUNDLE = 16 << 20


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
    texts = [_read(path).rstrip(b"\n") + b"\n" for path in named]
    for path, text in zip(named, texts, strict=True):
        if b"-----BEGIN CERTIFICATE-----" not in text:
            raise UsageError(f'--ca: there is no certificate in "{path}"', hint="it must be PEM")
    return b"".join(texts) if texts else None


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_LARGEST_BUNDLE + 1)
    except OSError as error:
        raise UsageError(f'--ca: can\'t read "{path}": {error.strerror or error}') from error
    if len(data) > _LARGEST_BUNDLE:
        raise UsageError(f'--ca: "{path}" is larger than {_LARGEST_BUNDLE} bytes')
    return data
