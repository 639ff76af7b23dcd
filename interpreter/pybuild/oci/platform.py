"""Platforms: parsing, formatting, matching, after the OCI image index and containerd's rules."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable

from pybuild.errors import UsageError
from pybuild.values import dataclass

_OSES = frozenset(
    # Word lists: one name a line would hide the module.
    "aix android darwin dragonfly freebsd hurd illumos ios js linux nacl netbsd openbsd "  # noqa: SIM905
    "plan9 solaris windows zos".split()
)
_ARCHITECTURES = frozenset(
    "386 amd64 amd64p32 arm armbe arm64 arm64be loong64 mips mipsle mips64 mips64le "  # noqa: SIM905
    "mips64p32 mips64p32le ppc ppc64 ppc64le riscv riscv64 s390 s390x sparc sparc64 wasm".split()
)
# How operating systems name processors, where Go has another name.
_MACHINES = {
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "x86": ("386", ""),
    "armv5tel": ("arm", "v5"),
    "armv5tejl": ("arm", "v5"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v8"),
    "loongarch64": ("loong64", ""),
}
_LATEST_ARM64_MINOR = {8: 9, 9: 7}
_ARM64_VARIANT = re.compile(r"v([89])(?:\.([0-9]))?")
_COMPONENT = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_OS = re.compile(r"([A-Za-z0-9_-]{1,64})(?:\(([A-Za-z0-9_.-]{1,64})\))?")


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system, CPU architecture and variant, in Go's names, normalised.

    ``variant`` is empty where the architecture has none or only its default one
    (arm64's v8, amd64's v1).
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""

    def __str__(self) -> str:
        parts = [self.os, self.architecture]
        if self.variant:
            parts.append(self.variant)
        return "/".join(parts)


def normalise(os: str, architecture: str, variant: str = "", os_version: str = "") -> Platform:
    """The platform that these words mean: ``x86_64`` is amd64, ``armhf`` is arm/v7."""
    os, architecture, variant = os.lower(), architecture.lower(), variant.lower()
    os = "darwin" if os == "macos" else os
    match architecture, variant:
        case "i386", _:
            architecture, variant = "386", ""
        case (("x86_64" | "x86-64" | "amd64"), _):
            architecture, variant = "amd64", "" if variant == "v1" else variant
        case (("aarch64" | "arm64"), ("8" | "v8" | "v8.0")):
            architecture, variant = "arm64", ""
        case (("aarch64" | "arm64"), ("9" | "9.0" | "v9.0")):
            architecture, variant = "arm64", "v9"
        case "aarch64", _:
            architecture = "arm64"
        case "armhf", _:
            architecture, variant = "arm", "v7"
        case "armel", _:
            architecture, variant = "arm", "v6"
        case "arm", "":
            variant = "v7"
        case "arm", ("5" | "6" | "7" | "8"):
            variant = f"v{variant}"
        case _:
            pass
    return Platform(os, architecture, variant, os_version)


def parse_platform(text: str) -> Platform:
    """The platform written as ``os``, ``arch``, ``os/arch`` or ``os/arch/variant``.

    What is missing is this machine's. Raises UsageError.
    """
    parts = text.split("/")
    first = _OS.fullmatch(parts[0])
    if len(parts) > 3 or first is None or not all(map(_COMPONENT.fullmatch, parts[1:])):
        raise _invalid(text)
    os, os_version = first[1], first[2] or ""
    if len(parts) > 1:
        return normalise(os, parts[1], parts[2] if len(parts) == 3 else "", os_version)
    here = host_platform()
    known = normalise(os, here.architecture, here.variant, os_version)
    if known.os in _OSES:
        return known
    known = normalise(here.os, parts[0])
    if known.architecture in _ARCHITECTURES:
        return known
    raise _invalid(text)


def host_platform() -> Platform:
    """The platform of the images that this machine runs.

    Containers on macOS and Windows run in a Linux machine, so their system is linux.
    """
    system = "freebsd" if sys.platform.startswith("freebsd") else "linux"
    machine = _machine().lower()
    if machine in {"mips", "mips64"} and sys.byteorder == "little":
        machine += "le"
    return normalise(system, *_MACHINES.get(machine, (machine, "")))


def _machine() -> str:
    """The processor, as the operating system calls it."""
    if sys.platform != "win32":
        return os.uname().machine
    import platform  # noqa: PLC0415 - takes a millisecond to load

    return platform.machine()


def rank(wanted: Platform, candidate: Platform) -> int | None:
    """How well an image for `candidate` runs on `wanted`: 0 is best, None is not at all.

    containerd's rule: a processor runs its own variant, then older ones, then the 32-bit
    architecture of its family.
    """
    if wanted.os != candidate.os or not _version_fits(wanted, candidate):
        return None
    runnable = _runnable(wanted.architecture, wanted.variant)
    pair = (candidate.architecture, candidate.variant)
    return runnable.index(pair) if pair in runnable else None


def matches(wanted: Platform, candidate: Platform) -> bool:
    """Whether an image for `candidate` runs on `wanted`."""
    return rank(wanted, candidate) is not None


def best(wanted: Platform, candidates: Iterable[Platform]) -> Platform | None:
    """The first of the best-ranked candidates; None if none runs on `wanted`."""
    ranked = [(rank(wanted, candidate), candidate) for candidate in candidates]
    fitting = [(place, candidate) for place, candidate in ranked if place is not None]
    return min(fitting, key=lambda pair: pair[0])[1] if fitting else None


def _runnable(architecture: str, variant: str) -> list[tuple[str, str]]:
    match architecture:
        case "amd64":
            newest = int(variant[1:]) if re.fullmatch(r"v[2-9]", variant) else 1
            older = [("amd64", f"v{level}") for level in range(newest - 1, 1, -1)]
            own = [("amd64", variant)]
            return own + older + ([("amd64", "")] if variant else []) + [("386", "")]
        case "arm":
            newest = int(variant[1:]) if re.fullmatch(r"v[5-9]", variant) else 0
            return [("arm", variant)] + [("arm", f"v{n}") for n in range(newest - 1, 4, -1)]
        case "arm64":
            return _runnable_on_arm64(variant)
        case _:
            return [(architecture, variant)]


def _runnable_on_arm64(variant: str) -> list[tuple[str, str]]:
    match = _ARM64_VARIANT.fullmatch(variant or "v8")
    if match is None:
        return [("arm64", variant)]
    major, minor = int(match[1]), int(match[2] or 0)
    if minor > _LATEST_ARM64_MINOR[major]:
        return [("arm64", variant)]
    levels = [(major, n) for n in range(minor, -1, -1)]
    if major == 9:  # Armv9.n has everything of Armv8.(n+5)
        levels += [(8, n) for n in range(min(minor + 5, 9), -1, -1)]
    own = [("arm64", _arm64_variant(*level)) for level in levels]
    return own + _runnable("arm", "v8")


def _arm64_variant(major: int, minor: int) -> str:
    if minor:
        return f"v{major}.{minor}"
    return "" if major == 8 else f"v{major}"


def _version_fits(wanted: Platform, candidate: Platform) -> bool:
    if wanted.os != "windows" or not wanted.os_version or not candidate.os_version:
        return True
    # Windows containers need the kernel's build: major, minor, build.
    return wanted.os_version.split(".")[:3] == candidate.os_version.split(".")[:3]


def _invalid(text: str) -> UsageError:
    return UsageError(
        f"unknown platform {text!r}",
        hint="platforms look like linux/amd64, linux/arm64 or linux/arm/v7",
    )


def platform_as_json(platform: Platform) -> dict[str, str]:
    """The platform member of a descriptor, in the order of OCI `image-index.md`."""
    members = {
        "architecture": platform.architecture,
        "os": platform.os,
        "os.version": platform.os_version,
        "variant": platform.variant,
    }
    return {name: value for name, value in members.items() if value}
