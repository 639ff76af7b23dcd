"""pybuild builds OCI images from Dockerfiles, without BuildKit.

::

    import pybuild

    result = pybuild.build(".", tags=["hello:1"])
    print(result.names, result.digest)
"""

from pybuild.api import PlannedBuild, build, plan_build
from pybuild.backend import (
    Backend,
    HostEntry,
    Network,
    PullPolicy,
    Ulimit,
)
from pybuild.backends import backend_names, open_backend
from pybuild.errors import (
    AuthenticationRequired,
    BackendError,
    BackendFailed,
    BackendUnavailable,
    BuildCancelled,
    ContextError,
    CopyFailed,
    DockerfileError,
    DockerfileSyntaxError,
    ExpansionError,
    ImageError,
    ImageNotFound,
    InvalidImage,
    PlatformMismatch,
    PybuildError,
    RegistryError,
    RunFailed,
    SourceRange,
    StageCycle,
    StageNotFound,
    StepFailed,
    UnknownInstruction,
    UnsupportedByBackend,
    UsageError,
)
from pybuild.oci.platform import Platform
from pybuild.run.activity import CancelToken
from pybuild.run.events import (
    BuildFinished,
    Event,
    Reporter,
    StepFinished,
    StepLog,
    StepProgress,
    StepStarted,
    Warned,
)
from pybuild.run.result import BuildResult, BuiltImage, StepResult

__version__ = "0.1.0"

__all__ = [
    "AuthenticationRequired",
    "Backend",
    "BackendError",
    "BackendFailed",
    "BackendUnavailable",
    "BuildCancelled",
    "BuildFinished",
    "BuildResult",
    "BuiltImage",
    "CancelToken",
    "ContextError",
    "CopyFailed",
    "DockerfileError",
    "DockerfileSyntaxError",
    "Event",
    "ExpansionError",
    "HostEntry",
    "ImageError",
    "ImageNotFound",
    "InvalidImage",
    "Network",
    "PlannedBuild",
    "Platform",
    "PlatformMismatch",
    "PullPolicy",
    "PybuildError",
    "RegistryError",
    "Reporter",
    "RunFailed",
    "SourceRange",
    "StageCycle",
    "StageNotFound",
    "StepFailed",
    "StepFinished",
    "StepLog",
    "StepProgress",
    "StepResult",
    "StepStarted",
    "Ulimit",
    "UnknownInstruction",
    "UnsupportedByBackend",
    "UsageError",
    "Warned",
    "__version__",
    "backend_names",
    "build",
    "open_backend",
    "plan_build",
]
