from __future__ import annotations

import subprocess
import sys

import pybuild


def test_the_public_names_are_exactly_these() -> None:
    assert sorted(pybuild.__all__) == [
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


def test_every_public_name_is_there() -> None:
    for name in pybuild.__all__:
        assert getattr(pybuild, name) is not None


def test_a_name_is_loaded_when_it_is_asked_for_and_not_before() -> None:
    program = (
        "import sys, pybuild; before = {n for n in sys.modules if n.startswith('pybuild')}\n"
        "assert before == {'pybuild'}, before\n"
        "assert set(pybuild.__all__) <= set(dir(pybuild))\n"
        "assert not hasattr(pybuild, 'Buidl')\n"
        "from pybuild import *\n"
        "assert build is pybuild.build and issubclass(RunFailed, PybuildError)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
