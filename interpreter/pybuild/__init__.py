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
from pybuild.checks import (
    CheckResult,
    OutlineResult,
    TargetsResult,
    check,
    outline,
    targets,
)
from pybuild.dockerfile.lint import LintWarning
from pybuild.dockerfile.targets import Target
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
    ExportFailed,
    FetchFailed,
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
from pybuild.plan.outline import Outline, OutlineArg, OutlineMount
from pybuild.remotes.options import RemoteOptions
from pybuild.run.activity import CancelToken
from pybuild.run.events import (
    BuildFinished,
    Event,
    LintReported,
    Reporter,
    StepFinished,
    StepLog,
    StepProgress,
    StepStarted,
    Warned,
)
from pybuild.run.result import BuildResult, BuiltImage, OutputResult, StepResult
from pybuild.secrets import Secret

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
    "CheckResult",
    "ContextError",
    "CopyFailed",
    "DockerfileError",
    "DockerfileSyntaxError",
    "Event",
    "ExpansionError",
    "ExportFailed",
    "FetchFailed",
    "HostEntry",
    "ImageError",
    "ImageNotFound",
    "InvalidImage",
    "LintReported",
    "LintWarning",
    "Network",
    "Outline",
    "OutlineArg",
    "OutlineMount",
    "OutlineResult",
    "OutputResult",
    "PlannedBuild",
    "Platform",
    "PlatformMismatch",
    "PullPolicy",
    "PybuildError",
    "RegistryError",
    "RemoteOptions",
    "Reporter",
    "RunFailed",
    "Secret",
    "SourceRange",
    "StageCycle",
    "StageNotFound",
    "StepFailed",
    "StepFinished",
    "StepLog",
    "StepProgress",
    "StepResult",
    "StepStarted",
    "Target",
    "TargetsResult",
    "Ulimit",
    "UnknownInstruction",
    "UnsupportedByBackend",
    "UsageError",
    "Warned",
    "__version__",
    "backend_names",
    "build",
    "check",
    "open_backend",
    "outline",
    "plan_build",
    "targets",
]
