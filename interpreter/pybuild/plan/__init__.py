"""Instructions -> a plan: stages, base images, steps, configs, cache keys."""

from pybuild.plan.evaluate import make_plan, make_plans
from pybuild.plan.steps import Plan, PlanRequest, needs

__all__ = [
    "Plan",
    "PlanRequest",
    "make_plan",
    "make_plans",
    "needs",
]
