"""Instructions -> a plan: stages, base images, steps, configs, cache keys."""

from pybuild.plan.describe import describe_plan, plan_as_json
from pybuild.plan.evaluate import make_plan, make_plans
from pybuild.plan.steps import Plan, PlanRequest, needs

__all__ = [
    "Plan",
    "PlanRequest",
    "describe_plan",
    "make_plan",
    "make_plans",
    "needs",
    "plan_as_json",
]
