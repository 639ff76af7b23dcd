"""Instructions -> a plan: stages, base images, steps, configs, cache keys."""

from pybuild.plan.describe import describe_plan, plan_as_json
from pybuild.plan.evaluate import make_plan
from pybuild.plan.steps import Plan, PlanRequest, needs

__all__ = ["Plan", "PlanRequest", "describe_plan", "make_plan", "needs", "plan_as_json"]
