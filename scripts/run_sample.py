# ruff: noqa: INP001, T201  (a script, which prints)
"""Build a sample on containerd, run it with ctr, and print what it says.

The containerd is the one that answers, else a private one that is gone afterwards. The
base image of busybox-static is imported where there is none.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pybuild.errors import BackendUnavailable
from pybuild.testkit.baseimages import BUSYBOX, busybox_layout
from pybuild.testkit.containerd import private_containerd
from pybuild.testkit.layouts import import_into_containerd


@contextmanager
def any_containerd() -> Iterator[str]:
    """The socket of a containerd that answers."""
    addresses = (os.environ.get("CONTAINERD_ADDRESS"), "/run/containerd/containerd.sock")
    for address in filter(None, addresses):
        if answers(address):
            print(f"using the containerd at {address}")
            yield address
            return
    print("no containerd answers; starting one of our own")
    with private_containerd() as daemon:
        yield daemon.address


def answers(address: str) -> bool:
    """Whether a containerd is behind the socket. ctr alone would wait ten seconds for one."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address.removeprefix("unix://"))
    except OSError:
        return False
    return ctr(address, "version", check=False).returncode == 0


def ctr(address: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = ["ctr", "--address", address, "--namespace", "default", *arguments]
    return subprocess.run(command, check=check, capture_output=True, text=True)


def main() -> None:
    sample = Path(sys.argv[1])
    name = f"{sample.name}:1"
    with any_containerd() as address:
        if BUSYBOX not in ctr(address, "images", "ls", "-q").stdout.split():
            with tempfile.TemporaryDirectory() as temporary:
                import_into_containerd(busybox_layout(Path(temporary) / "layout"), address)
        command = [sys.executable, "-m", "pybuild", "--containerd-address", address]
        build = [*command, "-t", name, str(sample)]
        print(f"\n$ pybuild -t {name} {sample}", flush=True)
        subprocess.run(build, check=True)
        run = ["run", "--rm", f"docker.io/library/{name}", f"pybuild-sample-{os.getpid()}"]
        print(f"\n$ ctr {' '.join(run)}", flush=True)
        print(ctr(address, *run).stdout, end="")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit((error.stderr or "").strip() or error.returncode)
    except (BackendUnavailable, RuntimeError) as error:
        sys.exit(f"error: {error}")
