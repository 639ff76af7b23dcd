"""What a build costs that has nothing to do: processor time, and how much of pybuild is loaded.

The smallest of several runs, start of the process included; others on the machine add to
wall times, and to these least. Needs busybox, and root or user namespaces::

    .venv/bin/python bench/startup.py [--tiny] [--json FILE] [--strict]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pybuild.testkit.baseimages import BUSYBOX_LARGE, busybox_layout

STEPS = 20
_COUNT = (
    "import sys; from pybuild.cli import main\n"
    "try: main(sys.argv[1:])\n"
    "except SystemExit: pass\n"
    "print(len(sys.modules))"
)
Command = Sequence[str]


@dataclass(frozen=True)
class Case:
    """A command, its peers' by their names, and the milliseconds it should take at most."""

    name: str
    words: Command
    peers: Mapping[str, Command]
    target: float | None = None


@dataclass(frozen=True)
class Cost:
    """Milliseconds, and modules loaded in the end, 0 for what isn't Python."""

    wall: float
    cpu: float
    modules: int = 0


def write_context(folder: Path, files: int) -> None:
    """A Dockerfile of 20 steps; the last copies `files` files of 1 KiB."""
    lines = [f"FROM {BUSYBOX_LARGE}"]
    for number in range(STEPS // 2):
        (folder / f"file-{number}").write_text(f"{number}\n")
        lines += [f"COPY file-{number} /copied-{number}", f"RUN echo {number} > /made-{number}"]
    if files:
        lines[-1] = "COPY src /src"
    for number in range(files):
        inner = folder / "src" / f"{number // 100:03}"
        inner.mkdir(parents=True, exist_ok=True)
        (inner / f"file-{number}").write_bytes(b"%08d" % number * 128)
    (folder / "Dockerfile").write_text("\n".join(lines) + "\n")


@contextmanager
def prepared(files: int) -> Iterator[tuple[dict[str, str], list[Case]]]:
    """The environment and the cases, whose images are built."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        layout = busybox_layout(folder / "layout", BUSYBOX_LARGE)
        environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environ |= {"PYBUILD_BACKEND": "embedded", "PYBUILD_ROOT": str(folder / "store")}
        base = folder / "base"
        base.mkdir()
        (base / "Dockerfile").write_text("FROM laid\n")
        option = f"--build-context=laid=oci-layout://{layout}"
        pybuild(environ, "-q", "-t", BUSYBOX_LARGE, option, str(base))
        cases = [
            Case("--version", ["--version"], {n: [n, "--version"] for n in ("docker", "buildah")})
        ]
        for title, count, target in (("20 steps", 0, 100), (f"{files} files", files, 350)):
            context = folder / f"context-{count}"
            context.mkdir()
            write_context(context, count)
            time.sleep(2.1)  # what changed just now is read again
            words = ["-q", "-t", f"made:{count}", str(context)]
            pybuild(environ, *words)
            if not count:
                cases.append(Case("--dry-run", ["--dry-run", str(context)], {}))
            cases.append(Case(f"nothing new, {title}", words, {}, target))
        yield environ, cases


def pybuild(environ: Mapping[str, str], *words: str) -> None:
    command = [sys.executable, "-m", "pybuild", *words]
    subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)


def cost(command: Command, environ: Mapping[str, str], rounds: int) -> Cost:
    walls, cpus = [], []
    for _ in range(rounds):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)
        walls.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return Cost(min(walls) * 1000, min(cpus) * 1000)


def modules(words: Command, environ: Mapping[str, str]) -> int:
    command = [sys.executable, "-c", _COUNT, *words]
    done = subprocess.run(command, env=environ, check=True, stdout=subprocess.PIPE)
    return int(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a smoke test: few files and rounds")
    parser.add_argument("--json", type=Path, help="write all values to this file")
    parser.add_argument("--strict", action="store_true", help="fail if a target isn't kept")
    given = parser.parse_args()
    files, rounds = (100, 2) if given.tiny else (20_000, 15)
    results: dict[str, dict[str, Cost]] = {}
    kept = True
    print(f"{'milliseconds (least)':<32}{'wall':>8}{'cpu':>8}{'modules':>9}{'target':>8}")
    with prepared(files) as (environ, cases):
        for case in cases:
            found = cost([sys.executable, "-m", "pybuild", *case.words], environ, rounds)
            own = Cost(found.wall, found.cpu, modules(case.words, environ))
            results[case.name] = {"pybuild": own}
            target = "-" if case.target is None else f"{case.target:.0f}"
            print(f"{case.name:<32}{own.wall:>8.0f}{own.cpu:>8.0f}{own.modules:>9}{target:>8}")
            kept = kept and (case.target is None or own.wall <= case.target)
            for peer, command in case.peers.items():
                if shutil.which(peer):
                    theirs = results[case.name][peer] = cost(command, environ, rounds)
                    print(f"{f'  {peer}':<32}{theirs.wall:>8.0f}{theirs.cpu:>8.0f}")
    if given.json:
        values = {name: {n: vars(c) for n, c in found.items()} for name, found in results.items()}
        machine = {"cpus": os.cpu_count(), "load": os.getloadavg()}
        given.json.write_text(json.dumps({"machine": machine, "milliseconds": values}, indent=1))
    return 1 if given.strict and not kept else 0


if __name__ == "__main__":
    raise SystemExit(main())
