"""Writes down what is in a folder, to be compared with what a process leaves there."""

from __future__ import annotations

from pybuild.files.comparing import next_tick, record, record_to_bytes
from pybuild_embedded.requests import Record


def write_record(request: Record) -> None:
    """See `Record`. Raises OSError."""
    with request.file.open("xb") as file:
        # begun after the last change
        file.write(record_to_bytes(record(request.folder)))
        next_tick(file.fileno())
