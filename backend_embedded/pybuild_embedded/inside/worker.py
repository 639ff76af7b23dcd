"""The program of a worker: root in the namespace, in a copy of the zygote's interpreter.

It does what it is asked over a socket, one thing after the other, and ends when the socket
does. The first message has the folders that Python modules are in.
"""

import gc
import json
import os
import socket
import sys

_DESCRIPTOR = 3
_OBJECTS = 100_000


def main() -> None:
    os.umask(0)
    # as in the command line: a layer is many objects, and next to no cycles of them
    gc.set_threshold(_OBJECTS)
    with socket.socket(fileno=_DESCRIPTOR) as connection:
        length = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "little")
        sys.path[:] = json.loads(connection.recv(length, socket.MSG_WAITALL))
        from pybuild_embedded.inside.serving import serve  # noqa: PLC0415 - found only now

        serve(connection)
