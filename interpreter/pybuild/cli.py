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
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, TextIO, cast

from pybuild import __version__
from pybuild.api import build, plan_build
from pybuild.arguments import (
    PROGRESS_MODES,
    BackendArguments,
    BuildArguments,
    DoctorArguments,
    parse_arguments,
)
from pybuild.backends import DEFAULT_BACKEND
from pybuild.diagnostics import describe_error
from pybuild.errors import EXIT_BUG, BuildCancelled, PybuildError, UsageError
from pybuild.oci.manifest import descriptor_as_json
from pybuild.plan import describe_plan, plan_as_json
from pybuild.run.activity import CancelToken
from pybuild.run.events import Event, Reporter, Warned
from pybuild.run.inputs import read_limited
from pybuild.run.progress.plain import PlainReporter, warning_text
from pybuild.run.result import BuildResult

_HOSTS_DIRS = ("/etc/containerd/certs.d", "/etc/docker/certs.d")
_SECONDS_BETWEEN_LOOKS = 0.1
EXIT_CANCELLED = BuildCancelled.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; what ``[project.scripts]`` calls."""
    words = sys.argv[1:] if argv is None else list(argv)
    debug = "-D" in words or "--debug" in words
    shows_output = False
    try:
        arguments = parse_arguments(words, os.environ, __version__)
        if isinstance(arguments, DoctorArguments):
            return _doctor(arguments)
        shows_output = _progress_mode(arguments) in {"plain", "rawjson"}
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
        result = build(
            context,
            dockerfile=dockerfile,
            tags=arguments.tags,
            backend=_backend_name(arguments),
            backend_options=_backend_options(arguments),
            build_args=arguments.build_args,
            target=arguments.target,
            platform=arguments.platforms,
            pull=arguments.pull,
            no_cache=arguments.no_cache,
            labels=arguments.labels,
            annotations=arguments.annotations,
            index_annotations=arguments.index_annotations,
            network=arguments.network,
            add_hosts=arguments.add_hosts,
            shm_size=arguments.shm_size,
            ulimits=arguments.ulimits,
            reporter=reporter,
            cancel=cancel,
        )
    _write_files(arguments, result)
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
            build_args=arguments.build_args,
            target=arguments.target,
            platform=arguments.platforms,
            pull=arguments.pull,
            labels=arguments.labels,
            network=arguments.network,
            add_hosts=arguments.add_hosts,
            shm_size=arguments.shm_size,
            ulimits=arguments.ulimits,
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


def _doctor(arguments: DoctorArguments) -> int:
    from pybuild.doctor import describe_findings, examine  # noqa: PLC0415  (loads every backend)

    name = _backend_name(arguments)
    findings = examine(name, _backend_options(arguments), __version__)
    _print(describe_findings(findings))
    chosen_works = any(f.good and f.subject == f"backend {name}" for f in findings)
    return 0 if chosen_works else 4


def _backend_name(arguments: BackendArguments) -> str:
    named = arguments.backend or os.environ.get("PYBUILD_BACKEND")
    # who says where containerd is, means containerd
    about_containerd = arguments.address or arguments.namespace or arguments.snapshotter
    return named or ("containerd" if about_containerd else DEFAULT_BACKEND)


def _backend_options(arguments: BackendArguments) -> Mapping[str, object]:
    """What a backend is told of the command line and the environment: it reads neither itself."""
    environ = os.environ
    registries: dict[str, object | None] = {
        "docker_config": _docker_config(environ),
        "proxies": _proxies(),
        "hosts_dir": arguments.hosts_dir or _hosts_dir(),
    }
    match _backend_name(arguments):
        case "containerd":
            options = registries | _containerd_options(arguments, environ)
        case "embedded":
            options = registries | {"root": arguments.root or environ.get("PYBUILD_ROOT")}
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
        "moby_labels": arguments.moby_labels or None,
        "unpack": arguments.unpack,
        "cache_dir": _cache_dir(),
    }


def _docker_config(environ: Mapping[str, str]) -> str | None:
    folder = environ.get("DOCKER_CONFIG")
    try:
        path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    except RuntimeError:  # no home folder
        return None
    return str(path) if path.is_file() else None


def _proxies() -> dict[str, str] | None:
    from urllib.request import getproxies_environment  # noqa: PLC0415  (30 ms)

    return getproxies_environment() or None


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
    return cast("BinaryIO", io.BufferedReader(_CancellableInput(number, cancel)))


class _CancellableInput(io.RawIOBase):
    """Reads a file descriptor. Raises BuildCancelled, UsageError."""

    def __init__(self, number: int, cancel: CancelToken) -> None:
        self._number = number
        self._cancel = cancel

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # any writable buffer
        while True:
            self._cancel.raise_if_cancelled()
            try:
                if not select.select([self._number], [], [], _SECONDS_BETWEEN_LOOKS)[0]:
                    continue
                part = os.read(self._number, len(buffer))
            except OSError as error:
                reason = error.strerror or error
                raise UsageError(f"can't read standard input: {reason}") from error
            buffer[: len(part)] = part
            return len(part)


def _write_files(arguments: BuildArguments, result: BuildResult) -> None:
    if arguments.iidfile:
        _write(arguments.iidfile, result.digest)
    if arguments.metadata_file:
        metadata: dict[str, Any] = {
            "containerimage.descriptor": descriptor_as_json(result.descriptor),
            "containerimage.digest": result.digest,
            "image.name": ",".join(result.names),
        }
        if not result.is_index:
            metadata["containerimage.config.digest"] = result.config_digest
        _write(arguments.metadata_file, json.dumps(metadata, indent=2) + "\n")


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
