from __future__ import annotations

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


def test_every_public_name_is_there() -> None:
    for name in pybuild.__all__:
        assert getattr(pybuild, name) is not None
