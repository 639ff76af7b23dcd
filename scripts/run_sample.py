# ruff: noqa: INP001, T201  (a script, which prints)
"""Build a sample and run what it is for: no daemon, no root, no registry.

Its base image is made of busybox-static and stands in for ``FROM busybox``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from pybuild.errors import BackendUnavailable
from pybuild.testkit.baseimages import busybox_layout


def pybuild(*words: str) -> None:
    """Show the command and run it."""
    print(f"\n$ pybuild {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "pybuild", *words], check=True)


def main() -> None:
    sample = Path(sys.argv[1])
    name = f"{sample.name}:1"
    with tempfile.TemporaryDirectory() as temporary:
        layout = busybox_layout(Path(temporary) / "busybox")
        pybuild("-t", name, "--build-context", f"busybox=oci-layout://{layout}", str(sample))
    pybuild("run", name)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    except BackendUnavailable as error:
        sys.exit(f"error: {error}")
