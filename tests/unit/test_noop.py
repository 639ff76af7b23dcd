"""A rebuild of what didn't change: what it loads, and what it reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from pybuild.backends import OWN_BACKENDS, backend_names, open_backend
from pybuild.errors import BackendUnavailable
from pybuild.testkit.baseimages import busybox_layout

ROOT = Path(__file__).parent.parent.parent
UNNEEDED = (
    *("socket", "ssl", "http", "email", "zipfile", "importlib.metadata", "subprocess"),
    *("dataclasses", "inspect", "ctypes", "tempfile", "shutil", "lzma", "bz2", "random", "secrets"),
    *("difflib", "csv", "platform", "tarfile", "uuid", "asyncio", "tomllib", "importlib.resources"),
    *("grpc", "google", "urllib3", "tqdm", "isal", "backports", "pybuild_containerd"),
    *("pybuild.oci.registry", "pybuild.oci.auth", "pybuild.oci.hosts", "pybuild.oci.pull"),
    *(
        "pybuild.oci.layertar",
        "pybuild.oci.tarformat",
        "pybuild.files.layout",
        "pybuild.files.spool",
    ),
    *("pybuild.files.archives", "pybuild.files.openat2", "pybuild.pipes", "pybuild.run.progress"),
    *("pybuild.export.layout", "pybuild.export.folder", "pybuild.export.delivering"),
    *("pybuild.sandbox.client", "pybuild.sandbox.modes", "pybuild.sandbox.process"),
    *("pybuild.sandbox.emulation", "pybuild.sandbox.spec", "pybuild.run.certificates"),
    *("pybuild.remotes.git", "pybuild.remotes.web", "pybuild.checks", "pybuild.reports"),
    *("pybuild.run.explaining", "pybuild.run.miss", "pybuild.plan.keyinputs"),
    *("pybuild.plan.outline", "pybuild.plan.describe", "pybuild.diagnostics", "pybuild.testkit"),
    *(
        "pybuild.builder",
        "pybuild.image",
        "pybuild.files.filesystem",
        "pybuild.files.memorycontext",
    ),
    *(
        "pybuild.run.failedsteps",
        "pybuild.run.logfile",
        "pybuild.imagefactory",
        "pybuild.pytest_plugin",
    ),
    *("pybuild_embedded.workers", "pybuild_embedded.newlayers", "pybuild_embedded.checking"),
)
NEEDED = (
    *("argparse", "concurrent.futures.thread", "dockerfile_parse", "graphlib", "hashlib", "json"),
    *("pathlib", "queue", "signal", "sqlite3"),
)
"""What a build can't do without: it may load more in some versions of Python."""
MOST_OF_OUR_OWN = 135
"""Modules of pybuild: each takes some 0.2 ms to load."""
PROGRAM = """
import json, sys
opened = []
def watch(event, words):
    if event == "open" and isinstance(words[0], (str, bytes)):
        opened.append(str(words[0]))
    assert not event.startswith(("socket.", "subprocess.")), event
sys.addaudithook(watch)
from pybuild.cli import main
code = main(sys.argv[1:])
print(json.dumps([code, opened, list(sys.modules)]))
"""


def built(store: Path, *words: str | Path, program: Sequence[str] = ("-m", "pybuild")) -> str:
    """Build in a process of its own; the last line that it printed."""
    done = subprocess.run(
        [sys.executable, *program, "-q", "--backend=embedded", f"--root={store}", *words],
        check=False,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYBUILD")},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def rebuilt(store: Path, *words: str | Path) -> tuple[list[str], set[str]]:
    """The files that a build opened by Python's own means, and the modules that it had loaded
    in the end. It fails if it opens a socket or starts a process.
    """
    code, opened, loaded = json.loads(built(store, *words, program=("-c", PROGRAM)))
    assert code == 0
    return opened, set(loaded)


def loaded_by(names: Sequence[str]) -> set[str]:
    """The modules that are loaded once those are."""
    program = f"import sys, {', '.join(names)}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return set(done.stdout.decode().split())


def wait_until_kept(path: Path) -> None:
    """Wait until the file is so old that a build keeps its digest."""
    while time.time_ns() - path.lstat().st_ctime_ns < 2.1 * 10**9:
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="the embedded backend is Linux's")
def test_a_rebuild_loads_nothing_unneeded_opens_no_socket_and_starts_nothing(
    tmp_path: Path,
) -> None:
    layout, context, store = tmp_path / "busybox", tmp_path / "context", tmp_path / "store"
    busybox_layout(layout)
    context.mkdir()
    (context / "base").write_text("FROM laid\n")
    (context / "Dockerfile").write_text("FROM busybox\nCOPY file /file\nWORKDIR /new\n")
    (context / "file").write_text("content")
    option = f"--build-context=laid=oci-layout://{layout}"
    built(store, "-t", "busybox", option, "-f", context / "base", context)
    # or else a slow machine keeps it with the rebuild
    wait_until_kept(context / "file")
    built(store, context)
    _, loaded = rebuilt(store, context)
    assert "pybuild_embedded.backend" in loaded
    found = {name for name in loaded if f"{name}.".startswith(tuple(f"{x}." for x in UNNEEDED))}
    assert found - loaded_by(NEEDED) == set()
    assert len([name for name in loaded if name.startswith("pybuild")]) <= MOST_OF_OUR_OWN


@pytest.mark.skipif(sys.platform != "linux", reason="the embedded backend is Linux's")
def test_a_rebuild_uses_digests_that_the_store_keeps(tmp_path: Path) -> None:
    context, store = tmp_path / "context", tmp_path / "store"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM scratch\nCOPY file /\n")
    (context / "file").write_text("content")
    wait_until_kept(context / "file")
    built(store, context)
    (kept,) = (each for each in (store / "contexts").iterdir() if each.is_file())
    opened, _ = rebuilt(store, context)
    assert str(kept) in opened
    assert [path for path in opened if "/builds/" in path] == []
    # one that changed is built anew
    (context / "file").write_text("CONTENT")
    built(store, context)
    with open_backend("embedded", {"root": store}) as backend:
        images = backend.image_store()
        assert images is not None
        assert len(images.images()) == 2


def test_our_own_backends_are_those_of_the_entry_points() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["pybuild.backends"]
    assert points == {name: f"{module}:open_backend" for name, module in OWN_BACKENDS.items()}
    assert set(OWN_BACKENDS) <= set(backend_names())


def test_a_plug_in_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "plugged-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pybuild.backends]\nplugged = plugged:open_backend\n")
    (tmp_path / "plugged.py").write_text(
        "from pybuild.testkit.memory import open_backend as memory\n"
        "def open_backend(options):\n    return memory(options)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "plugged" in backend_names()
    with open_backend("plugged") as backend:
        assert backend.name == "memory"
    with pytest.raises(BackendUnavailable, match="did you mean plugged"):
        open_backend("pluged")
