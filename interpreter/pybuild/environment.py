"""What the command line and the environment say together: backends, registries, outputs, secrets.

The environment is a mapping here; :mod:`pybuild.cli` alone reads it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pybuild.arguments import BackendArguments, BuildArguments, SourceArguments
from pybuild.backends import DEFAULT_BACKEND
from pybuild.errors import UsageError
from pybuild.export.outputs import (
    DEFAULT_DOCKER_HOST,
    STANDARD_OUTPUT,
    BackendLoadOutput,
    DockerLoadOutput,
    DockerOutput,
    ImageOutput,
    OciOutput,
    Output,
    RegistryOutput,
    TarOutput,
)
from pybuild.flagvalues import parse_build_arg_file, parse_size
from pybuild.imagestore import parse_share
from pybuild.remotes.options import RemoteOptions
from pybuild.run.inputs import read_limited
from pybuild.secrets import Secret
from pybuild.values import replace

if TYPE_CHECKING:
    from pybuild.oci.registry import RegistryClient

_HOSTS_DIRS = ("/etc/containerd/certs.d", "/etc/docker/certs.d")
_LARGEST_SECRET = 500 * 1024


def backend_name(arguments: BackendArguments, environ: Mapping[str, str]) -> str:
    """The backend that is asked for, or the default one."""
    named = arguments.backend or environ.get("PYBUILD_BACKEND")
    # who says where containerd is, means containerd
    about_containerd = arguments.address or arguments.namespace or arguments.snapshotter
    return named or ("containerd" if about_containerd else DEFAULT_BACKEND)


def backend_options(
    arguments: BackendArguments, environ: Mapping[str, str], backend: str | None = None
) -> Mapping[str, object]:
    """What a backend is told of the command line and the environment: it reads neither itself.

    `backend` names another one than the arguments do.
    """
    registries: dict[str, object | None] = {
        "docker_config": _docker_config(environ),
        "proxies": proxies_of(environ),
        "hosts_dir": arguments.hosts_dir or _hosts_dir(),
    }
    match backend or backend_name(arguments, environ):
        case "containerd":
            options = registries | _containerd_options(arguments, environ)
        case "embedded":
            root = arguments.root or environ.get("PYBUILD_ROOT")
            options = registries | {
                "root": root,
                "runner": arguments.runner,
                "max_size": _max_size(environ.get("PYBUILD_MAX_SIZE")),
            }
        case _:
            return {}
    return {name: value for name, value in options.items() if value is not None and value != ""}


def _max_size(text: str | None) -> int | str | None:
    """In bytes, or as a share of the disk. Raises UsageError."""
    if not text or parse_share(text) is not None:
        return text
    try:
        return parse_size(text)
    except UsageError as error:
        raise UsageError(
            f'PYBUILD_MAX_SIZE: "{text}" is no size', hint="write it like 20g, or 15% of the disk"
        ) from error


def _containerd_options(
    arguments: BackendArguments, environ: Mapping[str, str]
) -> dict[str, object | None]:
    return {
        "address": arguments.address,
        "environment_address": environ.get("CONTAINERD_ADDRESS"),
        "xdg_runtime_dir": environ.get("XDG_RUNTIME_DIR"),
        "namespace": arguments.namespace or environ.get("CONTAINERD_NAMESPACE"),
        "snapshotter": arguments.snapshotter or environ.get("CONTAINERD_SNAPSHOTTER"),
        "runner": arguments.runner,
        "moby_labels": arguments.moby_labels or None,
        "unpack": arguments.unpack,
    }


def outputs_of(
    arguments: BuildArguments,
    environ: Mapping[str, str],
    standard_output: Callable[[], BinaryIO],
) -> list[Output]:
    """The outputs, with what only the surroundings know: streams, and where Docker is.

    `standard_output` is asked for where one goes there. Raises UsageError.
    """
    outputs = [_placed(output, environ, standard_output) for output in arguments.outputs]
    if sum(map(uses_standard_output, ([one] for one in arguments.outputs))) > 1:
        raise UsageError("only one output can go to standard output")
    if arguments.push:
        outputs = [replace(o, push=True) if isinstance(o, ImageOutput) else o for o in outputs]
        if not any(isinstance(o, ImageOutput | RegistryOutput) for o in outputs):
            outputs.append(RegistryOutput())
    if arguments.load:
        loaded = _load_output(arguments, environ)
        if not any(type(one) is type(loaded) for one in outputs):
            outputs.append(loaded)
    return outputs


def uses_standard_output(outputs: Sequence[Output]) -> bool:
    """Whether any of these, as they were parsed, goes to standard output."""
    return any(getattr(output, "dest", None) == STANDARD_OUTPUT for output in outputs)


def _placed(
    output: Output, environ: Mapping[str, str], standard_output: Callable[[], BinaryIO]
) -> Output:
    match output:
        case DockerLoadOutput():
            return replace(output, host=environ.get("DOCKER_HOST") or output.host)
        case OciOutput() | DockerOutput() | TarOutput() if output.dest == STANDARD_OUTPUT:
            return replace(output, dest=standard_output())
        case _:
            return output


def _load_output(arguments: BuildArguments, environ: Mapping[str, str]) -> Output:
    """Where ``--load`` goes: the store itself if it is containerd's, else Docker, else there."""
    if backend_name(arguments, environ) == "containerd":
        return ImageOutput()
    host = environ.get("DOCKER_HOST")
    here = Path(DEFAULT_DOCKER_HOST.removeprefix("unix://")).exists()
    if arguments.address is None and (host or here):
        return DockerLoadOutput(host=host or DEFAULT_DOCKER_HOST)
    return BackendLoadOutput(
        backend="containerd", options=backend_options(arguments, environ, "containerd")
    )


def registry_of(
    arguments: BuildArguments, environ: Mapping[str, str], outputs: Sequence[Output]
) -> RegistryClient | None:
    """What pushes, and has to do with caches, if anything does: with the logins of ``docker login``."""
    pushes = any(isinstance(o, RegistryOutput) or getattr(o, "push", False) for o in outputs)
    if not (pushes or arguments.cache_from or arguments.cache_to):
        return None
    return open_registry(arguments, environ)


def open_registry(arguments: BackendArguments, environ: Mapping[str, str]) -> RegistryClient:
    """A client with the logins of ``docker login`` and the mirrors of this machine."""
    from pybuild.oci.auth import DockerCredentials  # noqa: PLC0415  (few builds push)
    from pybuild.oci.hosts import load_hosts  # noqa: PLC0415
    from pybuild.oci.registry import RegistryClient  # noqa: PLC0415

    hosts = load_hosts(arguments.hosts_dir or _hosts_dir())
    credentials = DockerCredentials(_docker_config(environ))
    return RegistryClient(hosts, credentials, proxies=proxies_of(environ))


def locked_by(arguments: BuildArguments) -> str | bool:
    """The path of the lock file, True for that beside the Dockerfile, False for none."""
    return False if arguments.locked is None else arguments.locked or True


def build_args_of(arguments: SourceArguments, environ: Mapping[str, str]) -> dict[str, str]:
    """The build args, those of files too. Raises UsageError."""
    values: dict[str, str] = {}
    for path in arguments.build_arg_files:
        text = _read(path, "the file of build args").decode("utf-8", "surrogateescape")
        values |= parse_build_arg_file(text, environ)
    return values | dict(arguments.build_args)


def secrets_of(arguments: SourceArguments, environ: Mapping[str, str]) -> dict[str, Secret]:
    """The secrets by their ids, read where they are. Raises UsageError."""
    found: dict[str, Secret] = {}
    for secret in arguments.secrets:
        if secret.path is not None:
            value = _read(secret.path, f"the secret {secret.id}")
        elif secret.env is None or secret.env not in environ:
            raise UsageError(f"the secret {secret.id} is not in the environment")
        else:
            value = os.fsencode(environ[secret.env])
        if len(value) > _LARGEST_SECRET:
            raise UsageError(f"the secret {secret.id} has more than {_LARGEST_SECRET} bytes")
        found[secret.id] = Secret(value)
    return found


def _read(path: str, what: str) -> bytes:
    try:
        with Path(path).open("rb") as stream:
            return read_limited(stream, what)
    except OSError as error:
        raise UsageError(f'can\'t read {what} "{path}": {error.strerror or error}') from error


def remote_options(arguments: SourceArguments, environ: Mapping[str, str]) -> RemoteOptions:
    """How sources on the network are fetched."""
    return RemoteOptions(
        proxies=proxies_of(environ),
        public_only=arguments.public_only,
        search_path=environ.get("PATH"),
        ssh_agent=environ.get("SSH_AUTH_SOCK"),
    )


def _docker_config(environ: Mapping[str, str]) -> str | None:
    folder = environ.get("DOCKER_CONFIG")
    try:
        path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
        return str(path) if path.is_file() else None
    except (RuntimeError, PermissionError):  # no home folder, or one that isn't this user's
        return None


def proxies_of(environ: Mapping[str, str]) -> dict[str, str]:
    """As :func:`urllib.request.getproxies_environment`, whose module takes 30 ms to load."""
    # lower case goes before upper; in a CGI program HTTP_PROXY is a client's header
    names = sorted((name for name in environ if name.lower().endswith("_proxy")), key=str.islower)
    if "REQUEST_METHOD" in environ:
        names = [name for name in names if name != "HTTP_PROXY"]
    found = {name.lower().removesuffix("_proxy"): environ[name] for name in names}
    return {kind: value for kind, value in found.items() if kind and value}


def _hosts_dir() -> str | None:
    """Where containerd's own tools look for the mirrors of registries."""
    return next((path for path in _HOSTS_DIRS if Path(path).is_dir()), None)
