"""What a build costs that has nothing to do: processor time, and how much of pybuild is loaded.

The smallest of several runs, start of the process included; others on the machine add to
wall times, and to these least. Needs busybox, and root or user namespaces; measures
containerd and buildah too, where they are and this is root::

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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from builder import Build
from peers.buildah import buildah, has_buildah

from pybuild.testkit.baseimages import BUSYBOX_LARGE, busybox_layout
from pybuild.testkit.containerd import private_containerd
from pybuild.testkit.layouts import import_into_containerd

STEPS = 20
_COUNT = (
    "import sys; from pybuild.__main__ import main\n"
    "try: main()\n"
    "except SystemExit: pass\n"
    "print(len(sys.modules))"
)
Command = Sequence[str]
Environment = Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """What pybuild is told, its peers' commands by their names, and the milliseconds it may take."""

    name: str
    words: Command
    environ: Environment
    peers: Mapping[str, Command] = field(default_factory=dict)
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
def prepared(files: int) -> Iterator[list[Case]]:
    """The cases, whose images are built."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        folder.chmod(0o711)
        layout = busybox_layout(folder / "layout", BUSYBOX_LARGE)
        contexts = {count: folder / f"context-{count}" for count in (0, files)}
        for count, context in contexts.items():
            context.mkdir()
            write_context(context, count)
        time.sleep(2.1)  # what changed just now is read again
        environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        embedded = environ | {"PYBUILD_BACKEND": "embedded", "PYBUILD_ROOT": str(folder / "store")}
        base = folder / "base"
        base.mkdir()
        (base / "Dockerfile").write_text("FROM laid\n")
        option = f"--build-context=laid=oci-layout://{layout}"
        pybuild(embedded, "-q", "-t", BUSYBOX_LARGE, option, str(base))
        peers = (
            {count: {} for count in contexts}
            if not has_buildah()
            else {
                count: {"buildah": command}
                for count, command in stack.enter_context(
                    buildahs(layout, folder, contexts)
                ).items()
            }
        )
        versions = {name: [name, "--version"] for name in ("docker", "buildah")}
        yield [
            Case("--version", ["--version"], embedded, versions),
            Case("--dry-run", ["--dry-run", str(contexts[0])], embedded),
            rebuild("20 steps", contexts[0], embedded, peers[0], 100),
            rebuild(f"{files} files", contexts[files], embedded, peers[files], 350),
            *stack.enter_context(on_containerd(layout, contexts[0], environ)),
        ]


def rebuild(
    title: str, context: Path, environ: Environment, peers: Mapping[str, Command], target: float
) -> Case:
    """A build of a context that was just built."""
    words = ["-q", "-t", f"made:{context.name}", str(context)]
    pybuild(environ, *words)
    return Case(f"nothing new, {title}", words, environ, peers, target)


@contextmanager
def buildahs(
    layout: Path, folder: Path, contexts: Mapping[int, Path]
) -> Iterator[dict[int, Command]]:
    """Buildah's commands to build the contexts again."""
    with buildah(folder / "buildah") as builder:
        # by its name alone, as buildah makes a reference of the path, and few paths can be one
        pull = [*builder.program, "pull", "-q", f"oci:{layout.name}:large"]
        pulled = subprocess.run(pull, cwd=layout.parent, check=True, capture_output=True, text=True)
        base = pulled.stdout.strip()
        subprocess.run([*builder.program, "tag", base, BUSYBOX_LARGE], check=True)
        commands = {}
        for number, context in contexts.items():
            build = Build(context, context / "Dockerfile", f"made:{context.name}")
            commands[number] = list(builder.command(build).arguments)
            subprocess.run(commands[number], check=True, stdout=subprocess.DEVNULL)
        try:
            yield commands
        finally:
            builder.empty()


@contextmanager
def on_containerd(layout: Path, context: Path, environ: Environment) -> Iterator[list[Case]]:
    """The build of 20 steps on a containerd of its own, where there can be one."""
    if os.geteuid() != 0 or not shutil.which("containerd"):
        yield []
        return
    with private_containerd() as daemon:
        import_into_containerd(layout, daemon.address)
        there = {
            **environ,
            "PYBUILD_BACKEND": "containerd",
            "CONTAINERD_ADDRESS": daemon.address,
            "XDG_CACHE_HOME": str(daemon.folder / "cache"),
        }
        yield [rebuild("20 steps, containerd", context, there, {}, 250)]


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
    print(f"{'milliseconds (least)':<36}{'wall':>8}{'cpu':>8}{'modules':>9}{'target':>8}")
    with prepared(files) as cases:
        for case in cases:
            found = cost([sys.executable, "-m", "pybuild", *case.words], case.environ, rounds)
            own = Cost(found.wall, found.cpu, modules(case.words, case.environ))
            results[case.name] = {"pybuild": own}
            target = "-" if case.target is None else f"{case.target:.0f}"
            print(f"{case.name:<36}{own.wall:>8.0f}{own.cpu:>8.0f}{own.modules:>9}{target:>8}")
            kept = kept and (case.target is None or own.wall <= case.target)
            for peer, command in case.peers.items():
                if shutil.which(peer):
                    theirs = results[case.name][peer] = cost(command, case.environ, rounds)
                    print(f"{f'  {peer}':<36}{theirs.wall:>8.0f}{theirs.cpu:>8.0f}")
    if given.json:
        values = {name: {n: vars(c) for n, c in found.items()} for name, found in results.items()}
        machine = {"cpus": os.cpu_count(), "load": os.getloadavg()}
        given.json.write_text(json.dumps({"machine": machine, "milliseconds": values}, indent=1))
    return 1 if given.strict and not kept else 0


if __name__ == "__main__":
    raise SystemExit(main())
