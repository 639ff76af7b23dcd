"""Builds Dockerfiles on an embedded store of its own and tells the images' digests.

A program, so that another user's builds cost one process: it is given a folder, the address
of a registry that has the base images, their names, and which Dockerfiles, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pybuild import Backend, build
from pybuild.backend import PullPolicy
from pybuild.oci.platform import host_platform
from pybuild.oci.reference import parse_reference
from pybuild.testkit.workbench import RecordingActivity
from pybuild_embedded.backend import open_backend

sys.path.append(str(Path(__file__).resolve().parents[1]))

from sharedcontext import make_context

EPOCH = 1700000000


def embedded_digests(
    folder: Path,
    address: str,
    bases: Sequence[str],
    dockerfiles: Sequence[Path],
    workers: int,
    *,
    runner: str = "auto",
) -> dict[str, str]:
    """Manifest digests by the Dockerfiles' names, built with this many workers from scratch.

    `bases` are the full names of images that the registry has under their last part.
    """
    with open_backend({"root": folder / "store", "runner": runner}) as backend:
        for base in bases:
            name = f"{address}/{base.rpartition('/')[2]}"
            asked = parse_reference(name), host_platform(), PullPolicy.MISSING
            backend.resolve(*asked, RecordingActivity())
            store = backend.image_store()
            assert store is not None
            store.tag(name, parse_reference(base))
        return digests(backend, folder, dockerfiles, workers)


def digests(
    backend: Backend, folder: Path, dockerfiles: Sequence[Path], workers: int
) -> dict[str, str]:
    """As `embedded_digests`, on a backend that has the base images."""
    context = folder / "context"
    if not context.exists():
        context.mkdir()
        make_context(context)
    found = {}
    for dockerfile in dockerfiles:
        # a sample lies in its own context
        is_sample = dockerfile.name == "Dockerfile"
        result = build(
            dockerfile.parent if is_sample else context,
            dockerfile=dockerfile,
            backend=backend,
            created=EPOCH,
            no_cache=True,
            max_workers=workers,
        )
        found[dockerfile.parent.name if is_sample else dockerfile.stem] = result.digest
    return found


def main(folder: str, address: str, work: str) -> None:
    given: Mapping[str, list[str]] = json.loads(work)
    dockerfiles = list(map(Path, given["dockerfiles"]))
    found = embedded_digests(Path(folder), address, given["bases"], dockerfiles, 8)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
