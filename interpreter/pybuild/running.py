"""Running a process in an image, on files that are thrown away afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from subprocess import CompletedProcess

from pybuild.backend import (
    Activity,
    Backend,
    BaseImage,
    Capability,
    Mount,
    Network,
    Process,
    PullPolicy,
    User,
)
from pybuild.backends import DEFAULT_BACKEND, open_backend
from pybuild.errors import UnsupportedByBackend, UsageError
from pybuild.files.users import resolve_user
from pybuild.oci.image_config import ImageConfig
from pybuild.oci.platform import Platform, parse_platform
from pybuild.oci.reference import parse_reference, with_default_tag
from pybuild.run.activity import CancelToken

OnOutput = Callable[[int, bytes], object]
"""Takes the stream, 1 or 2, and a piece of what was written to it, while the process runs."""


def run_image(
    image: str,
    args: Sequence[str] = (),
    *,
    backend: str | Backend | None = None,
    backend_options: Mapping[str, object] | None = None,
    platform: str | Platform | None = None,
    pull: PullPolicy = PullPolicy.MISSING,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    workdir: str | None = None,
    network: Network = Network.DEFAULT,
    on_output: OnOutput | None = None,
    cancel: CancelToken | None = None,
) -> CompletedProcess[bytes]:
    """Run the image's entrypoint with `args`, by default with its command, to the end.

    `backend` is as in :func:`pybuild.build`, the rest and the result as in
    :func:`run_process_in`. Raises a :class:`~pybuild.errors.PybuildError`.
    """
    cancel = cancel or CancelToken()
    with ExitStack() as stack:
        if not isinstance(backend, Backend):
            backend = stack.enter_context(open_backend(backend or DEFAULT_BACKEND, backend_options))
        _check_runs(backend)
        wanted = parse_platform(platform) if isinstance(platform, str) else platform
        base = backend.resolve(
            with_default_tag(parse_reference(image)),
            wanted or backend.platforms[0],
            pull,
            _Watch(None, cancel),
        )
        return run_process_in(
            backend,
            base,
            image_command(base.config, args, image),
            env=env,
            user=user,
            workdir=workdir,
            network=network,
            on_output=on_output,
            cancel=cancel,
        )


def run_process_in(
    backend: Backend,
    base: BaseImage,
    args: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    workdir: str | None = None,
    network: Network = Network.DEFAULT,
    mounts: Sequence[Mount] = (),
    on_output: OnOutput | None = None,
    cancel: CancelToken | None = None,
) -> CompletedProcess[bytes]:
    """Run exactly `args` on the image's files, to the end.

    `env` is added to the image's; `user` and `workdir` stand in for the image's. The process
    may change the files, and nothing of that is kept. It has no standard input. The result
    has its arguments, exit code (128+n for signal n) and output, unless `on_output` takes
    that. Raises a :class:`~pybuild.errors.PybuildError`.
    """
    watch = _Watch(on_output, cancel or CancelToken())
    _check_runs(backend)
    with backend.checkout(base, watch) as layer:
        identity = resolve_user(layer.tree(), user if user is not None else base.config.user)
        process = Process(
            args=tuple(args),
            env=tuple((dict(base.config.env) | dict(env or {})).items()),
            cwd=workdir or base.config.working_dir or "/",
            user=User(identity.uid, identity.gid, identity.groups),
            network=network,
        )
        with layer.begin(runs=True) as files:
            code = files.run(process, mounts, watch)
    return CompletedProcess(
        list(process.args), code, bytes(watch.written[1]), bytes(watch.written[2])
    )


def image_command(config: ImageConfig, args: Sequence[str], image: str) -> tuple[str, ...]:
    """The image's entrypoint with `args`, by default with its command. Raises UsageError."""
    command = (*(config.entrypoint or ()), *(args or config.cmd or ()))
    if not command:
        raise UsageError(
            f"the image {image} has neither an entrypoint nor a command",
            hint="say what to run in it",
        )
    return command


def _check_runs(backend: Backend) -> None:
    if Capability.RUN not in backend.capabilities:
        raise UnsupportedByBackend(f'the backend "{backend.name}" runs no processes')
    backend.require(frozenset({Capability.RUN}))


def process_activity(on_output: OnOutput, cancel: CancelToken) -> Activity:
    """Passes on what a process writes, and nothing else."""
    return _Watch(on_output, cancel)


class _Watch:
    """Keeps what the process writes, or passes it on."""

    def __init__(self, on_output: OnOutput | None, cancel: CancelToken) -> None:
        self.written = {1: bytearray(), 2: bytearray()}
        self._on_output = on_output
        self._cancel = cancel

    def log(self, stream: int, data: bytes) -> None:
        if self._on_output is not None:
            self._on_output(stream, data)
        else:
            self.written[stream] += data

    def progress(self, item: str, done: int, total: int | None) -> None:
        pass

    def warn(self, message: str, hint: str | None = None) -> None:
        pass

    def raise_if_cancelled(self) -> None:
        self._cancel.raise_if_cancelled()

    def on_cancel(self, callback: Callable[[], None]) -> AbstractContextManager[None]:
        return self._cancel.on_cancel(callback)
