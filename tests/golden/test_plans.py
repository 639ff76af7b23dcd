"""Each folder here is a case: a Dockerfile, and the plan that must come of it.

``plan.txt`` and ``plan.json`` are expected, or ``error.txt`` where the Dockerfile is refused.
``request.json`` may give target, build_args, labels, platforms, contexts, and the triggers of
base images by name. ``pytest tests/golden --regenerate`` writes what is expected anew.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pybuild.backend import BaseImage
from pybuild.dockerfile.parse import parse
from pybuild.errors import PybuildError, SourceRange
from pybuild.oci.image_config import HistoryEntry, ImageConfig
from pybuild.oci.platform import Platform, parse_platform
from pybuild.oci.reference import Reference
from pybuild.plan import Plan, PlanRequest, make_plans
from pybuild.plan.contexts import parse_context
from pybuild.plan.describe import describe_plan, plan_as_json
from pybuild.plan.resolve import ImageName

FOLDER = Path(__file__).parent
CASES = sorted(path.parent.name for path in FOLDER.glob("*/Dockerfile"))
AMD64 = Platform("linux", "amd64")


def plan_case(folder: Path) -> Plan:
    path = folder / "request.json"
    asked: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    triggers = asked.get("triggers", {})

    def resolve(reference: ImageName, platform: Platform, where: SourceRange) -> BaseImage:
        assert isinstance(reference, Reference)
        config = ImageConfig(
            platform,
            env=(("PATH", "/bin"),),
            cmd=("sh",),
            onbuild=tuple(triggers.get(reference.repository.removeprefix("library/"), ())),
            history=(HistoryEntry("base layer"),),
        )
        digest = sha256(f"{reference} {platform}".encode()).hexdigest()
        return BaseImage(reference, f"sha256:{digest}", config, ())

    requests = [
        PlanRequest(
            parse_platform(platform),
            AMD64,
            asked.get("target"),
            asked.get("build_args", {}),
            asked.get("labels", {}),
            contexts={n: parse_context(v) for n, v in asked.get("contexts", {}).items()},
        )
        for platform in asked.get("platforms", ["linux/amd64"])
    ]
    dockerfile = parse((folder / "Dockerfile").read_bytes())
    return make_plans(dockerfile, requests, resolve)


def outcome(folder: Path) -> dict[str, str]:
    try:
        plan = plan_case(folder)
    except PybuildError as error:
        return {"error.txt": f"{type(error).__name__}: {error}\n"}
    text = json.dumps(plan_as_json(plan), indent=2, ensure_ascii=False)
    return {"plan.txt": describe_plan(plan), "plan.json": f"{text}\n"}


def test_there_are_cases() -> None:
    assert CASES


@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_the_one_expected(case: str, request: pytest.FixtureRequest) -> None:
    folder = FOLDER / case
    found = outcome(folder)
    names = ("plan.txt", "plan.json", "error.txt")
    if request.config.getoption("--regenerate", default=False):
        for name in names:
            (folder / name).unlink(missing_ok=True)
        for name, text in found.items():
            (folder / name).write_text(text, "utf-8")
    expected = {n: (folder / n).read_text("utf-8") for n in names if (folder / n).exists()}
    assert found == expected
