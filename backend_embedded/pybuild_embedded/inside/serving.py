"""The loop of a worker: a request in, an answer or an error out."""

from __future__ import annotations

import socket
from contextlib import suppress

from pybuild.errors import PybuildError
from pybuild.unpacking.failures import translated
from pybuild.unpacking.removing import measure, remove
from pybuild_embedded.inside.indexes import Indexes
from pybuild_embedded.inside.packing import pack
from pybuild_embedded.inside.points import make_points, remove_points
from pybuild_embedded.inside.unpacking import unpack
from pybuild_embedded.requests import (
    Apply,
    MakePoints,
    Measure,
    Merge,
    Pack,
    Packed,
    Record,
    Remove,
    RemovePoints,
    Request,
    Shown,
    Unpack,
    decode,
    encode_answer,
    encode_bug,
    encode_error,
    receive,
    send,
)


def serve(connection: socket.socket) -> None:
    """Answer requests until the other side has gone."""
    with suppress(ConnectionError):
        _serve(connection)


def _serve(connection: socket.socket) -> None:
    indexes, shown = Indexes(), Shown()
    while (message := receive(connection)) is not None:
        try:
            answer = encode_answer(_done(decode(message, shown), indexes))
        except PybuildError as error:
            answer = encode_error(error)
        except Exception:  # noqa: BLE001 - the client is told whatever it is
            import traceback  # noqa: PLC0415 - for a bug

            answer = encode_bug(traceback.format_exc())
        send(connection, answer)


def _done(request: Request, indexes: Indexes) -> int | list[int] | Packed | None:
    match request:
        case Unpack(target=target):
            with translated("unpack the layer", target):
                return unpack(request, indexes)
        case Apply(target=target):
            from pybuild_embedded.inside.applying import apply  # noqa: PLC0415 - without overlays

            with translated("apply the layer", target):
                apply(request, indexes)
            return None
        case MakePoints(folder=folder):
            with translated("make mount points", folder):
                return make_points(request)
        case RemovePoints(folder=folder):
            with translated("remove mount points", folder):
                remove_points(request)
            return None
        case Record(folder=folder):
            from pybuild_embedded.inside.recording import write_record  # noqa: PLC0415 - as above

            with translated("look at the files", folder):
                write_record(request)
            return None
        case Pack(blob=blob):
            with translated("write the layer", blob.parent):
                return pack(request, indexes)
        case Merge(target=target):
            from pybuild_embedded.inside.merging import merge  # noqa: PLC0415 - for many layers

            with translated("copy the layers", target):
                return merge(request, indexes)
        case Remove(folders=folders):
            for folder in folders:
                with translated("remove", folder.parent):
                    remove(folder)
            return None
        case Measure(folders=folders):
            return [measure(folder) for folder in folders]
