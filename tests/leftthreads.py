"""Whether work in several threads leaves one of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_thread_left() -> Iterator[None]:
    """Checks that there are as many threads afterwards as before."""
    before = threading.active_count()
    yield
    assert threading.active_count() == before
