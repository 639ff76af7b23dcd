"""pybuild builds OCI images from Dockerfiles, without BuildKit.

::

    import pybuild

    result = pybuild.build(".", tags=["hello:1"])
    print(result.names, result.digest)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pybuild.api import PlannedBuild, build, plan_build
    from pybuild.backend import (
        Backend,
        HostEntry,
        Network,
        PullPolicy,
        Ulimit,
    )
    from pybuild.backends import backend_names, open_backend
    from pybuild.builder import Builder, BuildFuture, BuildOptions
    from pybuild.checks import (
        CheckResult,
        OutlineResult,
        TargetsResult,
        check,
        outline,
        targets,
    )
    from pybuild.dockerfile.instructions import Dockerfile
    from pybuild.dockerfile.lint import LintWarning
    from pybuild.dockerfile.targets import Target
    from pybuild.errors import (
        AuthenticationRequired,
        BackendError,
        BackendFailed,
        BackendUnavailable,
        BuildCancelled,
        CacheMissed,
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
        LockError,
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
    from pybuild.explanations import explain
    from pybuild.files.filesystem import FileSystem
    from pybuild.files.memorycontext import File
    from pybuild.htmlreport.report import HtmlReport
    from pybuild.image import Image
    from pybuild.lockfile import Lock, LockChange, LockedImage, read_lock
    from pybuild.locking import lock_images
    from pybuild.oci.platform import Platform
    from pybuild.plan.outline import Outline, OutlineArg, OutlineMount
    from pybuild.remotes.options import RemoteOptions
    from pybuild.run.activity import CancelToken
    from pybuild.run.events import (
        BuildFinished,
        Event,
        ImageMade,
        LintReported,
        OriginKind,
        PlanMade,
        Reporter,
        StageOrigin,
        StageOutline,
        StepFinished,
        StepLog,
        StepMissed,
        StepProgress,
        StepStarted,
        Warned,
    )
    from pybuild.run.explaining.recorded import RecordedBuild, RecordedStage, RecordedStep
    from pybuild.run.miss import Cause, CauseKind, Miss
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
    "BuildFuture",
    "BuildOptions",
    "BuildResult",
    "Builder",
    "BuiltImage",
    "CacheMissed",
    "CancelToken",
    "Cause",
    "CauseKind",
    "CheckResult",
    "ContextError",
    "CopyFailed",
    "Dockerfile",
    "DockerfileError",
    "DockerfileSyntaxError",
    "Event",
    "ExpansionError",
    "ExportFailed",
    "FetchFailed",
    "File",
    "FileSystem",
    "HostEntry",
    "HtmlReport",
    "Image",
    "ImageError",
    "ImageMade",
    "ImageNotFound",
    "InvalidImage",
    "LintReported",
    "LintWarning",
    "Lock",
    "LockChange",
    "LockError",
    "LockedImage",
    "Miss",
    "Network",
    "OriginKind",
    "Outline",
    "OutlineArg",
    "OutlineMount",
    "OutlineResult",
    "OutputResult",
    "PlanMade",
    "PlannedBuild",
    "Platform",
    "PlatformMismatch",
    "PullPolicy",
    "PybuildError",
    "RecordedBuild",
    "RecordedStage",
    "RecordedStep",
    "RegistryError",
    "RemoteOptions",
    "Reporter",
    "RunFailed",
    "Secret",
    "SourceRange",
    "StageCycle",
    "StageNotFound",
    "StageOrigin",
    "StageOutline",
    "StepFailed",
    "StepFinished",
    "StepLog",
    "StepMissed",
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
    "explain",
    "lock_images",
    "open_backend",
    "outline",
    "plan_build",
    "read_lock",
    "targets",
]

# Each is loaded when it is asked for: `import pybuild` precedes every import of a module in it.
_HOMES = {
    "pybuild.api": ("PlannedBuild", "build", "plan_build"),
    "pybuild.backend": ("Backend", "HostEntry", "Network", "PullPolicy", "Ulimit"),
    "pybuild.backends": ("backend_names", "open_backend"),
    "pybuild.builder": ("BuildFuture", "BuildOptions", "Builder"),
    "pybuild.checks": (
        "CheckResult",
        "OutlineResult",
        "TargetsResult",
        "check",
        "outline",
        "targets",
    ),
    "pybuild.dockerfile.instructions": ("Dockerfile",),
    "pybuild.dockerfile.lint": ("LintWarning",),
    "pybuild.dockerfile.targets": ("Target",),
    "pybuild.errors": (
        "AuthenticationRequired",
        "BackendError",
        "BackendFailed",
        "BackendUnavailable",
        "BuildCancelled",
        "CacheMissed",
        "ContextError",
        "CopyFailed",
        "DockerfileError",
        "DockerfileSyntaxError",
        "ExpansionError",
        "ExportFailed",
        "FetchFailed",
        "ImageError",
        "ImageNotFound",
        "InvalidImage",
        "LockError",
        "PlatformMismatch",
        "PybuildError",
        "RegistryError",
        "RunFailed",
        "SourceRange",
        "StageCycle",
        "StageNotFound",
        "StepFailed",
        "UnknownInstruction",
        "UnsupportedByBackend",
        "UsageError",
    ),
    "pybuild.explanations": ("explain",),
    "pybuild.lockfile": ("Lock", "LockChange", "LockedImage", "read_lock"),
    "pybuild.locking": ("lock_images",),
    "pybuild.files.filesystem": ("FileSystem",),
    "pybuild.files.memorycontext": ("File",),
    "pybuild.htmlreport.report": ("HtmlReport",),
    "pybuild.image": ("Image",),
    "pybuild.oci.platform": ("Platform",),
    "pybuild.plan.outline": ("Outline", "OutlineArg", "OutlineMount"),
    "pybuild.remotes.options": ("RemoteOptions",),
    "pybuild.run.activity": ("CancelToken",),
    "pybuild.run.events": (
        "BuildFinished",
        "Event",
        "ImageMade",
        "LintReported",
        "OriginKind",
        "PlanMade",
        "Reporter",
        "StageOrigin",
        "StageOutline",
        "StepFinished",
        "StepLog",
        "StepMissed",
        "StepProgress",
        "StepStarted",
        "Warned",
    ),
    "pybuild.run.explaining.recorded": ("RecordedBuild", "RecordedStage", "RecordedStep"),
    "pybuild.run.miss": ("Cause", "CauseKind", "Miss"),
    "pybuild.run.result": ("BuildResult", "BuiltImage", "OutputResult", "StepResult"),
    "pybuild.secrets": ("Secret",),
}


if not TYPE_CHECKING:  # to a type checker, any name would be there

    def __getattr__(name: str) -> object:
        """A public name, from the module where it is defined (PEP 562)."""
        for module, names in _HOMES.items():
            if name in names:
                return getattr(import_module(module), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
