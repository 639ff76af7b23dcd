"""The program of a worker: started as ``python -I -S worker.py FD``, root in the namespace.

It does what it is asked over that socket, one thing after the other, and ends when the
socket does. The first message has the folders that Python modules are in.
"""

import json
import os
import socket
import sys
from types import ModuleType


def main() -> None:
    packages = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120 - pathlib is slow to load
    sys.path.append(packages)
    os.umask(0)
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        serve_on(connection)


def serve_on(connection: socket.socket) -> None:
    length = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "little")
    sys.path[:], folder = json.loads(connection.recv(length, socket.MSG_WAITALL))
    # the package without its __init__, which loads all of the interpreter
    package = ModuleType("pybuild")
    package.__path__ = [folder]
    sys.modules["pybuild"] = package

    from pybuild_embedded.inside.serving import serve  # noqa: PLC0415 - found only now

    serve(connection)


if __name__ == "__main__":
    main()
