"""Single flight: of all builds on one containerd, one at a time runs a step with one cache key.

The lock is containerd's own on the ref of an ingest, which it holds for as long as the
stream that opened the ref: a build that is killed lets go of it. Nothing is ever written.
The ingest itself stays until the session's lease ends: aborting it would take it from under
whoever holds the lock by then.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pybuild.backend import Activity
from pybuild.errors import BackendError
from pybuild.oci.descriptor import digest_of
from pybuild_containerd import rpcs
from pybuild_containerd.client import Client, Stream
from pybuild_containerd.errors_table import Locked

# seconds between two tries; containerd itself tries for about one before it says no
_PAUSE: Final = 0.1


@contextmanager
def single_flight(client: Client, key: str, activity: Activity) -> Iterator[None]:
    """Wait until nobody else is in here with the same `key` on this containerd.

    Where the lock can't be had for another reason, the work is done without: it may then be
    done twice, which costs time only. Raises BuildCancelled while it waits.
    """
    stream = _taken(client, f"pybuild-step-{digest_of(key.encode())}", activity)
    try:
        yield
    finally:
        if stream is not None:
            stream.cancel()


def _taken(client: Client, ref: str, activity: Activity) -> Stream | None:
    """The stream that holds the lock; None if there is none to be had."""
    while True:
        activity.raise_if_cancelled()
        stream = client.duplex(rpcs.CONTENT_WRITE, activity=activity)
        try:
            stream.send(ref=ref)  # the action STAT, which takes the ref
            stream.receive()
        except Locked:
            stream.cancel()
            time.sleep(_PAUSE)
        except BackendError:
            stream.cancel()
            return None
        except BaseException:
            stream.cancel()
            raise
        else:
            return stream
