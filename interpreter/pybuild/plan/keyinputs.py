"""What the plan key of a step is made of, in rows that can be compared and shown to people.

The rows come from the same values as the key (:func:`~pybuild.plan.cachekey.step_fields`), so
two steps on one parent have the same key exactly if they have the same rows.
"""

from __future__ import annotations

import json
from enum import Enum

from pybuild.plan.cachekey import step_fields
from pybuild.plan.steps import Step
from pybuild.values import dataclass


class InputKind(Enum):
    """What a row is about."""

    VARIABLE = "variable"
    """A variable that the process sees: an ARG or ENV."""
    MOUNT = "mount"
    FIELD = "field"
    """Anything else, by a name of :func:`~pybuild.plan.cachekey.step_fields`."""


@dataclass(frozen=True, slots=True)
class KeyInput:
    """One thing that counts. ``value`` is text as it is, all else as JSON."""

    kind: InputKind
    name: str
    value: str


def step_inputs(step: Step) -> tuple[KeyInput, ...]:
    """All that counts of `step` itself, in an order that counts; never the value of a secret."""
    kind, fields = step_fields(step)
    rows = [KeyInput(InputKind.FIELD, "kind", kind)]
    for name, value in fields.items():
        match name:
            case "env":
                rows += [KeyInput(InputKind.VARIABLE, *pair) for pair in value]
            case "mounts":
                # the kind of a mount and where it shows, or the id of what it shows
                rows += [KeyInput(InputKind.MOUNT, f"{m[0]} {m[1]}", _text(m)) for m in value]
            case _:
                if value is not None:
                    rows.append(KeyInput(InputKind.FIELD, name, _text(value)))
    return tuple(rows)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
