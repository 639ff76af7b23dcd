"""Whether work in several threads leaves one of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_thread_left() -> Iterator[None]:
    """Checks that every thread that was started meanwhile has ended."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before
