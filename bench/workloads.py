"""What is built: the workloads, and how much faster than its peers pybuild has to be on each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from contexts import many_files, nothing, one_file


class Start(Enum):
    """What a builder has when a measured build begins."""

    BASE = auto()  # the base image, and no step
    NOTHING = auto()  # not even the base image
    BUILT = auto()  # everything: it was built before
    ONE_FILE_CHANGED = auto()  # everything but one file of the context


class Base(Enum):
    BUSYBOX = "busybox"
    DEBIAN = "debian"
    PYTHON = "python"


@dataclass(frozen=True)
class Goal:
    """The largest ratio of pybuild's time to a peer's, for both backends.

    ``peer`` is BuildKit, whichever backend it has, or else the fastest of all peers.
    """

    peer: str
    embedded: float
    containerd: float


@dataclass(frozen=True)
class Workload:
    """``dockerfile`` makes its text from the base's reference and the size, 0 to 1.

    ``memory`` is the most MiB that pybuild and all below it may have.
    """

    name: str
    title: str
    base: Base
    dockerfile: Callable[[str, float], str]
    goal: Goal
    start: Start = Start.BASE
    memory: int = 150


@dataclass(frozen=True)
class Group:
    """Workloads on one context. ``context`` fills a folder, for a size of 0 to 1."""

    context: Callable[[Path, float], None]
    workloads: tuple[Workload, ...]


def _one_run(base: str, _: float) -> str:
    return f"FROM {base}\nRUN true\n"


def _many_runs(base: str, size: float) -> str:
    lines = (f"RUN : step {number}" for number in range(_count(20, size)))
    return "\n".join((f"FROM {base}", *lines, ""))


def _runs_that_write(base: str, size: float) -> str:
    lines = (f"RUN echo {number} > /etc/w2-{number}" for number in range(_count(10, size)))
    return "\n".join((f"FROM {base}", *lines, ""))


def _copy(base: str, _: float) -> str:
    return f"FROM {base}\nCOPY . /made/\n"


def _run_of_many_files(base: str, size: float) -> str:
    return (
        f"FROM {base}\nRUN for d in $(seq {_count(100, size)}); do mkdir -p /made/$d; "
        "for f in $(seq 200); do echo $d $f > /made/$d/$f; done; done\n"
    )


def _four_stages(base: str, size: float) -> str:
    seconds = 2 if size == 1 else 0.2
    stages = (f"FROM {base} AS s{n}\nRUN sleep {seconds}; echo {n} > /out-{n}\n" for n in range(4))
    copies = (f"COPY --from=s{n} /out-{n} /\n" for n in range(4))
    return "".join((*stages, f"FROM {base}\n", *copies))


def _count(whole: int, size: float) -> int:
    return max(2, round(whole * size))


BUILDKIT, FASTEST = "BuildKit", "the fastest peer"

GROUPS = (
    Group(
        nothing,
        (
            Workload("W1s", "one RUN", Base.BUSYBOX, _one_run, Goal(BUILDKIT, 0.6, 0.8)),
            Workload("W1", "20 x RUN", Base.BUSYBOX, _many_runs, Goal(BUILDKIT, 0.20, 0.45)),
            Workload(
                *("W6-W1", "W1 again, nothing new", Base.BUSYBOX, _many_runs),
                *(Goal(BUILDKIT, 0.7, 1.0), Start.BUILT),
            ),
            Workload(
                *("W2", "10 x RUN that writes, Debian", Base.DEBIAN, _runs_that_write),
                Goal(BUILDKIT, 0.30, 0.45),
            ),
            Workload(
                *("W5", "RUN that writes 20,000 files", Base.DEBIAN, _run_of_many_files),
                Goal(FASTEST, 0.70, 0.85),
            ),
            Workload(
                *("W7", "four stages of 2 s", Base.BUSYBOX, _four_stages),
                Goal(BUILDKIT, 0.93, 1.0),
            ),
        ),
    ),
    Group(
        many_files,
        (
            Workload(
                *("W3", "COPY of 20,000 files", Base.BUSYBOX, _copy),
                Goal(FASTEST, 0.15, 0.30),
            ),
            Workload(
                *("W6-W3", "W3 again, nothing new", Base.BUSYBOX, _copy),
                *(Goal(BUILDKIT, 0.5, 0.6), Start.BUILT),
            ),
            Workload(
                *("W3inc", "W3 again, one file new", Base.BUSYBOX, _copy),
                *(Goal(FASTEST, 0.20, 0.35), Start.ONE_FILE_CHANGED),
            ),
        ),
    ),
    Group(
        one_file,
        (
            Workload(
                *("W4", "COPY of a 512 MiB file", Base.BUSYBOX, _copy),
                *(Goal(FASTEST, 0.50, 1.0), Start.BASE, 250),
            ),
        ),
    ),
    Group(
        nothing,
        (
            Workload(
                *("W8d", "pull of Debian, one RUN", Base.DEBIAN, _one_run),
                *(Goal(FASTEST, 0.7, 0.9), Start.NOTHING, 250),
            ),
            Workload(
                *("W8p", "pull of Debian with Python", Base.PYTHON, _one_run),
                *(Goal(FASTEST, 0.7, 0.9), Start.NOTHING, 250),
            ),
        ),
    ),
)
