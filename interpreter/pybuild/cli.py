"""The command ``pybuild``: the only file that reads the environment, handles signals, prints.

Exit codes are those of :mod:`pybuild.errors`. Standard output gets the result alone: for each
name of the image a line ``NAME DIGEST``, for an unnamed one the digest, with ``-q`` only the
digest. All else goes to standard error. Digests are the manifest's, or the index's of several
platforms, which is what containerd, and Docker on containerd, know an image by; the config's
is in ``--metadata-file``.
"""

from __future__ import annotations

import io
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, TextIO, cast

from pybuild import __version__
from pybuild.api import build, plan_build
from pybuild.arguments import (
    PROGRESS_MODES,
    STORE_COMMANDS,
    BackendArguments,
    BuildArguments,
    CallArguments,
    DoctorArguments,
    parse_arguments,
    parse_build_arg_file,
)
from pybuild.backends import DEFAULT_BACKEND, open_backend
from pybuild.checks import CheckResult, OutlineResult, TargetsResult, check, outline, targets
from pybuild.diagnostics import describe_error
from pybuild.errors import EXIT_BUG, BuildCancelled, PybuildError, UnsupportedByBackend, UsageError
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
from pybuild.lentvalues import find_agents, read_certificates
from pybuild.oci.auth import DockerCredentials
from pybuild.oci.hosts import load_hosts
from pybuild.oci.manifest import descriptor_as_json
from pybuild.oci.platform import platform_as_json
from pybuild.oci.registry import RegistryClient
from pybuild.pipes import CancellableInput, CancellableOutput
from pybuild.plan import describe_plan, plan_as_json
from pybuild.remotes.options import RemoteOptions
from pybuild.run.activity import CancelToken
from pybuild.run.events import Event, LintReported, Reporter, Warned
from pybuild.run.inputs import read_limited
from pybuild.run.progress.lint import short_text
from pybuild.run.progress.plain import PlainReporter, warning_text
from pybuild.run.result import BuildResult
from pybuild.secrets import Secret

_HOSTS_DIRS = ("/etc/containerd/certs.d", "/etc/docker/certs.d")
_LARGEST_SECRET = 500 * 1024
EXIT_CANCELLED = BuildCancelled.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; what ``[project.scripts]`` calls."""
    words = sys.argv[1:] if argv is None else list(argv)
    debug = "-D" in words or "--debug" in words
    shows_output = False
    try:
        if words[:1] and words[0] in STORE_COMMANDS:
            return _store_command(words)
        arguments = parse_arguments(words, os.environ, __version__)
        if isinstance(arguments, DoctorArguments):
            return _doctor(arguments)
        shows_output = _progress_mode(arguments) in {"plain", "rawjson"}
        if arguments.call:
            return _call(arguments, arguments.call)
        if arguments.dry_run:
            return _dry_run(arguments)
        return _build(arguments)
    except PybuildError as error:
        if debug:
            _complain(traceback.format_exc())
        _complain(describe_error(error, error.files, with_output=not shows_output))
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_CANCELLED
    except BrokenPipeError:  # nobody reads the result
        return EXIT_CANCELLED
    except Exception:  # noqa: BLE001  # whatever it is, the user can't have meant it
        _complain(traceback.format_exc())
        _complain("error: this is a bug in pybuild; please report it with the lines above")
        return EXIT_BUG


def _complain(text: str) -> None:
    try:
        print(text.rstrip("\n"), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _give_up(sys.stderr)


def _give_up(stream: TextIO) -> None:
    """Send the rest nowhere: Python's own flush at exit would fail on it again, and say so."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _print(text: str) -> None:
    """Write to standard output, at once. Raises BrokenPipeError, UsageError."""
    try:
        print(text, flush=True)
    except OSError as error:
        _give_up(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        reason = error.strerror or error
        raise UsageError(f"can't write to standard output: {reason}") from error


def _build(arguments: BuildArguments) -> int:
    cancel = CancelToken()
    _remove_stale(arguments.iidfile)
    with ExitStack() as stack:
        stack.enter_context(_cancelled_by_signals(cancel))
        reporter = stack.enter_context(_reporter(arguments, cancel))
        context, dockerfile = _inputs(arguments, cancel)
        outputs = _outputs(arguments, cancel)
        result = build(
            context,
            dockerfile=dockerfile,
            tags=arguments.tags,
            backend=_backend_name(arguments),
            backend_options=_backend_options(arguments),
            build_args=_build_args(arguments),
            target=arguments.target,
            platform=arguments.platforms,
            pull=arguments.pull,
            no_cache=arguments.no_cache,
            no_cache_filter=arguments.no_cache_filter,
            labels=arguments.labels,
            annotations=arguments.annotations,
            index_annotations=arguments.index_annotations,
            network=arguments.network,
            add_hosts=arguments.add_hosts,
            shm_size=arguments.shm_size,
            ulimits=arguments.ulimits,
            cgroup_parent=arguments.cgroup_parent,
            allow=arguments.allow,
            contexts=arguments.contexts,
            secrets=_secrets(arguments),
            ssh=find_agents(arguments.ssh, os.environ),
            ca=read_certificates(arguments.ca),
            remotes=_remote_options(arguments),
            reporter=reporter,
            cancel=cancel,
            outputs=outputs,
            registry=_registry(arguments, outputs, stack),
        )
    _write_files(arguments, result)
    if _uses_standard_output(arguments.outputs):
        return 0
    if arguments.quiet or not result.names:
        _print(result.digest)
    else:
        _print("\n".join(f"{name} {result.digest}" for name in result.names))
    return 0


def _dry_run(arguments: BuildArguments) -> int:
    cancel = CancelToken()
    with _cancelled_by_signals(cancel):
        context, dockerfile = _inputs(arguments, cancel)
        name = _backend_name(arguments)
        planned = plan_build(
            context,
            dockerfile=dockerfile,
            backend=None if name == "none" else name,
            backend_options=_backend_options(arguments),
            build_args=_build_args(arguments),
            target=arguments.target,
            platform=arguments.platforms,
            pull=arguments.pull,
            labels=arguments.labels,
            network=arguments.network,
            add_hosts=arguments.add_hosts,
            shm_size=arguments.shm_size,
            ulimits=arguments.ulimits,
            cgroup_parent=arguments.cgroup_parent,
            allow=arguments.allow,
            contexts=arguments.contexts,
            secrets=_secrets(arguments),
            remotes=_remote_options(arguments),
            reporter=_Warnings(),
            cancel=cancel,
        )
    _encodable(sys.stdout)
    missing = [str(reference) for reference in planned.unresolved]
    if arguments.dry_run == "json":
        document = {**plan_as_json(planned.plan), "not_resolved": missing}
        _print(json.dumps(document, indent=2))
        return 0
    lines = [describe_plan(planned.plan).rstrip("\n")]
    lines += [
        f"not resolved: {reference} (its environment, user and ONBUILD are not in the plan)"
        for reference in missing
    ]
    _print("\n".join(lines))
    return 0


def _call(arguments: BuildArguments, call: CallArguments) -> int:
    """Print what the Dockerfile tells. Ends with 1 where a check found something."""
    from pybuild.reports import as_json, describe  # noqa: PLC0415  (a build needs none of it)

    result = _called(arguments, call.name)
    _encodable(sys.stdout)
    text = json.dumps(as_json(result), indent=2) if call.as_json else describe(result)
    if text:
        _print(text)
    if not isinstance(result, CheckResult):
        return 0
    if result.error is not None:
        raise result.error
    return 1 if result.warnings and not call.ignore_status else 0


def _called(arguments: BuildArguments, name: str) -> CheckResult | OutlineResult | TargetsResult:
    cancel = CancelToken()
    with _cancelled_by_signals(cancel):
        context, dockerfile = _inputs(arguments, cancel)
        if name == "targets":
            return targets(
                context, dockerfile=dockerfile, build_args=arguments.build_args, cancel=cancel
            )
        backend = _backend_name(arguments)
        ask: Callable[..., CheckResult | OutlineResult] = check if name == "check" else outline
        return ask(
            context,
            dockerfile=dockerfile,
            backend=None if backend == "none" else backend,
            backend_options=_backend_options(arguments),
            build_args=arguments.build_args,
            target=arguments.target,
            platform=arguments.platforms,
            pull=arguments.pull,
            reporter=_Warnings(),
            cancel=cancel,
        )


def _doctor(arguments: DoctorArguments) -> int:
    from pybuild.doctor import describe_findings, examine  # noqa: PLC0415  (loads every backend)

    name = _backend_name(arguments)
    findings = examine(name, _backend_options(arguments), __version__)
    _print(describe_findings(findings))
    chosen_works = any(f.good and f.subject == f"backend {name}" for f in findings)
    return 0 if chosen_works else 4


def _store_command(words: Sequence[str]) -> int:
    from pybuild.storecommands import (  # noqa: PLC0415  (no build needs it)
        parse_store_arguments,
        run_store_command,
    )

    arguments = parse_store_arguments(words, __version__)
    name = _backend_name(arguments)
    with open_backend(name, _backend_options(arguments)) as backend:
        store = backend.image_store()
        if store is None:
            raise UnsupportedByBackend(
                f'pybuild {arguments.command} is not for the backend "{name}"',
                hint="its images are seen to by its own tools: ctr, nerdctl, docker",
            )
        text, code = run_store_command(store, arguments)
    if text:
        _print(text)
    return code


def _backend_name(arguments: BackendArguments) -> str:
    named = arguments.backend or os.environ.get("PYBUILD_BACKEND")
    # who says where containerd is, means containerd
    about_containerd = arguments.address or arguments.namespace or arguments.snapshotter
    return named or ("containerd" if about_containerd else DEFAULT_BACKEND)


def _backend_options(
    arguments: BackendArguments, backend: str | None = None
) -> Mapping[str, object]:
    """What a backend is told of the command line and the environment: it reads neither itself.

    `backend` names another one than the arguments do.
    """
    environ = os.environ
    registries: dict[str, object | None] = {
        "docker_config": _docker_config(environ),
        "proxies": _proxies(),
        "hosts_dir": arguments.hosts_dir or _hosts_dir(),
    }
    match backend or _backend_name(arguments):
        case "containerd":
            options = registries | _containerd_options(arguments, environ)
        case "embedded":
            root = arguments.root or environ.get("PYBUILD_ROOT")
            options = registries | {"root": root, "runner": arguments.runner}
        case _:
            return {}
    return {name: value for name, value in options.items() if value is not None and value != ""}


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
        "cache_dir": _cache_dir(),
    }


def _outputs(arguments: BuildArguments, cancel: CancelToken) -> list[Output]:
    """The outputs, with what only the surroundings know: streams, and where Docker is."""
    outputs = [_placed(output, cancel) for output in arguments.outputs]
    if sum(map(_uses_standard_output, ([one] for one in arguments.outputs))) > 1:
        raise UsageError("only one output can go to standard output")
    if arguments.push:
        outputs = [replace(o, push=True) if isinstance(o, ImageOutput) else o for o in outputs]
        if not any(isinstance(o, ImageOutput | RegistryOutput) for o in outputs):
            outputs.append(RegistryOutput())
    if arguments.load:
        loaded = _load_output(arguments)
        if not any(type(one) is type(loaded) for one in outputs):
            outputs.append(loaded)
    return outputs


def _uses_standard_output(outputs: Sequence[Output]) -> bool:
    return any(getattr(output, "dest", None) == STANDARD_OUTPUT for output in outputs)


def _placed(output: Output, cancel: CancelToken) -> Output:
    match output:
        case DockerLoadOutput():
            return replace(output, host=os.environ.get("DOCKER_HOST") or output.host)
        case OciOutput() | DockerOutput() | TarOutput() if output.dest == STANDARD_OUTPUT:
            return replace(output, dest=_standard_output(cancel))
        case _:
            return output


def _load_output(arguments: BuildArguments) -> Output:
    """Where ``--load`` goes: the store itself if it is containerd's, else Docker, else there."""
    if _backend_name(arguments) == "containerd":
        return ImageOutput()
    host = os.environ.get("DOCKER_HOST")
    here = Path(DEFAULT_DOCKER_HOST.removeprefix("unix://")).exists()
    if arguments.address is None and (host or here):
        return DockerLoadOutput(host=host or DEFAULT_DOCKER_HOST)
    return BackendLoadOutput(
        backend="containerd", options=_backend_options(arguments, "containerd")
    )


def _registry(
    arguments: BackendArguments, outputs: Sequence[Output], stack: ExitStack
) -> RegistryClient | None:
    """What pushes, if anything is pushed: with the logins of ``docker login``."""
    if not any(isinstance(o, RegistryOutput) or getattr(o, "push", False) for o in outputs):
        return None
    hosts = load_hosts(arguments.hosts_dir or _hosts_dir())
    credentials = DockerCredentials(_docker_config(os.environ))
    return stack.enter_context(RegistryClient(hosts, credentials, proxies=_proxies()))


def _build_args(arguments: BuildArguments) -> dict[str, str]:
    values: dict[str, str] = {}
    for path in arguments.build_arg_files:
        text = _read(path, "the file of build args").decode("utf-8", "surrogateescape")
        values |= parse_build_arg_file(text, os.environ)
    return values | dict(arguments.build_args)


def _secrets(arguments: BuildArguments) -> dict[str, Secret]:
    found: dict[str, Secret] = {}
    for secret in arguments.secrets:
        if secret.path is not None:
            value = _read(secret.path, f"the secret {secret.id}")
        elif secret.env is None or secret.env not in os.environ:
            raise UsageError(f"the secret {secret.id} is not in the environment")
        else:
            value = os.fsencode(os.environ[secret.env])
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


def _remote_options(arguments: BuildArguments) -> RemoteOptions:
    environ = os.environ
    return RemoteOptions(
        proxies=_proxies(),
        public_only=arguments.public_only,
        search_path=environ.get("PATH"),
        ssh_agent=environ.get("SSH_AUTH_SOCK"),
    )


def _docker_config(environ: Mapping[str, str]) -> str | None:
    folder = environ.get("DOCKER_CONFIG")
    try:
        path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    except RuntimeError:  # no home folder
        return None
    return str(path) if path.is_file() else None


def _proxies() -> dict[str, str]:
    """As :func:`urllib.request.getproxies_environment`, whose module takes 30 ms to load."""
    # lower case goes before upper; in a CGI program HTTP_PROXY is a client's header
    names = sorted(
        (name for name in os.environ if name.lower().endswith("_proxy")), key=str.islower
    )
    if "REQUEST_METHOD" in os.environ:
        names = [name for name in names if name != "HTTP_PROXY"]
    found = {name.lower().removesuffix("_proxy"): os.environ[name] for name in names}
    return {kind: value for kind, value in found.items() if kind and value}


def _cache_dir() -> str:
    from platformdirs import user_cache_dir  # noqa: PLC0415  (seldom needed)

    return user_cache_dir("pybuild", appauthor=False)


def _hosts_dir() -> str | None:
    """Where containerd's own tools look for the mirrors of registries."""
    return next((path for path in _HOSTS_DIRS if Path(path).is_dir()), None)


def _inputs(
    arguments: BuildArguments, cancel: CancelToken
) -> tuple[str | BinaryIO, str | bytes | None]:
    """The context and the Dockerfile; either may be standard input, not both."""
    context: str | BinaryIO = arguments.context
    dockerfile: str | bytes | None = arguments.file
    if context == "-" and dockerfile == "-":
        raise UsageError("standard input can't be both the context and the Dockerfile")
    if "-" in {context, dockerfile} and sys.stdin is None:
        raise UsageError("standard input is closed")
    if context == "-":
        context = _standard_input(cancel)
    if dockerfile == "-":
        dockerfile = read_limited(_standard_input(cancel), "the Dockerfile")
    return context, dockerfile


def _standard_input(cancel: CancelToken) -> BinaryIO:
    """Standard input, whose reader stops waiting when the build is cancelled."""
    stream = sys.stdin.buffer
    if sys.platform == "win32":  # nothing there can wait for a pipe
        return stream
    try:
        number = stream.fileno()
    except OSError:  # a replaced stream
        return stream
    return cast("BinaryIO", io.BufferedReader(CancellableInput(number, cancel)))


def _standard_output(cancel: CancelToken) -> BinaryIO:
    """Standard output for an archive; whoever writes stops waiting when the build is cancelled."""
    if sys.stdout is None:
        raise UsageError("standard output is closed")
    if sys.stdout.isatty():
        raise UsageError(
            "an archive isn't written to a terminal", hint="give a file: --output …,dest=FILE"
        )
    stream = sys.stdout.buffer
    try:
        number = stream.fileno()
    except OSError:  # a replaced stream
        return stream
    if sys.platform == "win32":  # nothing there can wait for a pipe
        return stream
    return cast("BinaryIO", CancellableOutput(number, cancel))


def _write_files(arguments: BuildArguments, result: BuildResult) -> None:
    if arguments.iidfile:
        _write(arguments.iidfile, result.digest)
    if arguments.metadata_file:
        metadata: dict[str, Any] = {
            "containerimage.descriptor": _described(result),
            "containerimage.digest": result.digest,
            "image.name": ",".join(result.names),
        }
        if not result.is_index:
            metadata["containerimage.config.digest"] = result.config_digest
        _write(arguments.metadata_file, json.dumps(metadata, indent=2) + "\n")


def _described(result: BuildResult) -> dict[str, Any]:
    """The descriptor as buildx writes it, with the platform of what is no index."""
    described = descriptor_as_json(result.descriptor)
    if not result.is_index:
        described["platform"] = platform_as_json(result.platform)
    return described


def _remove_stale(path: str | None) -> None:
    """A build that fails must not leave the digest of an earlier one; /dev/stdout stays."""
    with suppress(OSError):
        if path and Path(path).is_file() and not Path(path).is_symlink():
            Path(path).unlink()


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f'can\'t write "{path}": {error.strerror or error}') from error


def _progress_mode(arguments: BuildArguments) -> str:
    if arguments.quiet:
        return "quiet"
    environ = os.environ
    mode = (
        arguments.progress
        or environ.get("PYBUILD_PROGRESS")
        or environ.get("BUILDKIT_PROGRESS")
        or "auto"
    )
    if mode == "quiet":
        return mode
    if mode not in PROGRESS_MODES:
        raise UsageError(f'the progress "{mode}" is not {", ".join(PROGRESS_MODES)}')
    terminal = sys.stderr is not None and sys.stderr.isatty()
    if mode == "auto":
        dumb = environ.get("TERM") == "dumb" or bool(environ.get("NO_COLOR"))
        return "tty" if terminal and not dumb else "plain"
    return "plain" if mode == "tty" and not terminal else mode


@contextmanager
def _reporter(arguments: BuildArguments, cancel: CancelToken) -> Iterator[Reporter | None]:
    mode = _progress_mode(arguments)
    if mode == "quiet" or sys.stderr is None:
        yield None
    elif mode == "rawjson":
        from pybuild.run.progress.rawjson import JsonReporter  # noqa: PLC0415  (one of three)

        yield _UntilBroken(JsonReporter(sys.stderr), cancel)
    elif mode == "tty":
        from pybuild.run.progress.tty import TtyReporter  # noqa: PLC0415  (imports tqdm)

        with TtyReporter(sys.stderr) as reporter:
            yield _UntilBroken(reporter, cancel)
    else:
        yield _UntilBroken(PlainReporter(_encodable(sys.stderr)), cancel)


def _encodable(stream: TextIO) -> TextIO:
    """`stream`, set to replace what its encoding lacks: a build's output can be anything."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    return stream


class _Warnings:
    """Shows the warnings and nothing else."""

    def report(self, event: Event) -> None:
        if isinstance(event, Warned):
            _complain(f"warning: {warning_text(event)}")
        elif isinstance(event, LintReported):
            for warning in event.warnings:
                _complain(f"warning: {short_text(warning)}")


class _UntilBroken:
    """Cancels the build when its progress can't be written any more: its reader has gone."""

    def __init__(self, reporter: Reporter, cancel: CancelToken) -> None:
        self._reporter: Reporter | None = reporter
        self._cancel = cancel

    def report(self, event: Event) -> None:
        if self._reporter is None:
            return
        try:
            self._reporter.report(event)
        except (OSError, ValueError):
            self._reporter = None
            _give_up(sys.stderr)
            # The callbacks of a cancel may report in turn; this thread holds that lock.
            threading.Thread(target=self._cancel.cancel, name="pybuild-cancel").start()


@contextmanager
def _cancelled_by_signals(cancel: CancelToken) -> Iterator[None]:
    """Cancel on SIGINT, SIGTERM and SIGHUP. A second SIGINT ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A handler may interrupt code that holds any lock; SimpleQueue.put alone is safe there.
    arrived: queue.SimpleQueue[bool] = queue.SimpleQueue()
    interrupts = 0

    def on_signal(number: int, _: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            os._exit(EXIT_CANCELLED)
        arrived.put(True)

    def watch() -> None:
        while arrived.get():
            cancel.cancel()

    watcher = threading.Thread(target=watch, name="pybuild-signals", daemon=True)
    watcher.start()
    restore: list[Callable[[], object]] = []
    try:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # nohup ignores SIGHUP, a shell's background job SIGINT: they stay ignored.
            if number is None or signal.getsignal(number) is signal.SIG_IGN:
                continue
            old = signal.signal(number, on_signal)
            restore.append(partial(signal.signal, number, old))
        yield
    finally:
        for put_back in restore:
            put_back()
        arrived.put(False)
        watcher.join()
