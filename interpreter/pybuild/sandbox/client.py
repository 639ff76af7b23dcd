"""Starts the zygote and asks it for processes.

::

    with Sandbox(mapping) as sandbox:             # before any thread or grpc of ours
        code = sandbox.run(spec, on_output)       # from any thread, several at once

The zygote is a process of its own, spoken to over a socket that only this process holds:
whatever ends this process ends everything in the sandbox with it.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Self

from pybuild.errors import BackendFailed, BackendUnavailable
from pybuild.sandbox import profile, wire
from pybuild.sandbox.mapping import Kind, Mapping, system_program
from pybuild.sandbox.runtimes import INSTEAD, RUNTIMES, Runtime, check_fitness, runtime_config
from pybuild.sandbox.seccomp import compile_ownership, compile_profile
from pybuild.sandbox.spec import FuseOverlay, RunSpec, as_value, passed_descriptors

OnOutput = Callable[[int, bytes], object]
"""Takes the stream, 1 or 2, and a piece of what was written to it."""

OnCancel = Callable[[Callable[[], None]], AbstractContextManager[None]]
"""`Activity.on_cancel`: while the context lasts, the callback is called on cancel."""

_ZYGOTE = Path(__file__).with_name("zygote.py")
_START_SECONDS = 60
_STOP_SECONDS = 10
_PIECE = 1 << 16
_PACKET = 4096
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127


class SandboxFailed(BackendFailed):
    """A sandbox couldn't be made. ``step`` names the call, ``number`` is its errno or 0.

    Of a runtime that failed, ``step`` is the name.
    """

    def __init__(self, step: str, number: int, text: str) -> None:
        reason = ": ".join(part for part in (text, number and os.strerror(number)) if part)
        if step in RUNTIMES:
            super().__init__(f"{step} doesn't run the step: {reason}", hint=INSTEAD)
        else:
            super().__init__(f"the sandbox can't be made: {step}: {reason}")
        self.step = step
        self.number = number
        self.text = text


class Sandbox:
    """A zygote and what runs below it: a context manager. Safe in threads once entered."""

    def __init__(
        self, mapping: Mapping, *, runtime: Runtime | None = None, python: str = sys.executable
    ) -> None:
        """`mapping` as `modes.probe` gives it. `runtime` starts the programs, if there is one.

        Nothing is started yet.
        """
        self.mapping = mapping
        self.runtime = runtime
        self._python = python
        self._control: socket.socket | None = None
        self._zygote: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def launch(self) -> None:
        """Start the zygote's process and don't wait for it; `start` does.

        Raises SandboxFailed, BackendUnavailable.
        """
        try:
            self._launch()
        except BaseException:
            self.close()
            raise

    def _launch(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [self._python, "-I", "-S", "-X", "utf8", os.fspath(_ZYGOTE)]
            command.append(str(theirs.fileno()))
            try:
                self._zygote = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={},
                    cwd="/",
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except OSError as error:
                raise SandboxFailed("start", error.errno or 0, self._python) from error
        # made while the process starts, which then need not wait for it
        config = wire.encode(_config(self.mapping, self.runtime))
        try:
            self._control.settimeout(_START_SECONDS)
            self._control.send(config)
        except OSError as error:
            raise _no_answer(error) from error

    def start(self) -> None:
        """Start the zygote and wait until it is ready. Raises SandboxFailed, BackendUnavailable."""
        if self._control is None:
            self.launch()
        assert self._control is not None  # noqa: S101 - launched
        try:
            answer = self._control.recv(_PACKET)
            self._control.settimeout(None)
        except OSError as error:
            self.close()
            raise _no_answer(error) from error
        if answer != b"ready":
            self.close()
            raise _failure(answer)

    def close(self) -> None:
        """End every process of this sandbox, and wait until they are gone. Idempotent."""
        control, self._control = self._control, None
        zygote, self._zygote = self._zygote, None
        if control is not None:
            control.close()
        if zygote is None:
            return
        if not has_ended(zygote.pid, _STOP_SECONDS):
            zygote.kill()
        zygote.wait()

    kill = close

    def run(self, spec: RunSpec, on_output: OnOutput, on_cancel: OnCancel | None = None) -> int:
        """Run a process and return its exit code: 128+n for signal n.

        `on_output` is called in this thread, and with a terminal for errors alone. A program that isn't found gives 127, one that
        can't be executed 126, with a line on stream 2. On cancel every process of the run is
        killed and the code is 137. Raises SandboxFailed, and UsageError for a wrong `spec`.
        """
        if self.runtime is not None:
            check_fitness(spec, self.runtime, self.mapping)
        value, passed = as_value(spec), passed_descriptors(spec)
        with ExitStack() as stack:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(ours)
            streams, writers = {}, []
            for number in (1, 2):
                if spec.terminal is not None:
                    writers.append(os.dup(spec.terminal))
                    continue
                reader, writer = os.pipe()
                stack.callback(os.close, reader)
                os.set_blocking(reader, False)
                streams[reader] = number
                writers.append(writer)
            try:
                kind = b"fuse" if isinstance(spec.root, FuseOverlay) else b"run"
                flags = [spec.own_network, spec.insecure]
                self._ask(kind, flags, value, theirs, [*writers, *passed])
            finally:
                for writer in writers:
                    os.close(writer)
            kill = _shutter(ours)
            with on_cancel(kill) if on_cancel is not None else nullcontext():
                answers = _follow(ours, streams, on_output)
        return _outcome(answers, on_output)

    def spawn_inside(self, folder: Path, module: str, fds: Sequence[int] = ()) -> InsideProcess:
        """Call ``main()`` of a trusted module with the ids of the sandbox mapped.

        It is found in `folder`, and runs in a copy of the zygote's interpreter, which has the
        standard library and, of this package, what the sandbox needs. It is root in the user
        namespace and sees the host's files, so it can read, make and remove what belongs to
        mapped ids. `fds` become its descriptors 0, 1, 2, …; streams that aren't given are
        /dev/null. It ends with the sandbox.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        spec: dict[bytes, object] = {
            b"folder": os.fsencode(folder),
            b"module": module.encode(),
            b"fds": max(3, len(fds)),
        }
        null = os.open(os.devnull, os.O_RDWR)
        try:
            missing = [null] * (3 - len(fds))
            self._ask(b"inside", [False, False], spec, theirs, [*fds, *missing])
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(null)
        return InsideProcess(ours)

    def _ask(
        self,
        operation: bytes,
        flags: list[bool],
        spec: dict[bytes, object],
        replies: socket.socket,
        fds: list[int],
    ) -> None:
        """Send a request. `replies`, the zygote's end, is closed."""
        with replies:
            if self._control is None:
                raise BackendFailed("the sandbox is closed")
            memory = os.memfd_create("pybuild")
            try:
                with os.fdopen(memory, "wb", closefd=False) as file:
                    file.write(wire.encode(spec))
                packet = wire.encode([operation, *flags])
                socket.send_fds(self._control, [packet], [replies.fileno(), memory, *fds])
            except OSError as error:
                raise SandboxFailed("request", error.errno or 0, "the zygote is gone") from error
            finally:
                os.close(memory)


class InsideProcess:
    """What `spawn_inside` started: a context manager that kills it at the end."""

    def __init__(self, replies: socket.socket) -> None:
        self._replies = replies
        self._code: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._replies.close()

    def kill(self) -> None:
        """Kill it and what it has started."""
        _shutter(self._replies)()

    def wait(self) -> int:
        """Its exit code, 128+n for signal n. Raises SandboxFailed if it never began."""
        if self._code is None:
            answers = _follow(self._replies, {}, lambda _stream, _piece: None)
            for answer in answers[:-1]:
                raise _failure(answer)
            self._code = _exit_code(answers)
        return self._code


def _config(mapping: Mapping, runtime: Runtime | None) -> dict[bytes, object]:
    machine = os.uname().machine
    single = mapping.kind is Kind.SINGLE
    try:
        program = compile_profile(machine, keep_owners=single)
        insecure = compile_ownership(machine) if single else b""
    except KeyError:
        raise BackendUnavailable(
            f"the sandbox has no system call profile for {machine}",
            hint="use the containerd backend",
        ) from None
    return {
        b"by": mapping.kind.value.encode(),
        b"single": single,
        b"uids": [[line.inside, line.outside, line.count] for line in mapping.uids],
        b"gids": [[line.inside, line.outside, line.count] for line in mapping.gids],
        b"newuidmap": os.fsencode(mapping.newuidmap),
        b"newgidmap": os.fsencode(mapping.newgidmap),
        b"fuse_overlayfs": os.fsencode(system_program("fuse-overlayfs") or ""),
        b"overlay_options": b",userxattr" if mapping.userxattr else b"",
        b"masked": [os.fsencode(path) for path in profile.masked_paths()],
        b"readonly": [os.fsencode(path) for path in profile.READ_ONLY],
        b"capabilities": profile.capability_mask(),
        b"seccomp": program,
        b"insecure_seccomp": insecure,
        **({b"runtime": b""} if runtime is None else runtime_config(runtime, mapping)),
    }


def has_ended(child: int, seconds: float) -> bool:
    """Wait for a child's end, and whether it came within `seconds`; it isn't reaped.

    `Popen.wait` with a limit looks at intervals alone, which grow up to 50 ms.
    """
    descriptor = os.pidfd_open(child)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(descriptor)


def _shutter(replies: socket.socket) -> Callable[[], None]:
    """What tells the zygote that the process isn't wanted any more."""

    def shut() -> None:
        try:
            replies.shutdown(socket.SHUT_WR)
        except OSError:
            return  # it has ended by itself

    return shut


def _follow(replies: socket.socket, streams: dict[int, int], on_output: OnOutput) -> list[bytes]:
    """Pass output on until the process has ended; the packets that told so."""
    poll = select.poll()
    poll.register(replies, select.POLLIN)
    for reader in streams:
        poll.register(reader, select.POLLIN)
    open_streams = dict(streams)
    answers: list[bytes] = []
    while not answers or not answers[-1].startswith(b"exit"):
        for fd, _ in poll.poll():
            if fd in open_streams:
                if not _pass_on(fd, open_streams[fd], on_output):
                    poll.unregister(fd)
                    del open_streams[fd]
            elif fd == replies.fileno():
                answer = replies.recv(_PACKET)
                if not answer:
                    raise BackendFailed("the sandbox ended before its process did")
                answers.append(answer)
    for fd, number in open_streams.items():
        # what was written before the end; nobody who could write more is left
        while _pass_on(fd, number, on_output):
            continue
    return answers


def _pass_on(fd: int, number: int, on_output: OnOutput) -> bool:
    """Pass on one piece; False if there is none now."""
    try:
        piece = os.read(fd, _PIECE)
    except BlockingIOError:
        return False
    if piece:
        on_output(number, piece)
    return bool(piece)


def _outcome(answers: list[bytes], on_output: OnOutput) -> int:
    for answer in answers[:-1]:
        failure = _failure(answer)
        if failure.step != "execute":
            raise failure
        text = f"exec: {failure.text}: {os.strerror(failure.number).lower()}\n"
        on_output(2, text.encode("utf-8", "surrogateescape"))
        return _NOT_FOUND if failure.number == errno.ENOENT else _NOT_EXECUTABLE
    return _exit_code(answers)


def _exit_code(answers: list[bytes]) -> int:
    return int(answers[-1].partition(b"\0")[2])


def _no_answer(error: OSError) -> SandboxFailed:
    return SandboxFailed("start", error.errno or 0, "the zygote doesn't answer")


def _failure(answer: bytes) -> SandboxFailed:
    """The error of a packet ``failed NUL step NUL errno NUL text``."""
    _, step, number, text = (answer.split(b"\0", 3) + [b""] * 4)[:4]
    return SandboxFailed(step.decode() or "start", int(number or 0), os.fsdecode(text))
