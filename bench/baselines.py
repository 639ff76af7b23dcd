"""How the peers compared with each other when all of them were at hand: bridges to the missing.

Seconds, medians, all on one machine in 2026; only their ratios mean anything elsewhere.
BuildKit 0.32.2 alone and on containerd 2.3, that in dockerd 20.10 and the classic builder
there, buildah 1.44.
"""

from __future__ import annotations

_COLUMNS = ("buildkit", "buildkit-containerd", "docker-buildkit", "docker-classic", "buildah")
_SECONDS = {
    "W1s": (0.20, 0.37, 0.32, 0.56, 0.32),
    "W1": (2.09, 4.26, 1.63, 5.7, 4.58),
    "W2": (1.00, 2.18, 0.89, 2.42, 2.30),
    "W3": (11.6, 10.8, 8.50, 30.3, 13.6),
    "W3inc": (8.46, 8.23, 6.05, 29.4, 19.0),
    "W4": (7.20, 7.67, 7.11, 9.55, 3.24),
    "W5": (2.83, 3.24, 3.14, 9.30, 6.90),
    "W6-W1": (0.12, 0.22, 0.12, 0.12, 0.43),
    "W6-W3": (0.76, 0.76, 0.66, 13.0, 10.2),
    "W7": (2.42, 2.64, 2.36, 11.0, 3.28),
    "W8d": (2.37, 2.83, 3.49, 3.23, 5.30),
    "W8p": (3.80, 3.51, 5.59, 4.79, 9.09),
}
# those nearest to BuildKit first
_BRIDGES = ("buildkit", "buildkit-containerd", "docker-buildkit", "docker-classic", "buildah")


def bridged(workload: str, wanted: str, measured: dict[str, float]) -> float | None:
    """The seconds that `wanted` would have taken where the peers took `measured`."""
    seconds = dict(zip(_COLUMNS, _SECONDS[workload], strict=True))
    for peer in _BRIDGES:
        if peer in measured:
            return measured[peer] * seconds[wanted] / seconds[peer]
    return None
