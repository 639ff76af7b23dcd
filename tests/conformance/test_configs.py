"""Config and history of real Dockerfiles, compared with what BuildKit's frontend computes."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pybuild.backend import BaseImage
from pybuild.dockerfile.parse import parse
from pybuild.errors import DockerfileError, SourceRange
from pybuild.oci.image_config import HistoryEntry, ImageConfig, serialize_config
from pybuild.oci.platform import Platform
from pybuild.oci.reference import Reference
from pybuild.plan import Plan, PlanRequest, make_plan

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "conformance"
AMD64 = Platform("linux", "amd64")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BASE = ImageConfig(AMD64, env=(("PATH", PATH),), cmd=("sh",))


def load(name: str) -> Any:
    path = FOLDER / name
    if path.exists():
        return json.loads(path.read_text("utf-8"))["cases"]
    if "CI" in os.environ:
        pytest.fail(f"the conformance data is missing: {FOLDER}")
    return None


def collect() -> list[Any]:
    oracle = load("oracle_configs.json")
    if oracle is None:
        return [
            pytest.param("", {}, marks=pytest.mark.skip(reason=f"no conformance data at {FOLDER}"))
        ]
    found = []
    for source in ("buildah", "moby"):
        for case in load(f"{source}_cases.json"):
            expected = oracle[source].get(case["name"])
            if expected is not None:
                found.append(pytest.param(case, expected, id=f"{source}-{case['name']}"))
    return found


def request_of(case: dict[str, Any]) -> PlanRequest:
    build_args = dict(case.get("build_args") or {})
    labels: dict[str, str] = {}
    target = None
    flags = iter(case.get("flags") or [])
    for flag in flags:
        name, equals, value = flag.partition("=")
        if name in {"--build-arg", "--label", "--target"} and not equals:
            value = next(flags)
        match name:
            case "--build-arg":
                key, given, text = value.partition("=")
                if given:
                    build_args[key] = text
                else:
                    environment = dict(pair.split("=", 1) for pair in case.get("env") or [])
                    if key in environment:
                        build_args[key] = environment[key]
            case "--label":
                key, _, text = value.partition("=")
                labels[key] = text
            case "--target":
                target = value
    return PlanRequest(AMD64, AMD64, target, build_args, labels)


def resolve(reference: Reference, platform: Platform, where: SourceRange) -> BaseImage:
    return BaseImage(reference, "sha256:" + "0" * 64, replace(BASE, platform=platform), ())


def plan_case(case: dict[str, Any]) -> Plan:
    return make_plan(parse(case["dockerfile"].encode()), request_of(case), resolve)


def config_of(plan: Plan) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(serialize_config(plan.target.config))["config"]
    return config


def history_of(plan: Plan) -> list[dict[str, Any]]:
    target = plan.target
    own = [HistoryEntry(h.created_by, empty_layer=h.step is None) for h in target.history]
    return [
        {"created_by": entry.created_by} | ({"empty_layer": True} if entry.empty_layer else {})
        for entry in (*target.inherited, *own)
    ]


@pytest.mark.parametrize(("case", "expected"), collect())
def test_config_and_history_are_those_of_buildkit(
    case: dict[str, Any], expected: dict[str, Any]
) -> None:
    if "error" in expected:
        with pytest.raises(DockerfileError) as caught:
            plan_case(case)
        assert caught.value.where is not None
        return
    plan = plan_case(case)
    assert config_of(plan) == expected["config"]
    assert history_of(plan) == expected["history"]
