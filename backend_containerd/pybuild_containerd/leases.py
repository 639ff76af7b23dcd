"""Leases: what a build holds on to, and sweeping up after builds that were killed.

A session is one build. All that it makes is kept from containerd's garbage collection by
its lease, and vanishes with the lease unless an image refers to it by then. The lease's
labels, and those of the session's containers, say which process it belongs to::

    with Session(client) as session:
        ...                                  # calls on client now carry the lease
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self

from pybuild.errors import BackendError
from pybuild.values import dataclass
from pybuild_containerd import rpcs
from pybuild_containerd.client import Client
from pybuild_containerd.errors_table import (
    CallFailed,
    DaemonGone,
    FailedPrecondition,
    NotFound,
    Unimplemented,
)

LIFETIME: Final = 24 * 3600.0
"""Seconds that a lease outlives a build whose machine was switched off."""

SESSION: Final = "pybuild/session"
_PID: Final = "pybuild/pid"
_PID_NAMESPACE: Final = "pybuild/pid-namespace"
_STARTED: Final = "pybuild/started"
_BOOT: Final = "pybuild/boot"
_EXPIRE: Final = "containerd.io/gc.expire"
_SIGKILL: Final = 9
_KILL_SECONDS: Final = 10.0
_COLLECTION_SECONDS: Final = 0.02  # in which most are over


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, told apart from a later one with the same id.

    ``started`` is in clock ticks since the boot ``boot``; ``pid_namespace`` is where ``pid``
    counts. Empty strings stand for what this system doesn't tell.
    """

    pid: str
    started: str
    boot: str
    pid_namespace: str

    def labels(self) -> dict[str, str]:
        return {
            _PID: self.pid,
            _STARTED: self.started,
            _BOOT: self.boot,
            _PID_NAMESPACE: self.pid_namespace,
        }

    @classmethod
    def from_labels(cls, labels: Mapping[str, str]) -> Owner:
        return cls(
            labels.get(_PID, ""),
            labels.get(_STARTED, ""),
            labels.get(_BOOT, ""),
            labels.get(_PID_NAMESPACE, ""),
        )

    @classmethod
    def of_process(cls, pid: int) -> Owner:
        """The process `pid`, as seen from here."""
        return cls(str(pid), _start_time(str(pid)), _boot_id(), _pid_namespace())

    def is_dead(self) -> bool:
        """True if it is certain: the same boot and pid namespace, and no such process."""
        here = (_boot_id(), _pid_namespace())
        if not all(here) or (self.boot, self.pid_namespace) != here:
            return False
        if not self.pid.isdecimal() or not self.started:
            return False
        return _start_time(self.pid) != self.started


def _start_time(pid: str) -> str:
    """When the process `pid` began, empty if there is none or it is a zombie."""
    try:
        stat = Path("/proc", pid, "stat").read_text(errors="replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()  # the name before may contain anything
    return "" if fields[0] in "ZX" else fields[19]


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return ""


def _pid_namespace() -> str:
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    return ""


class Session:
    """The lease of one build. While it lasts, the client's calls carry it.

    ``id`` is random; ``labels`` belong on every container of the build, so that
    :func:`sweep` finds them. The lease is renewed at half of its `lifetime`, in seconds.
    """

    def __init__(self, client: Client, *, lifetime: float = LIFETIME) -> None:
        self.id = f"pybuild-{secrets.token_hex(12)}"
        self.labels = {SESSION: self.id} | Owner.of_process(os.getpid()).labels()
        self._client = client
        self._lifetime = lifetime
        self._leases: list[str] = []
        self._closing = threading.Event()
        self._renewer = threading.Thread(target=self._renew_always, daemon=True, name=self.id)

    def __enter__(self) -> Self:
        self._new_lease()
        self._renewer.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the lease, and have containerd collect what it alone kept. Idempotent.

        That isn't waited for: an old image with many files takes long to remove. Never raises:
        what can't be deleted now expires, or is swept up by a later build.
        """
        self._closing.set()
        if self._renewer.is_alive():
            self._renewer.join()
        self._client.lease = None
        leases, self._leases = self._leases, []
        for lease in leases:
            with contextlib.suppress(BackendError):
                if lease == leases[-1]:
                    _delete_and_collect(self._client, lease)
                else:
                    self._client.call(rpcs.LEASE_DELETE, id=lease)

    def renew(self) -> None:
        """Move everything into a new lease with a full lifetime.

        Streams opened before may still add to the old lease, so that one stays until the
        next renewal, when what it got since is moved as well.
        """
        old = list(self._leases)
        self._new_lease()
        for lease in old:
            with contextlib.suppress(NotFound):
                for resource in self._client.call(rpcs.LEASE_RESOURCES, id=lease).resources:
                    _add(self._client, self._leases[-1], resource.type, resource.id)
        for lease in old[:-1]:
            with contextlib.suppress(NotFound):
                self._client.call(rpcs.LEASE_DELETE, id=lease)
            self._leases.remove(lease)

    def _new_lease(self) -> None:
        lease = f"{self.id}-{len(self._leases)}-{secrets.token_hex(4)}"
        labels = self.labels | {_EXPIRE: _expiry(self._lifetime)}
        self._client.call(rpcs.LEASE_CREATE, id=lease, labels=labels)
        self._leases.append(lease)
        self._client.lease = lease

    def _renew_always(self) -> None:
        pause = self._lifetime / 2
        while not self._closing.wait(pause):
            try:
                self.renew()
                pause = self._lifetime / 2
            except BackendError:
                pause = self._lifetime / 20  # an absent daemon has nine more tries


def collect_garbage(client: Client) -> None:
    """Have containerd remove what nothing refers to, and wait until it is gone."""
    lease = f"pybuild-collection-{secrets.token_hex(12)}"
    client.call(rpcs.LEASE_CREATE, id=lease, labels={_EXPIRE: _expiry(LIFETIME)})
    client.call(rpcs.LEASE_DELETE, id=lease, sync=True)


def _expiry(seconds: float) -> str:
    expires = datetime.now(UTC) + timedelta(seconds=seconds)
    return expires.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _delete_and_collect(client: Client, lease: str) -> None:
    """Delete a lease; the collection that this begins goes on in the daemon without us."""
    deletion = client.start(rpcs.LEASE_DELETE, id=lease, sync=True)
    while True:
        try:
            deletion.result(_COLLECTION_SECONDS)
        except TimeoutError:
            if client.call(rpcs.LEASE_LIST, filters=[f"id=={lease}"]).leases:
                continue
            deletion.cancel()
        return


def _add(client: Client, lease: str, kind: str, resource: str) -> None:
    # an old containerd doesn't know each kind of resource; what is gone needs no keeping
    with contextlib.suppress(NotFound, Unimplemented):
        client.call(rpcs.LEASE_ADD, id=lease, resource={"id": resource, "type": kind})


def keep_content(client: Client, digest: str) -> None:
    """Have the client's lease keep a blob that exists already. Without a lease, nothing."""
    if client.lease is not None:
        client.call(rpcs.LEASE_ADD, id=client.lease, resource={"id": digest, "type": "content"})


def keep_snapshot(client: Client, snapshotter: str, name: str) -> None:
    """Have the client's lease keep a snapshot that exists already. Without a lease, nothing."""
    if client.lease is not None:
        client.call(
            rpcs.LEASE_ADD,
            id=client.lease,
            resource={"id": name, "type": f"snapshots/{snapshotter}"},
        )


@dataclass(frozen=True, slots=True)
class Swept:
    """How much a sweep removed."""

    containers: int = 0
    leases: int = 0


def sweep(client: Client) -> Swept:
    """Remove what builds left that were killed.

    Only sessions whose process is certainly dead count, and sessions of another host or
    boot once no lease of theirs is unexpired. Containers go first, for they pin snapshots.
    What can't be removed stays for the next sweep.
    """
    mine = f'labels."{SESSION}"'
    # in this order: a container that was listed had its lease before
    containers = client.call(rpcs.CONTAINER_LIST, filters=[mine]).containers
    leases = client.call(rpcs.LEASE_LIST, filters=[mine]).leases
    held = {lease.labels[SESSION] for lease in leases if not _expired(lease)}
    removed_containers = sum(
        _remove_container(client, container.id)
        for container in containers
        if Owner.from_labels(container.labels).is_dead()
        or (container.labels[SESSION] not in held and not _is_ours(container.labels))
    )
    doomed = [
        lease.id
        for lease in leases
        if Owner.from_labels(lease.labels).is_dead()
        or (_expired(lease) and not _is_ours(lease.labels))
    ]
    return Swept(removed_containers, _delete_leases(client, doomed))


def _is_ours(labels: Mapping[str, str]) -> bool:
    """Whether the owner counts its pid where we do, so that is_dead() had the last word."""
    owner = Owner.from_labels(labels)
    return bool(owner.boot) and (owner.boot, owner.pid_namespace) == (_boot_id(), _pid_namespace())


def _expired(lease: Any) -> bool:
    try:
        expires = datetime.fromisoformat(lease.labels.get(_EXPIRE, ""))
        return expires < datetime.now(UTC)
    except (ValueError, TypeError):
        return False  # as containerd does: a bad value never expires


def _remove_container(client: Client, container: str) -> bool:
    """End the container's task, then delete task and record; True if it is gone."""
    with contextlib.suppress(CallFailed):
        wait = client.start(rpcs.TASK_WAIT, container_id=container)
        with contextlib.suppress(NotFound, FailedPrecondition):
            client.call(rpcs.TASK_KILL, container_id=container, signal=_SIGKILL, all=True)
        with contextlib.suppress(TimeoutError):
            wait.result(_KILL_SECONDS)
        wait.cancel()
    try:
        with contextlib.suppress(NotFound):
            client.call(rpcs.TASK_DELETE, container_id=container)
        with contextlib.suppress(NotFound):
            client.call(rpcs.CONTAINER_DELETE, id=container)
    except CallFailed:
        return False  # the record stays: the task can be found by it alone
    return True


def _delete_leases(client: Client, leases: Iterable[str]) -> int:
    """Delete the leases, waiting for the garbage collection after the last."""
    names = list(leases)
    deleted = 0
    for name in names:
        try:
            client.call(rpcs.LEASE_DELETE, id=name, sync=name == names[-1])
        except NotFound:
            continue
        except (CallFailed, DaemonGone):
            return deleted
        deleted += 1
    return deleted
