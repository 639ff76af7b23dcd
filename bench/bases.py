"""The base images of the workloads, served by a registry on the loopback interface.

Debian's are made by debootstrap once and kept where the tests keep theirs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path
from workloads import Base

from pybuild.testkit.baseimages import BUSYBOX, busybox_layout, debian_layout
from pybuild.testkit.registry import Registry

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from embedding import serve_layout as serve

__all__ = ["serve", "served_bases"]

_NAMES = {
    Base.BUSYBOX: "busybox:latest",
    Base.DEBIAN: "debian:stable-slim",
    Base.PYTHON: "python:3-slim",
}
_PYTHON = ("python3-minimal", "libpython3-stdlib")
_TINY_FILES = 100


@contextmanager
def served_bases(folder: Path, *, tiny: bool) -> Iterator[Mapping[Base, str]]:
    """The reference of each base, from a registry that lasts as long.

    With `tiny`, no Debian is made: a busybox that looks like one stands in.
    """
    with Registry() as registry:
        serve(registry, busybox_layout(folder / "busybox", BUSYBOX))
        for base, packages in ((Base.DEBIAN, ()), (Base.PYTHON, _PYTHON)):
            name = f"docker.io/library/{_NAMES[base]}"
            if tiny:
                place = folder / base.value
                layout = busybox_layout(place, name, usrmerge=True, extra_files=_TINY_FILES)
            else:
                cache = user_cache_path("pybuild-tests", appauthor=False)
                layout = debian_layout(cache, (name,), packages)
            serve(registry, layout)
        yield {base: f"{registry.address}/{name}" for base, name in _NAMES.items()}
