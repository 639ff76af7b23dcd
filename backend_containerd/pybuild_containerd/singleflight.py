"""Among all builds on one containerd, one at a time runs a step with one cache key.

Builds that share a folder for locks wait for each other there, which costs containerd nothing.
Against all others there is containerd's own lock on the ref of an ingest, which it holds for as
long as the stream that opened the ref: a build that is killed lets go of it. Nothing is ever
written. The ingest itself stays until the session's lease ends: aborting it would take it from
under whoever holds the lock by then. While containerd waits for such a lock, for about a second,
nobody can write to its database, so it is asked ever more seldom.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from pybuild.backend import Activity
from pybuild.errors import BackendError
from pybuild.files.locks import holding, remove_unheld
from pybuild.oci.descriptor import digest_of
from pybuild_containerd import rpcs
from pybuild_containerd.client import Client, Stream
from pybuild_containerd.errors_table import Locked

# seconds between two tries; containerd itself tries for about one before it says no
_SHORTEST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 20.0
# seconds between two looks whether the step is done
_LOOK: Final = 0.1
_PREFIX: Final = "step-"


@contextmanager
def single_flight(
    client: Client, key: str, activity: Activity, is_done: Callable[[], bool], locks: Path
) -> Iterator[None]:
    """Wait until nobody else is in here with the same `key` on this containerd, or it `is_done`.

    `locks` is a folder that builds may share. Where a lock can't be had for another reason, the
    work is done without: it may then be done twice, which costs time only. Raises
    BuildCancelled while it waits.
    """
    name = sha256(f"{client.address}\0{client.namespace}\0{key}".encode()).hexdigest()
    with ExitStack() as stack:
        with suppress(OSError):
            locks.mkdir(mode=0o700, parents=True, exist_ok=True)
            stack.enter_context(holding(locks / f"{_PREFIX}{name}", activity.raise_if_cancelled))
        stream = _taken(client, f"pybuild-step-{digest_of(key.encode())}", activity, is_done)
        if stream is not None:
            stack.callback(stream.cancel)
        yield


def remove_dead_locks(locks: Path) -> None:
    """Remove what builds left in the folder `locks` that were killed."""
    with suppress(OSError):
        remove_unheld(locks, f"{_PREFIX}*")


def _taken(
    client: Client, ref: str, activity: Activity, is_done: Callable[[], bool]
) -> Stream | None:
    """The stream that holds the lock; None if there is none to be had, or no need for one."""
    pause = _SHORTEST_PAUSE
    while True:
        activity.raise_if_cancelled()
        stream = client.duplex(rpcs.CONTENT_WRITE, activity=activity)
        try:
            stream.send(ref=ref)  # the action STAT, which takes the ref
            stream.receive()
        except Locked:
            stream.cancel()
        except BackendError:
            stream.cancel()
            return None
        except BaseException:
            stream.cancel()
            raise
        else:
            return stream
        if _is_done_within(pause, activity, is_done):
            return None
        pause = min(2 * pause, _LONGEST_PAUSE)


def _is_done_within(seconds: float, activity: Activity, is_done: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not is_done():
        activity.raise_if_cancelled()
        if time.monotonic() >= end:
            return False
        time.sleep(_LOOK)
    return True
