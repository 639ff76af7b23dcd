"""Certificates that a RUN trusts besides those of its image, without a trace in the image.

They come as one file, after the image's own bundle, and as the variables by which programs
are told of such a file; apt is told by a configuration file of its own. Nothing of the image is covered, so that its package manager can
replace its bundle meanwhile.
"""

from __future__ import annotations

from contextlib import suppress

from pybuild.backend import SecretMount
from pybuild.errors import CopyFailed
from pybuild.files.trees import Tree, resolve
from pybuild.oci.layerindex import Kind

_TARGET = "/run/pybuild/ca.pem"
# apt reads it before the image's own configuration, which may say something else
_APT_TARGET = "/run/pybuild/apt.conf"
_APT_VARIABLE = "APT_CONFIG"
_APT = f'Acquire::https::CAInfo "{_TARGET}";\n'.encode()
_BUNDLES = (
    b"etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    b"etc/pki/tls/certs/ca-bundle.crt",  # Fedora
    b"etc/ssl/ca-bundle.pem",  # SUSE
    b"etc/ssl/cert.pem",
)
_LARGEST_BUNDLE = 16 << 20
_VARIABLES = (
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
)


def certificate_mounts(ca: bytes, tree: Tree) -> tuple[SecretMount, ...]:
    """The file with the bundle of `tree`, the root of the step, and the certificates `ca`."""
    return (
        SecretMount(_TARGET, _own_bundle(tree) + ca, 0o444),
        SecretMount(_APT_TARGET, _APT, 0o444),
    )


def certificate_variables(env: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """What leads programs to the files; a variable that `env` has stays as it is there."""
    known = {name for name, _ in env}
    values = {**dict.fromkeys(_VARIABLES, _TARGET), _APT_VARIABLE: _APT_TARGET}
    return tuple((name, value) for name, value in values.items() if name not in known)


def _own_bundle(tree: Tree) -> bytes:
    for name in _BUNDLES:
        with suppress(CopyFailed):  # a link that leads nowhere
            path = resolve(tree, name)
            entry = tree.get(path)
            if entry is not None and entry.kind is Kind.FILE and entry.size <= _LARGEST_BUNDLE:
                with tree.open(path) as stream:
                    return stream.read().rstrip(b"\n") + b"\n"
    return b""
