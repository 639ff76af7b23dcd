"""Secret values that a caller passes into a build."""

from __future__ import annotations

from pybuild.values import dataclass, field


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret's bytes; its repr doesn't show them."""

    value: bytes = field(repr=False)
