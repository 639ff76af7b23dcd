"""The OCI runtimes of the machine that can start the program of a step: crun and runc."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from pybuild.errors import BackendUnavailable, StepFailed
from pybuild.sandbox import profile
from pybuild.sandbox.mapping import Kind, Mapping, system_program
from pybuild.sandbox.oci_seccomp import default_profile, ownership_profile
from pybuild.sandbox.spec import RunSpec
from pybuild.values import dataclass

RUNTIMES = ("crun", "runc")
INSTEAD = "--runner=sandbox needs no runtime"

# older ones lack what a configuration of ours has: an errno for a system call, a umask
_OLDEST = {"crun": (1, 0), "runc": (1, 1)}
_PATIENCE = 30  # seconds for a runtime to tell its version
# machine as uname has it -> Go's name
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Runtime:
    """A program of the machine; ``name`` is one of RUNTIMES, ``version`` what it says of itself."""

    name: str
    path: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def find_runtime(name: str, mapping: Mapping) -> Runtime:
    """The runtime of this name, for sandboxes with these ids.

    Raises BackendUnavailable if it is missing, broken, too old or unfit.
    """
    path = system_program(name)
    if path is None:
        hint = f"install the package {name}; {INSTEAD}"
        raise BackendUnavailable(f"{name} isn't installed", hint=hint)
    if name == "crun" and mapping.kind is Kind.INIT:
        # it mounts the root again, without the mark that device files in it are none
        raise BackendUnavailable(
            "crun can't run steps without a user namespace: it opens device files of the image",
            hint=f"--runner=runc doesn't; {INSTEAD}",
        )
    try:
        told = subprocess.run(
            [path, "--version"],
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env={},
            timeout=_PATIENCE,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BackendUnavailable(f"{path} doesn't work: {error}", hint=INSTEAD) from error
    line = told.stdout.partition(b"\n")[0].decode("utf-8", "replace")
    found = re.search(r"version (\S*?(\d+)\.(\d+)\S*)", line)
    if found is None:
        raise BackendUnavailable(f"{path} tells no version: {line!r}", hint=INSTEAD)
    oldest = _OLDEST[name]
    if (int(found[2]), int(found[3])) < oldest:
        wanted = ".".join(map(str, oldest))
        message = f"{path} is {name} {found[1]}: a RUN needs {wanted} or newer"
        raise BackendUnavailable(message, hint=f"install a newer {name}; {INSTEAD}")
    return Runtime(name, path, found[1])


def runtime_config(runtime: Runtime, mapping: Mapping) -> dict[bytes, object]:
    """What the zygote is told of a runtime."""
    single = mapping.kind is Kind.SINGLE
    architecture = _ARCHITECTURES.get(os.uname().machine, "")
    seccomp = json.dumps(default_profile(architecture, keep_owners=single))
    insecure = json.dumps(ownership_profile(architecture)) if single else ""
    return {
        b"runtime": runtime.name.encode(),
        b"runtime_path": os.fsencode(runtime.path),
        b"runtime_seccomp": seccomp.encode(),
        b"runtime_insecure_seccomp": insecure.encode(),
        b"runtime_capabilities": [name.encode() for name in profile.CAPABILITIES],
        b"runtime_insecure_capabilities": [name.encode() for name in _every_capability(mapping)],
        b"limits": [name.encode() for name in profile.LIMITS],
    }


def _every_capability(mapping: Mapping) -> tuple[str, ...]:
    if mapping.kind is Kind.INIT:
        return profile.possible_capabilities()
    # who makes a user namespace has all in it
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_bytes())
    return profile.ALL_CAPABILITIES[: last + 1]


def check_fitness(spec: RunSpec, runtime: Runtime, mapping: Mapping) -> None:
    """Raise StepFailed for what a runtime would run differently from the sandbox, or can't."""
    if spec.terminal is not None:
        raise StepFailed(f"{runtime.name} is given no terminal", hint=INSTEAD)
    if mapping.kind is Kind.SINGLE and (spec.uid or spec.gid):
        raise StepFailed(
            f"{runtime.name} can run a step only as root here, where there is but one id",
            hint=INSTEAD,
        )
    # its configuration is JSON
    texts = (*spec.args, spec.cwd, *(text for pair in spec.env for text in pair))
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise StepFailed(
                f"{runtime.name} takes arguments, variables and folders in UTF-8 only",
                hint=INSTEAD,
            ) from None
