"""The stages of a Dockerfile as targets of a build, and the comments that describe them."""

from __future__ import annotations

from collections.abc import Sequence

from pybuild.dockerfile.instructions import Dockerfile, From
from pybuild.errors import SourceRange
from pybuild.values import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """A stage. ``base`` and ``platform`` are as written, variables and all; ``description`` is
    empty where no comment ``# NAME text`` stands right above.
    """

    name: str | None
    description: str
    default: bool
    base: str
    platform: str | None
    where: SourceRange


def list_targets(dockerfile: Dockerfile) -> tuple[Target, ...]:
    """All stages in order; the last one is the default."""
    heads = [i for i in dockerfile.instructions if isinstance(i, From)]
    return tuple(
        Target(
            name=head.stage,
            description=description_of(head.stage or "", head.comments),
            default=head is heads[-1],
            base=head.image,
            platform=head.platform,
            where=head.where,
        )
        for head in heads
    )


def description_of(name: str, comments: Sequence[str]) -> str:
    """What the comments above an ARG or FROM say of `name`: the text in ``# name text``."""
    prefix = f"{name} "
    texts = (c.removeprefix(prefix) for c in comments if name and c.startswith(prefix))
    return next(texts, "")
