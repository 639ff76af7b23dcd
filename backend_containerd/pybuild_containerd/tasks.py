"""One process in a container of containerd, from record to exit code, with nothing left."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pybuild.backend import Activity
from pybuild.errors import BackendError, BackendFailed
from pybuild.values import dataclass
from pybuild_containerd import rpcs
from pybuild_containerd.client import Client, PendingCall
from pybuild_containerd.errors_table import CallFailed, FailedPrecondition, NotFound
from pybuild_containerd.outputs import Output

_SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
_SIGKILL = 9
_NOT_FOUND_CODE = 127
_NOT_EXECUTABLE_CODE = 126
# a killed process is gone within milliseconds; more means that the shim is stuck
_KILL_PATIENCE = 10.0

# what runc says, behind layers of wrapping, of a program that can't be executed
_NOT_STARTED = re.compile(r"(?:exec: \"|exec /|chdir to cwd ).*?(?=: unknown$|$)")
_MISSING = ("executable file not found", "no such file or directory")


@dataclass(frozen=True, slots=True)
class Task:
    """What to run: `spec` is the runtime specification as JSON, `rootfs` mount messages.

    ``id`` must be unique on the whole machine. ``snapshot_key`` is kept from the garbage
    collector while the container's record exists.
    """

    id: str
    spec: bytes
    rootfs: Sequence[Mapping[str, Any]]
    runtime: str
    snapshotter: str
    snapshot_key: str
    labels: Mapping[str, str]


class OutputNotShared(Exception):
    """The shim doesn't open this machine's FIFOs. Nothing has been started."""


def run_task(client: Client, task: Task, output: Output, activity: Activity) -> int:
    """Run it to its end and return the exit code, 128+n for signal n.

    `output` is drained, its context stays the caller's. A program that can't be executed ends with 126, one
    that isn't there with 127, as a shell has it. Raises BuildCancelled once the killed
    process is gone, OutputNotShared, BackendFailed for what else containerd can't do.
    """
    with _record(client, task):
        try:
            with _created(client, task, output) as ended:
                code = _run(client, task, ended, activity)
        except CallFailed as failure:
            activity.raise_if_cancelled()
            code = _code_of_unstarted(failure)
            activity.log(2, _reason(failure) + b"\n")
        output.drain()
    activity.raise_if_cancelled()
    return code


@contextlib.contextmanager
def _record(client: Client, task: Task) -> Iterator[None]:
    """The container's record, without which a task can't be found again."""
    client.call(
        rpcs.CONTAINER_CREATE,
        container={
            "id": task.id,
            "labels": dict(task.labels),
            "runtime": {"name": task.runtime},
            "spec": {"type_url": _SPEC_TYPE, "value": task.spec},
            "snapshotter": task.snapshotter,
            "snapshot_key": task.snapshot_key,
        },
    )
    try:
        yield
    except BaseException:
        with contextlib.suppress(BackendError):  # the first error tells more
            client.call(rpcs.CONTAINER_DELETE, id=task.id)
        raise
    client.call(rpcs.CONTAINER_DELETE, id=task.id)


@contextlib.contextmanager
def _created(client: Client, task: Task, output: Output) -> Iterator[PendingCall]:
    """The created process, not yet started; gives the wait for its end, and deletes it after."""
    try:
        client.call(
            rpcs.TASK_CREATE,
            container_id=task.id,
            rootfs=list(task.rootfs),
            stdout=output.stdout,
            stderr=output.stderr,
        )
    except CallFailed as failure:
        if output.shared and (output.stdout in failure.details or output.stderr in failure.details):
            raise OutputNotShared from failure
        raise
    ended = client.start(rpcs.TASK_WAIT, container_id=task.id)
    try:
        if not output.is_open():
            raise OutputNotShared
        yield ended
    except BaseException:
        with contextlib.suppress(BackendError, TimeoutError):
            _kill(client, task.id)
            ended.result(_KILL_PATIENCE)
        with contextlib.suppress(BackendError):
            client.call(rpcs.TASK_DELETE, container_id=task.id)
        raise
    # the shim copies the last output before this call returns
    client.call(rpcs.TASK_DELETE, container_id=task.id)


def _run(client: Client, task: Task, ended: PendingCall, activity: Activity) -> int:
    gone = threading.Event()

    def kill_unless_gone() -> None:
        if not gone.is_set():
            with contextlib.suppress(BackendError):  # leaving _created tries again
                _kill(client, task.id)

    with activity.on_cancel(kill_unless_gone):
        activity.raise_if_cancelled()
        client.call(rpcs.TASK_START, container_id=task.id)
        try:
            status: int = ended.result().exit_status
        finally:
            gone.set()
    return status


def _kill(client: Client, container_id: str) -> None:
    """Kill every process of the container; one that is gone already is fine."""
    with contextlib.suppress(NotFound, FailedPrecondition):
        client.call(rpcs.TASK_KILL, container_id=container_id, signal=_SIGKILL, all=True)


def _code_of_unstarted(failure: CallFailed) -> int:
    """The exit code for a program that runc couldn't execute; raises anything else again."""
    if _NOT_STARTED.search(failure.details) is None:
        raise BackendFailed(
            f"the process can't be started: {failure.details}",
            hint=failure.hint or _hint_for(failure.details),
        ) from failure
    if any(text in failure.details for text in _MISSING):
        return _NOT_FOUND_CODE
    return _NOT_EXECUTABLE_CODE


def _hint_for(details: str) -> str | None:
    if "cgroup configuration" in details and "permission denied" in details:
        # other snapshotters don't show in their mounts that containerd is rootless
        return "with a rootless containerd, use the snapshotter overlayfs or fuse-overlayfs"
    return None


def _reason(failure: CallFailed) -> bytes:
    found = _NOT_STARTED.search(failure.details)
    return (found.group() if found else failure.details).encode()
