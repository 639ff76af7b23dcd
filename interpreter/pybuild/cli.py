"""The command ``pybuild``: the only file that reads the environment, handles signals, prints.

Exit codes are those of :mod:`pybuild.errors`. Standard output gets the result alone: for each
name of the image a line ``NAME DIGEST``, for an unnamed one the digest, with ``-q`` only the
digest. All else goes to standard error. Digests are the manifest's, or the index's of several
platforms, which is what containerd, and Docker on containerd, know an image by; the config's
is in ``--metadata-file``.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from pybuild import __version__
from pybuild.arguments import (
    PROGRESS_MODES,
    STORE_COMMANDS,
    BuildArguments,
    DoctorArguments,
    parse_arguments,
)
from pybuild.backends import open_backend
from pybuild.environment import (
    backend_name,
    backend_options,
    build_args_of,
    locked_by,
    outputs_of,
    registry_of,
    remote_options,
    secrets_of,
    uses_standard_output,
)
from pybuild.errors import EXIT_BUG, BuildCancelled, PybuildError, UsageError
from pybuild.flagvalues import CallArguments
from pybuild.lentvalues import find_agents, read_certificates
from pybuild.resultfiles import remove_stale, write_result_files
from pybuild.run.activity import CancelToken
from pybuild.run.events import Event, LintReported, Reporter, Warned
from pybuild.standardstreams import read_inputs, standard_output

if TYPE_CHECKING:
    from pybuild.checks import CheckResult, OutlineResult, TargetsResult
    from pybuild.run.failedruns import FailedRuns
    from pybuild.stepshell import StepShell

EXIT_CANCELLED = BuildCancelled.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; what ``[project.scripts]`` calls."""
    words = sys.argv[1:] if argv is None else list(argv)
    debug = "-D" in words or "--debug" in words
    shows_output = False
    commands = {"run": _run, "explain": _explain, "debug": _debug, "lock": _lock, "diff": _diff}
    try:
        with _what_was_asked_for():
            if words[:1] and words[0] in STORE_COMMANDS:
                return _store_command(words)
            if words[:1] and words[0] in commands:
                return commands[words[0]](words[1:])
            if words[:1] == ["completion"]:
                from pybuild.completion import completion_script  # noqa: PLC0415  (loads every parser)

                _print(completion_script(words[1:], __version__).rstrip("\n"))
                return 0
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
            _complain(_traceback())
        from pybuild.diagnostics import describe_error  # noqa: PLC0415  (no good build needs it)

        _complain(describe_error(error, error.files, with_output=not shows_output))
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_CANCELLED
    except BrokenPipeError:  # nobody reads the result
        return EXIT_CANCELLED
    except Exception:  # noqa: BLE001  # whatever it is, the user can't have meant it
        _complain(_traceback())
        _complain("error: this is a bug in pybuild; please report it with the lines above")
        return EXIT_BUG


@contextmanager
def _what_was_asked_for() -> Iterator[None]:
    """Write out what argparse has printed, a help or the version. Raises as :func:`_print`."""
    try:
        yield
    except SystemExit:
        _print("", end="")
        raise


def _traceback() -> str:
    import traceback  # noqa: PLC0415 - for errors alone

    return traceback.format_exc()


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


def _print(text: str, end: str = "\n") -> None:
    """Write to standard output, at once. Raises BrokenPipeError, UsageError."""
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        _give_up(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        reason = error.strerror or error
        raise UsageError(f"can't write to standard output: {reason}") from error


def _pass_on(stream: int, piece: bytes) -> None:
    """Write what a process has written to its stream 1 or 2 to ours."""
    ours = (sys.stdout if stream == 1 else sys.stderr).buffer
    ours.write(piece)
    ours.flush()


def _build(arguments: BuildArguments) -> int:
    from pybuild.api import build  # noqa: PLC0415  (--version and the store need none of it)

    cancel = CancelToken()
    remove_stale(arguments.iidfile)
    with ExitStack() as stack:
        stack.enter_context(_cancelled_by_signals(cancel))
        shown = stack.enter_context(ExitStack())
        reporter = shown.enter_context(_reporter(arguments, cancel))
        if arguments.report:
            from pybuild.htmlreport.report import HtmlReport  # noqa: PLC0415  (few builds have one)

            reporter = stack.enter_context(HtmlReport(arguments.report, reporter))
        context, dockerfile = read_inputs(arguments.context, arguments.file, sys.stdin, cancel)
        outputs = outputs_of(arguments, os.environ, partial(standard_output, sys.stdout, cancel))
        registry = registry_of(arguments, os.environ, outputs)
        stack.enter_context(registry or nullcontext())
        result = build(
            context,
            dockerfile=dockerfile,
            tags=arguments.tags,
            backend=backend_name(arguments, os.environ),
            backend_options=backend_options(arguments, os.environ),
            build_args=build_args_of(arguments, os.environ),
            target=arguments.target,
            platform=arguments.platforms,
            pull=arguments.pull,
            no_cache=arguments.no_cache,
            no_cache_filter=arguments.no_cache_filter,
            fail_on_miss=arguments.fail_on_miss,
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
            secrets=secrets_of(arguments, os.environ),
            ssh=find_agents(arguments.ssh, os.environ),
            ca=read_certificates(arguments.ca),
            remotes=remote_options(arguments, os.environ),
            reporter=reporter,
            cancel=cancel,
            locked=locked_by(arguments),
            outputs=outputs,
            registry=registry,
            cache_from=arguments.cache_from,
            cache_to=arguments.cache_to,
            failed_runs=_failed_runs(arguments, shown),
        )
    write_result_files(arguments, result)
    if uses_standard_output(arguments.outputs):
        return 0
    if arguments.quiet or not result.names:
        _print(result.digest)
    else:
        _print("\n".join(f"{name} {result.digest}" for name in result.names))
    return 0


def _dry_run(arguments: BuildArguments) -> int:
    from pybuild.api import plan_build  # noqa: PLC0415  (as above)
    from pybuild.plan.describe import describe_plan, plan_as_json  # noqa: PLC0415  (as above)

    cancel = CancelToken()
    with _cancelled_by_signals(cancel):
        context, dockerfile = read_inputs(arguments.context, arguments.file, sys.stdin, cancel)
        name = backend_name(arguments, os.environ)
        planned = plan_build(
            context,
            dockerfile=dockerfile,
            backend=None if name == "none" else name,
            backend_options=backend_options(arguments, os.environ),
            build_args=build_args_of(arguments, os.environ),
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
            secrets=secrets_of(arguments, os.environ),
            remotes=remote_options(arguments, os.environ),
            reporter=_Warnings(),
            cancel=cancel,
            locked=locked_by(arguments),
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


def _lock(words: Sequence[str]) -> int:
    from pybuild.lockcommand import parse_lock_arguments, run_lock  # noqa: PLC0415  (as above)

    arguments = parse_lock_arguments(words, os.environ, __version__)
    cancel = CancelToken()
    with _cancelled_by_signals(cancel):
        context, dockerfile = read_inputs(arguments.context, arguments.file, sys.stdin, cancel)
        done = run_lock(arguments, context, dockerfile, os.environ, _Warnings(), cancel)
    _encodable(sys.stdout)
    _print(done.text)
    return done.code


def _call(arguments: BuildArguments, call: CallArguments) -> int:
    """Print what the Dockerfile tells. Ends with 1 where a check found something."""
    from pybuild.checks import CheckResult  # noqa: PLC0415  (a build needs none of it)
    from pybuild.reports import as_json, describe  # noqa: PLC0415  (as above)

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
    from pybuild.checks import check, outline, targets  # noqa: PLC0415  (as above)

    cancel = CancelToken()
    with _cancelled_by_signals(cancel):
        context, dockerfile = read_inputs(arguments.context, arguments.file, sys.stdin, cancel)
        if name == "targets":
            return targets(
                context, dockerfile=dockerfile, build_args=arguments.build_args, cancel=cancel
            )
        backend = backend_name(arguments, os.environ)
        ask: Callable[..., CheckResult | OutlineResult] = check if name == "check" else outline
        return ask(
            context,
            dockerfile=dockerfile,
            backend=None if backend == "none" else backend,
            backend_options=backend_options(arguments, os.environ),
            build_args=arguments.build_args,
            target=arguments.target,
            platform=arguments.platforms,
            pull=arguments.pull,
            reporter=_Warnings(),
            cancel=cancel,
        )


def _doctor(arguments: DoctorArguments) -> int:
    from pybuild.doctor import describe_findings, examine  # noqa: PLC0415  (loads every backend)

    name = backend_name(arguments, os.environ)
    findings = examine(name, backend_options(arguments, os.environ), __version__)
    _print(describe_findings(findings))
    chosen_works = any(f.good and f.subject == f"backend {name}" for f in findings)
    return 0 if chosen_works else 4


def _run(words: Sequence[str]) -> int:
    from pybuild.runcommand import parse_run_arguments  # noqa: PLC0415  (no build needs it)
    from pybuild.running import run_image  # noqa: PLC0415  (as above)

    arguments = parse_run_arguments(words, os.environ, __version__)
    cancel = CancelToken()
    with _cancelled_by_signals(cancel):
        done = run_image(
            arguments.image,
            arguments.args,
            backend=backend_name(arguments, os.environ),
            backend_options=backend_options(arguments, os.environ),
            platform=arguments.platform,
            pull=arguments.pull,
            env=arguments.env,
            user=arguments.user,
            workdir=arguments.workdir,
            network=arguments.network,
            on_output=_pass_on,
            cancel=cancel,
        )
    return done.returncode


def _debug(words: Sequence[str]) -> int:
    from pybuild.debugcommand import Talk, listed, parse_debug_arguments, run_debug  # noqa: PLC0415  (as above)

    arguments = parse_debug_arguments(words, __version__)
    name, options = backend_name(arguments, os.environ), backend_options(arguments, os.environ)
    cancel = CancelToken()
    with _cancelled_by_signals(cancel), open_backend(name, options) as backend:
        if arguments.list:
            _encodable(sys.stdout)
            _print(listed(backend))
            return 0
        talk = Talk(_pass_on, _complain, cancel)
        return run_debug(arguments, backend, _step_shell(), talk)


def _failed_runs(arguments: BuildArguments, shown: ExitStack) -> FailedRuns:
    """Opens a shell, if it is asked for, when the progress in `shown` has been closed."""
    from pybuild.run.failedruns import FailedRuns  # noqa: PLC0415  (--version needs none of it)

    if arguments.on_error != "shell":
        return FailedRuns()
    from pybuild.stepshell import shell_on_failure  # noqa: PLC0415  (for those who ask for it)

    return FailedRuns(shell_on_failure(_step_shell(), shown.close, _complain))


def _step_shell() -> StepShell | None:
    """On the terminal, if standard input and standard error are one."""
    if any(stream is None or not stream.isatty() for stream in (sys.stdin, sys.stderr)):
        return None
    from pybuild.stepshell import StepShell, find_busybox  # noqa: PLC0415  (as above)
    from pybuild.terminal import Terminal  # noqa: PLC0415  (as above)

    terminal = Terminal(sys.stdin.fileno(), sys.stderr.fileno())
    return StepShell(terminal, find_busybox(os.environ.get("PATH")))


def _explain(words: Sequence[str]) -> int:
    from pybuild.explaincommand import explained, parse_explain_arguments  # noqa: PLC0415  (as above)

    arguments = parse_explain_arguments(words, __version__)
    name, options = backend_name(arguments, os.environ), backend_options(arguments, os.environ)
    _encodable(sys.stdout)
    _print(explained(arguments, name, options))
    return 0


def _diff(words: Sequence[str]) -> int:
    from pybuild.diffcommand import compare, parse_diff_arguments  # noqa: PLC0415  (as above)

    arguments = parse_diff_arguments(words, __version__)
    name, options = backend_name(arguments, os.environ), backend_options(arguments, os.environ)
    text, code = compare(arguments, name, options)
    _encodable(sys.stdout)
    _print(text)
    return code


def _store_command(words: Sequence[str]) -> int:
    from pybuild.storecommands import (  # noqa: PLC0415  (no build needs it)
        parse_store_arguments,
        run_store_command,
    )

    arguments = parse_store_arguments(words, __version__)
    name = backend_name(arguments, os.environ)
    with open_backend(name, backend_options(arguments, os.environ)) as backend:
        text, code = run_store_command(backend, arguments)
    if text:
        _print(text)
    return code


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
        from pybuild.run.progress.plain import PlainReporter  # noqa: PLC0415  (one of three)

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
        from pybuild.run.progress.lint import short_text  # noqa: PLC0415  (no build needs it)
        from pybuild.run.progress.plain import warning_text  # noqa: PLC0415  (as above)

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
